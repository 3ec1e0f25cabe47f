"""The search of a method's learning rate and strengths: its rule by hand, as many trials for every method, what it leaves."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hide_llava import pipeline, search
from hide_llava.config import RunConfig
from hide_llava.errors import Diverged, Interrupted, UserError
from hide_llava.methods.base import REGISTRY
from hide_llava.results.run_reader import read_run
from hide_llava.results.searches import Search, Trial, best, read_search, table, write_search, write_table
from hide_llava.search import Axis, axes_of, following, next_value, schedule
from hide_llava.settings import strengths
from tests.test_compare_methods import PRESETS, ROOT, settings
from tests.tiny import arguments

WORDS = ["benchmark=mini-ucit", "model=mini", "train=mini", "train.learning_rate=5e-3"]
RATE, STRENGTH = "train.learning_rate", "method.strength"


# ------------------------------------------------------------------------------------------------------------- the rule
@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "zero_shot"])
def test_every_method_gets_the_same_number_of_trials(preset: str) -> None:
    """No two of them are alike, the first changes nothing, and every strength that the method declares is varied."""
    axes, tried = axes_of([*WORDS, f"method={preset}", *settings(preset)]), []
    while (values := following(axes, 6, tried)) is not None:
        assert values not in [trial.values for trial in tried]
        tried.append(Trial(values, float(len(tried) % 3)))
    assert len(tried) == 6 and tried[0].values == {axis.key: axis.usual for axis in axes}
    assert all(len({trial.values[axis.key] for trial in tried}) > 1 for axis in axes)
    prompts = preset in ("l2p", "dualprompt", "modalprompt")  # trained at a rate of their own, by which they are searched
    assert axes[0].key == ("method.lr" if prompts else RATE) and axes[0].usual == (0.1 if prompts else 5e-3)
    assert len({trial.values[axes[0].key] for trial in tried}) == (3 if axes[1:] else 6)


def test_what_does_not_train_has_nothing_to_search() -> None:
    assert axes_of([*WORDS, "method=zero_shot"]) == [] and following([], 6, []) is None


def test_which_options_are_strengths() -> None:
    """HiDe keeps the paper's values; a memory and a rank are budgets, not strengths."""
    found = {name: list(strengths(cls.Config)) for name, cls in REGISTRY.items() if strengths(cls.Config)}
    assert found["ewc"] == found["lwf"] == found["olora"] == found["sefe"] == ["strength"]
    assert found["keeplora"] == ["weight_energy", "task_energy"] and found["wise-ft"] == ["mix"]
    assert found["many"] == ["ridge"]
    assert not {"hide", "lora", "replay", "multitask", "individual", "moelora", "mrlora"} & found.keys()
    assert all(len(names) <= 2 for names in found.values())


def test_trials_are_divided_among_the_strengths() -> None:
    rate, one, two = (Axis(key, 1.0, 10.0) for key in ("rate", "one", "two"))
    said = {trials: "".join(axis.key[0] for axis in schedule([rate, one, two], trials)) for trials in (1, 2, 3, 6, 9)}
    assert said == {1: "", 2: "r", 3: "rr", 6: "rroot", 9: "rrooottt"}
    assert [axis.key for axis in schedule([rate], 6)] == ["rate"] * 5


@pytest.mark.parametrize(
    "scores, following_value",
    [
        ({1.0: 5}, 0.1),
        ({1.0: 5, 0.1: 9}, 10.0),  # the grid is whole before it is looked at
        ({1.0: 5, 0.1: 9, 10.0: 1}, 0.01),  # the lowest is the best
        ({1.0: 5, 0.1: 4, 10.0: 8}, 100.0),
        ({1.0: 5, 0.1: 4, 10.0: 1}, 0.3162),  # √(1 · 0.1)
        ({1.0: 5, 0.1: 4, 10.0: 4.5}, 3.162),
        ({1.0: 5, 0.1: None, 10.0: 1}, 3.162),  # at 0.1 it diverged
        ({1.0: None, 0.1: None, 10.0: 1}, 100.0),
        ({1.0: 5, 0.1: 4, 10.0: 1, 0.3162: 6}, 0.5623),  # √(0.3162 · 1)
    ],
)
def test_a_step_beyond_the_end_or_halfway_to_the_better_neighbour(scores: dict, following_value: float) -> None:
    assert next_value(Axis("method.x", 1.0, 10.0), scores) == following_value


