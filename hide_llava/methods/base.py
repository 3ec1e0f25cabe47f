"""The method contract (DESIGN §3): what a continual-learning method may say, and nothing more.

A method is upstream peft adapters + a gate in their rank space. It says which adapters exist (`before_task`), which
parameters train (`params`), and which adapters are active with which gate for a batch (`route`); it may add loss terms
and keep statistics. It never touches the loop, the optimizer, the files or the distribution over processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, is_dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hide_llava.adapters.anchors import all_reduce, is_main
from hide_llava.adapters.core import Core
from hide_llava.adapters.route import Route
from hide_llava.errors import UserError
from hide_llava.methods.cost import Cost
from hide_llava.settings import MethodConfig, validated


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
    # Options that decide how a trained run answers and never what is trained: `hide-llava eval RUN` may change them.
    inference_options: frozenset[str] = frozenset()
    reads_parameters: bool = False  # True: `loss` or `route` reads trained parameters by value; ZeRO-3 is refused
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
        return cls.oracle or any(options.get(name) == "oracle" for name in cls.Config.model_fields)

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

    def train_data(self, task: Task, records: Any, context: Context) -> Any:
        """Replay, rewritten answers: the table of records {id, image, conversations} that the task trains on."""
        return records

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
        raise UserError(f"method '{cls.name}' is both {_place(known)} and {_place(cls)}; rename one of them.")
    REGISTRY[cls.name] = cls
    return cls


def _place(cls: type) -> str:
    module = sys.modules.get(cls.__module__)
    where = module.__file__ if hasattr(module, "file_sha256") else cls.__module__  # of a file: `own_file.py`
    return f"{where}:{cls.__qualname__}"


def method_class(name: str) -> type[Method]:
    """Find a method by name, here or through the entry-point group `hide_llava.methods`.

    Raises:
        UserError: unknown name, with the nearest known one; a plug-in that cannot be imported or is no method;
            a Config that is no MethodConfig.
    """
    import hide_llava.methods.all  # noqa: F401  (registers the built-in methods)
    from hide_llava.config import nearest

    found = [entry for entry in plugins() if entry.name == name]
    if len({entry.value for entry in found}) > 1:
        raise UserError(f"method '{name}' is offered by {' and '.join(map(_origin, found))}; uninstall one of them.")
    if found:
        register(_load(found[0]))
    if name not in REGISTRY:
        raise UserError(
            f"unknown method '{name}'. {nearest(name, [*REGISTRY, *(e.name for e in plugins())])} (A method of your own "
            "is named by its file, method=./my_method.py, or by its package, which announces it as an entry point.)"
        )
    cls = REGISTRY[name]
    if not issubclass(cls.Config, MethodConfig) or is_dataclass(cls.Config):
        raise UserError(
            f"method '{name}': {_place(cls)}.Config is no MethodConfig. Write `class Config(MethodConfig):` "
            "(hide_llava.methods.base), or the Config of another method in the brackets, and no @dataclass above it."
        )
    return cls


def plugins() -> list[EntryPoint]:
    """Methods that installed packages announce, whether or not they can be loaded."""
    return _plugins_on(tuple(sys.path))


@lru_cache(maxsize=4)
def _plugins_on(_: tuple[str, ...]) -> list[EntryPoint]:
    """Kept, because reading what all installed packages announce takes 40 ms and a run asks dozens of times."""
    return list(entry_points(group="hide_llava.methods"))


def _origin(entry: EntryPoint) -> str:
    return f"{entry.value}" + (f" (package {entry.dist.name} {entry.dist.version})" if entry.dist else "")


def _load(entry: EntryPoint) -> type[Method]:
    try:
        cls = entry.load()
    except Exception as error:  # whatever the package does when it is imported
        raise UserError(
            f"method '{entry.name}': its plug-in {_origin(entry)} cannot be imported: {type(error).__name__}: {error}"
        ) from None
    if not isinstance(cls, type) or not issubclass(cls, Method):
        raise UserError(f"method '{entry.name}': its plug-in {_origin(entry)} is not a subclass of Method.")
    if cls.name != entry.name:
        raise UserError(
            f"method '{entry.name}': its plug-in {_origin(entry)} has name = '{cls.name}'; the two must be the same."
        )
    return cls


def method_config(tree: dict[str, Any]) -> Any:
    """Build the method's Config from the `method:` section. A mapping among its options completes the default one.

    Raises:
        UserError: unknown key, wrong type, or a value the method refuses.
    """
    from hide_llava.config import merge, nearest

    name = tree.get("name")
    if not name:
        raise UserError("the method section has no 'name'.")
    if not isinstance(name, str):
        raise UserError(f"'method.name' takes the name of one method, e.g. lora, got {name!r}.")
    if tree.get("file"):
        from hide_llava.methods.own_file import load_file

        load_file(Path(str(tree["file"])), name, tree.get("file_sha256"))
    options = method_class(name).Config
    values = {k: v for k, v in tree.items() if k not in ("name", "preset", "file", "file_sha256")}
    for key, option in options.model_fields.items():
        usual = option.get_default(call_default_factory=True)
        if isinstance(usual, dict) and isinstance(values.get(key), dict):
            values[key] = merge(usual, values[key])

    def unknown(prefix: str, key: str, known: list[str]) -> str:
        return f"unknown key '{prefix}{key}' for method '{name}'. {nearest(key, known, prefix)}"

    return validated(options, values, unknown, "method")


__all__ = [
    "Context", "Features", "Method", "MethodConfig", "Route", "Stage", "Task", "all_reduce", "is_main", "method_class",
    "register",
]  # fmt: skip
