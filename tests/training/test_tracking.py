"""A sequence is one tracked run: a stand-in records what it is told, and the services themselves, where they are installed."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hide_llava import pipeline
from hide_llava.errors import UserError
from hide_llava.training.reporting import check_reporting
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.trackers import TRACKERS, Tracked
from hide_llava.training.tracking import Tracking
from tests.tiny import configuration

THERE = "hide_llava.training.reporting.get_available_reporting_integrations"


class Recorder:
    """A service that has nothing but a memory."""

    made: list["Recorder"] = []
    fails = ""  # the name of a method that raises

    def __init__(self, run: Tracked):
        self.run, self.rows, self.done = run, [], False
        self._may("begin")
        Recorder.made.append(self)

    def log(self, values: dict, step: int, stage: int | None) -> None:
        self._may("log")
        self.rows.append((step, values))

    def finish(self) -> None:
        self.done = True

    def _may(self, what: str) -> None:
        if Recorder.fails == what:
            raise RuntimeError("no route to host")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(Recorder, "fails", "")
    monkeypatch.setattr(THERE, lambda: ["wandb", "trackio", "tensorboard"])
    for service in ("wandb", "trackio"):
        monkeypatch.setitem(TRACKERS, service, Recorder)
    return Recorder


def numbers(rows: list, prefix: str) -> list[tuple]:
    """(step or stage, value) of the numbers with that beginning."""
    axis = "global_step" if prefix.startswith("train/") else "stage"
    return [(values[axis], value) for _, values in rows for key, value in values.items() if key.startswith(prefix)]


def test_a_sequence_is_one_run_whose_steps_go_on(world: Path, tmp_path: Path, recorder: type[Recorder]) -> None:
    config = configuration(world, "lora", tmp_path / "my-run", "train.epochs=1", "train.report_to=wandb")
    pipeline.run(config)
    (one,) = recorder.made
    assert one.done and (one.run.name, one.run.folder, one.run.tags) == ("my-run", tmp_path / "my-run", ["lora", "tiny", "tiny"])
    assert one.run.config["method.name"] == "lora" and one.run.config["seed"] == 42
    steps = [step for step, _ in numbers(one.rows, "train/loss")]
    logs = [
        [json.loads(line) for line in (tmp_path / "my-run" / "stages" / name / "trainer_log.jsonl").read_text().splitlines()]
        for name in ("01-task0", "02-task1", "03-task2")
    ]
    losses = [row["loss"] for log in logs for row in log if "loss" in row]
    assert [value for _, value in numbers(one.rows, "train/loss")] == losses
    assert steps == [*range(1, len(losses) + 1)] and len(losses) == 6  # two steps a stage
    assert [values["task"] for _, values in one.rows if "task" in values] == ["Task 0", "Task 1", "Task 2"]
    tasks = ("task0", "task1", "task2")
    cells = {(stage, task): score for task in tasks for stage, score in numbers(one.rows, f"matrix/{task}")}
    matrix = json.loads((tmp_path / "my-run" / "results" / "matrix.json").read_text())["cells"]
    assert cells == {(t + 1, f"task{j}"): matrix[t][j] for t in range(3) for j in range(t + 1)}

    # a cell that is scored later goes to the same run; a call with nothing to do opens none
    pipeline.run(config)
    assert len(recorder.made) == 1
    shutil.rmtree(tmp_path / "my-run" / "eval" / "01-task0")
    pipeline.run(config, train=False)
    first, later = recorder.made
    assert later.run.id == first.run.id and [values for _, values in later.rows] == [
        {"matrix/task0": matrix[0][0], "stage": 1}
    ]


def test_a_service_that_cannot_be_reached_is_told_before_the_model_is_loaded(
    world: Path, tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "fails", "begin")
    monkeypatch.setattr(pipeline, "Session", lambda run: pytest.fail("the model was loaded"))
    config = configuration(world, "lora", tmp_path / "run", "train.report_to=wandb")
    with pytest.raises(UserError, match=r"train.report_to=wandb: wandb could not begin \(no route to host\); .*report_to=none"):
        pipeline.run(config)


def test_a_service_that_fails_later_does_not_end_the_run(
    world: Path, tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    tracking = Run(configuration(world, "lora", tmp_path / "run", "train.report_to=wandb,trackio")).tracking
    tracking.training(1, "Task 0", 1, {"loss": 2.0})
    monkeypatch.setattr(recorder, "fails", "log")
    tracking.training(1, "", 2, {"loss": 1.0})
    tracking.training(1, "", 3, {"loss": 1.0})
    said = capsys.readouterr().out
    assert said.count("takes no more (no route to host)") == 2 and "trainer_log.jsonl" in said
    monkeypatch.setattr(recorder, "fails", "")
    tracking.close()


def test_names_of_runs_and_variants(world: Path, tmp_path: Path, recorder: type[Recorder]) -> None:
    """A variant is a run of its own; its name has its run's in front."""
    variant = tmp_path / "hide" / "variants" / "temperature=0.1"
    variant.mkdir(parents=True)
    (variant / "variant.json").write_text('{"of": "../..", "changes": {}}')
    made = [Tracking(RunFolder(path), "trackio", {}, ["01-a"], []) for path in (tmp_path / "hide", variant)]
    for tracking in made:
        tracking.cell("00-base", "pope", 50.0, general=True)
    (one, other) = recorder.made
    identity = json.loads((tmp_path / "hide" / "tracking.json").read_text())["id"]
    assert (one.run.name, one.run.id) == ("hide", identity) and other.run.name == "hide temperature=0.1"
    assert one.rows == [(0, {"general/pope": 50.0, "stage": 0})]  # the untouched model is stage 0
    assert other.run.id != identity