@pytest.mark.parametrize(
    "scores, following_value",
    [
        ({0.5: 5}, 0.9),
        ({0.5: 5, 0.9: 6}, 0.1),
        ({0.5: 5, 0.9: 6, 0.1: 1}, 0.7),  # never beyond its own candidates
        ({0.5: 5, 0.9: 4, 0.1: 1}, 0.7),
        ({0.5: 5, 0.9: 1, 0.1: 4}, 0.3),
        ({None: 5, 0.9: 1, 0.1: 4}, 0.5),  # null is no number to halve
    ],
)
def test_candidates_of_its_own_are_tried_in_their_order(scores: dict, following_value: float) -> None:
    assert next_value(Axis("method.x", 0.5, 10.0, (0.9, 0.1)), scores) == pytest.approx(following_value)


def test_one_thing_is_varied_at_a_time() -> None:
    """Six trials by hand: at the best rate, 3 times the usual, the strength wants to be smaller."""
    axes, tried = [Axis("rate", 1.0, 3.0), Axis("strength", 50.0, 10.0)], []
    for last in (10, 5, 20, 30, 1, 25):
        tried.append(Trial(following(axes, 6, tried), last))
    found = [tuple(trial.values.values()) for trial in tried]
    assert found == [(1, 50), (0.3333, 50), (3, 50), (3, 5), (3, 500), (3, 0.5)]
    assert following(axes, 6, tried) is None and best(tried).values == {"rate": 3, "strength": 5}


