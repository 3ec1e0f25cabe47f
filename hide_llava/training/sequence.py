"""Train one stage of a run: data, batches, Trainer, hand-over. Resumes inside the task."""

from __future__ import annotations

import shutil
from contextlib import closing
from itertools import islice
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from hide_llava.data.collator import Collator, moved
from hide_llava.data.dataset import TrainingDataset, pictures_of
from hide_llava.data.decoded import undecodable
from hide_llava.data.sources import content_sha256
from hide_llava.distributed import is_main, on_main, ranks
from hide_llava.errors import Diverged, Interrupted, UserError
from hide_llava.methods.base import Stage
from hide_llava.storage import publish, writing
from hide_llava.training.batching import BatchPlan, few_steps, recipe_warnings, warmup_steps
from hide_llava.training.checkpoint import COMPLETE, latest_checkpoint, load_trained, save_trained
from hide_llava.training.diverged import diverged
from hide_llava.training.engines import anywhere, deepspeed_config, on_one_gpu, release
from hide_llava.training.lineage import chain_of, write_stage
from hide_llava.training.memory import layout, reclaim
from hide_llava.training.order import order_of
from hide_llava.training.reporting import report_arguments
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder, stage_name
from hide_llava.training.session import Session
from hide_llava.training.trackers import TRACKERS
from hide_llava.training.tracking import TrackingCallback
from hide_llava.training.trainer import REMEDY, MethodTrainer, RunCallback


def training_data(session: Session, stage: Stage) -> TrainingDataset:
    """The stage's training records, checked; several tasks are concatenated.

    Raises:
        UserError: missing or broken file, bad record (unless train.on_bad_sample=skip).
    """
    tables = [session.run.tasks[t].records(whole=True) for t in stage.train]
    records = tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)
    task, context = session.tasks[stage.train[0]], session.context(**_data(session))
    records = session.method.train_data(task, records, context)
    rank, world = ranks()
    if world > 1:  # each process decodes a share of the pictures; what it found is remembered for all of them
        share = islice(pictures_of(records, session.run.common.table_root), rank, None, world)
        undecodable(share, session.run.train.num_workers)
        torch.distributed.barrier()
    made: list[TrainingDataset] = []  # by the main process, which tokenises; the others read what it has kept
    on_main(lambda: made.append(dataset_of(session, records)))
    return made[0] if made else dataset_of(session, records)


def dataset_of(session: Session, records: Any) -> TrainingDataset:
    """Records of the run's tasks as training reads them; UserError as of `TrainingDataset`."""
    run = session.run
    return TrainingDataset(
        records,
        run.common.table_root,
        session.reader(masks=run.train.label_masks),
        run.train.max_length,
        run.train.on_bad_sample,
        run.benchmark.image_orientation,
        run.train.num_workers,
    )


def _data(session: Session) -> dict[str, Any]:
    """The part of a context that lends records and data sets."""
    return {"records": lambda task: session.run.tasks[task].records(), "dataset": lambda r: dataset_of(session, r)}


def training_warnings(run: Run, counts: list[int | None]) -> list[str]:
    """What `plan` and `run` say about a recipe, given the training records of each stage (None: not known).

    Raises:
        UserError: batches that cannot be split, or a warm-up that is no share.
    """
    found, steps = recipe_warnings(run.train, run.benchmark), {}
    for stage, records in zip(run.stages, counts):
        batch, epochs = run.batches(stage)
        if records is not None:
            steps[stage_name(stage)] = batch.steps(records, epochs, run.train.max_steps)
            warmup_steps(run.train, steps[stage_name(stage)])
    return found + few_steps(steps)


def arguments(
    run: Run, stage: Stage, records: int, device: torch.device, dtype: torch.dtype, batch: BatchPlan | None = None,
) -> TrainingArguments:  # fmt: skip
    """Trainer arguments of one stage with `records` training records; the schedule restarts with each stage.

    batch: None is as planned without looking at memory.

    Raises:
        UserError: a value that transformers refuses (schedule, optimizer, report_to, …).
    """
    try:
        return _arguments(run, stage, records, device, dtype, batch)
    except (ValueError, ImportError, RuntimeError) as error:
        text = " ".join(str(error).split())
        keys = [k for k in ("schedule", "optimizer", "report_to") if str(getattr(run.train, k)) in text.split()]
        at = f"train.{keys[0]}={getattr(run.train, keys[0])}" if keys else "train"
        raise UserError(f"{at}: {text[:500]}") from None


