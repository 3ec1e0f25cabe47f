"""The schema of the configuration: one tree of dataclasses, and the values its fields may have."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING


@dataclass
class ModelConfig:
    """Which LLaVA-1.5, and how it is held in memory."""

    name: str = MISSING
    path: str = MISSING  # folder under model_root, absolute folder, `package:` folder, or hub id
    clip: str | None = None  # CLIP folder or hub id: text tower and projections for routing
    sentence: str | None = None  # sentence-transformers folder or hub id, or `clip`: CLIP's text features instead
    projector: str | None = None  # original format only: an `mm_projector.bin` that replaces the projector
    dtype: str = "auto"  # auto (bf16 on a GPU, fp32 on a CPU) | float32 | bfloat16 | float16
    tf32: bool = True  # fp32 products on a GPU may use TF32; routing and folding never do
    attention: str = "auto"  # auto | sdpa | flash | eager
    device: str = "auto"  # auto | cpu | cuda
    quantization: str = "none"  # none | 4bit | 8bit: the decoder's linears, by bitsandbytes


@dataclass
class RouterConfig:
    """Where routing features come from: `clip` (LLaVA's own tower + CLIP text tower) or `open_clip:<model>:<weights>`."""

    encoder: str = "clip"


@dataclass
class LegacyConfig:
    """What the published code of a task does that makes its score doubtful; done only with eval.protocol=legacy."""

    reason: str = MISSING  # why it is doubtful, printed and stored with the score
    suffix_by_answer: dict[str, str] = field(default_factory=dict)  # gold answer → suffix; "*": every other answer
    answers: str | None = None  # JSON lines {question_id, text} of another model, which replace this model's …
    workers: int = 1  # … except for the first of this many slices of the questions


@dataclass
class TaskConfig:
    """One task of a benchmark; file names are relative to the benchmark's folders."""

    id: str = MISSING
    title: str = MISSING
    train: str | None = None  # None: never trained, evaluated after the last stage
    test: Any = MISSING  # a file, or a list of files that are asked together (see `all_questions`)
    val: str | None = None
    metric: str = MISSING
    metric_options: dict[str, Any] = field(default_factory=dict)  # of that metric, e.g. {case: insensitive}
    references: str | None = None
    val_references: str | None = None
    epochs: float | None = None
    global_batch_size: int | None = None
    max_new_tokens: int | None = None
    images: str | None = None  # image folder of this task, relative to data_root; None: the benchmark's
    test_images: str | None = None  # the same for its questions; None: as for training
    image_transform: str | None = None  # of the questions: pad | crop; None: the benchmark's
    prompt_suffix: str | None = None  # appended to every test question as it is, separator included
    legacy: LegacyConfig | None = None
    instruction_of: str | None = None  # never trained: the task whose id an oracle method answers it with
    n_train: int | None = None  # expected record counts; None: not known
    n_test: int | None = None
    aliases: list[str] = field(default_factory=list)  # other names of the task in papers and code
    source: str = ""  # data set, split and licence


@dataclass
class BenchmarkConfig:
    """A benchmark is data: ordered tasks, files, image root, transform, metric names."""

    name: str = MISSING
    title: str = ""
    instructions: str = ""  # folder of the JSON files, relative to data_root
    images: str = ""  # folder that record.image is relative to, relative to data_root
    generated: bool = False  # the embedded benchmark: written under data_root on first use
    defaults: dict[str, str] = field(default_factory=dict)  # model, train: what is taken when none is named
    image_transform: str = "pad"  # pad | crop
    image_orientation: str = "exif"  # exif: turned as the camera noted | ignore: as stored, as LLaVA's code reads them
    max_new_tokens: int = 128
    tasks: list[TaskConfig] = field(default_factory=list)
    general: list[TaskConfig] = field(default_factory=list)  # never trained, asked after every stage: general ability


@dataclass
class TrainConfig:
    """The training recipe of one task (spec hide.md §2.1); the schedule restarts with every task."""

    name: str = "default"
    global_batch_size: int = 96
    per_device_batch_size: Any = None  # null: the largest that divides the global batch, at most 16 | auto: of those, what fits
    epochs: float = 1.0
    max_steps: int = -1
    learning_rate: float = 2e-4
    projector_lr: float = 2e-5
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03  # share of a task's steps in which the learning rate rises from 0
    warmup: str = "whole_steps"  # less than one step of it is none | reference: any part of a step is a step at rate 0
    max_grad_norm: float = 0.0  # 0: no clipping, as the published runs effectively did (hide.md §2.1)
    schedule: str = "cosine"
    optimizer: str = "adamw_torch"
    gradient_checkpointing: Any = "auto"  # true: activations are computed twice | false: kept | auto: kept where they fit
    max_length: int = 2048
    group_by_modality_length: bool = True
    num_workers: int = 4
    on_bad_sample: str = "error"  # error | skip
    label_masks: str = "exact"  # exact | reference: answers are searched for in the text, as the published code does
    save_steps: int = 100
    logging_steps: int = 1
    report_to: str = "none"
    adapter_dtype: str = "float32"  # float32 | bfloat16: what is trained, and its optimizer state
    engine: str = "ddp"  # ddp | zero2 | zero3 | zero3-offload (DeepSpeed)
    timeout_minutes: float = 30.0  # how long a process waits for the others before it gives up


@dataclass
class EvalConfig:
    """Greedy generation. `None` takes the benchmark's value."""

    batch_size: int | None = None  # None: what fits into free GPU memory, 16 on a CPU; halved when memory runs out
    split: str = "test"  # test | val
    max_new_tokens: int | None = None
    image_transform: str | None = None
    num_workers: int | None = None  # None: on a GPU as many as there are cores for this process, at most 8; 0 on a CPU
    shrink_batches: bool | None = None  # rows that have ended leave; None: in fp32 on a CPU (docs/SCALE.md)
    static_cache: bool = False  # keys and values in a buffer of fixed size; not measured on a GPU
    general: bool = True  # also ask the benchmark's `general` tasks after every stage
    protocol: str = "clean"  # legacy: with what the published code does wrong, where a task has a `legacy` section


@dataclass
class CaptionConfig:
    """`ptb` needs Java; `python` leaves METEOR out and labels the score as not comparable."""

    tokenizer: str = "ptb"


@dataclass
class RunConfig:
    """The whole tree."""

    output: str | None = None  # run folder; None: named after what was chosen and changed (naming.py)
    seed: int = 42
    tasks: list[str] | None = None  # only these tasks of the benchmark
    task_order: list[str] | None = None  # all tasks that are trained, in another order
    limit: int | None = None  # quick runs: this many training records and questions of each file, drawn by the seed
    data_root: str | None = None  # None: $HIDE_DATA, else ./data
    model_root: str | None = None  # None: $HIDE_MODELS, else ./models
    model: ModelConfig = field(default_factory=ModelConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    method: Any = field(default_factory=dict)  # {name, preset, [file, file_sha256,] …fields of the method's own Config}
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)

    def data_folder(self) -> Path:
        return Path(self.data_root or os.environ.get("HIDE_DATA") or "data")

    def model_folder(self) -> Path:
        return Path(self.model_root or os.environ.get("HIDE_MODELS") or "models")

    def default_name(self) -> str:
        """`<benchmark>-<method>-<model>-seed<seed>`, and which part of the benchmark is taken in which order."""
        from hide_llava.naming import joined

        name = f"{self.benchmark.name}-{self.method['preset']}-{self.model.name}-seed{self.seed}"
        if self.tasks is not None or self.task_order is not None:
            name += f"-{joined([task.id for task in self.benchmark.tasks])}"
        return name if self.limit is None else f"{name}-limit{self.limit}"

    def run_folder(self) -> Path:
        """`output`, which a composed configuration always has (`naming.py`); one read from a file may lack it."""
        return Path(self.output or Path("runs") / self.default_name())


CHOICES = {
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "model.attention": ("auto", "sdpa", "flash", "eager"),
    "model.quantization": ("none", "4bit", "8bit"),
    "train.adapter_dtype": ("float32", "bfloat16"),
    "benchmark.image_transform": ("pad", "crop"),
    "benchmark.image_orientation": ("exif", "ignore"),
    "eval.image_transform": (None, "pad", "crop"),
    "eval.split": ("test", "val"),
    "eval.protocol": ("clean", "legacy"),
    "train.warmup": ("whole_steps", "reference"),
    "train.on_bad_sample": ("error", "skip"),
    "train.label_masks": ("exact", "reference"),
    "train.engine": ("ddp", "zero2", "zero3", "zero3-offload"),
    "caption.tokenizer": ("ptb", "python"),
}
# Keys that take `auto` beside a value, and what kind of value that is.
OR_AUTO = {"train.gradient_checkpointing": bool, "train.per_device_batch_size": int | None}
# What a run did that was begun before the key existed: its config.yaml does not say it.
BEFORE = {"benchmark.image_orientation": "ignore", "train.label_masks": "reference", "train.warmup": "reference"}
# Keys of a task that stand above the training recipe's of the same name.
TASK_RECIPE = ("epochs", "global_batch_size")
SECTIONS = {
    RunConfig: {"model": ModelConfig, "router": RouterConfig, "benchmark": BenchmarkConfig, "train": TrainConfig,
                "eval": EvalConfig, "caption": CaptionConfig},
    TaskConfig: {"legacy": LegacyConfig},
}  # fmt: skip
POSITIVE = (
    "train.global_batch_size", "train.epochs", "train.learning_rate", "train.max_length", "train.save_steps",
    "train.logging_steps", "train.timeout_minutes", "eval.batch_size", "benchmark.max_new_tokens",
)  # fmt: skip


def as_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings read from a file, with what they mean where they were stored before a setting existed."""
    before = {key.partition(".")[2]: value for key, value in BEFORE.items() if key.startswith("benchmark.")}
    return {**before, **settings}