# ------------------------------------------------------------------------------------------------- with stubs for the runs
@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Runs that train nothing. score: of a configuration, or the error that it ends with; begun: the configurations."""
    made, scores = SimpleNamespace(begun=[], reused=[], score=lambda config: 1.0), {}

    def run(config: RunConfig, *, report: bool, stages: str) -> None:
        assert not report and stages == "last" and (config.eval.split, config.seed) == ("val", 0)
        made.begun.append(config)
        scores[config.run_folder()] = made.score(config)

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(pipeline, "reuse_stages", lambda trained, run: made.reused.append((trained.name, run.folder.path.name)))
    monkeypatch.setattr(search, "read_run", lambda folder: SimpleNamespace(matrix=scores[folder]))
    monkeypatch.setattr(search, "last", lambda matrix: matrix)
    return made


def peak(rate: float, strength: float) -> Callable[[RunConfig], float]:
    """A score that is highest at these values, and falls off with the distance in powers of ten."""
    return lambda config: 50 - 10 * abs(math.log10(config.train.learning_rate / rate)) - 5 * abs(
        math.log10(config.method["strength"] / strength)
    )  # fmt: skip


def test_the_best_of_the_validation_split_is_chosen(runs: SimpleNamespace, tmp_path: Path) -> None:
    runs.score = peak(0.015, 50.0)
    found = search.search([*WORDS, "method=ewc"], tmp_path / "search")
    assert found.chosen == {RATE: 0.015, STRENGTH: 50.0} and len(runs.begun) == len(found.tried) == 6
    assert max(runs.score(config) for config in runs.begun) == best(found.tried).last
    assert len({config.output for config in runs.begun}) == 6
    assert runs.begun[-1].run_folder() == tmp_path / "search" / "ewc" / "learning_rate-0.015-strength-50"
    tree = json.loads((tmp_path / "search" / "ewc.json").read_text())
    assert tree["chosen"] == found.chosen and tree["tried"][0] == {
        "values": {RATE: 0.005, STRENGTH: 5000.0}, "last": peak(0.015, 50.0)(runs.begun[0])}  # fmt: skip
    assert read_search(tmp_path / "search" / "ewc.json") == found


def test_usual_values_win_where_nothing_is_better(runs: SimpleNamespace, tmp_path: Path) -> None:
    found = search.search([*WORDS, "method=merge", "method.alpha=8"], tmp_path, 4)
    assert found.chosen == {RATE: 0.005, "method.weight": None}  # whose null stays null
    assert runs.begun[0].method["weight"] is None and runs.begun[3].method["weight"] == 0.3
    assert {config.method["alpha"] for config in runs.begun} == {8.0}
    assert search.search([*WORDS, "method=zero_shot"], tmp_path).chosen == {} and len(runs.begun) == 4


def test_what_acts_at_inference_alone_is_not_trained_again(runs: SimpleNamespace, tmp_path: Path) -> None:
    runs.score = lambda config: 50 - 100 * abs(config.train.learning_rate - 0.015)
    search.search([*WORDS, "method=merge"], tmp_path)
    usual = "learning_rate-0.015-weight-null"
    assert runs.reused == [(usual, f"learning_rate-0.015-weight-{weight}") for weight in (0.3, 0.5, 1)]
    runs.reused.clear()
    search.search([*WORDS, "method=ewc"], tmp_path)  # whose strength is of the training
    search.search([*WORDS, "method=lora"], tmp_path)
    assert not runs.reused


def test_a_search_goes_on_where_it_was_stopped(runs: SimpleNamespace, tmp_path: Path) -> None:
    whole = search.search([*WORDS, "method=ewc"], tmp_path / "whole")

    def stops(config: RunConfig) -> float:
        if len(runs.begun) == 4:
            raise Interrupted("stopped")
        return 1.0

    runs.begun.clear()
    runs.score = stops
    with pytest.raises(Interrupted):
        search.search([*WORDS, "method=ewc"], tmp_path / "search")
    left = read_search(tmp_path / "search" / "ewc.json")
    assert len(left.tried) == 3 and left.chosen is None
    found = search.search([*WORDS, "method=ewc"], tmp_path / "search")
    assert len(runs.begun) == 4 + 3 and runs.begun[4].output == runs.begun[3].output  # the stopped one, in its run folder
    assert (found.tried, found.chosen) == (whole.tried, whole.chosen)
    assert search.search([*WORDS, "method=ewc"], tmp_path / "search") == found and len(runs.begun) == 7
    for words, trials in (([*WORDS, "method=ewc", "method.rank=8"], 6), ([*WORDS, "method=ewc"], 5)):
        with pytest.raises(UserError, match=r"ewc\.json: is of a search with 6 trials of .*in another folder"):
            search.search(words, tmp_path / "search", trials)


def test_a_search_is_made_longer(runs: SimpleNamespace, tmp_path: Path) -> None:
    """More trials go on from those that are there, which have to be how the longer search begins."""
    runs.score = peak(0.015, 50.0)
    whole = search.search([*WORDS, "method=ewc"], tmp_path / "whole")
    runs.begun.clear()
    assert search.search([*WORDS, "method=ewc"], tmp_path / "search", 3).chosen is not None
    assert search.search([*WORDS, "method=ewc"], tmp_path / "search") == whole and len(runs.begun) == 6
    runs.score = lambda config: 1.0
    search.search([*WORDS, "method=keeplora"], tmp_path / "search", 4)
    runs.score = lambda config: (_ for _ in ()).throw(Interrupted("stopped"))
    with pytest.raises(Interrupted):
        search.search([*WORDS, "method=keeplora"], tmp_path / "search", 6)
    left = read_search(tmp_path / "search" / "keeplora.json")
    assert (left.trials, len(left.tried)) == (4, 4)
    file = tmp_path / "search" / "keeplora.json"
    write_search(file, Search("keeplora", 3, left.words, [left.tried[0], left.tried[3]], None))
    with pytest.raises(UserError, match=r"keeplora\.json: is of a search with 3 trials"):
        search.search([*WORDS, "method=keeplora"], tmp_path / "search", 6)


def test_a_training_that_diverges_is_a_trial(runs: SimpleNamespace, tmp_path: Path) -> None:
    def score(config: RunConfig) -> float:
        if config.train.learning_rate > 0.002:
            raise Diverged("the loss is nan at step 3.")
        return 7.0

    runs.score = score
    found = search.search([*WORDS, "method=ewc"], tmp_path, 3)
    assert [trial.last for trial in found.tried] == [None, 7.0, None] and found.chosen[RATE] == 0.001667
    assert "nan" in found.tried[0].failed and search.search([*WORDS, "method=ewc"], tmp_path, 3) == found
    assert len(runs.begun) == 3
    runs.score = lambda config: (_ for _ in ()).throw(Diverged("the loss is nan at step 3."))
    for _ in range(2):
        with pytest.raises(UserError, match=r"every trial of lwf diverged; lower train\.learning_rate"):
            search.search([*WORDS, "method=lwf"], tmp_path, 3)
    assert len(runs.begun) == 6
    runs.score = lambda config: (_ for _ in ()).throw(UserError("a file is missing."))
    with pytest.raises(UserError, match="a file is missing"):  # no fault of the values
        search.search([*WORDS, "method=olora"], tmp_path, 3)
    assert not (tmp_path / "olora.json").exists()


OWN = """from typing import Annotated
from pydantic import Field
from hide_llava.methods.base import register
from hide_llava.methods.lora import SequentialLora
from hide_llava.settings import Searched, Strength