def _arguments(
    run: Run, stage: Stage, records: int, device: torch.device, dtype: torch.dtype, batch: BatchPlan | None
) -> TrainingArguments:
    train, name = run.train, stage_name(stage)
    planned, epochs = run.batches(stage)
    batch = batch or planned
    args = TrainingArguments(
        output_dir=str(run.folder.state(name)),
        per_device_train_batch_size=batch.per_device,
        gradient_accumulation_steps=batch.accumulation,
        num_train_epochs=epochs,
        max_steps=train.max_steps,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        lr_scheduler_type=train.schedule,
        warmup_steps=warmup_steps(train, batch.steps(records, epochs, train.max_steps)),
        optim=train.optimizer,
        deepspeed=deepspeed_config(train.engine),
        bf16=dtype == torch.bfloat16 and train.engine == "ddp",  # ZeRO: autocast in the trainer
        fp16=dtype == torch.float16,
        use_cpu=device.type == "cpu",
        dataloader_num_workers=train.num_workers,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        logging_steps=train.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=train.save_steps,
        seed=run.seed + stage.index,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # no buffer changes in a forward, and each process has loaded the same
        ddp_timeout=round(60 * train.timeout_minutes),
        disable_tqdm=True,  # RunCallback says how far it is
        **report_arguments(train.report_to, tuple(TRACKERS), run.folder.path, name),
    )
    return on_one_gpu(args)


def refuse_changed_data(run: Run) -> None:
    """A run is made of one set of training files, also where a stage is finished.

    Raises:
        UserError: a file is another one than a stage was trained on.
    """
    folder = run.folder
    entries = {entry["name"]: entry for entry in folder.manifest["stages"]}
    for stage in run.stages:
        name = stage_name(stage)
        if not folder.is_complete(name) and not any(folder.state(name).glob(f"checkpoint-*/{COMPLETE}")):
            continue  # nothing was learned from it yet
        known = entries[name].get("data", {})
        for task in (run.tasks[i] for i in stage.train):
            file, expected = task.train_file, known.get(task.id)
            if expected is not None and content_sha256(file) != expected:
                raise UserError(
                    f"{file}: is another file than {name} was trained on; put that one back, or choose another output=."
                )


def train_stage(session: Session, stage: Stage) -> Session:
    """Train `stage` on top of the stages before it and publish its folder. A half-done stage is resumed.

    Returns the session to go on with: after a ZeRO engine it is a fresh one.

    Raises:
        Interrupted: stopped by a signal after saving its state.
    """
    name, run, folder = stage_name(stage), session.run, session.run.folder
    dataset = training_data(session, stage)
    if is_main():
        _refuse_other_records(folder, name, dataset)
        if dataset.skipped:
            print(f"{name}: {dataset.left_out()}; the manifest lists them", flush=True)
        files = {task.id: content_sha256(task.train_file) for task in (run.tasks[i] for i in stage.train)}
        folder.update_stage(name, status="training", records=len(dataset), skipped=dataset.skipped, data=files)
    trainer, callback = build_trainer(session, stage, dataset)
    if is_main():
        folder.update_stage(
            name, trainable=sum(p.numel() for g in session.method.params() for p in g["params"]),
            per_device=trainer.args.per_device_train_batch_size,
            gradient_checkpointing=session.recomputes,
        )  # fmt: skip
    checkpoint = None
    if folder.state(name).exists():
        checkpoint = latest_checkpoint(folder.state(name), run.train.engine, trainer.args.world_size)
    if checkpoint and trainer.is_deepspeed_enabled:  # the Trainer leaves all loading to DeepSpeed
        load_trained(session.routed, checkpoint)
    try:
        with closing(callback):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        _keep_less(session, stage, trainer, str(error))
    else:
        return _end_stage(session, stage, trainer, callback, dataset)
    del trainer, callback  # out of the handler, so that nothing holds the tensors of the step that failed
    return train_stage(_fresh(session, stage), stage)


