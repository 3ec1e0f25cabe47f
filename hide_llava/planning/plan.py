"""`hide-llava plan`: what a run will do, hold and cost, computed from the configuration; nothing is trained or loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from hide_llava.backbones.loading import device_of, dtype_of
from hide_llava.backbones.pictures import HEIGHT, WIDTH
from hide_llava.backbones.shapes import ModelShape, model_shape
from hide_llava.benchmarks.files import BenchmarkTask
from hide_llava.errors import UserError
from hide_llava.methods.base import Method, Stage, reads_logits
from hide_llava.methods.cost import Cost, Pass
from hide_llava.planning.cards import CARDS, Card, card_of
from hide_llava.planning.estimate import ANSWER, QUESTION, TEXT, Work, in_flops, rounded
from hide_llava.planning.sizes import Sizes, sizes
from hide_llava.schema import ModelConfig
from hide_llava.training.batching import micro_batches
from hide_llava.training.memory import SHARE, activations, first_that_fits
from hide_llava.training.run import Run
from hide_llava.training.run_folder import stage_name
from hide_llava.training.sequence import training_warnings

MIB, GIB = 2**20, 2**30
TFLOPS = 100.0  # what one GPU sustains, unless the caller says: about a third of an A100's dense bf16 peak
LARGE = 1e9  # parameters of a base model that is planned for a GPU, whatever machine plans it
PER = {"step": "every training record", "epoch": "every epoch", "task": "after every task", "answer": "every answer"}


def count_records(run: Run, stage: Stage) -> int | None:
    """Training records of a stage, or None while a file is not there."""
    if not all(run.tasks[t].train_file.exists() for t in stage.train):
        return None
    return run.records_of(stage)


def stated_records(run: Run, stage: Stage) -> int | None:
    """Training records of a stage as the benchmark's YAML states them, or None where it does not."""
    stated = [run.tasks[t].entry.n_train for t in stage.train]
    return None if None in stated else sum(min(n, run.common.limit or n) for n in stated)


def count_questions(task: BenchmarkTask) -> int | None:
    """Questions that are asked of a task: those of its file, else as the benchmark's YAML states, or None."""
    if all(file.exists() for file in task.question_files):
        return len(task.questions()[0])
    stated = task.entry.n_test if task.common.eval.split == "test" else None
    return None if stated is None else min(stated, task.common.limit or stated)


@contextlib.contextmanager
def processes(count: int | None) -> Iterator[int]:
    """As if that many processes trained together (None: as launched); yields their number."""
    before = os.environ.get("WORLD_SIZE")
    if count is not None:
        os.environ["WORLD_SIZE"] = str(count)
    try:
        yield int(os.environ.get("WORLD_SIZE", "1"))
    finally:
        os.environ.pop("WORLD_SIZE", None)
        if before is not None:
            os.environ["WORLD_SIZE"] = before


@dataclass(frozen=True)
class Pace:
    """How fast it goes: `tflops` that all GPUs sustain together, or `gpus` of a named card."""

    tflops: float
    card: Card | None
    gpus: int

    def training(self, work: Work, flops: float, records: float) -> float:
        """Seconds of `records` that take `flops` in all."""
        if self.card is None:
            return flops / self.tflops / 1e12
        return self.card.training_seconds(work, flops, records) / self.gpus

    def answering(self, work: Work, answers: float, weights: int) -> float:
        """Seconds of `answers` with a base model of `weights` bytes."""
        if self.card is None:
            return answers * work.answer() / self.tflops / 1e12
        return self.card.answering_seconds(work, answers, weights) / self.gpus

    def words(self) -> str:
        """What the hours rest on."""
        if self.card is None:
            return f"at {self.tflops:g} TFLOP/s (--tflops: what the GPUs sustain together; or --gpu {', '.join(CARDS)})"
        return f"estimated for {self.gpus} × {self.card.title} by arithmetic, nothing of it measured"


def plan(run: Run, tflops: float | None = None, gpus: int | None = None, gpu: str | None = None) -> str:
    """Readable text: batches, steps, parameters, files, extra passes, FLOPs and hours of training and evaluation, memory;
    beside the hours those that were measured, where the run has been begun.

    gpus: processes that train together, one on each GPU. tflops: what they sustain together. gpu: a card of `CARDS`. The
    embedded benchmark is written first, as `check` and `run` do.

    Raises:
        UserError: tflops is not above 0, an unknown card, both of them, or a file of the benchmark is damaged.
    """
    if gpu is not None and tflops is not None:
        raise UserError(f"--gpu {gpu} and --tflops {tflops:g} both say how fast it goes; give one of them.")
    card = None if gpu is None else card_of(gpu)
    with processes(gpus) as world:
        tflops = TFLOPS * world if tflops is None else tflops
        if not tflops > 0:
            raise UserError(f"--tflops {tflops:g}: must be greater than 0.")
        run.prepare()
        return _plan(run, Pace(tflops, card, world))


