"""A small subclass of transformers' Trainer: a method's parameter groups, route, extra losses and state."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import seed_worker

from hide_llava.adapters.route import Route
from hide_llava.data.sampler import GlobalBatches, StandIns
from hide_llava.errors import Diverged, UserError
from hide_llava.methods.base import Method, reads_logits
from hide_llava.methods.checks import checked_terms
from hide_llava.methods.routed import RoutedLlava
from hide_llava.progress import Progress
from hide_llava.storage import writing
from hide_llava.training.checkpoint import load_trained, mark_complete, rotate, save_trained
from hide_llava.training.engines import anywhere, over_processes

REMEDY = "lower train.learning_rate, set train.max_grad_norm, or use bf16 instead of fp16."


class MethodTrainer(Trainer):
    """Trains the parameters a method names, and nothing else."""

    def __init__(
        self, model: RoutedLlava, args: TrainingArguments, sampler: Sampler, lrs: dict[str, float],
        schedules: Sequence[tuple[int, int]] = (), **kwargs: Any,
    ):  # fmt: skip
        """schedules: (steps, of these the warm-up) of every part of the data that has a learning rate schedule of its own."""
        self.routed, self.sampler, self.lrs, self.schedules = model, sampler, lrs, list(schedules)
        self.method, self.core = model.method, model.core
        self.terms: dict[str, float] = {}
        self.summed: set[int] = set()  # the steps that are in the terms
        super().__init__(model=model, args=args, **kwargs)
        self.remove_callback(PrinterCallback)  # RunCallback says how far it is
        self.model_accepts_loss_kwargs = True  # our forward hands num_items_in_batch to LLaVA's own loss

    # ---- data and optimizer ----------------------------------------------------------------------------------------
    def get_train_dataloader(self) -> DataLoader:
        """This process's share of every global batch, cut by ourselves: accelerate has nothing left to distribute."""
        args = self.args
        sizes = (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size)
        self.batches = GlobalBatches(self.sampler, *sizes, args.process_index)
        loader = DataLoader(
            StandIns(self.train_dataset),
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        )
        return prepare_data_loader(  # from pinned memory the host need not wait until a batch has arrived
            loader, args.device, num_processes=1, process_index=0, put_on_device=True,
            non_blocking=args.dataloader_pin_memory,
        )  # fmt: skip

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """One group per group of `method.params()`, in two where weights decay: biases (of the projector) never do."""
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.routed)
            groups, decay = [], self.args.weight_decay
            biases = {id(p) for name, p in self.routed.named_parameters() if decay and name.endswith("bias")}
            for group in self.method.params():
                lr = self.lrs[group["lr"]] if isinstance(group["lr"], str) else group["lr"]
                kept = [p for p in group["params"] if id(p) in biases]
                rest = [p for p in group["params"] if id(p) not in biases]
                parts = [(rest, decay), (kept, 0.0)]
                groups += [{"params": part, "lr": lr, "weight_decay": share} for part, share in parts if part]
            self.optimizer = cls(groups, **kwargs)
            self.routed.trained = [p for group in groups for p in group["params"]]
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of `args`; with several `schedules` it begins anew with each of them."""
        if len(self.schedules) < 2 or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = restarting(self.args, self.optimizer if optimizer is None else optimizer, self.schedules)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _run_epoch(self, *given: Any, **named: Any) -> None:
        """Nothing where all steps are done: a task that was stopped behind its last step, in the middle of an epoch."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*given, **named)

    # ---- a step ----------------------------------------------------------------------------------------------------
    def training_step(self, model: Any, inputs: dict, num_items_in_batch: Any = None) -> Tensor:
        try:  # the route stays current until backward is done, because activation recomputation needs it
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self.core.follow(Route())

    def compute_loss(
        self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy as the Trainer normalises it, plus the method's terms.

        The Trainer divides the cross-entropy by the tokens of the whole global batch and takes it times the processes,
        whose gradients are averaged. A method's term is a mean over its micro-batch, so it gets the share that the rows
        of the micro-batch have of the global batch. A method does not see a row that stands in for none.
        """
        asked = {**inputs, "loss_only": not reads_logits(type(self.method))}
        loss, output = super().compute_loss(model, asked, True, num_items_in_batch)
        terms: dict[str, Tensor] = {}
        self.summed.add(self.state.global_step)
        if rows := sum(inputs["counts"]):
            terms = self._terms(inputs, output)
            micro_batches = self.batches.rows(self.state.global_step) / (rows * self.args.world_size)
            for name, term in terms.items():
                share = term / micro_batches
                self.terms[name] = self.terms.get(name, 0.0) + float(share.detach())
                loss = loss + share.to(loss.dtype)
        else:  # DDP and ZeRO-2 wait for a gradient of every parameter, also of those that only a term uses
            loss = loss + 0.0 * sum(p.sum() for p in self.routed.trained if not hasattr(p, "ds_id"))
        if not torch.isfinite(loss):
            raise Diverged(self._diverged(float(loss.detach()), terms, inputs["ids"]))
        return (loss, output) if return_outputs else loss

    def _terms(self, inputs: dict, output: Any) -> dict[str, Tensor]:
        """The method's terms, in the parameters' own precision whatever engine or wrapper set up an autocast."""
        with torch.autocast(self.args.device.type, enabled=False):
            return checked_terms(self.method, self.method.loss(output, inputs, output.features))

    def _diverged(self, loss: float, terms: dict[str, Tensor], ids: list[Any]) -> str:
        named = ", ".join(str(i) for i in ids[:4] if i is not None)
        records = f"records {named}" if named else "records without an id"
        parts = "".join(f"; its term {name}: {float(term.detach()):g}" for name, term in terms.items())
        return f"the loss is {loss:g} at step {self.state.global_step + 1} ({records}{parts}); {REMEDY}"

    def _clip_grad_norm(self, model: Any) -> Any:
        """Of what trains; to look through all frozen experts for gradients takes longer with every task."""
        return self.accelerator.clip_grad_norm_(self.routed.trained, self.args.max_grad_norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and type(self.method).loss is not Method.loss:
            steps = max(1, len(self.summed))
            logs = {**logs, **{f"loss/{name}": value / steps for name, value in over_processes(self.terms).items()}}
            self.terms, self.summed = {}, set()
        super().log(logs, start_time)

    def compute_loss_context_manager(self) -> contextlib.AbstractContextManager:
        """Under DeepSpeed nobody else casts: its own bf16 mode would turn adapters and text tower to bf16 as well."""
        dtype = self.core.llava.dtype
        if self.is_deepspeed_enabled and dtype == torch.bfloat16:
            return torch.autocast(self.args.device.type, dtype)
        return super().compute_loss_context_manager()

    # ---- checkpoints within a task -----------------------------------------------------------------------------------
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        save_trained(self.routed, Path(output_dir or self.args.output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The Trainer would make DeepSpeed write the frozen base model into every checkpoint."""
        if self.is_deepspeed_enabled:
            self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
            if self.args.should_save:
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:  # torch: other parameter groups, as of a version before biases had their own
            raise UserError(
                f"{checkpoint}: its optimizer state does not fit ({' '.join(str(error).split())}); delete "
                f"{Path(checkpoint).parent} to start this task again."
            ) from None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.routed, Path(resume_from_checkpoint))


