"""The method contract (docs/ADD_A_METHOD.md): what a continual-learning method may say, and nothing more.

A method is upstream peft adapters + a gate in their rank space. It says which adapters exist (`before_task`), which
parameters train (`params`), and which adapters are active with which gate for a batch (`route`); it may add loss terms
and keep statistics. It never touches the loop, the optimizer, the files or the distribution over processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hide_llava.adapters.core import Core
from hide_llava.adapters.route import Route
from hide_llava.backbones.base import Backbone
from hide_llava.errors import UserError
from hide_llava.methods.cost import Cost
from hide_llava.methods.decided import Decision
from hide_llava.settings import MethodConfig


@dataclass(frozen=True)
class Task:
    """One task as a method sees it: its place in the sequence, and the length of the sequence."""

    index: int
    id: str
    count: int


@dataclass(frozen=True)
class Stage:
    """One training phase: train on `train` tasks together, then evaluate on `evaluate` tasks (0-based indices)."""

    index: int
    id: str
    title: str
    train: tuple[int, ...]
    evaluate: tuple[int, ...]


@dataclass
class Features:
    """Routing features of a batch, fp32, detached. Row b belongs to row b of the batch.

    image: [B, d] CLIP image embeddings, zero where `has_image` is False. text: [B, d] CLIP text embeddings.
    sentence: [B, d] embeddings of `model.sentence`; with "last_line" in `needs`, of the question's last line.
    """

    image: Tensor | None = None
    text: Tensor | None = None
    has_image: Tensor | None = None
    sentence: Tensor | None = None


@dataclass
class Context:
    """What the engine lends to a method at task boundaries."""

    train_data: Any = None  # the task's training data set
    widths: dict[str, int] = field(default_factory=dict)  # feature name → width, for the features in `needs`
    loader: Callable[..., Iterable[dict]] | None = None  # loader(dataset, batch_size) → batches on the device
    features: Callable[[dict], Features] | None = None  # routing features of a batch
    # forward(batch) → model output, routed as in training; with loss_only=True without logits, which takes less memory
    forward: Callable[..., Any] | None = None
    records: Callable[[int], Any] | None = None  # records(task index) → training records of any task
    dataset: Callable[[Any], Any] | None = None  # dataset(records) → training data set of such records


class Method:
    """Base class: every hook is a no-op, so sequential LoRA overrides five. See the module docstring."""

    name: str = ""
    needs: frozenset[str] = frozenset()  # subset of {"clip_image", "clip_text", "sentence"}; see `Features`
    oracle: bool = False  # True: uses the task id at inference, and is labelled so everywhere; see `is_oracle`
    trains: bool = True  # False: evaluation only
    labels: tuple[str, ...] = ()  # what must stand beside every number of it, e.g. that it is a reconstruction
    reads_parameters: bool = False  # True: `loss`, `route` or `state` reads an expert's parameters by value; ZeRO-3 is refused
    reads_logits: bool = False  # True: `loss` reads `output.logits`; so is a `loss` taken whose class does not say (below)

    class Config(MethodConfig):
        pass

    def __init__(self, config: Any, core: Core, tasks: list[Task]):
        self.config, self.core, self.tasks = config, core, tasks
        self.oracle = self.is_oracle(vars(config))
        self.modules = nn.ModuleDict()  # routers, prompt pools, …: trained, saved and moved by the engine

    @classmethod
    def is_oracle(cls, options: dict[str, Any]) -> bool:
        """Whether it is told the task id at inference: always, or because one of its options has the value `oracle`."""
        fields = cls.Config.model_fields.items()
        return cls.oracle or any(options.get(name, field.default) == "oracle" for name, field in fields)

    @classmethod
    def decided_by_studies(cls, options: dict[str, Any], run: Path) -> dict[str, Decision]:
        """What a finished run's studies say of options whose value leaves it to them, such as `auto`: {option: Decision}.

        run: its folder. `hide-llava eval RUN` asks before it makes a variant, whose options are then all values.

        Raises:
            UserError: the study that would say it was not made, or does not say it.
        """
        return {}

    @classmethod
    def unfit(cls, options: MethodConfig, family: type[Backbone]) -> str | None:
        """Why the method with these options does not go with a family of models, in a sentence; None: it does."""
        targets = getattr(options, "targets", None)
        if targets in family.lacks:
            return f"its layers have no linears of targets={targets}, its experts being none; set method.targets=attention"
        return None

    @classmethod
    def stages(cls, tasks: list[tuple[str, str]]) -> list[Stage]:
        """The training phases for tasks given as (id, title): by default one per task, evaluated on all seen tasks."""
        return [Stage(i, task, title, (i,), tuple(range(i + 1))) for i, (task, title) in enumerate(tasks)]

    def setup(self) -> None:
        """Once, before anything else: what all tasks share."""

    def before_task(self, task: Task, context: Context) -> None:
        """Add, copy or freeze adapters."""

    def params(self) -> list[dict[str, Any]]:
        """Trainable groups `{"params": [...], "lr": "adapter"|"projector"|float}`; the only owner of requires_grad."""
        return []

    def adapters(self) -> list[str]:
        """Names of the adapters trained in the current task; they are what the stage folder stores."""
        return []

    @property
    def experts(self) -> list[str]:
        """Adapters that can each answer alone, one a learned task, in their order; none where tasks share what they learn."""
        return []

    def train_data(self, task: Task, records: Any, context: Context) -> Any:
        """Replay, rewritten answers: the table of records {id, image, conversations} that the task trains on."""
        return records

    def parts(self) -> list[int]:
        """Sizes of the parts of that table, if one is trained after another, each with a schedule and an optimizer of its own;
        []: it is mixed."""
        return []

    def begin_part(self, part: int) -> None:
        """After the last step of the part before: what is trained from now on is `part` (from 1) of `parts`."""

    def route(self, batch: dict, features: Features, train: bool) -> Route:
        """The same function in training and in generation; per sample, never a decision for the batch."""
        return Route()

    def loss(self, output: Any, batch: dict, features: Features) -> dict[str, Tensor]:
        """Extra loss terms, already weighted; called once per micro-batch, never during recomputation, outside autocast. A
        forward of the model made here sets up its own, as those of `adapters/probe.py` do."""
        return {}

    def on_gradients(self, step: int) -> None:
        """After the last backward of a step, before the optimizer."""

    def after_step(self, step: int) -> None:
        """After the optimizer changed the parameters."""

    def after_task(self, task: Task, context: Context) -> None:
        """Statistics, Fisher, merges."""

    def prepare_inference(self) -> None:
        """Once before generation: fold what does not depend on the input (`core.fold`); the engine unfolds."""

    def cost(self) -> Cost:
        """What it costs beside plain training and answering, for `plan`; called in the first task, without weights."""
        return Cost()

    def state(self) -> dict[str, Any]:
        """What is not an adapter or the projector: tensors and JSON values. Called on every rank; may all-reduce."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""


def reads_logits(cls: type[Method]) -> bool:
    """Whether training must form the logits of all positions for the method's `loss`.

    The class that defines `loss` may say, and any class below it. A class that defines `loss` and says nothing gets them:
    what its parents said was about theirs.
    """
    for one in cls.__mro__:
        if "reads_logits" in vars(one) or "loss" in vars(one):
            return vars(one).get("reads_logits", True)
    return True


REGISTRY: dict[str, type[Method]] = {}


def register(cls: type[Method]) -> type[Method]:
    """Class decorator: make a method known under its `name`.

    Raises:
        UserError: another class has that name.
    """
    known = REGISTRY.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(f"method '{cls.name}' is both {place(known)} and {place(cls)}; rename one of them.")
    REGISTRY[cls.name] = cls
    return cls


def place(cls: type) -> str:
    """Where a method's class is defined."""
    module = sys.modules.get(cls.__module__)
    where = module.__file__ if hasattr(module, "file_sha256") else cls.__module__  # of a file: `own_file.py`
    return f"{where}:{cls.__qualname__}"
