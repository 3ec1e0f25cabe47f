"""Speed and memory of one training step: HiDe's engine against plain peft LoRA, and against training all experts.

    python perf/training_step.py --hidden 512 --layers 8 --experts 6 --rank 8 --image-tokens 576 --batch 1,4 --rounds 5

A step is forward, backward, AdamW, zero_grad; projector and one adapter on every decoder linear train.

peft   one upstream LoRA adapter on transformers' own LLaVA, in a bare loop
hide   RoutedLlava at the last task: its expert trains, the older ones are present and frozen; routing features,
       anchors and the change of route before and after the step are inside, as the Trainer subclass does it. Logits only
       where a record has a label, activations kept, and in bf16 no cast of inputs to fp32: as a run trains that has memory
naive  the same, but every expert is trainable and in the optimizer, as in the reference;
       experts that are not used have zero gradients, which is what its flat buffers hold

`hide` with one thing the other way, and with all of them, as every step was before they could be left out:

full_logits    logits of all positions
checkpointing  activations are computed again in the backward pass
cast           peft casts what a linear reads to fp32 (no difference in fp32; --dtype bfloat16)
all_three      the three together

Targets: hide at most 1.03 × peft in time and 1.01 × in memory. Optimizer state of hide must be one task's: that of peft.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from statistics import median

import torch
from measure import interleave, machine, peak_in_process, peak_mib, ratios, start, table
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from shapes import Shape, build_batch, build_hide, build_llava, parser, shape_of, upstream_inputs
from torch import Tensor, nn

from hide_llava.adapters.route import Route
from hide_llava.backbones.base import TARGETS

VARIANTS = ["peft", "hide", "naive", "full_logits", "checkpointing", "cast", "all_three"]
Step = Callable[[], None]


class Variant:
    """A model in training mode, its optimizer, and the loss of a batch."""

    def __init__(self, name: str, shape: Shape):
        self.shape, self.routed, self.loss_only = shape, None, name not in ("full_logits", "all_three")
        if name == "peft":
            self.llava, trained = peft_model(shape)
        else:
            self.routed = build_hide(shape, training=True).train()
            self.llava, method = self.routed.llava, self.routed.method
            trained = [p for group in method.params() for p in group["params"]]
            if name == "naive":
                trained += [p for t in method.learned[:-1] for p in self.routed.core.parameters_of(method.expert(t))]
        for parameter in trained:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            if name == "naive":
                parameter.grad = torch.zeros_like(parameter)
        for layer in self.llava.modules():
            if isinstance(layer, BaseTunerLayer) and name not in ("peft", "cast", "all_three"):
                layer.cast_input_dtype_enabled = shape.torch_dtype == torch.float32
        if name in ("checkpointing", "all_three"):
            self.llava.gradient_checkpointing_enable({"use_reentrant": False})
        self.keep_gradients = name == "naive"
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def loss(self, batch: dict) -> Tensor:
        if self.routed is None:
            return self.llava(**upstream_inputs(self.llava, batch), use_cache=False).loss
        output = self.routed(**batch, loss_only=self.loss_only)
        return output.loss + sum(self.routed.method.loss(output, batch, output.features).values())

    def step(self, size: int) -> Step:
        batch = build_batch(self.shape, size, "right")
        device, mixed = torch.device(self.shape.device).type, self.shape.torch_dtype != torch.float32

        def call() -> None:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
                loss = self.loss(batch)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=not self.keep_gradients)
            if self.routed is not None:
                self.routed.core.follow(Route())

        return call

    def state_bytes(self) -> int:
        """Bytes the optimizer holds (both moments of every parameter that had a gradient)."""
        states: Iterable[dict] = self.optimizer.state.values()
        return sum(t.nbytes for s in states for t in s.values() if isinstance(t, Tensor) and t.dim())


def peft_model(shape: Shape) -> tuple[nn.Module, list[nn.Parameter]]:
    """Upstream LoRA on every decoder linear, in fp32, with the projector training as well."""
    config = LoraConfig(
        r=shape.rank, lora_alpha=2 * shape.rank, lora_dropout=0.05, task_type="CAUSAL_LM",
        target_modules=rf".*language_model\.layers\.\d+\.({TARGETS['all']})",
    )  # fmt: skip
    llava = build_llava(shape)
    model = get_peft_model(llava, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    return llava, [*trained, *llava.model.multi_modal_projector.parameters()]


def main() -> None:
    options = parser(__doc__.splitlines()[0], "1,4", VARIANTS)
    options.add_argument("--variants", default=",".join(VARIANTS), help="which of them, separated by commas; peft is needed")
    args = options.parse_args()
    chosen = [name for name in VARIANTS if name in args.variants.split(",")]
    shape, sizes = shape_of(args), [int(size) for size in args.batch.split(",")]
    start(args.threads)
    if args.peak:
        print(json.dumps({"peak": peak_mib(Variant(args.peak, shape).step(sizes[0]), shape.device)}))
        return
    print(f"training step: {shape}\n{machine(shape.device, args.threads)}\n{shape.note}")
    built = {name: Variant(name, shape) for name in chosen}
    rows = []
    for size in sizes:
        times = interleave({name: v.step(size) for name, v in built.items()}, args.rounds, shape.device)
        for name, measured in times.items():
            wall, cpu = ratios(measured, times["peft"])
            peak = "" if args.no_memory else f"{peak_in_process(name, size)['peak']:.0f}"
            milliseconds = 1000 * median(w for w, _ in measured) / size
            state = str(built[name].state_bytes())
            rows.append([name, str(size), f"{milliseconds:.1f}", f"{wall:.3f}", f"{cpu:.3f}", state, peak])
    header = ["variant", "batch", "ms/sample", "ratio to peft", "CPU-time ratio", "optimizer state bytes", "peak MiB"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
