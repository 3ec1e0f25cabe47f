"""lmms-eval itself evaluates a tiny run: its answers and scores are those of our evaluation. Skipped where it is missing."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hide_llava.errors import UserError
from hide_llava.interop.lmms_requests import decoding
from tests.cli.call import call
from tests.interop.worlds import STAGE, trained
from tests.tiny import write_world

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")

PAGE = Path(__file__).parent.parent.parent / "docs" / "OTHER_HARNESSES.md"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world in which the untrained model is right about some questions, of which one task has a suffix and another length."""
    folder = write_world(tmp_path_factory.mktemp("lmms"))
    tree = json.loads((folder / "bench.yaml").read_text())
    tree["benchmark"]["name"] = "mini-ucit"  # as on the page
    tree["benchmark"]["tasks"][1] |= {"prompt_suffix": "\nOne word.", "max_new_tokens": 3}
    (folder / "bench.yaml").write_text(json.dumps(tree))
    return folder


def right_about_some(world: Path, run: Path) -> None:
    """The gold answers of every other question become what the run said, and the run is evaluated again."""
    for task in ("task0", "task1"):
        file = world / "data" / task / "test.json"
        rows = json.loads(file.read_text())
        said = [json.loads(line)["text"] for line in (run / "eval" / STAGE / task / "predictions.jsonl").read_text().splitlines()]
        for row, text in list(zip(rows, said))[::2]:
            row["answer"] = text
        file.write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def hide(world: Path) -> Path:
    first = trained(world, "hide", world / "first")
    right_about_some(world, first)
    return trained(world, "hide", world / "hide")


@pytest.fixture(scope="module")
def tasks(world: Path, hide: Path) -> Path:
    called = call("lmms-tasks", hide, "--output", world / "tasks")
    assert called.code == 0, called.err
    return world / "tasks"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def evaluated(tasks: Path, names: list[str], args: str, **more: Any) -> dict[str, Any]:
    """What lmms-eval found, by its own `simple_evaluate`."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_path=str(tasks), model_name="hide_llava")
    return simple_evaluate(model="hide_llava", model_args=args, tasks=names, task_manager=manager, log_samples=True,
                           bootstrap_iters=0, **{"batch_size": 4, **more})  # fmt: skip


def answers(found: dict[str, Any], name: str) -> list[str]:
    return [sample["filtered_resps"][0] for sample in sorted(found["samples"][name], key=lambda s: s["doc_id"])]


def cell(run: Path, task: str, stage: str = STAGE) -> tuple[list[str], float]:
    folder = run / "eval" / stage / task
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return [row["text"] for row in rows], json.loads((folder / "score.json").read_text())["score"]


def test_answers_and_scores_are_those_of_our_evaluation(hide: Path, tasks: Path) -> None:
    found = evaluated(tasks, ["hide_llava_mini_ucit"], f"run={hide},stage=2")
    for task in ("task0", "task1"):
        said, score = cell(hide, task)
        assert answers(found, f"hide_llava_mini_ucit_{task}") == said
        assert found["results"][f"hide_llava_mini_ucit_{task}"]["score,none"] == pytest.approx(score) and 0 < score < 100


def test_an_earlier_stage_and_a_part_of_the_questions(hide: Path, tasks: Path) -> None:
    found = evaluated(tasks, ["hide_llava_mini_ucit_task0"], f"run={hide},stage=1", limit=3, batch_size=1)
    said, _ = cell(hide, "task0", "01-task0")
    assert answers(found, "hide_llava_mini_ucit_task0") == said[:3]


def test_a_task_of_lmms_eval_is_asked_as_its_messages_say(hide: Path, tasks: Path, tmp_path: Path) -> None:
    """A task in lmms-eval's own way, without anything of ours: its picture and text are a question to the run."""
    from hide_llava import Run

    doc = json.loads((tasks / "questions" / "hide_llava_mini_ucit_task0.jsonl").read_text().splitlines()[0])
    rows = [{"path": doc["images"][0], "ask": ask, "answer": "two"} for ask in ("How many?", "What?")]
    (tmp_path / "own").mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own" / "utils.py").write_text(
        "from PIL import Image\n\ndef visual(doc):\n    return [Image.open(doc['path'])]\n\n"
        "def text(doc):\n    return doc['ask'] + '\\nAnswer briefly.'\n"
    )
    (tmp_path / "own" / "own.yaml").write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/rows.jsonl\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_visual: !function utils.visual\ndoc_to_text: !function utils.text\n"
        "doc_to_target: answer\ngeneration_kwargs:\n  max_new_tokens: 5\n  temperature: 0\n  do_sample: false\n"
        "  image_aspect_ratio: original\nmetric_list:\n  - metric: exact_match\n    aggregation: mean\n"
        "    higher_is_better: true\n"
    )
    found = evaluated(tmp_path / "own", ["own"], f"run={hide},stage=2")
    model = Run(hide).model(2)
    ours = [model.ask(row["path"], row["ask"] + "\nAnswer briefly.", max_new_tokens=5).text for row in rows]
    assert answers(found, "own") == ours