def _plan(run: Run, pace: Pace) -> str:
    lines = [f"{run.preset} on {run.benchmark.name} with {run.model.name} → {run.folder.path}"]
    cls, stages = run.method, run.stages
    if not cls.trains:
        lines.append(f"no training; {len(stages[0].evaluate)} tasks are evaluated")
    counts = [count_records(run, stage) for stage in stages] if cls.trains else []
    stated = [stated_records(run, stage) if found is None else None for stage, found in zip(stages, counts)]
    counts = [said if found is None else found for found, said in zip(counts, stated)]
    answers = answers_of(run)
    measured, unknown = Sizes.none(), ""
    try:
        shape = model_shape(run.model, run.model_root, run.encoder)
        base = shape.counts.parameters
        measured = sizes(cls, run.options, shape, run.method_tasks) if cls.trains else measured
    except UserError as error:
        unknown = f"sizes: not known, {error}"
    for stage, said in zip(stages, stated):
        lines.append(stage_line(run, stage, counts[: stage.index + 1], said is not None, measured.cost, answers[stage.index]))
    lines += [f"warning: {text}" for text in (training_warnings(run, counts) if cls.trains else ())]
    if unknown:
        return "\n".join([*lines, unknown])
    dtype, why = planned_dtype(run.model, base, pace.card)
    lines.append(f"base model: {base / 1e6:,.1f} M parameters, {base * dtype.itemsize / MIB:,.0f} MiB in {dtype}{why}")
    work = Work(shape, measured, len(run.method_tasks), run.train.gradient_checkpointing is not False)
    if cls.trains:
        lines += [adapted_line(measured), *trained_lines(measured)]
    source = f"shape of the model: {shape.source}"
    if shape.unknown:
        return "\n".join([*lines, *(_passes(work, cls) if cls.trains else ()),
                          f"operations, hours and memory: not known, {shape.unknown}", source])  # fmt: skip
    memory = Memory.of(run, work, base, dtype, pace.card) if cls.trains else None
    work = replace(work, recompute=memory is None or memory.recompute)
    weights = base_bytes(run.model.quantization, work, base, dtype)
    if cls.trains:
        lines += [*_passes(work, cls), *_training(run, work, counts, pace), memory.line(pace.card)]
    lines += [answer_line(work), _evaluation(run, work, answers, pace, weights)]
    lines += measured_lines(run, work, counts, answers, pace, weights)
    return "\n".join([*lines, *picture_lines(shape), source])


def stage_line(run: Run, stage: Stage, counts: list[int | None], stated: bool, cost: Cost, answers: int | None) -> str:
    """Records, batches and steps of a stage, and what is asked after it. counts: records of the stages up to it."""
    batch, epochs = run.batches(stage)
    known = None not in counts or (counts[-1] is not None and not any(one.per == "epoch" for one in cost.passes))
    added = cost.added(counts) if known else 0
    steps = batch.steps(counts[-1] + added, epochs, run.train.max_steps) if known else "?"
    words = f"{'?' if counts[-1] is None else counts[-1]:>7} records" + (f" and {added} that the method adds" if added else "")
    note = " (as stated; the training file is not there)" if stated else " (no training file)" if counts[-1] is None else ""
    return (
        f"  {stage.index + 1:2d} {stage.title:<20} {words}{note} × {epochs:g} epoch(s), batch {batch.global_batch} = "
        f"{batch.per_device} per device × {batch.accumulation} accumulation × {batch.world} process(es): {steps} steps; then "
        f"{len(stage.evaluate)} task(s) evaluated" + (f" ({answers:,} answers)" if answers is not None else "")
    )


def answers_of(run: Run) -> list[int | None]:
    """Answers given after each stage, those to the tasks of general ability included; None where a count is not known."""
    asked = [[*(run.tasks[j] for j in stage.evaluate), *run.general] for stage in run.stages]
    counts = {task.id: count_questions(task) for task in {t.id: t for wanted in asked for t in wanted}.values()}
    known = [[counts[task.id] for task in wanted] for wanted in asked]
    return [None if None in found else sum(found) for found in known]


def planned_dtype(model: ModelConfig, base: int, card: Card | None = None) -> tuple[torch.dtype, str]:
    """The format of the base model's weights, and why: on a machine without a GPU, a large model is planned for one, and any
    model for the card that was named."""
    dtype, device = dtype_of(model), device_of(model).type
    if model.dtype != "auto":
        return dtype, ""
    if model.device == "auto" and device == "cpu" and (card is not None or base >= LARGE):
        return torch.bfloat16, f" (model.dtype=auto: planned for a GPU; this machine's CPU would take {dtype})"
    return dtype, f" (model.dtype=auto on {device})"


