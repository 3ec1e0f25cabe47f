"""A method on the tiny Llama of a recording, with the recorded A and B in its adapters, run as the engine runs it."""

from __future__ import annotations

import torch
from torch import Tensor

from hide_llava.adapters.core import Core
from hide_llava.backbones.llava15 import Llava15
from hide_llava.methods.base import Context, Method
from hide_llava.methods.routed import RoutedLlava
from tests.methods.host import assert_near, tasks, tiny_llama


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def case(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one case, without its name."""
    return under(tensors, f"{name}/")


def on_tiny_llama(kind: type[Method], parameters: dict[str, Tensor], learned: int, **options: object) -> RoutedLlava:
    """Method `kind` in training of its `learned`-th task; `parameters`: the recording's `param.` tensors."""
    llava = tiny_llama({f"tiny_llama/{k}": v for k, v in parameters.items()})
    core = Core(Llava15(llava))
    method = kind(kind.Config(dropout=0.0, projector="frozen", **options), core, tasks(max(3, learned)))
    method.setup()
    for task in method.tasks[:learned]:
        method.before_task(task, Context())
    routed = RoutedLlava(core, method, None)
    routed.train()
    return routed


def path_of(recorded: str) -> str:
    """`model.layers.0.…` of a recording as the module's name in LLaVA."""
    return recorded.replace("model.layers", "model.language_model.layers")


def put(routed: RoutedLlava, adapter: str, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Recorded linear → (A, B) into `adapter`; other linears of it do nothing."""
    known = {path_of(name): pair for name, pair in factors.items()}
    with torch.no_grad():
        for path, _, layer in routed.core.layers(adapter):
            a, b = known.get(path, (0.0, 0.0))
            layer.lora_A[adapter].weight[:], layer.lora_B[adapter].weight[:] = a, b
    assert known.keys() <= {path for path, _, _ in routed.core.layers(adapter)}


def trainable(routed: RoutedLlava) -> None:
    for group in routed.method.params():
        for parameter in group["params"]:
            parameter.requires_grad_(True)


def text(tensors: dict[str, Tensor], prefix: str = "in.") -> dict[str, Tensor]:
    """A recorded batch of text as the collator's."""
    batch = {k: tensors[f"{prefix}{k}"] for k in ("input_ids", "attention_mask", "labels")}
    count = len(batch["input_ids"])
    return {**batch, "has_image": torch.zeros(count, dtype=torch.bool), "pixels": [None] * count, "sizes": [[]] * count}


def total(routed: RoutedLlava, batch: dict) -> tuple[Tensor, Tensor]:
    """(cross-entropy, cross-entropy plus the method's terms)."""
    output = routed(**batch)
    return output.loss, output.loss + sum(routed.method.loss(output, batch, output.features).values())


def assert_logits(routed: RoutedLlava, batch: dict, expected: Tensor) -> None:
    """Logits at real positions: at padding they say nothing."""
    real = batch["attention_mask"].bool()
    assert_near(routed(**batch).logits[real].detach(), expected[real])


def assert_gradients(routed: RoutedLlava, adapter: str, recorded: dict[str, Tensor], a: str, b: str) -> None:
    """Gradients of `adapter` equal `recorded` under `<linear>.<a>` and `<linear>.<b>`, wherever those are recorded."""
    compared = 0
    layers = {path: layer for path, _, layer in routed.core.layers(adapter)}
    for name, expected in recorded.items():
        for suffix, side in ((a, "lora_A"), (b, "lora_B")):
            if name.endswith(f".{suffix}"):
                weight = getattr(layers[path_of(name.removesuffix(f".{suffix}"))], side)[adapter].weight
                assert_near(weight.grad, expected)
                compared += 1
    assert compared