@register
class Mine(SequentialLora):
    name = "test_searched"
    class Config(SequentialLora.Config):
        hold: {field}
"""


@pytest.mark.parametrize(
    "field, word, says",
    [
        ("Strength[float] = Field(0.5, ge=0, le=1)", "", r"method\.hold: .* limit other than 0; name its candidates"),
        ("Strength[float] = Field(5.0, ge=0.1)", "", r"method\.hold: .* limit other than 0; name its candidates"),
        ("Strength[float] = Field(0.5, ge=0)", "method.hold=0", r"method\.hold=0\.0: .* give it a value above 0"),
        ("Strength[float | None] = Field(None, ge=0)", "", r"method\.hold=null: .* give it a value above 0"),
        ("Annotated[float, Searched((0.2, 1.5))] = Field(0.5, ge=0, le=1)", "", r"method\.hold=1\.5: must be in \[0, 1\]"),
        ("Annotated[float | None, Searched((0.2,))] = Field(None, ge=0, le=1)", "", r"method\.hold: .* needs two candidates"),
        ("Strength[int] = Field(5, ge=1)", "", r"method\.hold: .* limit other than 0; name its candidates"),
        ("Strength[int] = Field(5, ge=0)", "", r"method\.hold=0\.5: expected a whole number"),
    ],
)
def test_a_strength_that_cannot_be_searched_is_refused(
    field: str, word: str, says: str, runs: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hide_llava.methods.base.REGISTRY", dict(REGISTRY))
    (tmp_path / "my_method.py").write_text(OWN.format(field=field))
    with pytest.raises(UserError, match=says):
        search.search([*WORDS, f"method={tmp_path}/my_method.py", *filter(None, [word])], tmp_path / "search")
    assert not runs.begun and not (tmp_path / "search").exists()


@pytest.mark.parametrize("word", ["eval.split=test", "seed=1", "output=runs/x", "seeds=0,1"])
def test_the_test_split_cannot_be_asked_for(word: str, runs: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave the word out"):
        search.search([*WORDS, "method=ewc", word], tmp_path)
    with pytest.raises(UserError, match="at least one"):
        search.search([*WORDS, "method=ewc"], tmp_path, 0)
    assert not runs.begun


# --------------------------------------------------------------------------------------------------------- what it leaves
def test_the_table_has_every_trial(tmp_path: Path) -> None:
    low, high = {RATE: 0.001667, "method.weight": None}, {RATE: 0.015, "method.weight": 0.3}
    found = Search("merge", 2, ["x=1"], [Trial(low, 12.345), Trial(high, None, "the loss is nan.")], low)
    write_search(tmp_path / "search" / "merge.json", found)
    write_search(tmp_path / "search" / "ewc.json", Search("ewc", 2, [], [Trial({RATE: 5e-05}, 1.0)]))
    page = write_table(tmp_path / "search")
    assert page == tmp_path / "search.md" and page.read_text().splitlines()[-3:] == [
        "| ewc | 1 of 2 | `train.learning_rate=5e-05` | 1.00 |",
        "| merge | **1 of 2** | **`train.learning_rate=0.001667` `method.weight=null`** | **12.35** |",
        "| merge | 2 of 2 | `train.learning_rate=0.015` `method.weight=0.3` | diverged |",
    ]
    assert table([found]) in page.read_text().replace(page.read_text().splitlines()[-3] + "\n", "")
    with pytest.raises(UserError, match="search first"):
        write_table(tmp_path / "nowhere")


def test_the_command_of_the_script(runs: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its words in the order in which scripts/compare_methods.sh gives them, and its exit codes."""
    spec = importlib.util.spec_from_file_location("search_strengths", ROOT / "scripts" / "search_strengths.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main([f"{tmp_path}/search", "--trials", "2", *WORDS, "method=lora"])
    assert capsys.readouterr().out.splitlines()[-1] == "lora: chosen train.learning_rate=0.005" and len(runs.begun) == 2
    script.main([f"{tmp_path}/search", "--trials", "2", *WORDS, "method=zero_shot"])
    assert capsys.readouterr().out == "zero_shot: chosen nothing, it does not train\n"
    script.main([f"{tmp_path}/search", "--table"])
    assert capsys.readouterr().out == f"{tmp_path}/search.md\n" and "| lora | 2 of 2 |" in (tmp_path / "search.md").read_text()
    with pytest.raises(SystemExit, match=r"^error: unknown method 'lorra'"):
        script.main([f"{tmp_path}/search", *WORDS, "method=lorra"])
    runs.score = lambda config: (_ for _ in ()).throw(Interrupted("stopped"))
    with pytest.raises(SystemExit, match="143"):
        script.main([f"{tmp_path}/search", *WORDS, "method=ewc"])
    assert capsys.readouterr().err == "stopped; run the same command again to go on.\n"


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"tried": [{"last": 1}]}, {"tried": [{"values": {"a": "b"}, "last": 1}]}, {"chosen": [1]}]
)
def test_a_damaged_file_is_told(change: dict, tmp_path: Path) -> None:
    file = tmp_path / "ewc.json"
    write_search(file, Search("ewc", 2, [], [Trial({RATE: 0.1}, 1.0)], {RATE: 0.1}))
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=r"ewc\.json"):
        read_search(file)