def picture_lines(shape: ModelShape) -> list[str]:
    """What is assumed of a picture; nothing for LLaVA-1.5, to which all are alike."""
    if shape.config.model_type == "llava":
        return []
    picture = shape.picture
    return [f"a picture of {WIDTH} × {HEIGHT} pixels is assumed: {picture.positions:,} positions of the decoder, "
            f"{picture.rows:,} rows of the vision tower"]  # fmt: skip


def adapted_line(measured: Sizes) -> str:
    """Where the adapters of the first task are."""
    if not measured.linears + measured.elsewhere:
        return "adapts no linears"
    rest = f"{measured.elsewhere} of other parts" if measured.elsewhere else "none of the vision tower"
    return f"adapts {measured.linears} linears of {measured.layers} decoder layers; {rest}"


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
    kind = f"{extra.forwards} forward" + (f" and {extra.backwards} backward" if extra.backwards else " without gradient")
    text = ", text only" if extra.text_only else ""
    return f"{PER[extra.per]}: {extra.what} ({kind}{text}{'; not in the first task' if extra.later else ''})"


def extra_passes(work: Work) -> list[str]:
    """All that runs beside one forward and backward per record and one answer per question, in words."""
    cost = work.sizes.cost
    words = [pass_words(p) for p in cost.passes]
    words += [f"every training record and every answer: {tower.name} on the question" for tower in work.towers]
    if work.clip_vision is not None:
        words.append(f"every training record and every answer: {work.clip_vision.name} on the image")
    if any(cost.prompts):
        words.append(f"prompts: {cost.prompts[0]} more tokens per record, {cost.prompts[1]} per answer, at most")
    if cost.extra:
        words.append(f"every micro-batch: {in_flops(cost.extra)} of the extra loss, in the last task")
    if cost.live:
        words.append(f"every token of an answer: {_m(cost.live + cost.routers)} adapter parameters that cannot be folded")
    return words


def _passes(work: Work, cls: type[Method]) -> list[str]:
    words = extra_passes(work)
    if cls.cost is Method.cost and not cls.__module__.startswith("hide_llava."):
        words.append(f"not stated, and neither is its state: '{cls.name}' has no cost()")
    return ["extra passes: none"] if not words else ["extra passes:", *(f"  {line}" for line in words)]


def percent(value: float, base: float) -> str:
    return f"{100 * (value / base - 1):+.0f} %"


def record_line(work: Work, stages: int) -> str:
    base, last = work.base_record(), work.record(stages - 1)
    line = f"a training record: {in_flops(base)} of the base model, {in_flops(last)} with the method in the last task "
    return line + f"({percent(last, base)}); {work.flops.image_tokens} image and {TEXT} text tokens assumed"


def stage_work(run: Run, work: Work, counts: list[int], i: int) -> tuple[float, float]:
    """FLOPs of training stage `i`, and the records that its steps see."""
    (batch, epochs), cost = run.batches(run.stages[i]), work.sizes.cost
    records = counts[i] + cost.added(counts[: i + 1])
    seen = epochs * records if run.train.max_steps <= 0 else run.train.max_steps * batch.global_batch
    extra = cost.extra / batch.per_device if i else 0
    return seen * (work.record(i) + extra) + work.beside(counts[: i + 1]), seen


def _training(run: Run, work: Work, counts: list[int | None], pace: Pace) -> list[str]:
    line = record_line(work, len(run.stages))
    if not all(counts):
        return [line, "all training: not known without the training files"]
    each = [stage_work(run, work, counts, i) for i in range(len(run.stages))]
    seconds = sum(pace.training(work, flops, seen) for flops, seen in each)
    total = sum(flops for flops, _ in each)
    return [line, f"all training: {in_flops(total)}, {_hours(seconds)} {pace.words()}"]


def _evaluation(run: Run, work: Work, answers: list[int | None], pace: Pace, weights: int) -> str:
    """All answers at the price of one after the last task; without a card arithmetic only, which decoding never reaches."""
    if None in answers:
        return "all evaluation: not known without the question files"
    base = run.general if run.eval.general_base and run.trains else []
    cells, asked = sum(len(stage.evaluate) + len(run.general) for stage in run.stages) + len(base), sum(answers)
    asked += sum(count_questions(task) or 0 for task in base)
    hours = _hours(pace.answering(work, asked, weights))
    least = f"at least {hours} at {pace.tflops:g} TFLOP/s, for decoding is bound by memory"
    said = least if pace.card is None else f"{hours} {pace.words()}"
    return f"all evaluation: {asked:,} answers in {cells} cells, {in_flops(asked * work.answer())}, {said}"


