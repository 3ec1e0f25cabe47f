"""Batches that do not fit into memory are cut, and nothing is lost."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hide_llava.errors import UserError
from hide_llava.evaluation import cells
from hide_llava.evaluation.batches import ON_CPU, automatic_batch_size, cache_bytes, halves, within_memory
from hide_llava.methods.routed import RoutedLlava
from hide_llava.pipeline import run
from tests.tiny import configuration, write_world


def batch_of(images: list[bool]) -> dict:
    """Row b has id b; its pixels are filled with the row they belong to."""
    rows = torch.arange(len(images))
    has_image = torch.tensor(images)
    pixels = [{"pixel_values": torch.full((1, 3, 2, 2), float(b))} if has else None for b, has in enumerate(images)]
    return {"ids": [str(b) for b in range(len(images))], "input_ids": rows.unsqueeze(1), "has_image": has_image,
            "pixels": pixels, "sizes": [[(2, 2)] if has else [] for has in images], "texts": ["x"] * len(images),
            "types": {"kind": 10 * rows.unsqueeze(1)}}  # fmt: skip


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 9))
def test_every_row_keeps_its_image_and_its_place(images: list[bool], fits: int) -> None:
    calls = []

    def answer(batch: dict) -> list[tuple[str, float | None]]:
        if len(batch["ids"]) > fits:
            raise torch.OutOfMemoryError("too much")
        calls.append(len(batch["ids"]))
        assert len(batch["pixels"]) == len(batch["ids"])
        of_rows = iter([row["pixel_values"][0, 0, 0, 0].item() for row in batch["pixels"] if row is not None])
        rows = [(i, next(of_rows) if has else None) for i, has in zip(batch["ids"], batch["has_image"])]
        assert next(of_rows, None) is None and batch["input_ids"].flatten().tolist() == [int(i) for i in batch["ids"]]
        assert batch["types"]["kind"].flatten().tolist() == [10 * int(i) for i in batch["ids"]]
        assert [len(sizes) for sizes in batch["sizes"]] == batch["has_image"].long().tolist()
        return rows

    rows = within_memory(answer, batch_of(images))
    assert rows == [(str(b), float(b) if has else None) for b, has in enumerate(images)]
    assert max(calls) <= fits and sum(calls) == len(images)


def test_one_question_that_does_not_fit_is_named() -> None:
    def answer(batch: dict) -> list:
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(UserError, match="question '0' alone"):
        within_memory(answer, batch_of([True, False]))


def test_halves_of_an_uneven_batch() -> None:
    first, second = halves(batch_of([False, True, True]))
    assert (first["ids"], first["pixels"], second["ids"]) == (["0"], [None], ["1", "2"])
    assert [row["pixel_values"][:, 0, 0, 0].tolist() for row in second["pixels"]] == [[1.0], [2.0]]


def test_a_run_that_runs_out_of_memory_answers_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = write_world(tmp_path / "world")
    words = ("train.epochs=1", "eval.batch_size=6", "eval.max_new_tokens=4")
    run(configuration(world, "lora", tmp_path / "roomy", *words), report=False)
    generate = RoutedLlava.generate

    def tight(self: RoutedLlava, batch: dict, *rest: object) -> object:
        if len(batch["ids"]) > 2:
            raise torch.OutOfMemoryError("too much")
        return generate(self, batch, *rest)

    monkeypatch.setattr(RoutedLlava, "generate", tight)
    run(configuration(world, "lora", tmp_path / "tight", *words), report=False)
    files = sorted(p.relative_to(tmp_path / "roomy") for p in (tmp_path / "roomy").rglob("predictions.jsonl"))
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "roomy" / file).read_bytes() == (tmp_path / "tight" / file).read_bytes()


def test_other_weights_are_noticed(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    config = configuration(world, "lora", tmp_path / "run", "train.epochs=1", "eval.max_new_tokens=4")
    run(config, report=False)
    stage = next((tmp_path / "run" / "stages").glob("03-*"))
    other = next((tmp_path / "run" / "stages").glob("02-*"))
    weights = Path("adapter") / "adapter_model.safetensors"
    (stage / weights).write_bytes((other / weights).read_bytes())
    with pytest.raises(UserError, match="is not the file that was written when the task was trained"):
        run(config, report=False)


def test_the_cache_of_a_7b_is_as_computed_by_hand() -> None:
    class Text:
        num_hidden_layers, num_key_value_heads, num_attention_heads = 32, 32, 32
        hidden_size, intermediate_size, head_dim = 4096, 11008, 128

    class Llava:
        config = type("Config", (), {"get_text_config": lambda: Text})
        dtype, device = torch.bfloat16, torch.device("cpu")

    kept = 2 * 32 * 4096 * 2  # keys and values of 32 layers in bf16: 512 KiB a token
    assert cache_bytes(Llava(), 1000) == 1000 * (kept + 4 * 2 * (4096 + 11008))
    assert automatic_batch_size(Llava(), lambda: 1000) == ON_CPU


# ------------------------------------------------------------------------------------------------- all cells of a stage
def test_batches_are_of_one_cell_and_one_loader_reads_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By workers as without: the same answers; a killed cell is gone on with, the next begun."""
    world, words = write_world(tmp_path / "world"), ("train.epochs=1", "eval.max_new_tokens=4", "tasks=[task0,task1]")
    run(configuration(world, "lora", tmp_path / "run", *words), report=False)
    files = sorted((tmp_path / "run" / "eval" / "02-task1").glob("*/predictions.jsonl"))
    before = {file: file.read_bytes() for file in files}
    assert len(files) == 2
    first, second = files
    first.with_name("part-0.jsonl").write_bytes(b"".join(before[first].splitlines(keepends=True)[:3]))
    for name in ("score.json", "settings.json"):
        (second.parent / name).unlink()
    for file in files:
        file.unlink()
    (first.parent / "score.json").unlink()
    loaders, real = [], cells.DataLoader
    monkeypatch.setattr(cells, "DataLoader", lambda *args, **kw: loaders.append(kw) or real(*args, **kw))
    run(configuration(world, "lora", tmp_path / "run", *words, "eval.num_workers=2"), report=False)
    assert {file: file.read_bytes() for file in files} == before
    (asked,) = loaders
    assert asked["num_workers"] == 2 and all(len({cell for cell, _ in batch}) == 1 for batch in asked["batch_sampler"])


