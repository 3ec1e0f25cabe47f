"""Hosts for the recordings of public methods: one adapted linear, and a tiny Llama inside a LLaVA, both on a real Core."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from hide_llava.adapters.core import Core
from hide_llava.adapters.route import Route
from hide_llava.backbones.llava15 import Llava15
from hide_llava.methods.base import Context, Method, Task

RECORDED = Path(__file__).parent.parent / "golden_methods"
LAYER = "model.language_model.layers.0.mlp.down_proj"


class OneLinear(nn.Module):
    """A module in which one linear lies where LLaVA's decoder has its `down_proj`s."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        mlp = nn.Module()
        mlp.down_proj = nn.Linear(d_in, d_out, bias=False)
        decoder = nn.Module()
        decoder.mlp = mlp
        language = nn.Module()
        language.layers = nn.ModuleList([decoder])
        self.model = nn.Module()
        self.model.language_model = language
        self.model.multi_modal_projector = nn.Linear(1, 1)
        self.config = SimpleNamespace(model_type="llava", text_config=SimpleNamespace(hidden_size=d_in))
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def prepare_inputs_for_generation(self) -> None:
        """peft looks it up when it wraps a causal model."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model.language_model.layers[0].mlp.down_proj(x)


def tasks(count: int = 3) -> list[Task]:
    return [Task(i, f"task{i}", count) for i in range(count)]


def on_one_linear(kind: type[Method], weight: Tensor, **options: object) -> Method:
    """Method `kind`, set up on one frozen linear [d_out, d_in]."""
    llava = OneLinear(weight.shape[1], weight.shape[0])
    llava.model.language_model.layers[0].mlp.down_proj.weight.data.copy_(weight)
    method = kind(kind.Config(dropout=0.0, targets="ffn", **options), Core(Llava15(llava)), tasks())
    method.setup()
    return method


def run_linear(method: Method, route: Route, x: Tensor) -> Tensor:
    """The linear's output on x [B, n, d_in] under `route`."""
    method.core.follow(route)
    return method.core.llava(x)


def layer_of(method: Method, path: str = LAYER) -> nn.Module:
    return dict(method.core.llava.named_modules())[path]


def fill(method: Method, name: str, a: Tensor, b: Tensor, path: str = LAYER) -> None:
    """Put A [r, d_in] and B [d_out, r] into adapter `name` of one linear, trainable."""
    layer = layer_of(method, path)
    for parameter, value in ((layer.lora_A[name].weight, a), (layer.lora_B[name].weight, b)):
        parameter.data = value.clone()
        parameter.requires_grad_(True)


@contextlib.contextmanager
def folded(method: Method) -> Iterator[Tensor]:
    """The method ready to answer; what it adds to the linear, which is taken away again bit for bit, its adapter too."""
    weight = layer_of(method).get_base_layer().weight
    before = weight.detach().clone()
    method.prepare_inference()
    yield weight.detach() - before
    method.core.unfold()
    assert torch.equal(weight, before) and method.merged not in method.core.names()


def stacked(tensors: dict[str, Tensor], prefix: str) -> tuple[Tensor, Tensor]:
    """`<prefix>A.0` … and `<prefix>B.0` … of a recording as one A and one B."""
    count = sum(bool(re.fullmatch(re.escape(prefix) + r"A\.\d+", key)) for key in tensors)
    a = torch.cat([tensors[f"{prefix}A.{i}"] for i in range(count)])
    return a, torch.cat([tensors[f"{prefix}B.{i}"] for i in range(count)], 1)


def run_masked(method: Method, route: Route, x: Tensor, kept: Tensor) -> Tensor:
    """The linear's output where expert i reads kept[i] · x: a dropout mask per expert, which one LoRA does not have."""
    (adapter,), layer = route.active, layer_of(method)
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    u = torch.cat([(factor * x) @ rows.T for factor, rows in zip(kept, a.chunk(len(kept)))], -1)
    gate = route.gates[adapter](LAYER, layer, x)
    gated = gate(u) if callable(gate) else gate * u
    return layer.get_base_layer()(x) + layer.scaling[adapter] * gated @ b.T


def recorded(name: str) -> dict[str, Tensor]:
    return load_file(RECORDED / f"{name}.safetensors")


def tiny_llama(tensors: dict[str, Tensor]) -> LlavaForConditionalGeneration:
    """A LLaVA whose decoder is the recordings' `tiny_llama`: 1 or 2 layers, width 16, 4 heads."""
    depth = 1 + any(".layers.1." in key for key in tensors)
    text = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=depth, num_attention_heads=4, vocab_size=40,
                       rms_norm_eps=1e-6, max_position_embeddings=64, pad_token_id=0)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                              image_size=4, patch_size=2)  # fmt: skip
    llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=39))
    weights = {k.removeprefix("tiny_llama/param."): v for k, v in tensors.items() if k.startswith("tiny_llama/param.")}
    state = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.") and k.endswith("weight")}
    llava.model.language_model.load_state_dict(state)
    llava.lm_head.weight.data.copy_(weights["lm_head.weight"])
    return llava.eval()


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """The largest difference, relative to the largest expected value."""
    scale = expected.abs().max().clamp(min=1e-12)
    error = float(((actual - expected).abs().max() / scale).detach())
    assert error < tolerance, error


def assert_experts(a: Tensor, b: Tensor, tensors: dict[str, Tensor], prefix: str) -> None:
    """A [r, d_in] and B [d_out, r] of all experts equal the recorded ones, each relative to its own largest value."""
    count = sum(bool(re.fullmatch(re.escape(prefix) + r"A\.\d+", key)) for key in tensors)
    assert count > 1
    for i, (rows, columns) in enumerate(zip(a.chunk(count), b.chunk(count, 1))):
        assert_near(rows, tensors[f"{prefix}A.{i}"])
        assert_near(columns, tensors[f"{prefix}B.{i}"])


def trainable_at_7b(kind: type[Method], **options: object) -> int:
    """Number of parameters that task 1 trains on a LLaVA-1.5-7B, from shapes alone: nothing is allocated.

    The 32 decoder layers are alike: 31 times what a second layer adds to the first.
    """
    one, two = (_trainable_of_7b_layers(kind, count, options) for count in (1, 2))
    return one + 31 * (two - one)


def _trainable_of_7b_layers(kind: type[Method], layers: int, options: dict[str, object]) -> int:
    text = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers, num_attention_heads=32,
                       vocab_size=32000)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=1, num_attention_heads=16,
                              image_size=336, patch_size=14)  # fmt: skip
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
        method = kind(kind.Config(**options), Core(Llava15(llava)), tasks())
        method.setup()
        method.before_task(method.tasks[0], Context(widths={"clip_image": 768, "clip_text": 768, "sentence": 384}))
    parameters = [p for group in method.params() for p in group["params"]]
    assert len({id(p) for p in parameters}) == len(parameters)
    return sum(p.numel() for p in parameters)
