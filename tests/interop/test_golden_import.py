"""Imported reference checkpoints answer as the reference did: routing, logits, greedy ids, at every stage."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hide_llava.data.dataset import QuestionDataset
from hide_llava.data.records import load_questions
from hide_llava.errors import UserError
from hide_llava.evaluation.cells import _Collate, answer_batch
from hide_llava.interop.hide_reference import import_run
from hide_llava.training.run import Run
from hide_llava.training.session import Session
from tests.golden_reference import GOLDEN


def base_folder(kind: str, tmp_path: Path) -> Path:
    """The base of a run: e3 differs from e6 in its config.json only, so the weights are stored once."""
    base = tmp_path / "base"
    shutil.copytree(GOLDEN / "base", base)
    if kind == "e3":
        shutil.copy(GOLDEN / "base_e3" / "config.json", base / "config.json")
    return base


def checkpoints(kind: str, count: int) -> list[Path]:
    return [GOLDEN / f"ckpt_{kind}" / f"Task{i}_llava_lora_ours" for i in range(1, count + 1)]


@pytest.mark.parametrize(("kind", "stages"), [("e3", 3), ("e6", 2)])
def test_every_stage_answers_as_recorded(kind: str, stages: int, tmp_path: Path) -> None:
    run = import_run(checkpoints(kind, stages), base_folder(kind, tmp_path), GOLDEN / "clip", tmp_path / "run")
    session = Session(Run.at(run.path))
    questions = load_questions(GOLDEN / "data" / "test.json", GOLDEN / "data")
    data = QuestionDataset(questions, GOLDEN / "data", session.backbone.reader(routing="reference"))
    for stage in range(stages):
        recorded = json.loads((GOLDEN / f"eval_{kind}" / f"task{stage + 1}.json").read_text())["samples"]
        tensors = load_file(GOLDEN / f"eval_{kind}" / f"task{stage + 1}.safetensors")
        session.restore(stage)
        with session:
            for i, sample in enumerate(recorded):
                batch = _Collate()([data[i]])
                assert batch["texts"] == sample["clip_text"]
                row = answer_batch(session, batch, 10, None)[0]
                expected = torch.tensor(sample["expert_weight"][: stage + 1])
                torch.testing.assert_close(torch.tensor(list(row["routing"].values())), expected, atol=1e-5, rtol=0)
                assert row["token_ids"] == sample["generated_ids"]
                check_logits(session, batch, tensors, f"q{i}.")


def check_logits(session: Session, batch: dict, tensors: dict, prefix: str) -> None:
    with torch.no_grad():
        output = session.routed(**batch)
    logits = output.logits[0]
    torch.testing.assert_close(output.features.image[0], tensors[f"{prefix}image_guide_features"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.features.text[0], tensors[f"{prefix}text_guide_features"], atol=1e-5, rtol=1e-4)
    close = {"atol": 1e-4, "rtol": 1e-4}
    if f"{prefix}logits_last" in tensors:
        torch.testing.assert_close(logits[-1], tensors[f"{prefix}logits_last"], **close)
        return
    tail = tensors[f"{prefix}logits_tail"]
    torch.testing.assert_close(logits[-len(tail) :], tail, **close)
    everywhere = torch.stack([logits.mean(1), logits.std(1), logits.max(1).values], 1)
    torch.testing.assert_close(everywhere, tensors[f"{prefix}logits_pos_stats"], **close)
    top = logits.topk(2, dim=1).values
    clear = (top[:, 0] - top[:, 1]) > 1e-4
    assert torch.equal(logits.argmax(1)[clear], tensors[f"{prefix}logits_argmax"].long()[clear])


def test_only_the_last_folder(tmp_path: Path) -> None:
    """The last task's folder holds all experts: its stage works, earlier ones say what is missing."""
    run = import_run(checkpoints("e3", 3)[2:], base_folder("e3", tmp_path), GOLDEN / "clip", tmp_path / "run")
    session = Session(Run.at(run.path))
    session.restore(2)
    assert session.method.learned == [0, 1, 2]
    with pytest.raises(UserError, match="own checkpoint"):
        session.restore(1)


