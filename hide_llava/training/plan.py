"""`hide-llava plan`: what a run will do, hold and cost, computed from the configuration; nothing is trained or loaded."""

from __future__ import annotations

import torch

from hide_llava.config import RunConfig
from hide_llava.errors import UserError
from hide_llava.methods.base import Stage, method_class, method_config
from hide_llava.methods.cost import Pass
from hide_llava.model.load import device_of, dtype_of
from hide_llava.model.shapes import ModelShape, model_shape, skeleton
from hide_llava.training.estimate import ANSWER, QUESTION, TEXT, Work, activations, in_flops, rounded
from hide_llava.training.run_folder import method_tasks, stages_of
from hide_llava.training.sequence import records_of, stage_plan, train_file, training_warnings
from hide_llava.training.sizes import Sizes, sizes

MIB, GIB = 2**20, 2**30
TFLOPS = 100.0  # what the GPUs sustain together, unless the caller says: about a third of one A100's dense bf16 peak
PER = {"step": "every training record", "epoch": "every epoch", "task": "after every task", "answer": "every answer"}


def count_records(config: RunConfig, stage: Stage) -> int | None:
    """Training records of a stage, or None while a file is not there."""
    files = [train_file(config, t) for t in stage.train]
    if not all(f.is_file() for f in files):
        return None
    return records_of(config, stage)


def stated_records(config: RunConfig, stage: Stage) -> int | None:
    """Training records of a stage as the benchmark's YAML states them, or None where it does not."""
    stated = [config.benchmark.tasks[t].n_train for t in stage.train]
    return None if None in stated else sum(min(n, config.limit or n) for n in stated)


def plan(config: RunConfig, tflops: float = TFLOPS) -> str:
    """Readable text: batches, steps, parameters, files, extra passes, FLOPs, memory.

    Raises:
        UserError: tflops is not above 0.
    """
    if not tflops > 0:
        raise UserError(f"--tflops {tflops:g}: must be greater than 0.")
    lines = [f"{config.method['preset']} on {config.benchmark.name} with {config.model.name} → {config.run_folder()}"]
    cls = method_class(config.method["name"])
    stages = stages_of(config)
    if not cls.trains:
        lines.append(f"no training; {len(stages[0].evaluate)} tasks are evaluated")
    counts = [count_records(config, stage) for stage in stages] if cls.trains else []
    stated = [stated_records(config, stage) if found is None else None for stage, found in zip(stages, counts)]
    counts = [said if found is None else found for found, said in zip(counts, stated)]
    for stage, records, said in zip(stages, counts, stated):
        batch, epochs = stage_plan(config, stage)
        steps = "?" if records is None else batch.steps(records, epochs, config.train.max_steps)
        note = (
            " (as stated; the training file is not there)" if said else " (no training file)" if records is None else ""
        )
        lines.append(
            f"  {stage.index + 1:2d} {stage.title:<20} {records if records is not None else '?':>7} records{note} × {epochs:g} "
            f"epoch(s), batch {batch.global_batch} = {batch.per_device} per device × {batch.accumulation} accumulation "
            f"× {batch.world} process(es): {steps} steps; then {len(stage.evaluate)} task(s) evaluated"
        )
    lines += [f"warning: {text}" for text in (training_warnings(config, counts) if cls.trains else ())]
    try:
        shape = model_shape(config)
        tasks = method_tasks(config)
        measured = sizes(cls, method_config(config.method), shape, tasks) if cls.trains else Sizes.none()
    except UserError as error:
        return "\n".join([*lines, f"sizes: not known, {error}"])
    work = Work(shape, measured, len(tasks), config.train.gradient_checkpointing)
    base = base_parameters(shape)
    lines.append(_base(config, base))
    if cls.trains:
        lines += [*trained_lines(measured), *_passes(work)]
        lines += [*_training(config, work, stages, counts, tflops), _memory(config, work, stages, base)]
    lines.append(answer_line(work))
    return "\n".join([*lines, f"shape of the model: {shape.source}"])


def _base(config: RunConfig, base: int) -> str:
    dtype = dtype_of(config.model)
    why = f" (model.dtype=auto on {device_of(config.model).type})" if config.model.dtype == "auto" else ""
    return f"base model: {base / 1e6:,.1f} M parameters, {base * dtype.itemsize / MIB:,.0f} MiB in {dtype}{why}"


def base_parameters(shape: ModelShape) -> int:
    return sum(p.numel() for p in skeleton(shape.llava).parameters())