# -------------------------------------------------------------------------------------------------------------- for real
def test_a_search_of_two_trials(world: Path, tmp_path: Path) -> None:
    """Trained, asked on the validation split after the last stage alone, chosen; nothing is done twice."""
    tree = json.loads((world / "bench.yaml").read_text())
    for task in tree["benchmark"]["tasks"]:
        task["val"] = task["test"].replace("test.json", "val.json")
        (world / "data" / task["val"]).write_text((world / "data" / task["test"]).read_text())
        (world / "data" / task["test"]).rename(world / "data" / f"{task['test']}.hidden")  # reading it would fail
    (world / "val.yaml").write_text(json.dumps(tree))
    words = arguments(world, "wise-ft", tmp_path, "train.max_steps=1", "tasks=[task0,task1]")
    words = [f"benchmark={world}/val.yaml", *(word for word in words if not word.startswith(("output=", "benchmark=")))]
    found = search.search(words, tmp_path / "search", 4)
    assert [trial.values[RATE] for trial in found.tried[:3]] == [0.005, 0.001667, 0.015]
    cells = sorted((tmp_path / "search").glob("wise-ft/*/eval/*/*/score.json"))
    assert {json.loads(cell.read_text())["split"] for cell in cells} == {"val"} and len(cells) == 4 * 2
    for trial, folder in zip(found.tried, ("learning_rate-0.005-mix-0.5", "learning_rate-0.001667-mix-0.5")):
        run = read_run(tmp_path / "search" / "wise-ft" / folder)
        assert run.last_alone and sum(cell.score for cell in run.cells.values()) / 2 == trial.last
    assert found.chosen in [trial.values for trial in found.tried]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    rate = found.tried[3].values[RATE]  # the fourth trial has another mix, which acts at inference, and no training of its own
    found_at = [tmp_path / "search" / "wise-ft" / f"learning_rate-{rate:g}-mix-{mix}" / "stages" for mix in (0.25, 0.5)]
    (ours,), (theirs,) = [list(stages.glob("02*/method.safetensors")) for stages in found_at]
    assert ours.read_bytes() == theirs.read_bytes() and before[ours] == before[theirs]
    assert search.search(words, tmp_path / "search", 4) == found
    assert before and before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
