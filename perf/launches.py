"""Kernels per decoded token, of every method beside the bare base model: a count, so it is the same on every machine.

    python perf/launches.py                          # a table: 32 layers of tiny width, bf16
    python perf/launches.py --layers 8 --dtype float32 --method hide --method moelora

On a GPU a token of a small batch takes as long as its kernels take to launch, so their number is what an adapter costs.
Counted are the operations that torch dispatches on a CPU, views and empty tensors left out, in the last 4 of 6 decoded
tokens of a batch of 2: attention is then one operation, as it is with a fused kernel. What a kernel of a GPU copies inside one
operation (an input that is not contiguous) is not seen. Every method has learned one task at its default size; adapters
concatenated of several tasks launch as many.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import torch
from encoders import StandInEncoder
from measure import table
from shapes import Shape, build_batch, build_llava
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import hide_llava.methods.all  # noqa: F401
from hide_llava.adapters.core import Core
from hide_llava.backbones.llava15 import Llava15
from hide_llava.methods.base import REGISTRY, Context, Method, Task
from hide_llava.methods.routed import RoutedLlava

NO_KERNEL = ("empty", "detach", "alias", "lift", "_local_scalar", "sym_", "_unsafe_view", "split", "chunk", "unbind",
             "_reshape_alias", "view", "set_", "resize")  # fmt: skip
WIDTHS = {**StandInEncoder.widths, "sentence": 16}
# The others answer as the folded `lora` does, or with prompts, which cost tokens and no kernels.
METHODS = ("lora", "hide", "individual", "disco", "mrlora", "moelora", "clmoe", "same", "smolora", "branchlora")


class Launches(TorchDispatchMode):
    """Counts the operations inside the block that would launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = function.overloadpacket.__name__
        self.count += not (function.is_view or any(word in name for word in NO_KERNEL))
        return function(*args, **(kwargs or {}))


class Sentences(nn.Module):
    """Stands for the encoder of instructions."""

    def text(self, texts: list[str]) -> Tensor:
        return torch.stack([torch.full((WIDTHS["sentence"],), len(text) / 100) for text in texts])


def shape_of(layers: int, dtype: str) -> Shape:
    return Shape(
        hidden=32, layers=layers, heads=2, vocabulary=64, vision_hidden=16, vision_layers=2, vision_heads=2,
        image_tokens=4, prompt_tokens=6, answer_tokens=2, dtype=dtype,
    )  # fmt: skip


def learned(name: str, shape: Shape) -> RoutedLlava:
    """A model whose method `name` has learned one task, every update random, a fifth of the weights: it can be folded."""
    core, tasks = Core(Llava15(build_llava(shape))), [Task(0, "task-0", 2)]
    kind = REGISTRY[name]
    method: Method = kind(kind.Config(), core, tasks)
    routed = RoutedLlava(core, method, StandInEncoder(shape), Sentences())
    batch = build_batch(shape, 1, "right")
    context = Context(
        train_data=[0], widths=WIDTHS, loader=lambda *_: [batch], forward=lambda batch: routed(**batch),
        features=lambda batch: routed.features(batch, routed.see(batch)),
    )  # fmt: skip
    method.setup()
    method.before_task(tasks[0], context)
    generator = torch.Generator().manual_seed(0)
    for adapter in core.names():
        for _, _, layer in core.layers(adapter):
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            a.data.copy_(0.2 * torch.randn(a.shape, generator=generator))
            b.data.copy_(0.01 * torch.randn(b.shape, generator=generator) / len(a) ** 0.5)
    with torch.autocast("cpu", shape.torch_dtype, enabled=shape.dtype != "float32"):
        output = routed(**{**batch, "labels": None})
        method.loss(output, batch, output.features)
        method.after_task(tasks[0], context)
    return routed.requires_grad_(False).eval()


def per_token(routed: RoutedLlava, shape: Shape) -> float:
    """Kernels of one decoded token, the prompt and what starting an answer costs left out."""
    batch = build_batch(shape, 2, "left") | ({"task": 0} if routed.method.oracle else {})
    counts = []
    routed.method.prepare_inference()
    routed.core.fuse()
    routed.generate(batch, 2)  # what is made once, such as the fold of an oracle's expert
    for tokens in (2, 6):
        with Launches() as launches:
            routed.generate(batch, tokens)
        counts.append(launches.count)
    routed.core.unfold()
    return (counts[1] - counts[0]) / 4


def counted(names: Iterable[str], layers: int, dtype: str) -> dict[str, float]:
    """Kernels per token by method, the base model's as `zero_shot`."""
    shape = shape_of(layers, dtype)
    return {name: per_token(learned(name, shape), shape) for name in ["zero_shot", *names]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all of these")
    options = parser.parse_args()
    counts = counted(options.method or METHODS, options.layers, options.dtype)
    base = counts["zero_shot"]
    rows = [[n, f"{c:.0f}", f"{c - base:.0f}", f"{100 * (c / base - 1):+.1f} %"] for n, c in counts.items()]
    print(table(["method", "kernels a token", "above base", "relative"], rows))


if __name__ == "__main__":
    main()
