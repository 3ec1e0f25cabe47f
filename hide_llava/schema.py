"""The schema of the configuration: one tree of pydantic models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hide_llava.settings import Settings


class ImageConfig(Settings):
    """How much of a picture a model may see, where its processor has such a limit (docs/BACKBONES.md); null: as published."""

    max_pixels: int | None = Field(None, gt=0)  # a larger picture is made smaller (Qwen-VL, Mistral 3)
    max_tiles: int | None = Field(None, gt=0)  # a picture is cut into at most so many (LLaVA-NeXT, InternVL, SmolVLM, …)


class ModelConfig(Settings):
    """Which vision-language model, and how it is held in memory."""

    name: str
    path: str  # folder under model_root, absolute folder, `package:` folder, or hub id
    family: str | None = None  # model_type of its config.json, for as long as that is not on this machine
    clip: str | None = None  # CLIP folder or hub id: text tower and projections for routing
    sentence: str | None = None  # sentence-transformers folder or hub id, or `clip`: CLIP's text features instead
    image: ImageConfig = Field(default_factory=ImageConfig)
    projector: str | None = None  # original format only: an `mm_projector.bin` that replaces the projector
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    tf32: bool = True  # fp32 products on a GPU may use TF32; routing and folding never do
    attention: Literal["auto", "sdpa", "flash", "eager"] = "auto"
    device: str = "auto"  # auto | cpu | cuda
    quantization: Literal["none", "4bit", "8bit"] = "none"  # of the decoder's linears, by bitsandbytes


class RouterConfig(Settings):
    """Where routing features come from: `clip` (LLaVA-1.5's own tower or a CLIP beside the model, and CLIP's text tower), `own`
    (the model's tower and `model.sentence`) or `open_clip:<model>:<weights>`."""

    encoder: str = "clip"


class LegacyConfig(Settings):
    """What the published code of a task does that makes its score doubtful; done only with eval.protocol=legacy."""

    reason: str  # why it is doubtful, printed and stored with the score
    suffix_by_answer: dict[str, str] = {}  # gold answer → suffix; "*": every other answer
    answers: str | None = None  # JSON lines {question_id, text} of another model, which replace this model's …
    workers: int = 1  # … except for the first of this many slices of the questions


class TaskConfig(Settings):
    """One task of a benchmark; file names are relative to the benchmark's folders."""

    id: str
    title: str
    train: str | None = None  # None: never trained, evaluated after the last stage
    test: str | list[str]  # a file, or a list of files that are asked together (see `all_questions`)
    val: str | None = None
    metric: str
    metric_options: dict[str, Any] = {}  # of that metric, e.g. {case: insensitive}
    references: str | None = None
    val_references: str | None = None
    epochs: float | None = None
    global_batch_size: int | None = None
    max_new_tokens: int | None = None
    images: str | None = None  # image folder of this task, relative to data_root; None: the benchmark's
    test_images: str | None = None  # the same for its questions; None: as for training
    image_transform: Literal["pad", "crop"] | None = None  # of the questions; None: the benchmark's
    prompt_suffix: str | None = None  # appended to every test question as it is, separator included
    legacy: LegacyConfig | None = None
    instruction_of: str | None = None  # never trained: the task whose id an oracle method answers it with
    n_train: int | None = None  # expected record counts; None: not known
    n_test: int | None = None
    aliases: list[str] = []  # other names of the task in papers and code
    source: str = ""  # data set, split and licence


class SourceConfig(Settings):
    """Where a part of a benchmark's data is from: `hide-llava fetch` downloads what is on the hub and says the rest."""

    what: str  # instructions, or the name of a set of pictures
    folder: str  # that it goes to, relative to data_root
    hub: str | None = None  # OWNER/NAME of a data set on the Hugging Face hub; None: it is got by hand
    files: list[str] = []  # patterns of the files wanted, *: anything; none: all
    licence: str | None = None  # None: not known
    page: str | None = None  # where it is got by hand; None: not known
    then: str = ""  # what is left to do by hand


class BenchmarkConfig(Settings):
    """A benchmark is data: ordered tasks, files, image root, transform, metric names."""

    name: str
    title: str = ""
    instructions: str = ""  # folder of the JSON files, relative to data_root
    images: str = ""  # folder that record.image is relative to, relative to data_root
    generated: bool = False  # the embedded benchmark: written under data_root on first use
    defaults: dict[str, str] = {}  # model, train: what is taken when none is named
    image_transform: Literal["pad", "crop"] = "pad"
    image_orientation: Literal["exif", "ignore"] = "exif"  # turned as the camera noted | as stored, as in LLaVA
    max_new_tokens: int = Field(128, gt=0)
    tasks: list[TaskConfig] = []
    general: list[TaskConfig] = []  # never trained, asked after every stage: general ability
    sources: list[SourceConfig] = Field([], exclude=True)  # no part of a run: its folder does not say them


class TrainConfig(Settings):
    """The training recipe of one task (defaults: HiDe-LLaVA's on UCIT); the schedule restarts with every task."""

    name: str = "default"
    global_batch_size: int = Field(96, gt=0)
    # null: the largest that divides the global batch, at most 16 | auto: of those, what fits
    per_device_batch_size: Literal["auto"] | int | None = None
    epochs: float = Field(1.0, gt=0)
    max_steps: int = -1
    learning_rate: float = Field(2e-4, gt=0)
    projector_lr: float = 2e-5
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03  # share of a task's steps in which the learning rate rises from 0
    # whole_steps: less than one step of it is none | reference: any part of a step is a step at rate 0
    warmup: Literal["whole_steps", "reference"] = "whole_steps"
    max_grad_norm: float = 0.0  # 0: no clipping, as in the published runs (docs/PROTOCOLS.md, Training)
    schedule: str = "cosine"
    optimizer: str = "adamw_torch"
    # true: activations are computed twice | false: kept | auto: kept where they fit
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    max_length: int = Field(2048, gt=0)
    group_by_modality_length: bool = True
    num_workers: int = 4
    on_bad_sample: Literal["error", "skip"] = "error"
    label_masks: Literal["exact", "reference"] = "exact"  # reference: answers are searched for in the text
    save_steps: int = Field(100, gt=0)
    logging_steps: int = Field(1, gt=0)
    report_to: str = "none"
    adapter_dtype: Literal["float32", "bfloat16"] = "float32"  # what is trained, and its optimizer state
    engine: Literal["ddp", "zero2", "zero3", "zero3-offload"] = "ddp"  # all but ddp: DeepSpeed
    timeout_minutes: float = Field(30.0, gt=0)  # how long a process waits for the others before it gives up


class EvalConfig(Settings):
    """Greedy generation. `None` takes the benchmark's value."""

    batch_size: int | None = Field(None, gt=0)  # None: what fits into free GPU memory, 16 on a CPU; halved if not
    split: Literal["test", "val"] = "test"
    max_new_tokens: int | None = None
    image_transform: Literal["pad", "crop"] | None = None
    num_workers: int | None = None  # None: on a GPU as many as there are cores for this process, at most 8; 0 on a CPU
    shrink_batches: bool | None = None  # rows that have ended leave; None: in fp32 on a CPU (docs/SCALE.md)
    static_cache: bool = False  # keys and values in a buffer of fixed size; not measured on a GPU
    backend: Literal["own", "vllm"] = "own"  # vllm: a server of the run's export answers (docs/OTHER_HARNESSES.md)
    vllm_url: str = "http://127.0.0.1:8000/v1"  # `{stage}` in it becomes the stage's number
    general: bool = True  # also ask the benchmark's `general` tasks after every stage
    general_base: bool = False  # and once of the untouched model, so that their loss is known (docs/GENERAL_ABILITY.md)
    protocol: Literal["clean", "legacy"] = "clean"  # legacy: with the faults of published code, where a task has some


class CaptionConfig(Settings):
    """`ptb` needs Java; `python` leaves METEOR out and labels the score as not comparable."""

    tokenizer: Literal["ptb", "python"] = "ptb"


class RunConfig(Settings):
    """The whole tree."""

    output: str | None = None  # run folder; None: named after what was chosen and changed (naming.py)
    seed: int = 42
    tasks: list[str] | None = None  # only these tasks of the benchmark
    task_order: list[str] | None = None  # all tasks that are trained, in another order
    limit: int | None = Field(None, gt=0)  # quick runs: this many records and questions of each file, drawn by the seed
    data_root: str | None = None  # None: $HIDE_DATA, else ./data
    model_root: str | None = None  # None: $HIDE_MODELS, else ./models
    model: ModelConfig
    router: RouterConfig = Field(default_factory=RouterConfig)
    benchmark: BenchmarkConfig
    method: dict[str, Any] = {}  # {name, preset, [file, file_sha256,] …fields of the method's own Config}
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    caption: CaptionConfig = Field(default_factory=CaptionConfig)

    def data_folder(self) -> Path:
        return Path(self.data_root or os.environ.get("HIDE_DATA") or "data")

    def model_folder(self) -> Path:
        return Path(self.model_root or os.environ.get("HIDE_MODELS") or "models")

    def run_folder(self) -> Path:
        """`output`, which a configuration has when it is complete (`naming.py`)."""
        return Path(self.output)


# The sections: key → what it is.
SECTIONS: dict[str, type[Settings]] = {
    "model": ModelConfig, "router": RouterConfig, "benchmark": BenchmarkConfig, "train": TrainConfig,
    "eval": EvalConfig, "caption": CaptionConfig,
}  # fmt: skip
# What a run did that was begun before the key existed: its config.yaml does not say it.
BEFORE = {"benchmark.image_orientation": "ignore", "train.label_masks": "reference", "train.warmup": "reference"}
# Keys that may differ between two calls of one run: they cannot change a result
FREE = ("output", "data_root", "model_root", "eval.batch_size", "eval.num_workers", "eval.vllm_url", "train.num_workers",
        "train.save_steps", "train.logging_steps", "train.report_to", "train.gradient_checkpointing", "model.device",
        "model.family", "method.file")  # fmt: skip
# Keys of a task that stand above the training recipe's of the same name.
TASK_RECIPE = ("epochs", "global_batch_size")


def as_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings read from a file, with what they mean where they were stored before a setting existed."""
    before = {key.partition(".")[2]: value for key, value in BEFORE.items() if key.startswith("benchmark.")}
    return {**before, "backend": "own", **settings}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`, for comparing two configurations."""
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flatten(value, f"{prefix}{key}.").items()}
    if isinstance(tree, list) and any(isinstance(v, dict) for v in tree):
        return {k: v for i, value in enumerate(tree) for k, v in flatten(value, f"{prefix}{i}.").items()}
    return {prefix[:-1]: tree}


def merge(below: dict, above: dict) -> dict:
    """Both trees: mappings key by key, anything else, a list too, as `above` has it."""
    both = {k: merge(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **both}