# ------------------------------------------------------------------------------------------------- the services themselves


def installed(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def tracked(folder: Path, service: str) -> None:
    """Two stages of three steps with their cells, then one cell more in a second opening."""
    for stage in ("01-a", "02-b"):
        (folder / "stages" / stage).mkdir(parents=True)
        (folder / "stages" / stage / "trainer_log.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    tracking = Tracking(RunFolder(folder), service, {"method.name": "lora", "seed": 42}, ["01-a", "02-b"], ["lora"])
    check_reporting(service)
    for stage, name in ((1, "A"), (2, "B")):
        for step in (1, 2, 3):
            tracking.training(stage, name if step == 1 else "", tracking.steps_before(stage) + step, {"loss": 1 / step})
        tracking.cell(f"0{stage}-{name.lower()}", "a", 90.0 - stage, general=False)
    tracking.close()
    tracking.cell("01-a", "pope", 80.0, general=True)
    tracking.close()


@installed("tensorboard")
def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked(tmp_path / "run", "tensorboard")
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [(event.step, event.value) for event in found.Scalars("matrix/a")] == [(1, 89.0), (2, 88.0)]
    assert [(event.step, event.value) for event in found.Scalars("general/pope")] == [(1, 80.0)]


@installed("wandb")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, because it leaves a service behind; what it wrote is read with its own reader."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    code = "from pathlib import Path; from tests.training.test_tracking import tracked; "
    code += f"tracked(Path({str(tmp_path / 'run')!r}), 'wandb')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    identity = json.loads((tmp_path / "run" / "tracking.json").read_text())["id"]
    assert len(folders) == 2 and all(folder.name.endswith(identity) for folder in folders)  # `wandb sync` makes one of them
    rows = history(next(folders[0].glob("*.wandb")))
    assert [row["global_step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [(row["stage"], row["matrix/a"]) for row in rows if "matrix/a" in row] == [(1, 89.0), (2, 88.0)]
    assert [row["general/pope"] for row in history(next(folders[1].glob("*.wandb")))] == [80.0]


def history(file: Path) -> list[dict]:
    """The logged rows of wandb's file: LevelDB's log format, blocks of 32 KiB, behind seven bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, rows = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into what is left of the block
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole in one piece, or the last piece of one
            record, whole = wandb_internal_pb2.Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                rows.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item})
    return rows


@installed("trackio")
def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, because its folder is chosen when it is imported."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = tmp_path / "run"
    code = (
        "import json; from pathlib import Path; from tests.training.test_tracking import tracked; "
        f"tracked(Path({str(run)!r}), 'trackio'); import trackio; run, = trackio.Api().runs('hide-llava'); "
        "from trackio.sqlite_storage import SQLiteStorage; "
        "print('ROWS', json.dumps([run.name, SQLiteStorage.get_logs('hide-llava', run.name)], default=str))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    name, rows = json.loads(done.stdout.split("ROWS ")[1].splitlines()[0])
    assert name == f"run {json.loads((run / 'tracking.json').read_text())['id']}"
    assert [row["global_step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [(row["stage"], row["matrix/a"]) for row in rows if "matrix/a" in row] == [(1, 89.0), (2, 88.0)]
    assert [row["general/pope"] for row in rows if "general/pope" in row] == [80.0]  # of the second opening
