"""Every shape of records trains, answers, scores, and is previewed, checked and audited, as its twin in LLaVA's JSON."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from hide_llava.storage import sha256
from tests.cli.call import call
from tests.tiny import arguments

PICTURED = 2  # records with a picture; the third has none
ANSWERS = ("circle", "square", "star")
SCORED = ("score", "legacy", "clean", "verdicts", "error_profile", "metric", "n_scored", "predictions_sha256")
SYSTEM = "Answer in one word."


def image(i: int, asked: bool) -> str | None:
    return f"task0/{'test' if asked else 'train'}{i}.png" if i < PICTURED else None


def text(i: int, asked: bool) -> str:
    return f"What is {'thing' if asked else 'object'} {i}?"


def llava(i: int, asked: bool) -> dict[str, Any]:
    """A record of LLaVA's, with the text of a system turn where the others have one."""
    named = {"image": image(i, asked)} if image(i, asked) else {}
    whole = f"{SYSTEM}\n\n{text(i, asked)}"
    if asked:
        return {"question_id": i, **named, "text": whole, "answer": ANSWERS[i]}
    return {"id": f"r{i}", **named, "conversations": [
        {"from": "human", "value": ("<image>\n" if named else "") + whole}, {"from": "gpt", "value": ANSWERS[i]}]}  # fmt: skip


Picture = Callable[[str], Any]


def messages(i: int, picture: Picture, asked: bool) -> dict[str, Any]:
    """OpenAI's shape. picture: what stands for a picture's file."""
    name = image(i, asked)
    parts = [{"type": "image_url", "image_url": {"url": picture(name)}}] if name else []
    content = [*parts, {"type": "text", "text": text(i, asked)}]
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
    return {"id": i if asked else f"r{i}", "messages": [*turns, {"role": "assistant", "content": ANSWERS[i]}]}


def sharegpt(i: int, asked: bool) -> dict[str, Any]:
    name = image(i, asked)
    value = ("<image>\n" if name and not asked else "") + text(i, asked)
    turns = [{"from": "system", "value": SYSTEM}, {"from": "human", "value": value}, {"from": "gpt", "value": ANSWERS[i]}]
    return {"id": i if asked else f"r{i}", "images": [name] if name else [], "conversations": turns}


def columns(i: int, picture: Picture, asked: bool) -> dict[str, Any]:
    """A row of a table that holds its picture."""
    name = image(i, asked)
    return llava(i, asked) | {"image": picture(name) if name else None}


def write_lines(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file.name


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> str:
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=2)
    return file.name


def write_shards(folder: Path, rows: list[dict[str, Any]]) -> str:
    folder.mkdir()
    for i, part in enumerate((rows[:2], rows[2:])):
        parquet.write_table(pyarrow.Table.from_pylist(part, pyarrow.Table.from_pylist(rows).schema),
                            folder / f"train-0000{i}-of-00002.parquet")  # fmt: skip
    return folder.name


def write_saved(folder: Path, rows: list[dict[str, Any]]) -> str:
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    return folder.name


def write_converted(file: Path, rows: list[dict[str, Any]], images: Path) -> str:
    source = file.with_suffix(".json")
    source.write_text(json.dumps(rows))
    called = call("convert", source, file, "--images", images)
    assert called.code == 0 and "3 records; 2 pictures in it" in called.out, called.err
    return file.name


SHAPES = ("messages", "messages-inline", "sharegpt", "parquet", "shards", "saved", "converted")