def measured_lines(
    run: Run, work: Work, counts: list[int | None], answers: list[int | None], pace: Pace, weights: int
) -> list[str]:
    """What stages of this run took that were done in one go, beside the estimate for the same stages."""
    if not (run.folder.path / "manifest.json").is_file():
        return []
    manifest, stages, lines = run.folder.manifest, run.stages, []
    entries = {entry["name"]: entry for entry in manifest["stages"]}
    for kind, key in (("training", "train_seconds"), ("evaluation", "eval_seconds")):
        took = {i: s for i, stage in enumerate(stages) if (s := entries.get(stage_name(stage), {}).get(key))}
        if kind == "training" and all(counts) and counts:
            expected = sum(pace.training(work, *stage_work(run, work, counts, i)) for i in took)
        elif kind == "evaluation" and None not in answers:
            expected = pace.answering(work, sum(answers[i] for i in took), weights)
        else:
            continue
        if took:
            lines.append(f"measured {kind} of {len(took)} of {len(stages)} stage(s) on {manifest['device']}: "
                         f"{_hours(sum(took.values()))}; the estimate for them is {_hours(expected)}")  # fmt: skip
    return lines


def base_bytes(quantization: str, work: Work, base: int, dtype: torch.dtype) -> int:
    """Of the base model's weights, its linears quantised where that is asked for."""
    bits = {"none": 8 * dtype.itemsize, "8bit": 8, "4bit": 4}[quantization]
    return base * dtype.itemsize - work.flops.linears * (8 * dtype.itemsize - bits) // 8


@dataclass(frozen=True)
class Memory:
    """Bytes of one process in training by what they are for. Rough: no fragmentation, no CUDA context, no communication
    buffers, no attention kernels' own. recompute: gradient checkpointing; auto: that nobody decided but this estimate."""

    parts: dict[str, int]
    recompute: bool
    auto: bool

    @classmethod
    def of(cls, run: Run, work: Work, base: int, dtype: torch.dtype, card: Card | None) -> Memory:
        """As a stage decides it on a `card` (memory.py); without one `auto` is taken for checkpointing, which needs least."""
        cost, own, train = work.sizes.cost, getattr(torch, run.train.adapter_dtype).itemsize, run.train
        before = {
            "base model": base_bytes(run.model.quantization, work, base, dtype),
            "trained part with AdamW": work.sizes.trained * 4 * own,
            "past experts, state, text encoder": 4 * cost.kept + sum(cost.state.values())
            + sum(4 * tower.parameters for tower in work.towers),
        }  # fmt: skip
        if (vision := work.clip_vision) is not None:
            before[vision.name] = 4 * vision.parameters
        batch = run.batches(run.stages[-1])[0]
        auto = "auto" in (train.gradient_checkpointing, train.per_device_batch_size)
        sizes = [batch.per_device]
        if train.per_device_batch_size == "auto" and card is not None:
            sizes = micro_batches(batch.per_device * batch.accumulation)
        modes = [False, True] if train.gradient_checkpointing == "auto" else [train.gradient_checkpointing]
        answer = None if reads_logits(run.method) else ANSWER

        def needed(size: int, recompute: bool) -> int:
            return activations(work.flops.counts, size, dtype.itemsize, recompute, work.flops.image_tokens + TEXT, answer)

        limit = 0 if card is None else SHARE["cuda"] * (card.gib * 2**30 - sum(before.values()))
        size, mode, most = first_that_fits(sizes, modes, limit, needed)
        kept = "computed twice" if mode else "kept"
        return cls({**before, f"activations of {size} record(s), {kept}": most}, mode, auto)

    def line(self, card: Card | None) -> str:
        """For people, beside what the card has."""
        listed, total = ", ".join(f"{name} {_gib(value)}" for name, value in self.parts.items()), sum(self.parts.values())
        line = f"memory of one process in training, rough: {_gib(total)} GiB ({listed})"
        if card is not None:
            return f"{line} of {card.gib}" + ("" if total <= 0.9 * card.gib * 2**30 else ": does not fit")
        return f"{line}; what is auto is decided by free memory, --gpu NAME says how" if self.auto else line


def _hours(seconds: float) -> str:
    return f"{rounded(seconds / 3600)} h" if seconds >= 36 else f"{rounded(seconds)} s"


def _gib(size: float) -> str:
    return rounded(size / GIB)


def answer_line(work: Work) -> str:
    base, own = work.base_answer(), work.answer()
    return (
        f"an answer: {in_flops(base)} of the base model, {in_flops(own)} with the method after the last task "
        f"({percent(own, base)}); {work.flops.image_tokens} image, {QUESTION} prompt and {ANSWER} new tokens assumed"
    )