def test_an_oracle_is_told_the_task(world: Path, hide: Path, tasks: Path) -> None:
    run = trained(world, "hide", world / "oracle", "method.routing=oracle")
    found = evaluated(tasks, ["hide_llava_mini_ucit_task1"], f"run={run}")
    assert answers(found, "hide_llava_mini_ucit_task1") == cell(run, "task1")[0]
    from hide_llava.interop.lmms_model import HideLlava

    model = HideLlava(run=str(run))
    model.task_dict["x"] = {"test": [{}]}
    request = type("Request", (), {"args": ("", lambda doc: [{"role": "user", "content": "What?"}], {}, 0, "x", "test")})
    with pytest.raises(UserError, match="give --model_args run=…,task=T with T one of task0, task1"):
        model.generate_until([request])
    for refused in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(UserError, match="generate_until"):
            refused([request])


@pytest.mark.parametrize(("given", "says"), [
    ({"run": None}, "names no run"), ({"colour": "red"}, "colour: not known"), ({"batch_size": "auto"}, "--batch_size auto"),
    ({"task": "tsk1"}, "task1"), ({"stage": 9}, "9"),
])  # fmt: skip
def test_what_is_refused_before_the_model_is_loaded(
    hide: Path, given: dict, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hide_llava.interop.lmms_model import HideLlava

    monkeypatch.setattr("hide_llava.evaluation.model.Session", None)
    with pytest.raises(UserError, match=says):
        HideLlava(**{"run": str(hide), **given})


def test_the_pages_commands(hide: Path, tmp_path: Path) -> None:
    """As they are printed, in a folder that has the run."""
    (block,) = re.findall(r"^### Our benchmarks.*?^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "hide").symlink_to(hide)
    write, evaluate = block.splitlines()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    for line in (f"{sys.executable} -m hide_llava.cli {write.removeprefix('hide-llava ')}", evaluate):
        done = subprocess.run(shlex.split(line), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    for task in ("task0", "task1"):
        (value,) = re.findall(rf"hide_llava_mini_ucit_{task}\|none.*?\|\s*([\d.]+)\|±", done.stdout)
        assert float(value) == pytest.approx(cell(hide, task)[1], abs=1e-3)


def test_the_pages_own_tasks_are_greedy() -> None:
    """What mme, pope and mmbench_en_dev ask for, as lmms-eval has them, is what a run does; they are not downloaded."""
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import load_yaml_config

    (line,) = re.findall(r"--tasks (mme\S+)", PAGE.read_text())
    known = TaskManager("ERROR").task_index
    for name in line.split(","):
        options = load_yaml_config(known[name]["yaml_path"], mode="simple")["generation_kwargs"]
        assert decoding(options, name).max_new_tokens > 0


def test_the_entry_point_is_found() -> None:
    from lmms_eval.models import get_model_manifest

    assert get_model_manifest("hide_llava").chat_class_path == "hide_llava.interop.lmms_model.HideLlava"