def _keep_less(session: Session, stage: Stage, trainer: MethodTrainer, text: str) -> None:
    """After a step that did not fit: note that this stage computes activations again, if it kept them as they seemed to fit.

    Raises:
        UserError: a smaller micro-batch is all that is left; or several processes train, which must begin again together.
    """
    name, run, size = stage_name(stage), session.run, trainer.args.per_device_train_batch_size
    if run.train.gradient_checkpointing != "auto" or session.recomputes:
        ways = [] if session.recomputes else ["train.gradient_checkpointing=true"]
        ways += [f"train.per_device_batch_size below {size}"] if size > 1 else []
        ways += ["model.quantization=4bit"] if run.model.quantization == "none" else []
        raise UserError(f"{name}: out of memory in a step ({' '.join(text.split())[:200]}). What takes less: "
                        f"{', '.join(ways) or 'a shorter train.max_length'}.") from None  # fmt: skip
    run.folder.update_stage(name, gradient_checkpointing=True)
    print(f"{name}: out of memory with micro-batches of {size} record(s) and their activations kept, although they should have "
          "fitted: this stage goes on with gradient checkpointing", flush=True)  # fmt: skip
    if trainer.args.world_size > 1 or trainer.is_deepspeed_enabled:
        raise UserError(f"{name}: out of memory in one of several processes, which cannot go on by itself. The same command "
                        "again goes on from the last checkpoint, with gradient checkpointing.") from None  # fmt: skip


def _fresh(session: Session, stage: Stage) -> Session:
    """A new session at the beginning of `stage`, when the weights of the old one have left the device."""
    session.routed.to("meta")
    reclaim()
    fresh = Session(session.run)
    fresh.restore(stage.index - 1)
    return fresh


def _end_stage(
    session: Session, stage: Stage, trainer: MethodTrainer, callback: RunCallback, dataset: Any
) -> Session:
    """After the Trainer's loop: hand over, look for divergence, publish; or say that a signal stopped it."""
    name = stage_name(stage)
    if callback.stopped and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps} of {name}")
    log = trainer.state.log_history
    if trainer.is_deepspeed_enabled:
        session = _hand_over(session, stage, trainer, dataset)
    _refuse_diverged(session, stage, trainer, dataset)
    finish_stage(session, stage, log, dataset)
    if callback.stopped:  # the signal came in the last step
        raise Interrupted(f"stopped after {name}")
    return session


def _refuse_diverged(session: Session, stage: Stage, trainer: MethodTrainer, dataset: Any) -> None:
    """Raises Diverged, in all processes, for a stage whose last steps destroyed it; it is kept, and not published."""
    state, size = trainer.state, trainer.args.per_device_train_batch_size
    found = diverged(session, _context(session, dataset), size, state.log_history)
    if not anywhere(found is not None):
        return
    folder = session.run.folder.state(stage_name(stage))
    save_trained(session.routed, folder / "diverged")
    raise Diverged(
        f"{stage_name(stage)}: diverged. After step {state.global_step} of {state.max_steps} "
        f"{found or 'another process found it broken'}. It is not published; {folder} keeps what was trained (diverged) "
        f"and its checkpoints. With another output=, {REMEDY}"
    )


def _refuse_other_records(folder: RunFolder, name: str, dataset: TrainingDataset) -> None:
    """A half-trained stage goes on with the records it began with, else with batches that it never would have had.

    Raises:
        UserError: other records are left out now (train.on_bad_sample was changed, or a picture).
    """
    entry = next(e for e in folder.manifest["stages"] if e["name"] == name)
    begun = any(folder.state(name).glob(f"checkpoint-*/{COMPLETE}"))
    if begun and entry.get("records", len(dataset)) != len(dataset):
        raise UserError(
            f"{folder.state(name)}: was begun with {entry['records']} records, and {len(dataset)} can be used now; delete that "
            "folder to train this stage from its start."
        )


