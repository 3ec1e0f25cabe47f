"""One side of `perf/reference.py`, in a process of its own: the authors' code in its environment, or this package in ours.

    python perf/reference_side.py ROLE FILE WORDS...

Every role writes what it measured to FILE as JSON; WORDS go to the program that is measured.

theirs-evaluation  their `llava.eval.model_answer`, run as a program
theirs-training    their `llava.train.train_MOE.train`
ours-evaluation    `hide-llava predict`
ours-training      `train_stage` on a run folder: WORDS are the folder, the number of stages before, and overrides

The authors' files are read as they are. What has to differ on a CPU is replaced in their source text in memory, when a module
is imported (`HERE`); deepspeed and two classes of bitsandbytes are stood in for. Only the standard library is imported above
a role's own branch, so that this file runs in both environments.

CPU seconds are those of the process and all its children, loader workers included, running or ended. `begin` is when the
loader is first asked for a batch, `end` when the last `generate` returns; `steps` has one entry at the end of every
optimizer step. So start-up is outside, and pictures are inside.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cpu_seconds import cpu_seconds

PACKAGES = ("llava", "HiDe")  # the authors' top-level packages
HERE = (  # what a CPU needs: text in their source → text that is run
    ("torch.float16", "torch.float32"),
    ("'cuda'", "'cpu'"),
    ('"cuda"', '"cpu"'),
    ('device_map="auto"', "device_map=None"),  # else accelerate puts a hook on every module
)
LAST_LAYER = ("!= 31", "!= {last}")  # the published model has 32 layers
EXPERTS = ("self.expert_num = 6", "self.expert_num = {experts}")
SLOTS = ("range(10)", "range({slots})")  # anchors; ten in the published code
FOR_LORA = "\n\nclass Linear8bitLt: pass\n\n\nclass Linear4bit: pass\n"  # their import needs the names, nothing uses them


class Marks:
    """CPU seconds at the places that the module names, and what was seen there."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"steps": [], "losses": [], "tokens": []}

    def begin_at_loader(self) -> None:
        """Note the time when a DataLoader is first asked for its batches."""
        from torch.utils.data import DataLoader

        whole = DataLoader.__iter__

        def first(loader: Any) -> Any:
            self.seen.setdefault("begin", cpu_seconds())
            return whole(loader)

        DataLoader.__iter__ = first

    def end_at(self, owner: type, name: str, tokens: Callable[..., Any] | None = None) -> None:
        """Note the time whenever `owner.name` returns, and the tokens that `tokens(result, *args)` finds in its result."""
        whole = getattr(owner, name)

        @functools.wraps(whole)
        def noted(*args: Any, **kwargs: Any) -> Any:
            result = whole(*args, **kwargs)
            self.seen["end"] = cpu_seconds()
            if tokens is not None:
                self.seen["tokens"] += tokens(result, *args)
            return result

        setattr(owner, name, noted)

    def steps_of_trainer(self) -> None:
        """Note time, loss and the optimizer's size in transformers' own callback handler, which both sides use."""
        from transformers.trainer_callback import CallbackHandler

        step, log = CallbackHandler.on_step_end, CallbackHandler.on_log

        def on_step_end(handler: Any, *args: Any) -> Any:
            self.seen["steps"].append(cpu_seconds())
            inner = getattr(handler.optimizer, "optimizer", handler.optimizer)  # accelerate's wrapper
            state = [t for s in inner.state.values() for t in s.values() if hasattr(t, "numel") and t.dim()]
            self.seen["given"] = sum(p.numel() for group in inner.param_groups for p in group["params"])
            self.seen["state"] = sum(t.numel() * t.element_size() for t in state)
            return step(handler, *args)

        def on_log(handler: Any, args: Any, state: Any, control: Any, logs: dict[str, Any]) -> Any:
            if "loss" in logs:
                self.seen["losses"].append(float(logs["loss"]))
            return log(handler, args, state, control, logs)

        CallbackHandler.on_step_end, CallbackHandler.on_log = on_step_end, on_log