def test_an_error_of_scoring_names_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised from the thread; the answers of all cells stay, and the next start scores them."""
    world, words = write_world(tmp_path / "world"), ("train.epochs=1", "eval.max_new_tokens=4", "tasks=[task0]")
    score, failing = cells.score, [UserError("no references")]
    monkeypatch.setattr(cells, "score", lambda *args: score(*args) if not failing else (_ for _ in ()).throw(failing.pop()))
    with pytest.raises(UserError, match="01-task0 on task0: no references"):
        run(configuration(world, "lora", tmp_path / "run", *words), report=False)
    cell = tmp_path / "run" / "eval" / "01-task0" / "task0"
    answers = (cell / "predictions.jsonl").stat().st_mtime_ns
    run(configuration(world, "lora", tmp_path / "run", *words), report=False)
    assert (cell / "score.json").is_file() and (cell / "predictions.jsonl").stat().st_mtime_ns == answers


@pytest.mark.parametrize("device, cores, local, workers", [
    ("cpu", 16, 1, 0), ("cuda", 16, 1, 8), ("cuda", 16, 4, 4), ("cuda", 4, 8, 1),
])  # fmt: skip
def test_workers_by_cores(
    device: str, cores: int, local: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    monkeypatch.setattr(cells.os, "sched_getaffinity", lambda _: set(range(cores)))
    assert cells.automatic_workers(torch.device(device)) == workers