def _hand_over(session: Session, stage: Stage, trainer: MethodTrainer, dataset: Any) -> Session:
    """What DeepSpeed trained, on a model that DeepSpeed never touched: statistics and folding need whole weights."""
    folder = session.run.folder.state(stage_name(stage)) / "trained"
    save_trained(session.routed, folder)
    release(trainer)
    torch.distributed.barrier()
    fresh = _fresh(session, stage)
    fresh.begin_stage(stage, _context(fresh, dataset))
    load_trained(fresh.routed, folder)
    torch.distributed.barrier()  # the main process deletes that folder when the stage is closed
    return fresh


def build_trainer(session: Session, stage: Stage, dataset: TrainingDataset) -> tuple[MethodTrainer, RunCallback]:
    """What trains a stage. The session stands at the stage's beginning behind it."""
    run, name = session.run, stage_name(stage)
    folder, train = run.folder.state(name), run.train
    session.begin_stage(stage, _context(session, dataset))
    folder.mkdir(parents=True, exist_ok=True)
    entry = next(e for e in run.folder.manifest["stages"] if e["name"] == name)
    chosen = layout(session, run.batches(stage)[0], dataset, entry)
    if is_main() and chosen.free is not None:
        print(f"{name}: {chosen.words()}", flush=True)
    session.recomputes = chosen.recompute
    if chosen.recompute:
        session.core.llava.gradient_checkpointing_enable({"use_reentrant": False})
    session.cast_inputs(session.core.llava.dtype == torch.float32)  # any other dtype is trained under autocast
    batch, llava = chosen.batch, session.core.llava
    args = arguments(run, stage, len(dataset), llava.device, llava.dtype, batch)
    order = order_of(session.method.parts(), dataset, train, batch, run.batches(stage)[1], args.seed)
    callback = RunCallback(session.method, folder / "trainer_log.jsonl", train.engine, name, order.ends)
    trainer = MethodTrainer(
        session.routed,
        args,
        order.sampler,
        {"adapter": train.learning_rate, "projector": train.projector_lr},
        order.schedules,
        train_dataset=dataset,
        data_collator=Collator(side="right"),
        callbacks=[callback, TrackingCallback(run.tracking, stage.index + 1, stage.title)],
    )
    return trainer, callback


def finish_stage(session: Session, stage: Stage, log: list[dict], dataset: Any) -> None:
    """Let the method look at the finished task, then publish the stage folder in one step and drop its state."""
    name, folder = stage_name(stage), session.run.folder
    session.core.llava.gradient_checkpointing_disable()
    session.cast_inputs(True)
    session.method.after_task(session.tasks[stage.train[-1]], _context(session, dataset))
    session.routed.eval().requires_grad_(False)
    temporary = folder.path / "stages" / f".{name}.tmp"
    if is_main():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    with writing(temporary):
        session.save_stage(temporary, log)
    if is_main():
        before = folder.stage(stage_name(session.stages[stage.index - 1])) if stage.index else None
        data = next(e for e in folder.manifest["stages"] if e["name"] == name).get("data", {})
        write_stage(temporary, before and chain_of(before), session.run.training_part(), data)
        publish(temporary, folder.stage(name))
        folder.close_stage(name)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _context(session: Session, dataset: Any) -> Any:
    """What task boundaries may use: the data in batches on the device, routing features, a routed training forward."""
    device = session.core.llava.device

    def loader(data: Any, batch_size: int) -> Any:
        return (moved(b, device) for b in DataLoader(data, batch_size, collate_fn=Collator(side="right")))

    def features(batch: dict) -> Any:
        return session.routed.features(batch, session.routed.see(batch))

    def forward(batch: dict, **more: Any) -> Any:
        """In the arithmetic of training, whether or not an earlier trainer left the model wrapped in an autocast. `more`: of
        `RoutedLlava.forward`, as loss_only=True."""
        dtype = session.core.llava.dtype
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return session.routed(**batch, **more)

    return session.context(
        train_data=dataset,
        loader=loader,
        features=features,
        forward=forward,
        **_data(session),
    )