# ---- the authors' code -------------------------------------------------------------------------------------------------
class Rewriting(importlib.machinery.SourceFileLoader):
    """Loads a module of the authors from its file, with the replacements; no bytecode is read or written."""

    replacements: tuple[tuple[str, str], ...] = ()

    def get_code(self, name: str) -> types.CodeType:
        path = self.get_filename(name)
        text = self.get_data(path).decode("utf-8")
        for old, new in self.replacements:
            text = text.replace(old, new)
        if name == "HiDe.peft.tuners.lora":
            text += FOR_LORA
        return compile(text, path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the authors' packages and gives them the rewriting loader."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if name.partition(".")[0] not in PACKAGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Rewriting(spec.loader.name, spec.loader.path)
        return spec


def adapt(layers: int, experts: int) -> None:
    """Make the authors' modules importable here. The working directory is their checkout."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.getcwd())
    values = {"last": layers - 1, "experts": experts, "slots": max(experts, 10)}
    Rewriting.replacements = HERE + tuple((a, b.format(**values)) for a, b in (LAST_LAYER, EXPERTS, SLOTS))
    sys.meta_path.insert(0, Finder())
    import transformers  # noqa: F401  (asks whether deepspeed is there, before a module of that name is)

    for name in ("deepspeed", "deepspeed.zero"):
        stub = types.ModuleType(name)
        stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = stub
    sys.modules["deepspeed"].zero = sys.modules["deepspeed.zero"]
    partition = types.ModuleType("deepspeed.runtime.zero.partition_parameters")
    partition.ZeroParamStatus = None
    for name in ("deepspeed.runtime", "deepspeed.runtime.zero"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[partition.__name__] = partition


def new_tokens(result: Any, model: Any, ids: Any, *_: Any) -> list[list[int]]:
    """The tokens behind the prompt; with their transformers, `generate` returns the prompt as well."""
    return result[:, ids.shape[1] :].tolist()


def theirs_evaluation(marks: Marks, words: list[str]) -> None:
    import transformers

    marks.begin_at_loader()
    marks.end_at(transformers.GenerationMixin, "generate", new_tokens)
    sys.argv = ["model_answer.py", *words]
    runpy.run_module("llava.eval.model_answer", run_name="__main__", alter_sys=True)


def theirs_training(marks: Marks, words: list[str]) -> None:
    marks.steps_of_trainer()
    sys.argv = ["train_MOE.py", *words]
    from llava.train.train_MOE import train

    train()


# ---- ours --------------------------------------------------------------------------------------------------------------
def ours_evaluation(marks: Marks, words: list[str]) -> None:
    from hide_llava import cli
    from hide_llava.methods.routed import RoutedLlava

    marks.begin_at_loader()
    marks.end_at(RoutedLlava, "generate")
    cli.main(["predict", *words])
    rows = Path(words[words.index("--output") + 1]).read_text(encoding="utf-8").splitlines()
    marks.seen["tokens"] = [json.loads(row)["token_ids"] for row in rows]


def ours_training(marks: Marks, words: list[str]) -> None:
    from hide_llava.config import from_yaml
    from hide_llava.training.run import Run
    from hide_llava.training.sequence import train_stage
    from hide_llava.training.session import Session

    marks.steps_of_trainer()
    folder, before, overrides = Path(words[0]), int(words[1]), words[2:]
    config = from_yaml(folder / "config.yaml", overrides)
    session = Session(Run(config, folder))
    session.restore(before - 1)
    train_stage(session, session.stages[before])


def main() -> None:
    role, file, *words = sys.argv[1:]
    marks = Marks()
    if role.startswith("theirs"):
        adapt(int(words.pop(0)), int(words.pop(0)))
    roles = {"theirs-evaluation": theirs_evaluation, "theirs-training": theirs_training,
             "ours-evaluation": ours_evaluation, "ours-training": ours_training}  # fmt: skip
    roles[role](marks, words)
    import torch

    marks.seen["threads"] = torch.get_num_threads()
    Path(file).write_text(json.dumps(marks.seen), encoding="utf-8")


if __name__ == "__main__":
    main()