def restarting(args: TrainingArguments, optimizer: Any, schedules: Sequence[tuple[int, int]]) -> Any:
    """One schedule of `args` after another; schedules: (steps, of these the warm-up) of each.

    All of upstream's are factors of the step, but for those that follow an evaluation, which `TrainingArguments` refuse here.
    """
    alone = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)  # upstream makes them for an optimizer
    kind, more = args.lr_scheduler_type, args.lr_scheduler_kwargs
    factors = [get_scheduler(kind, alone, warmup, steps, more).lr_lambdas[0] for steps, warmup in schedules]

    def factor(step: int) -> float:
        part = 0
        while part < len(schedules) - 1 and step >= schedules[part][0]:
            step, part = step - schedules[part][0], part + 1
        return factors[part](step)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class RunCallback(TrainerCallback):
    """Progress, log file, completeness mark of checkpoints, the method's hooks, and a clean stop on SIGTERM / SIGUSR1."""

    def __init__(self, method: Any, log_file: Path, engine: str, name: str, ends: Sequence[int] = ()):
        """ends: the step before which each part of the data ends, where parts are trained in turn, each by a new optimizer."""
        self.method, self.log_file, self.engine, self.stopped = method, log_file, engine, False
        self.ends = list(ends)
        self.name = name  # of the stage
        self._before: dict[int, Any] = {}
        self._progress: Progress | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and 0 < state.global_step < state.max_steps:
            print(f"{self.name}: going on at step {state.global_step + 1} of {state.max_steps}", flush=True)
        self._progress = Progress(self.name, state.max_steps, "step", state.global_step)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            try:
                self._before[number] = signal.signal(number, lambda *_: setattr(self, "stopped", True))
            except ValueError:  # not the main thread: whoever embeds us handles signals
                return

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def close(self) -> None:
        """However the training ended, the terminal stands at the start of a line."""
        if self._progress is not None:
            self._progress.close()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Gradients as the method knows them: the scale of fp16 is taken out here, where no clipping has done so before."""
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None and args.max_grad_norm <= 0:
            scaler.unscale_(optimizer.optimizer)
        self.method.on_gradients(state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        self.method.after_step(state.global_step)
        for part, end in enumerate(self.ends[:-1], 1):  # before a checkpoint of this step is written
            if state.global_step + 1 == end and self.ends[part] > end:
                optimizer.state.clear()  # moments; a parameter without any gets new ones in its next step
                self.method.begin_part(part)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.stopped = anywhere(self.stopped)
        if self.stopped and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # until all processes have written their part of it
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.engine)
            rotate(Path(args.output_dir), state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict | None = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self._progress.at(state.global_step, f"loss {float(logs['loss']):.4f}")
        with writing(self.log_file), open(self.log_file, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