def test_more_checkpoints_than_tasks_are_refused(tmp_path: Path) -> None:
    """Nothing is read and then dropped: the benchmark of two tasks has no place for the third folder."""
    files = {"train": "train.json", "test": "test.json", "metric": "exact_upper"}
    tasks = [{"id": f"t{i}", "title": f"T{i}", **files} for i in (1, 2)]
    (tmp_path / "two.yaml").write_text(json.dumps({"benchmark": {"name": "two", "tasks": tasks}}))
    with pytest.raises(UserError, match=r"is of task 3, and two has 2 tasks; give a --benchmark with as many"):
        import_run(checkpoints("e3", 3), base_folder("e3", tmp_path), GOLDEN / "clip", tmp_path / "run",
                   benchmark=str(tmp_path / "two.yaml"))  # fmt: skip
    assert not (tmp_path / "run").exists()


def damage(tmp_path: Path, file: str, change) -> Path:
    folder = tmp_path / "Task1_llava_lora_ours"
    shutil.copytree(checkpoints("e3", 1)[0], folder)
    state = torch.load(folder / file, weights_only=True)
    change(state)
    torch.save(state, folder / file)
    return folder


ONE = "base_model.model.model.layers.1.mlp.up_proj.lora_A.loraA.0.weight"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adapter_model.bin", lambda s: s.pop(ONE), "lacks 1 tensors"),
        ("adapter_model.bin", lambda s: s.update({"something.else": s[ONE]}), "unknown key something.else"),
        ("adapter_model.bin", lambda s: s.update({ONE.replace(".weight", ".mlp.weight"): s[ONE] + 1}), "two names"),
        ("adapter_model.bin", lambda s: s.update({ONE: s[ONE][:2]}), "expected rank 4"),
        ("adapter_model.bin", lambda s: [s[k].zero_() for k in s if "loraB.0" in k], "B are zero"),
        ("non_lora_trainables.bin", lambda s: s.pop("base_model.model.image_anchors.3"), "has gaps"),
        ("non_lora_trainables.bin", lambda s: s.pop("base_model.model.model.mm_projector.0.bias"), "3 of 4"),
    ],
)
def test_damaged_checkpoints_are_refused(file: str, change, message: str, tmp_path: Path) -> None:
    folder = damage(tmp_path, file, change)
    with pytest.raises(UserError, match=message):
        import_run([folder], GOLDEN / "base", GOLDEN / "clip", tmp_path / "run")


def test_alias_spelling_and_frozen_projector(tmp_path: Path) -> None:
    """Both spellings of an expert weight are one tensor; without a projector the anchors keep another prefix."""
    folder = damage(tmp_path, "adapter_model.bin", lambda s: s.update({ONE.replace(".weight", ".mlp.weight"): s[ONE]}))
    others = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    frozen = {k.removeprefix("base_model."): v for k, v in others.items() if "projector" not in k}
    torch.save(frozen, folder / "non_lora_trainables.bin")
    run = import_run([folder], GOLDEN / "base", GOLDEN / "clip", tmp_path / "run")
    assert not (run.stage("01-task-1") / "projector.safetensors").exists()
    Session(Run.at(run.path)).restore(0)


def test_two_runs_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not one run"):
        change = lambda s: s[ONE].add_(1)  # noqa: E731
        import_run([damage(tmp_path, "adapter_model.bin", change), checkpoints("e3", 2)[1]], GOLDEN / "base",
                   GOLDEN / "clip", tmp_path / "run")  # fmt: skip


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    folder = damage(tmp_path, "adapter_model.bin", lambda s: None)
    torch.save({"x": print}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="not a plain tensor file"):
        import_run([folder], GOLDEN / "base", GOLDEN / "clip", tmp_path / "run")
