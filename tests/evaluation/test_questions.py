"""What a task asks: several files at once, and everything scoring reads, looked at before the first question."""

import json
from pathlib import Path
from typing import Any

import pytest

from hide_llava.config import compose
from hide_llava.errors import UserError
from hide_llava.evaluation import cells
from hide_llava.metrics import ALL_EMPTY, score
from hide_llava.storage import sha256
from hide_llava.training.run import Run
from tests.cli.call import call, refused
from tests.tiny import OVERRIDES, write_model

KINDS = ("random", "popular", "adversarial")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    tree = {"model": {"name": "tiny", "path": str(folder / "llava"), "clip": str(folder / "clip"), "device": "cpu"}}
    (folder / "model.yaml").write_text(json.dumps(tree))
    return folder / "model.yaml"


def words(model: Path, folder: Path, test: Any, metric: str = "yes_no", **more: Any) -> list[str]:
    """Command-line words of a zero-shot run on a benchmark of one task."""
    task = {"id": "pope", "title": "POPE", "test": test, "metric": metric, **more}
    tree = {"benchmark": {"name": "one", "instructions": "", "images": "", "max_new_tokens": 2, "tasks": [task]}}
    (folder / "bench.yaml").write_text(json.dumps(tree))
    return [f"benchmark={folder}/bench.yaml", f"model={model}", "method=zero_shot", f"data_root={folder}",
            f"output={folder}/run", *OVERRIDES]  # fmt: skip


def pope(folder: Path, lines: bool) -> list[str]:
    """POPE's three files, with ids that begin with 0 in each; JSON lines or JSON lists."""
    names = []
    for kind in KINDS:
        rows = [
            {"question_id": i, "text": f"Is there a {kind} thing in the image?", "label": ("yes", "no")[i % 2]}
            for i in range(4)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows)
        names.append(f"coco_pope_{kind}.json{'l' if lines else ''}")
        (folder / names[-1]).write_text(text)
    return names