def write(shape: str, home: Path, data: Path, split: str) -> str:
    """A file or folder of three records in that shape; its name. data: where the pictures are."""
    asked, target = split == "test", home / split

    def inline(name: str) -> str:
        return f"data:image/png;base64,{base64.b64encode((data / name).read_bytes()).decode()}"

    def held(name: str) -> dict[str, Any]:
        return {"bytes": (data / name).read_bytes(), "path": Path(name).name}

    if shape.startswith("messages"):
        picture = inline if shape == "messages-inline" else str
        return write_lines(target.with_suffix(".jsonl"), [messages(i, picture, asked) for i in range(3)])
    if shape == "sharegpt":
        return write_lines(target.with_suffix(".json"), [sharegpt(i, asked) for i in range(3)])
    if shape == "converted":
        return write_converted(target.with_suffix(".parquet"), [llava(i, asked) for i in range(3)], data)
    rows = [columns(i, held, asked) for i in range(3)]
    if shape == "parquet":
        return write_parquet(target.with_suffix(".parquet"), rows)
    return (write_shards if shape == "shards" else write_saved)(target, rows)


def words(world: Path, home: Path, files: dict[str, str]) -> list[str]:
    """Words of a run of one task with these files."""
    task = {"id": "task", "title": "Task", "train": files["train"], "test": files["test"], "metric": "anls_prism"}
    tree = {"name": "shape", "instructions": "annotations", "images": "data", "max_new_tokens": 4, "tasks": [task]}
    (home / "bench.yaml").write_text(json.dumps({"benchmark": tree}))
    given = arguments(world, "hide", home / "run", "train.epochs=1", "train.global_batch_size=2")
    return [f"benchmark={home}/bench.yaml", *given[1:3], f"data_root={home}", *given[4:]]


def made(world: Path, home: Path, shape: str | None) -> list[str]:
    """The data of a run in that shape, or of its twin; words of the run. The pictures' folder holds only what names need."""
    (home / "annotations").mkdir(parents=True)
    if shape in (None, "messages", "sharegpt"):
        shutil.copytree(world / "data", home / "data")
    if shape is None:
        for split in ("train", "test"):
            (home / "annotations" / f"{split}.json").write_text(json.dumps([llava(i, split == "test") for i in range(3)]))
        return words(world, home, {"train": "train.json", "test": "test.json"})
    files = {split: write(shape, home / "annotations", world / "data", split) for split in ("train", "test")}
    return words(world, home, files)


def outcome(home: Path) -> dict[str, Any]:
    """What a run has learned and answered: tensors by their bytes, answers, scores and skipped records."""
    run = home / "run"
    cell = run / "eval" / "01-task" / "task"
    score = json.loads((cell / "score.json").read_text())
    stage = json.loads((run / "manifest.json").read_text())["stages"][0]
    return {
        "weights": {str(f.relative_to(run)): sha256(f) for f in sorted(run.glob("stages/**/*.safetensors"))},
        "answers": [json.loads(line) for line in (cell / "predictions.jsonl").read_text().splitlines()],
        "score": {key: score[key] for key in SCORED},
        "records": stage["records"],
    }


def looked_at(world: Path, given: list[str]) -> list[Any]:
    """What `preview` and `check` say of the data."""
    short = [word for word in given if word.startswith(("benchmark=", "data_root=", "model="))]
    shown = call("preview", short[0], short[2], "--model", world / "llava", "--clip", world / "clip", "--json")
    checked = call("check", *short, "--deep", "--json")
    assert shown.code == checked.code == 0, shown.err + checked.err
    report = json.loads(checked.out)
    files = [{key: value for key, value in file.items() if key != "file"} for file in report["files"]]
    return [[json.loads(line) for line in shown.out.splitlines()], files, [f["kind"] for f in report["findings"]]]


@pytest.fixture(scope="module")
def twin(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Any]]:
    home = tmp_path_factory.mktemp("twin")
    given = made(world, home, None)
    called = call("run", *given)
    assert called.code == 0, called.err
    found = outcome(home)
    assert found["records"] == len(found["answers"]) == 3 and len(found["weights"]) > 1 and found["score"]["score"] > 0
    return found, looked_at(world, given)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_its_twin_to_the_last_bit(
    world: Path, tmp_path: Path, twin: tuple[dict[str, Any], list[Any]], shape: str
) -> None:
    given = made(world, tmp_path, shape)
    called = call("run", *given)
    assert called.code == 0, called.err
    assert outcome(tmp_path) == twin[0]
    assert looked_at(world, given) == twin[1]
