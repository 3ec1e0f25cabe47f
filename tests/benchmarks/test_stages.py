"""What is asked when: tasks never trained, general tasks, an oracle, and limited runs."""

import json
from pathlib import Path

import pytest

from hide_llava.config import compose
from hide_llava.errors import UserError
from hide_llava.preflight import preflight
from hide_llava.training.run import Run
from tests import tiny
from tests.benchmarks.synthetic import write_benchmark
from tests.benchmarks.world import config, written
from tests.cli.call import call, refused
from tests.tiny import OVERRIDES


def test_unseen_tasks_are_asked_after_the_last_stage(tmp_path: Path) -> None:
    made = config("cvit", tmp_path)
    stages = Run(made).stages
    assert [len(s.evaluate) for s in stages] == [1, 2, 3, 4, 5, 9] and all(max(s.train) < 6 for s in stages)
    assert [len(s.evaluate) for s in Run(config("cvit", tmp_path, method="zero_shot")).stages] == [9]
    assert [(s.train, len(s.evaluate)) for s in Run(config("cvit", tmp_path, method="multitask")).stages] == [
        (tuple(range(6)), 9)
    ]
    few = config("cvit-5shot", tmp_path)
    assert [t.id for t in few.benchmark.tasks][6:] == ["places365", "vizwiz", "textcaps", "ocrvqa"]
    assert few.benchmark.tasks[6].train == "Places365/train_5shot.json" and len(Run(few).stages[6].evaluate) == 10
    with pytest.raises(UserError, match=r"no task .* has a training file; only method=zero_shot fits"):
        Run(config("cvit", tmp_path, "tasks=[vizwiz]"))
    assert len(Run(config("cvit", tmp_path, "tasks=[vizwiz]", method="zero_shot")).stages) == 1


@pytest.mark.parametrize(
    "method, option",
    [("hide", "routing"), ("hide", "router"), ("disco", "router"), ("mrlora", "router"), ("smolora", "instruction"),
     ("clmoe", "task_gate"), ("individual", None)],
)
def test_every_oracle_is_labelled_and_not_asked_general_tasks(method: str, option: str | None, tmp_path: Path) -> None:
    words = [f"method.{option}=oracle"] if option else []
    manifest = Run(config("ucit-general", tmp_path, *words, method=method)).new_manifest()
    assert manifest["labels"] == ["oracle: task id given at inference"] and manifest["general"] == []
    if option:
        manifest = Run(config("ucit-general", tmp_path, method=method)).new_manifest()
        assert manifest["labels"] == [] and manifest["general"]


def test_what_an_oracle_is_asked(tmp_path: Path) -> None:
    """A method that is told the task id is asked an unseen task only as the task it borrows the id of."""
    words = ("method.routing=oracle",)
    made = config("cvit", tmp_path, *words, method="hide")
    assert len(Run(made).stages[-1].evaluate) == 9
    part = written("cvit", tmp_path, *words, "tasks=[gqa,vizwiz,flickr30k,textcaps]", method="hide")
    asked = [part.benchmark.tasks[i].id for i in Run(part).stages[-1].evaluate]
    assert asked == ["flickr30k", "gqa", "textcaps"]  # TextVQA, which VizWiz borrows from, was left out
    assert any("not asked: vizwiz" in warning for warning in preflight(Run(part)))
    general = config("ucit-general", tmp_path, *words, method="hide")
    assert Run(general).general == [] and Run(general).new_manifest()["general"] == []


@pytest.mark.parametrize(
    "method, option", [("hide", "routing"), ("smolora", "instruction"), ("clmoe", "task_gate"), ("individual", None)]
)
def test_an_oracle_is_not_asked_as_a_task_it_has_not_learned(
    method: str, option: str | None, model: Path, tmp_path: Path
) -> None:
    """A general task that borrows the id of the second task: not asked after the first, said in warning and report."""
    tiny.write_benchmark(tmp_path, train=4, test=2)
    tree = json.loads((tmp_path / "bench.yaml").read_text())
    tasks = tree["benchmark"]["tasks"] = tree["benchmark"]["tasks"][:2]
    tree["benchmark"]["general"] = [
        {**{k: v for k, v in tasks[i].items() if k != "train"}, "id": f"like{i}", "instruction_of": f"task{i}"}
        for i in range(2)
    ]
    (tmp_path / "bench.yaml").write_text(json.dumps(tree))
    words = [f"benchmark={tmp_path}/bench.yaml", f"model={model}", f"method={method}", f"data_root={tmp_path}",
             f"output={tmp_path}/run", *OVERRIDES, "train.epochs=1", "eval.max_new_tokens=1", "model.sentence=clip",
             *([f"method.{option}=oracle"] if option else [])]  # fmt: skip
    called = call("run", *words)
    assert called.code == 0, called.err
    assert "not asked at first: like1 (before 02-task1)" in called.out
    asked = [stage["general_tasks"] for stage in json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"]]
    assert asked == [["like0"], ["like0", "like1"]]
    found = {str(file.parent.relative_to(tmp_path / "run" / "eval")) for file in tmp_path.glob("run/eval/*/like*/score.json")}
    assert found == {"01-task0/like0", "02-task1/like0", "02-task1/like1"}
    assert (tmp_path / "run" / "results" / "report.html").read_text().count("not asked") == 1
    made = Run(compose(words))
    assert [len(made.general_after(stage)) for stage in made.stages] == [1, 2] and len(made.general) == 2


def test_general_tasks_stay_out_of_the_matrix(tmp_path: Path) -> None:
    manifest = Run(config("ucit-general", tmp_path)).new_manifest()
    assert [t["id"] for t in manifest["general"]] == ["pope", "mme", "scienceqa-img"]
    assert [len(s["eval_tasks"]) for s in manifest["stages"]] == [1, 2, 3, 4, 5, 6]
    assert {"pope", "mme"}.isdisjoint(t["id"] for t in manifest["tasks"])
    assert Run(config("ucit-general", tmp_path, "eval.general=false")).new_manifest()["general"] == []


# --------------------------------------------------------------------------------------------------------------- limits


def test_a_limited_run_is_labelled_everywhere(model: Path, tmp_path: Path) -> None:
    """Two of eight training records and two of four questions, the right ones; a full run does not go on from it."""
    words = ["benchmark=ucit", f"model={model}", "method=lora", f"data_root={tmp_path}", f"output={tmp_path}/run",
             *OVERRIDES, "tasks=[imagenet-r,vizwiz]", "caption.tokenizer=python", "eval.max_new_tokens=2"]  # fmt: skip
    full = compose(words)
    write_benchmark(full, tmp_path)
    assert call("run", *words, "limit=2").code == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["labels"] == ["partial: limit=2 training records and questions of each file"]
    assert [s["records"] for s in manifest["stages"]] == [2, 2]
    limited = compose([*words, "limit=2"])
    for score in (tmp_path / "run").glob("eval/*/*/score.json"):
        stored = json.loads(score.read_text())
        assert (
            stored["limit"] == stored["n_expected"] == 2 and "partial: 2 of 4 questions (limit=2)" in stored["labels"]
        )
    kept, in_file = Run(limited).tasks[1].questions()
    everything, _ = Run(full).tasks[1].questions()
    places = [everything.index({k: v for k, v in q.items() if k != "image_id"}) for q in kept]
    assert in_file == 4 and [q["image_id"] for q in kept] == [i + 1 for i in places]  # still their own references
    refused("run", *words, says=("limit: 2 there, None now",))
