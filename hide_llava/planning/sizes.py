"""What a method holds and trains on a model of given shape, counted without weights (everything on the meta device)."""

from __future__ import annotations

import contextlib
import inspect
import json
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from hide_llava.adapters.core import Core
from hide_llava.backbones import auto
from hide_llava.backbones.counts import cut, skeleton, thinned
from hide_llava.backbones.shapes import ModelShape
from hide_llava.errors import UserError
from hide_llava.methods.base import Context, Method, Task
from hide_llava.methods.cost import Cost


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters in the first task, unless it says bytes.

    adapter: trained in adapters. projector: trained in it. modules: trained in the method's own modules, by name.
    stored_modules: kept of them in the stage folder. cost: what the method says of itself. files: tensor → shape of each of
    the task's adapter files. needs: features that the method routes by. linears: that have an adapter, in how many decoder
    `layers`, and `elsewhere` than in one.
    """

    adapter: int
    projector: int
    modules: dict[str, int]
    stored_modules: int
    cost: Cost
    files: tuple[dict[str, tuple[int, int]], ...]
    needs: frozenset[str] = frozenset()
    linears: int = 0
    layers: int = 0
    elsewhere: int = 0

    @classmethod
    def none(cls) -> Sizes:
        """Of a method that trains nothing."""
        return cls(0, 0, {}, 0, Cost(), ())

    @property
    def trained(self) -> int:
        return self.adapter + self.projector + sum(self.modules.values())

    @property
    def stored_adapter(self) -> int:
        """Numbers in the task's adapter files: a shared matrix as often as it is stored (and multiplied with)."""
        return sum(a * b for file in self.files for a, b in file.values())

    def file_bytes(self, dtype: str = "F32") -> int:
        """Bytes of the task's adapter files in dtype `F32` or `BF16`."""
        return sum(file_bytes(file, dtype) for file in self.files)


def sizes(cls: type[Method], options: Any, shape: ModelShape, tasks: list[Task]) -> Sizes:
    """Set the method up for its first task and count.

    Raises:
        UserError: what the method refuses of such a model, or a hook that reads the value of a weight.
    """
    core = Core(auto.bare(skeleton(thinned(shape.config))))
    decoder = {id(m): name for name, m in core.llava.named_modules()}[id(core.backbone.layers)]
    method = cls(options, core, tasks)
    with torch.device("meta"), _no_values(cls):
        method.setup()
        method.before_task(tasks[0], Context(widths=shape.widths))
    trained = {id(p): p.numel() for group in method.params() for p in group["params"]}

    def training(parameters: list[nn.Parameter]) -> int:
        return sum({id(p): trained.get(id(p), 0) for p in parameters}.values())

    adapter = training([p for name in core.names() for p in core.parameters_of(name)])
    projector = training(list(core.projector.parameters()))
    modules = {name: n for name, module in method.modules.items() if (n := training(list(module.parameters())))}
    with _no_values(cls):
        cost = method.cost()
    stored = sum(p.numel() for p in method.modules.state_dict().values()) - cost.dropped
    files = tuple(
        {f"base_model.model.{path}.lora_{x}.weight": tuple(getattr(m, f"lora_{x}")[name].weight.shape)
         for path, _, m in core.layers(name) for x in "AB"}
        for name in method.adapters()
    )  # fmt: skip
    adapted = {path for name in core.names() for path, _, _ in core.layers(name)}
    layers = [path.removeprefix(f"{decoder}.").split(".")[0] for path in adapted if path.startswith(f"{decoder}.")]
    return Sizes(adapter, projector, modules, stored, cost, files, method.needs,
                 len(layers), len(set(layers)), len(adapted) - len(layers))  # fmt: skip


@contextlib.contextmanager
def _no_values(cls: type[Method]) -> Iterator[None]:
    """What torch says of a value that a meta tensor does not have becomes a sentence about the method's line."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error).lower():
            raise
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = [f for f in frames if f.filename == inspect.getsourcefile(cls)] or frames
        raise UserError(
            f"{own[-1].filename}:{own[-1].lineno}: method '{cls.name}' reads the value of a weight here, and plan has only"
            " shapes (tensors on the meta device); skip such work where tensor.is_meta (docs/ADD_A_METHOD.md)."
        ) from error


def sizes_of_alike_layers(cls: type[Method], options: Any, shape: ModelShape, tasks: list[Task]) -> Sizes:
    """As `sizes`, many times faster: from models of one and two layers, to which every further layer adds the same.

    Not for options that name one of the layers.
    """
    layers = shape.text.num_hidden_layers
    one, two = (sizes(cls, options, replace(shape, config=cut(shape.config, n)), tasks) for n in (1, 2))
    places = [f"layers.{i}." for i in range(layers)]
    files = tuple({k.replace("layers.0.", at): s for at in places for k, s in file.items()} for file in one.files)
    return replace(_extend(one, two, layers - 1), files=files)


def _extend(one: Any, two: Any, more: int) -> Any:
    """one + more · (two − one) in every number."""
    if is_dataclass(one):
        values = {f.name: (getattr(one, f.name), getattr(two, f.name)) for f in fields(one) if f.name != "files"}
        return replace(one, **{name: _extend(a, b, more) for name, (a, b) in values.items()})
    if isinstance(one, dict):
        return {key: _extend(one[key], two[key], more) for key in one}
    if isinstance(one, tuple):
        return tuple(_extend(a, b, more) for a, b in zip(one, two))
    return one + more * (two - one) if type(one) is int else one


def file_bytes(tensors: dict[str, tuple[int, int]], dtype: str) -> int:
    """Size of a safetensors file of `tensors` (name → shape) in dtype `F32` or `BF16`, header included."""
    width, at, header = {"F32": 4, "BF16": 2}[dtype], 0, {}
    for key in sorted(tensors):
        end = at + width * tensors[key][0] * tensors[key][1]
        header[key] = {"dtype": dtype, "shape": list(tensors[key]), "data_offsets": [at, end]}
        at = end
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + text + -text % 8 + at
