"""Speed and memory of generation: HiDe folded, against the base model and against the reference's scheme.

    python perf/generation.py --hidden 512 --layers 8 --experts 6 --rank 8 --image-tokens 576 --new-tokens 16 \
        --batch 1,8 --rounds 5

base   transformers' own LlavaForConditionalGeneration.generate on ids and pixels, no adapter anywhere
hide   RoutedLlava.generate as `with session:` answers: lower layers folded, top layer one gated adapter
naive  what the reference does: every forward of every lower linear sums all A and all B anew, the top
       layer adds expert after expert with weights stored on the module; batch 1 only, as there

Targets: hide at most 1.03 × base at each batch size; naive at least 1.4 × hide at batch 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from statistics import median

import torch
from measure import interleave, machine, peak_in_process, peak_mib, ratios, start, table
from shapes import Shape, build_batch, build_hide, build_llava, parser, shape_of, upstream_inputs
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import skip_init

from hide_llava.adapters.core import Core
from hide_llava.adapters.route import Route
from hide_llava.backbones.llava15 import Llava15
from hide_llava.methods.hide import HiDe
from hide_llava.methods.routed import RoutedLlava

Generate = Callable[[], Tensor]
VARIANTS = ["base", "hide", "naive"]


class NaiveLinear(nn.Module):
    """One adapted linear as the reference runs it at inference. `initialise`: each sum draws random weights first,
    as the published code does unless one of its own evaluation scripts turned that off (docs/PROTOCOLS.md, Evaluation)."""

    def __init__(
        self, base: nn.Module, factors: list[tuple[Tensor, Tensor]], scale: float, expanded: bool, initialise: bool
    ):
        super().__init__()
        self.base, self.factors, self.scale, self.initialise = base, factors, scale, initialise
        self.expanded, self.weights = expanded, [0.0] * len(factors)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        if self.expanded:
            for (a, b), weight in zip(self.factors, self.weights):
                result = result + self.scale * weight * linear(linear(x, a), b)
            return result
        fused_a, fused_b = (fuse([pair[i] for pair in self.factors], self.initialise) for i in range(2))
        return result + self.scale * fused_b(fused_a(x))


def fuse(matrices: list[Tensor], initialise: bool) -> nn.Linear:
    """A new `nn.Linear` on the CPU, initialised, moved, zeroed, and every expert added."""
    width, rank = matrices[0].shape[1], matrices[0].shape[0]
    fused = nn.Linear(width, rank, bias=False) if initialise else skip_init(nn.Linear, width, rank, bias=False)
    fused = fused.to(matrices[0])
    fused.weight.data.zero_()
    for matrix in matrices:
        fused.weight.data += matrix
    return fused.requires_grad_(False)


class NaiveHiDe(HiDe):
    """Routes as HiDe does, and leaves the weights on the modules."""

    def setup(self) -> None:
        super().setup()
        self.linears: list[NaiveLinear] = []

    def route(self, batch: dict, features: object, train: bool) -> Route:
        weights = self.routing_weights(features)[0].tolist()
        for module in self.linears:
            module.weights = weights
        return Route()


def naive(shape: Shape, initialise: bool = True) -> RoutedLlava:
    """The HiDe model with its peft layers replaced by `NaiveLinear`."""
    routed = build_hide(shape, training=False, kind=NaiveHiDe)
    method, llava = routed.method, routed.llava
    names = [method.expert(t) for t in method.learned]
    for path, index, layer in list(routed.core.layers(names[0])):
        base = layer.get_base_layer()
        factors = [(layer.lora_A[n].weight.to(base.weight), layer.lora_B[n].weight.to(base.weight)) for n in names]
        module = NaiveLinear(base, factors, layer.scaling[names[0]], index in method.expanded, initialise)
        llava.set_submodule(path, module)
        method.linears.append(module)
    return RoutedLlava(Core(Llava15(llava)), method, routed.encoder)


def variant(name: str, shape: Shape) -> Callable[[int], Generate]:
    """Build a variant once; the result makes the call for a batch size."""
    if name == "base":
        llava = build_llava(shape)
        return lambda size: base_call(llava, shape, size)
    routed = naive(shape) if name == "naive" else build_hide(shape, training=False)
    routed.eval().requires_grad_(False)
    if name == "hide":
        routed.method.prepare_inference()
        routed.core.fuse()  # as `with session:` does
    return lambda size: routed_call(routed, shape, size)


def base_call(llava: nn.Module, shape: Shape, size: int) -> Generate:
    inputs = upstream_inputs(llava, build_batch(shape, size, "left"))
    length = inputs["input_ids"].shape[1]
    return lambda: checked(
        llava.generate(**inputs, max_new_tokens=shape.new_tokens, do_sample=False, pad_token_id=0)[:, length:], shape
    )


def routed_call(routed: RoutedLlava, shape: Shape, size: int) -> Generate:
    batch = build_batch(shape, size, "left")
    return lambda: checked(routed.generate(batch, shape.new_tokens)[0], shape)


def checked(answers: Tensor, shape: Shape) -> Tensor:
    """All variants decode the same number of tokens."""
    if answers.shape[1] != shape.new_tokens:
        raise SystemExit(f"{answers.shape[1]} new tokens, expected {shape.new_tokens}.")
    return answers


def main() -> None:
    args = parser(__doc__.splitlines()[0], "1,8", VARIANTS).parse_args()
    shape, sizes = shape_of(args), [int(size) for size in args.batch.split(",")]
    start(args.threads)
    if args.peak:
        print(json.dumps({"peak": peak_mib(variant(args.peak, shape)(sizes[0]), shape.device)}))
        return
    print(f"generation: {shape}\n{machine(shape.device, args.threads)}\n{shape.note}")
    built = {name: variant(name, shape) for name in VARIANTS}
    rows = []
    for size in sizes:
        calls = {name: build(size) for name, build in built.items() if name != "naive" or size == 1}
        if "naive" in calls:
            same = torch.equal(calls["hide"](), calls["naive"]())
            print(f"hide and naive give the same tokens: {'yes' if same else 'no'}")
        times = interleave(calls, args.rounds, shape.device)
        for name, measured in times.items():
            wall, cpu = ratios(measured, times["base"])
            to_hide = ratios(measured, times["hide"])[0]
            peak = "" if args.no_memory else f"{peak_in_process(name, size)['peak']:.0f}"
            milliseconds = 1000 * median(w for w, _ in measured) / size
            rows.append([name, str(size), f"{milliseconds:.1f}", f"{wall:.3f}", f"{cpu:.3f}", f"{to_hide:.3f}", peak])
    header = ["variant", "batch", "ms/sample", "ratio to base", "CPU-time ratio", "ratio to hide", "peak MiB"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