@pytest.mark.parametrize("lines", [False, True])
def test_popes_three_files_are_one_task(model: Path, tmp_path: Path, lines: bool) -> None:
    names = pope(tmp_path, lines)
    command = words(model, tmp_path, names)
    checked = call("check", *command)
    assert checked.code == 0, checked.out + checked.err
    called = call("eval", *command)
    assert called.code == 0, called.err
    folder = next((tmp_path / "run" / "eval").glob("*/pope"))
    stored = json.loads((folder / "score.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [f"coco_pope_{kind}:{i}" for kind in KINDS for i in range(4)]
    alone = []
    for kind, name in zip(KINDS, names):
        content = (tmp_path / name).read_text()
        questions = list(map(json.loads, content.splitlines())) if lines else json.loads(content)
        own = [{**r, "question_id": r["question_id"].split(":")[1]} for r in rows if f"_{kind}:" in r["question_id"]]
        alone.append(score("yes_no", own, questions)["legacy"])
    found = stored["legacy"]
    assert [found[f"F1:coco_pope_{kind}"] for kind in KINDS] == [one["F1"] for one in alone]
    assert found["mean_F1"] == pytest.approx(sum(one["F1"] for one in alone) / 3)
    assert found["score"] == found["mean_accuracy"] == pytest.approx(sum(one["score"] for one in alone) / 3)
    assert stored["questions_sha256"] == Run(compose(command)).tasks[0].questions_sha256()
    assert call("eval", *command).code == 0  # nothing is asked again
    (tmp_path / names[2]).write_text((tmp_path / names[2]).read_text().replace("adversarial", "other"))
    refused("eval", *command, says=("another question file",))


def test_one_file_is_as_it_always_was(model: Path, tmp_path: Path) -> None:
    (name, *_) = pope(tmp_path, False)
    for test in (name, [name]):
        (task,) = Run(compose(words(model, tmp_path, test))).tasks
        assert [q["question_id"] for q in task.all_questions()] == [0, 1, 2, 3]
        assert task.questions_sha256() == sha256(tmp_path / name)


@pytest.mark.parametrize("test, says", [
    ([], "a file, or a list of files"), ([[3]], "expected a text or a list of texts"), ("", "a file, or a list of files"),
    (["a/x.json", "b/x.json"], "different names"), ({"a": 1}, "expected a text or a list of texts"),
])  # fmt: skip
def test_a_list_that_means_nothing_is_refused(model: Path, tmp_path: Path, test: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        compose(words(model, tmp_path, test))


def test_a_missing_file_of_several_is_named(model: Path, tmp_path: Path) -> None:
    names = pope(tmp_path, False)
    (tmp_path / names[1]).unlink()
    refused("eval", *words(model, tmp_path, names), says=("1 of 3 files are missing", names[1]))


def test_answers_that_are_all_empty_are_warned_of(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_batch = cells.answer_batch
    monkeypatch.setattr(cells, "answer_batch", lambda *args: [{**row, "text": ""} for row in answer_batch(*args)])
    called = call("eval", *words(model, tmp_path, pope(tmp_path, False)))
    assert called.code == 0 and f"warning: 01-zero-shot on pope: {ALL_EMPTY}" in called.out
    (stored,) = (tmp_path / "run" / "eval").glob("*/pope/score.json")
    assert json.loads(stored.read_text())["labels"] == [ALL_EMPTY]


# Each record of its metric breaks scoring; the run must refuse before it loads the model.
BROKEN = {
    "ids 0 and '0'": ("exact_upper", [{"question_id": 0, "answer": "a"}, {"question_id": "0", "answer": "a"}], "record 1"),
    "a float": ("exact_upper", [{"question_id": 0, "answer": 3.5}], "answer is 3.5"),
    "maybe": ("yes_no", [{"question_id": 0, "answer": "maybe"}], "expected yes or no"),
    "nine answers": ("vqa_soft10", [{"question_id": 0, "answers": ["a"] * 9}], "exactly ten"),
    "three numbers": ("iou50", [{"question_id": 0, "answer_bbox": [0.1, 0.1, 0.5]}], "expected four numbers"),
    "no option": ("option_letter_hide", [{"question_id": 0, "answer": "F"}], "expected a letter A–E"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_run_refuses_before_it_asks(name: str, model: Path, tmp_path: Path) -> None:
    metric, records, says = BROKEN[name]
    (tmp_path / "test.json").write_text(json.dumps([{"text": f"What {i}?", **r} for i, r in enumerate(records)]))
    refused("eval", *words(model, tmp_path, "test.json", metric), says=(f"{tmp_path}/test.json", says))
    assert not list((tmp_path / "run").glob("eval/**/*.jsonl"))


def test_the_other_models_answers_are_looked_at_first(model: Path, tmp_path: Path) -> None:
    """eval.protocol=legacy mixes in another model's answers; one that is missing is told before any question is asked."""
    rows = [{"question_id": i, "text": "Is it?", "answer": "yes"} for i in range(4)]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    legacy = {"reason": "a reason", "answers": "other.jsonl", "workers": 2}
    (task,) = Run(compose([*words(model, tmp_path, "test.json", legacy=legacy), "eval.protocol=legacy"])).tasks
    questions, in_file = task.questions()
    for told, fine in (([2, 3], True), ([2], False)):
        (tmp_path / "other.jsonl").write_text("".join(f'{{"question_id": {i}, "text": "no"}}\n' for i in told))
        if fine:
            task.check_scoring(questions, in_file)
        else:
            with pytest.raises(UserError, match="has no answer to question 3"):
                task.check_scoring(questions, in_file)
    (tmp_path / "other.jsonl").write_text('{"text": "no"}\n')
    with pytest.raises(UserError, match="has no answer to question 2"):
        task.check_scoring(questions, in_file)
