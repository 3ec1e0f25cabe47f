"""What a recipe says and what is done: warm-up, steps, a task's own values, one GPU, reporting, a diverged stage."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from hide_llava.config import RunConfig, TrainConfig, compose, from_yaml, to_yaml
from hide_llava.errors import Interrupted, UserError
from hide_llava.methods.hide import HiDe
from hide_llava.methods.lora import SequentialLora
from hide_llava.methods.registry import method_class
from hide_llava.pipeline import run
from hide_llava.planning.plan import plan
from hide_llava.preflight import preflight, unknown_tasks
from hide_llava.training import sequence
from hide_llava.training.batching import few_steps, recipe_warnings, warmup_steps
from hide_llava.training.checkpoint import latest_checkpoint
from hide_llava.training.diverged import diverged
from hide_llava.training.engines import check_engine, on_one_gpu
from hide_llava.training.reporting import check_reporting
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.sequence import build_trainer, train_stage, training_data
from hide_llava.training.session import Session
from hide_llava.training.trainer import RunCallback
from tests.cli.call import call
from tests.stops import stopped_after
from tests.tiny import arguments, configuration, opened

# ------------------------------------------------------------------------------------------------------------ warm-up


@pytest.mark.parametrize(
    "steps, ratio, whole, reference",
    [(1, 0.03, 0, 1), (2, 0.03, 0, 1), (33, 0.03, 0, 1), (34, 0.03, 2, 2), (100, 0.03, 3, 3), (417, 0.03, 13, 13),
     (2, 0.5, 1, 1), (1, 1.0, 1, 1), (10, 0.0, 0, 0), (4, 0.25, 1, 1), (3, 0.25, 0, 1)],
)  # fmt: skip
def test_less_than_a_step_is_no_warmup(steps: int, ratio: float, whole: int, reference: int) -> None:
    assert warmup_steps(TrainConfig(warmup_ratio=ratio), steps) == whole
    assert warmup_steps(TrainConfig(warmup_ratio=ratio, warmup="reference"), steps) == reference


@pytest.mark.parametrize("steps", range(1, 500))
def test_warmup_wastes_no_more_than_its_share(steps: int) -> None:
    """The first step of a warm-up has the rate 0: one step of all, however long the warm-up is."""
    if warmup_steps(TrainConfig(), steps):
        assert 1 / steps <= TrainConfig().warmup_ratio
        assert warmup_steps(TrainConfig(), steps) == math.ceil(0.03 * steps)


def test_a_warmup_is_a_share() -> None:
    with pytest.raises(UserError, match="warmup_ratio=5: must be between 0 and 1"):
        warmup_steps(TrainConfig(warmup_ratio=5), 10)


@pytest.mark.parametrize("warmup, rates", [("whole_steps", [5e-3]), ("reference", [0.0])])
def test_a_task_of_one_step_learns(warmup: str, rates: list[float], world: Path, tmp_path: Path) -> None:
    more = ("train.global_batch_size=8", "train.epochs=1", "tasks=[task0]", f"train.warmup={warmup}")
    run(configuration(world, "lora", tmp_path, *more), evaluate=False, report=False)
    log = [json.loads(line) for line in (tmp_path / "stages" / "01-task0" / "trainer_log.jsonl").open()]
    assert [row["learning_rate"] for row in log if "learning_rate" in row] == rates
    trained = load_file(tmp_path / "stages" / "01-task0" / "adapter" / "adapter_model.safetensors")
    moved = max(float(t.abs().max()) for name, t in trained.items() if "lora_B" in name)
    assert (moved > 1e-3) == (warmup == "whole_steps")


def test_stored_runs_keep_the_old_warmup(world: Path, tmp_path: Path) -> None:
    config = configuration(world, "lora", tmp_path / "run")
    assert config.train.warmup == "whole_steps"
    text = to_yaml(config)
    (tmp_path / "config.yaml").write_text(text)
    assert from_yaml(tmp_path / "config.yaml").train.warmup == "whole_steps"
    (tmp_path / "config.yaml").write_text(text.replace("  warmup: whole_steps\n", ""))
    assert from_yaml(tmp_path / "config.yaml").train.warmup == "reference"


@pytest.mark.parametrize("preset", ["hide-official", "hide-mcitlib", "olora-mcitlib", "modalprompt-mcitlib"])
def test_parity_presets_name_the_references_warmup(preset: str, world: Path, tmp_path: Path) -> None:
    assert configuration(world, preset, tmp_path).train.warmup == "reference"


def test_few_steps_are_told_by_plan_and_run(world: Path, tmp_path: Path) -> None:
    assert few_steps({"01-a": 10}) == [] and few_steps({"01-a": 1})[0].startswith("01-a: 1 optimizer step in all")
    config = configuration(world, "lora", tmp_path)  # 8 records in batches of 4, 2 epochs
    wanted = "01-task0, 02-task1, 03-task2: 4 optimizer steps each, so hardly anything is learned"
    assert any(wanted in text for text in preflight(Run(config))) and f"warning: {wanted}" in plan(Run(config))
    enough = configuration(world, "lora", tmp_path, "train.epochs=5")
    assert not any("hardly anything" in text for text in preflight(Run(enough))) and "hardly anything" not in plan(Run(enough))


# ------------------------------------------------------------------------------------------- a task's values and train.*


def own_values(world: Path, tmp_path: Path) -> Path:
    """The tiny benchmark with tasks that state their own epochs and global batch."""
    tree = json.loads((world / "bench.yaml").read_text())
    tree["benchmark"]["tasks"][0] |= {"epochs": 3}
    tree["benchmark"]["tasks"][1] |= {"global_batch_size": 8}
    (tmp_path / "own.yaml").write_text(json.dumps(tree))
    return tmp_path / "own.yaml"


def composed(world: Path, tmp_path: Path, *more: str, method: str = "lora") -> Any:
    words = [w for w in arguments(world, method, tmp_path / "run") if not w.startswith(("benchmark=", "train."))]
    return compose([f"benchmark={own_values(world, tmp_path)}", *words, *more])


@pytest.mark.parametrize(
    "more, expected",
    [
        ((), [(96, 3), (8, 1), (96, 1)]),  # the task's stand above the recipe's
        (("train={folder}/three.yaml",), [(16, 3), (8, 3), (16, 3)]),
        (("train.epochs=2",), [(96, 2), (8, 2), (96, 2)]),  # the command line stands above the task's
        (("train.global_batch_size=16",), [(16, 3), (16, 1), (16, 1)]),
        (("train=mini", "train.epochs=1", "train.global_batch_size=4", "train.per_device_batch_size=4"), [(4, 1)] * 3),
    ],
)
def test_who_decides_on_epochs_and_batch(
    more: tuple[str, ...], expected: list, world: Path, tmp_path: Path
) -> None:
    (tmp_path / "three.yaml").write_text("train: {epochs: 3, global_batch_size: 16, per_device_batch_size: 16}")
    config = composed(world, tmp_path, *(word.format(folder=tmp_path) for word in more))
    assert [Run(config).recipe(stage) for stage in Run(config).stages] == expected
    manifest = Run(config).new_manifest()
    assert [(s["global_batch"], s["epochs"]) for s in manifest["stages"]] == expected
    batches = {batch for batch, _ in expected}
    assert manifest["global_batch"] == (batches.pop() if len(batches) == 1 else "96, 8" if not more or "epochs" in
                                        more[0] else "16, 8")  # fmt: skip
    (tmp_path / "config.yaml").write_text(to_yaml(config))  # the stored configuration says the same
    again = Run(from_yaml(tmp_path / "config.yaml"))
    assert [again.recipe(stage) for stage in again.stages] == expected


def test_a_method_preset_stands_above_a_tasks_values(world: Path, tmp_path: Path) -> None:
    config = composed(world, tmp_path, method="hide-mcitlib")  # global batch 64
    assert [Run(config).recipe(stage) for stage in Run(config).stages] == [(64, 3), (64, 1), (64, 1)]


def warned(config: RunConfig) -> list[str]:
    return recipe_warnings(config.train, config.benchmark)


def test_a_recipe_of_ones_own_that_a_task_overrides_is_told(world: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {epochs: 2, global_batch_size: 4}")
    config = composed(world, tmp_path, f"train={tmp_path}/mine.yaml")
    assert config.train.name == "mine"
    said = warned(config)
    assert len(said) == 2 and "epochs (task0 3), which stand above the 2 of train=mine" in said[0]
    assert "global_batch_size (task1 8)" in said[1] and "train.global_batch_size=4 on the command line" in said[1]
    assert all(text in preflight(Run(config)) and text in plan(Run(config)) for text in said)
    assert not warned(composed(world, tmp_path, f"train={tmp_path}/mine.yaml", "train.epochs=2",
                                        "train.global_batch_size=4"))  # fmt: skip
    assert not warned(composed(world, tmp_path, "train=mini"))


@pytest.mark.parametrize("words", [("train.max_steps=3",), ("train.epochs=1.5",)], ids=" ".join)
def test_a_task_that_was_stopped_behind_its_last_step_has_no_step_more(
    words: tuple[str, ...], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch the loader has more to give."""
    words = ("tasks=[task0]", "train.schedule=constant", "train.logging_steps=1", *words)
    whole, stopped = (configuration(world, "hide", tmp_path / name, *words) for name in ("whole", "stopped"))
    run(whole, evaluate=False, report=False)
    with monkeypatch.context() as patch:
        patch.setattr(HiDe, "after_task", lambda *given: (_ for _ in ()).throw(Interrupted("here")))
        with pytest.raises(Interrupted):
            run(stopped, evaluate=False, report=False)
    run(stopped, evaluate=False, report=False)
    logs = [(tmp_path / name / "stages/01-task0/trainer_log.jsonl").read_text() for name in ("whole", "stopped")]
    steps, again = ([row["step"] for row in map(json.loads, log.splitlines()) if "loss" in row] for log in logs)
    assert steps == again == list(range(1, steps[-1] + 1))
    for file in (tmp_path / "whole").rglob("*.safetensors"):
        one, two = load_file(file), load_file(tmp_path / "stopped" / file.relative_to(tmp_path / "whole"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_terms_of_a_step_are_the_same_in_the_log_after_a_stop(world: Path, tmp_path: Path) -> None:
    """Logged every second step and stopped after the first: what is divided by is what was summed."""
    words = ("tasks=[task0]", "train.logging_steps=2", "train.save_steps=1")
    whole, stopped = (configuration(world, "l2p", tmp_path / name, *words) for name in ("whole", "stopped"))
    run(whole, evaluate=False, report=False)
    with stopped_after(1), pytest.raises(Interrupted):
        run(stopped, evaluate=False, report=False)
    run(stopped, evaluate=False, report=False)
    logs = [(tmp_path / name / "stages/01-task0/trainer_log.jsonl").read_text() for name in ("whole", "stopped")]
    first, again = ([row["loss/pull"] for row in map(json.loads, log.splitlines()) if "loss" in row] for log in logs)
    assert len(first) == len(again) > 1 and again[1:] == pytest.approx(first[1:])
    assert again[0] == pytest.approx(first[0], rel=0.3)  # of the second step alone; it was half of that


def test_an_overflow_of_fp16_is_no_divergence(world: Path, tmp_path: Path) -> None:
    """Its scaler leaves the step out. In other types nothing does."""
    session = opened(configuration(world, "lora", tmp_path, "tasks=[task0]"))
    dataset = training_data(session, session.run.stages[0])
    context = sequence._context(session, dataset)
    session.begin_stage(session.run.stages[0], context)
    log = [{"grad_norm": 1.0}, {"grad_norm": math.inf}]
    assert diverged(session, context, 2, log) == "the norm of its gradient is inf"
    session.core.llava.half()
    with torch.autocast("cpu", torch.float16):
        assert diverged(session, context, 2, log) is None


@pytest.mark.parametrize("clipped", [0.0, 1.0])
def test_a_method_sees_the_gradients_themselves_in_fp16(clipped: float, tmp_path: Path) -> None:
    """Not what the loss was multiplied with, whether clipping has taken that out already or not."""
    seen, parameter = [], torch.nn.Parameter(torch.ones(3))
    optimizer = SimpleNamespace(optimizer=torch.optim.SGD([parameter], lr=0.5), scaler=torch.amp.GradScaler("cpu", 1024.0))
    optimizer.scaler.scale(parameter.sum()).backward()
    if clipped:
        optimizer.scaler.unscale_(optimizer.optimizer)  # as the Trainer does before it clips
    method = SimpleNamespace(on_gradients=lambda step: seen.append(parameter.grad.clone()))
    callback, state = RunCallback(method, tmp_path / "log", "ddp", "stage"), SimpleNamespace(global_step=3)
    callback.on_pre_optimizer_step(SimpleNamespace(max_grad_norm=clipped), state, None, optimizer=optimizer)
    optimizer.scaler.step(optimizer.optimizer)
    assert torch.equal(seen[0], torch.ones(3)) and torch.equal(parameter.data, torch.full((3,), 0.5))


@pytest.mark.parametrize("method", ["keeplora", "modalprompt", "eblora"])
def test_adapters_in_bf16_on_a_model_in_fp32(method: str, world: Path, tmp_path: Path) -> None:
    words = ("tasks=[task0,task1]", "train.max_steps=1", "model.dtype=float32", "train.adapter_dtype=bfloat16")
    run(configuration(world, method, tmp_path, *words), report=False)
    assert len(list(tmp_path.glob("eval/02-task1/*/score.json"))) == 2


def test_options_of_tasks_that_are_none_are_told(world: Path, tmp_path: Path) -> None:
    words = ("method.task_subset.task1=3", "method.task_subset.tsk0=3", "method.task_shrinkage.zzz=1.0")
    found = unknown_tasks(Run(configuration(world, "octopus", tmp_path, *words)))
    assert unknown_tasks(Run(configuration(world, "octopus", tmp_path, *words, "tasks=[task0]"))) == []  # theirs are not known
    assert [warning.split(" has no effect")[0] for warning in found] == ["method.task_shrinkage.zzz", "method.task_subset.tsk0"]
    assert "Did you mean 'task0'?" in found[1]


# What routes, by the names in a stored stage.
ROUTED = {"moelora": "modules.router.", "same": "modules.router.", "clmoe": "modules.router.", "smolora": "modules.",
          "branchlora": "modules.task-01."}  # fmt: skip


@pytest.mark.parametrize("method", [*ROUTED, "passmoe", "hide", "l2p", "modalprompt"])
def test_adapters_in_bf16(method: str, world: Path, tmp_path: Path) -> None:
    """Two tasks from the first step to the last answer; what routes stays in fp32."""
    words = ("tasks=[task0,task1]", "train.max_steps=1", "model.dtype=bfloat16", "train.adapter_dtype=bfloat16")
    run(configuration(world, method, tmp_path, *words), report=False)
    stage = load_file(tmp_path / "stages" / "02-task1" / "method.safetensors")
    routers = [value for key, value in stage.items() if key.startswith(ROUTED.get(method, "-")) and "key" not in key]
    assert bool(routers) == (method in ROUTED) and {value.dtype for value in routers} <= {torch.float32}
    assert len(list(tmp_path.glob("eval/02-task1/*/score.json"))) == 2


@pytest.mark.parametrize("options, says", [({"headlne": "clean"}, "no option 'headlne'"), ({"headline": "both"}, "'both'")])
def test_options_of_a_metric_are_checked_before_anything_runs(options: dict, says: str, world: Path, tmp_path: Path) -> None:
    tree = json.loads((world / "bench.yaml").read_text())
    tree["benchmark"]["tasks"][1]["metric_options"] = options
    (tmp_path / "bench.yaml").write_text(json.dumps(tree))
    words = [word for word in arguments(world, "lora", tmp_path / "run") if not word.startswith("benchmark=")]
    words.append(f"benchmark={tmp_path}/bench.yaml")
    with pytest.raises(UserError, match=says):
        run(compose(words))
    called = call("check", *words)
    assert called.code == 1 and says in called.out and not (tmp_path / "run" / "stages").exists()


def test_what_acts_otherwise_than_written_is_told(world: Path, tmp_path: Path) -> None:
    config = configuration(world, "lora", tmp_path, "train.max_steps=3", "train.adapter_dtype=bfloat16")
    assert ["max_steps=3" in warned(config)[0], "bfloat16" in warned(config)[1]] == [True, True]


# --------------------------------------------------------------------------------------------------- devices and engines


def test_a_process_trains_on_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With four GPUs in sight transformers would wrap the model in DataParallel and take four times the batch."""
    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(lambda self: setattr(self, "_n_gpu", 4)))
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: self.__dict__.setdefault("_n_gpu", 4)))
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=16, report_to="none")
    assert args.train_batch_size == 64
    assert on_one_gpu(args).train_batch_size == 16


def test_one_gpu_of_several_by_number_is_refused(world: Path, tmp_path: Path) -> None:
    config = configuration(world, "lora", tmp_path)
    config.model.device = "cuda:1"
    with pytest.raises(UserError, match=r"set CUDA_VISIBLE_DEVICES=1 and model"):
        check_engine(config.train.engine, config.model, method_class("lora"))


def test_methods_that_zero3_would_break_are_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lwf's teacher has a projector of its own, which is called by value: that cannot be done in pieces."""
    monkeypatch.setitem(__import__("sys").modules, "deepspeed", object())
    config = configuration(world, "lwf", tmp_path, "train.engine=zero3")
    with pytest.raises(UserError, match=r"method .lwf. reads them whole; use train"):
        check_engine(config.train.engine, config.model, method_class("lwf"))
    config.train.engine = "zero2"
    check_engine(config.train.engine, config.model, method_class("lwf"))


@pytest.mark.parametrize("wrote, world_size, engine, fits", [(1, 2, "ddp", True), (2, 1, "ddp", True), (2, 2, "zero2", True),
                                                             (1, 2, "zero2", False), (4, 2, "zero3", False)])  # fmt: skip
def test_another_number_of_processes(wrote: int, world_size: int, engine: str, fits: bool, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    for name in ["rng_state.pth"] if wrote == 1 else [f"rng_state_{i}.pth" for i in range(wrote)]:
        (folder / name).touch()
    (folder / "complete").write_text(engine)
    if not fits:
        with pytest.raises(UserError, match=f"written by {wrote} process.*here are {world_size}; go on with {wrote}"):
            latest_checkpoint(tmp_path, engine, world_size)
        return
    assert latest_checkpoint(tmp_path, engine, world_size) == folder
    assert ("other dropout masks" in " ".join(capsys.readouterr().out.split())) == (wrote != world_size)


# ------------------------------------------------------------------------------------------------------------ reporting


def test_a_service_that_is_not_there_is_told_before_anything_is_loaded(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hide_llava.training.reporting.get_available_reporting_integrations", lambda: ["trackio"])

    def refused(value: str) -> str:
        with pytest.raises(UserError) as error:
            preflight(Run(configuration(world, "lora", tmp_path, f"train.report_to={value}")))
        return str(error.value)

    assert "wandb is not installed; `pip install wandb`" in refused("wandb")
    assert "tensorboard is not installed" in refused("tensorboard")
    assert "Did you mean 'wandb'?" in refused("wandbb")
    for value in ("none", "trackio", "all"):
        check_reporting(value)


def test_stages_have_names_at_the_services(world: Path, tmp_path: Path) -> None:
    config = configuration(world, "lora", tmp_path / "my-run")
    run = Run(config)
    args = sequence.arguments(run, run.stages[1], 8, torch.device("cpu"), torch.float32)
    assert (args.run_name, args.report_to, args.project) == ("my-run-02-task1", [], "hide-llava")


# ----------------------------------------------------------------------------------------------------------- divergence


def destroy(after: int, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have step `after` set the first trained tensor to `value`."""

    def after_step(self: SequentialLora, step: int) -> None:
        if step + 1 == after:
            with torch.no_grad():
                self.params()[0]["params"][1].fill_(value)

    monkeypatch.setattr(SequentialLora, "after_step", after_step)


@pytest.mark.parametrize(
    "value, probe, says",
    [(float("nan"), None, "1 of 32 trained tensors hold absurd values, first llava.*lora_B.*: nan"),
     (-1e30, None, r"1 of 32 trained tensors hold absurd values, first llava.*lora_B.*: 1e\+30"),
     (1.0, 62.5, r"the loss of its first records is 62.5 \(guessing has 6.24\)"),
     (1.0, float("nan"), "the loss of its first records is nan")],
)  # fmt: skip
def test_a_stage_that_its_last_step_destroyed_is_not_published(
    value: float, probe: float | None, says: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(world, "lora", tmp_path, "tasks=[task0]", "train.save_steps=2")
    destroy(4, value, monkeypatch)
    if probe is not None:
        monkeypatch.setattr("hide_llava.training.diverged.probe_loss", lambda *_: probe)
    for _ in range(2):  # the same command again says the same
        with pytest.raises(UserError, match=f"01-task0: diverged. After step 4 of 4 .*{says}.*lower train.learning_rate"):
            run(config, report=False)
        assert not RunFolder(tmp_path).is_complete("01-task0") and not (tmp_path / "eval").exists()
        assert RunFolder(tmp_path).manifest["stages"][0]["status"] == "training"
        state = tmp_path / "state" / "01-task0"
        assert (state / "checkpoint-2" / "complete").is_file() and (state / "diverged" / "trainable.safetensors").is_file()
    monkeypatch.undo()
    shutil.rmtree(state / "checkpoint-4")
    run(config, evaluate=False, report=False)  # from the checkpoint before
    assert RunFolder(tmp_path).is_complete("01-task0")


@pytest.mark.parametrize("term", [float("nan"), float("inf")])
def test_a_term_that_is_not_finite_stops_before_its_step(
    term: float, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameters of that step would be lost, and with them the checkpoint that is written after it."""
    calls = iter([0.0, 0.0, term])
    monkeypatch.setattr(SequentialLora, "loss", lambda self, *_: {"penalty": torch.tensor(next(calls))})
    config = configuration(world, "lora", tmp_path, "tasks=[task0]", "train.save_steps=1")
    with pytest.raises(UserError, match=r"at step 3 \(records 0-.*its term penalty: (nan|inf)\); lower train.learning_rate"):
        run(config, report=False)
    kept = load_file(tmp_path / "state" / "01-task0" / "checkpoint-2" / "trainable.safetensors")
    assert all(torch.isfinite(t).all() for t in kept.values())


@pytest.mark.parametrize("ids, says", [([7, 8], "records 7, 8"), ([None, None], "records without an id"),
                                       (["a", None], "records a;|records a.;")])  # fmt: skip
def test_records_of_any_id_are_named(ids: list, says: str, world: Path, tmp_path: Path) -> None:
    session = opened(configuration(world, "lora", tmp_path))
    trainer, _ = build_trainer(session, session.stages[0], training_data(session, session.stages[0]))
    text = trainer._diverged(float("nan"), {}, ids)
    assert text.startswith("the loss is nan at step 1 (records") and says.split("|")[0].rstrip(";") in text


# ------------------------------------------------------------------------------------------------------------- optimizer


def test_biases_do_not_decay(world: Path, tmp_path: Path) -> None:
    config = configuration(world, "lora", tmp_path, "train.weight_decay=0.1", "tasks=[task0]")
    session = opened(config)
    trainer, _ = build_trainer(session, session.stages[0], training_data(session, session.stages[0]))
    groups = trainer.create_optimizer().param_groups
    names = {id(p): n for n, p in session.routed.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    biases = {n for n, share in decay.items() if share == 0}
    assert biases and all(n.endswith("projector.linear_1.bias") or n.endswith("projector.linear_2.bias") for n in biases)
    assert {share for n, share in decay.items() if n not in biases} == {0.1}
    assert {g["lr"] for g in groups} == {5e-3, 1e-3}


def test_a_checkpoint_from_before_biases_had_a_group_is_refused(world: Path, tmp_path: Path) -> None:
    config = configuration(world, "lora", tmp_path, "train.weight_decay=0.1", "tasks=[task0]", "train.save_steps=1")
    session = opened(config)
    trainer, callback = build_trainer(session, session.stages[0], training_data(session, session.stages[0]))
    callback.stopped = True
    trainer.train()
    file = tmp_path / "state" / "01-task0" / "checkpoint-1" / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    state["param_groups"] = state["param_groups"][:-1]
    torch.save(state, file)
    (file.parent / "complete").write_text("ddp")
    with pytest.raises(UserError, match=r"its optimizer state does not fit .*delete .*01-task0 to start this task again"):
        train_stage(Session(Run(config)), session.stages[0])


def test_terms_are_computed_without_autocast(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever engine or wrapper casts the forward: every engine computes the same terms."""
    seen = []
    monkeypatch.setattr(SequentialLora, "loss", lambda self, *_: seen.append(torch.is_autocast_enabled("cpu")) or {})
    config = configuration(world, "lora", tmp_path, "model.dtype=bfloat16", "train.max_steps=1", "tasks=[task0]")
    session = opened(config)
    trainer, _ = build_trainer(session, session.stages[0], training_data(session, session.stages[0]))
    with torch.autocast("cpu", torch.bfloat16):  # as under ZeRO
        trainer.train()
    assert seen == [False]


def test_a_forward_at_a_boundary_is_that_of_training(world: Path, tmp_path: Path) -> None:
    """Fresh or left wrapped by a trainer: the same loss."""
    config = configuration(world, "lora", tmp_path, "model.dtype=bfloat16", "tasks=[task0]")
    session = Session(Run(config))
    data = training_data(session, session.stages[0])
    session.begin_stage(session.stages[0], sequence._context(session, data))
    context = sequence._context(session, data)
    batch = next(iter(context.loader(data, 4)))
    seen = []
    handle = session.core.llava.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.no_grad():
        one = context.forward(batch).loss
        with torch.autocast("cpu", torch.bfloat16):
            two = context.forward(batch).loss
    handle.remove()
    assert seen == [True, True] and torch.equal(one, two)


def test_resuming_says_where_it_goes_on(world: Path, tmp_path: Path, capsys) -> None:
    config = configuration(world, "lora", tmp_path, "tasks=[task0]")
    session = opened(config)
    trainer, callback = build_trainer(session, session.stages[0], training_data(session, session.stages[0]))
    callback.stopped = True
    trainer.train()
    run(config, evaluate=False, report=False)
    assert "01-task0: going on at step 2 of 4" in capsys.readouterr().out