def trained_lines(measured: Sizes) -> list[str]:
    """Numbers trained and stored by one task, the first."""
    fp32, bf16 = measured.file_bytes("F32"), measured.file_bytes("BF16")
    own = "".join(f", {name} {_m(n)}" for name, n in measured.modules.items())
    later = "".join(f"; from the second task on also {name} {_m(n)}" for name, n in measured.cost.later.items())
    modules = f", modules {_m(measured.stored_modules)}" if measured.stored_modules else ""
    files = f"{fp32 / MIB:,.1f} MiB in fp32 ({bf16 / MIB:,.1f} MiB as bf16)" if measured.files else "none"
    lines = [
        f"trained in one task: {_m(measured.trained)} parameters (adapter {_m(measured.adapter)}, projector "
        f"{_m(measured.projector)}{own}){later}",
        f"adapter file of one task: {files}" + (f", in {len(measured.files)} files" if len(measured.files) > 1 else ""),
        f"stored with one task: {_m(measured.stored_adapter + measured.projector + measured.stored_modules)} parameters "
        f"(adapter {_m(measured.stored_adapter)}, projector {_m(measured.projector)}{modules}), "
        f"{stored_bytes(measured) / MIB:,.1f} MiB in fp32",
        f"weights of the trained part, gradients and AdamW state: {measured.trained * 16 / MIB:,.0f} MiB",
    ]
    kept = [f"{what} ({size / MIB:,.1f} MiB after the last task)" for what, size in measured.cost.state.items()]
    return [*lines, *([f"kept beside: {'; '.join(kept)}"] if kept else [])]


def stored_bytes(measured: Sizes) -> int:
    """Bytes of the first task's stage folder in fp32, without the method's state."""
    return measured.file_bytes() + 4 * (measured.projector + measured.stored_modules)


def _m(numbers: int) -> str:
    return f"{numbers / 1e6:,.2f} M"


def pass_words(extra: Pass) -> str:
    """How many passes, of which kind, when."""
    kind = f"{extra.forwards} forward" + (
        f" and {extra.backwards} backward" if extra.backwards else " without gradient"
    )
    text = ", text only" if extra.text_only else ""
    return f"{PER[extra.per]}: {extra.what} ({kind}{text}{'; not in the first task' if extra.later else ''})"


def extra_passes(work: Work) -> list[str]:
    """All that runs beside one forward and backward per record and one answer per question, in words."""
    cost = work.sizes.cost
    words = [pass_words(p) for p in cost.passes]
    words += [f"every training record and every answer: {tower.name} on the question" for tower in work.towers]
    if any(cost.prompts):
        words.append(f"prompts: {cost.prompts[0]} more tokens per record, {cost.prompts[1]} per answer, at most")
    if cost.extra:
        words.append(f"every micro-batch: {in_flops(cost.extra)} of the extra loss, in the last task")
    if cost.live:
        words.append(
            f"every token of an answer: {_m(cost.live + cost.routers)} adapter parameters that cannot be folded"
        )
    return words


def _passes(work: Work) -> list[str]:
    words = extra_passes(work)
    return ["extra passes: none"] if not words else ["extra passes:", *(f"  {line}" for line in words)]


def percent(value: float, base: float) -> str:
    return f"{100 * (value / base - 1):+.0f} %"


def record_line(work: Work, stages: int) -> str:
    base, last = work.base_record(), work.record(stages - 1)
    line = f"a training record: {in_flops(base)} of the base model, {in_flops(last)} with the method in the last task "
    return line + f"({percent(last, base)}); {work.flops.image_tokens} image and {TEXT} text tokens assumed"


def _training(config: RunConfig, work: Work, stages: list[Stage], counts: list[int | None], tflops: float) -> list[str]:
    line = record_line(work, len(stages))
    if not all(counts):
        return [line, "all training: not known without the training files"]
    total = 0.0
    for i, stage in enumerate(stages):
        batch, epochs = stage_plan(config, stage)
        seen = epochs * counts[i] if config.train.max_steps <= 0 else config.train.max_steps * batch.global_batch
        extra = work.sizes.cost.extra / batch.per_device if i else 0
        total += seen * (work.record(i) + extra) + work.beside(counts[: i + 1], epochs)
    hours = f"{rounded(total / tflops / 3.6e15)} h at {tflops:g} TFLOP/s (--tflops: what the GPUs sustain together)"
    return [line, f"all training: {in_flops(total)}, {hours}"]


def _memory(config: RunConfig, work: Work, stages: list[Stage], base: int) -> str:
    """Rough: no fragmentation, no CUDA context, no communication buffers, no attention kernels' own."""
    cost, width = work.sizes.cost, dtype_of(config.model).itemsize
    bits = {"none": 8 * width, "8bit": 8, "4bit": 4}[config.model.quantization]
    weights = base * width - work.flops.linears * (8 * width - bits) // 8
    own = getattr(torch, config.train.adapter_dtype).itemsize
    trained = work.sizes.trained * 4 * own
    held = 4 * cost.kept + sum(cost.state.values()) + sum(4 * tower.parameters for tower in work.towers)
    size = stage_plan(config, stages[-1])[0].per_device
    rest = activations(work.shape.llava, size, width, config.train.gradient_checkpointing)
    parts = {"base model": weights, "trained part with AdamW": trained, "past experts, state, text encoder": held,
             f"activations of {size} record(s)": rest}  # fmt: skip
    listed = ", ".join(f"{name} {_gib(value)}" for name, value in parts.items())
    return f"memory of one process in training, rough: {_gib(sum(parts.values()))} GiB ({listed})"


def _gib(size: float) -> str:
    return rounded(size / GIB)


def answer_line(work: Work) -> str:
    base, own = work.base_answer(), work.answer()
    return (
        f"an answer: {in_flops(base)} of the base model, {in_flops(own)} with the method after the last task "
        f"({percent(own, base)}); {work.flops.image_tokens} image, {QUESTION} prompt and {ANSWER} new tokens assumed"
    )
