"""Import of mixtures of LoRA experts: CoIN's MoELoRA (also MCITlib's) and SMoLoRA.

Both store E experts in every adapted linear, `….lora_A.loraA.I.weight` [r/E, d_in] and `….lora_B.loraB.I.weight` [d_out, r/E]
(or `.mlp.weight`, the same tensor by its other name), and routers beside them. In a row they are one adapter of rank r:
A = [A_0; A_1; …], B = [B_0 | B_1 | …].
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from hide_llava.errors import UserError
from hide_llava.interop.foreign import Base, Imported, adapter_of, settings_of, targets_of, with_projector

EXPERT = re.compile(r"lora_(?P<side>[AB])\.(?:default\.)?lora(?P=side)\.(?P<slot>\d+)\.(?:mlp\.)?weight$")
ROUTER = re.compile(r"lora_(?P<router>router|vu_gate|ins_gate|fc_A|fc_B)\.(?:default\.)?weight$")
OF_PROJECTOR = re.compile(r".*mm_projector\.[02]\.lora_.*")
NAME = "experts"  # of the adapter of method=moelora and method=smolora


class Mixture:
    """The tensors of a checkpoint by what they are: experts (linear, side, slot), routers (linear, name), and what is left."""

    def __init__(self, folder: Path, base: Base, routers: tuple[str, ...]):
        self.folder, self.base, self.settings = folder, base, settings_of(folder)
        try:
            self.rank, self.alpha, self.count = (self.settings[k] for k in ("r", "lora_alpha", "expert_num"))
        except KeyError as key:
            raise UserError(f"{folder}/adapter_config.json: no {key}; this is no mixture of LoRA experts.") from None
        if self.rank % self.count:
            raise UserError(f"{folder}/adapter_config.json: r={self.rank} is not a multiple of expert_num={self.count}.")
        self.experts: dict[tuple[str, str, int], Tensor] = {}
        self.routers: dict[tuple[str, str], Tensor] = {}
        self.on_projector: dict[str, Tensor] = {}
        self.file, stored = adapter_of(folder)
        for key, tensor in stored.items():
            self._place(key, tensor, routers)
        self._complete(routers)

    def _place(self, key: str, tensor: Tensor, routers: tuple[str, ...]) -> None:
        if OF_PROJECTOR.match(key):
            self.on_projector[key] = tensor
            return
        place = self.base.place(key, self.file)
        if place is not None and (match := EXPERT.match(place[1])):
            where, held = (place[0], match["side"], int(match["slot"])), self.experts
        elif place is not None and (match := ROUTER.match(place[1])) and match["router"] in routers:
            where, held = (place[0], match["router"]), self.routers
        else:
            raise UserError(f"{self.file}: unknown key {key}.")
        if where in held and not torch.equal(held[where], tensor):
            raise UserError(f"{self.file}: {key} is there under two names with different values.")
        held[where] = tensor

    def _complete(self, routers: tuple[str, ...]) -> None:
        """Raises UserError unless every adapted linear has every expert, both sides and every router."""
        names = sorted({name for name, _, _ in self.experts})
        wanted = {(n, side, slot) for n in names for side in "AB" for slot in range(self.count)}
        lacking = sorted(wanted ^ self.experts.keys()) or sorted({(n, r) for n in names for r in routers} ^ self.routers.keys())
        if lacking or not names:
            raise UserError(f"{self.file}: {len(lacking)} tensors are missing or of slots beyond expert_num={self.count}, first: "
                            f"{lacking[0] if lacking else 'any expert'}.")  # fmt: skip
        self.names = names

    def adapter(self) -> tuple[LoraConfig, dict[tuple[str, str], Tensor]]:
        """All experts as one adapter; checked against the base."""
        tensors = {}
        for name in self.names:
            for side, dim in (("A", 0), ("B", 1)):
                tensors[name, side] = torch.cat([self.experts[name, side, slot] for slot in range(self.count)], dim)
        self.base.check(self.file, tensors, self.rank)
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.settings.get("lora_dropout", 0.0),
            target_modules=targets_of(self.base, self.names), task_type="CAUSAL_LM",
        )  # fmt: skip
        return config, tensors

    def router(self, name: str, rows: int, width: int | None = None, outputs: bool = False) -> dict[str, Tensor]:
        """Weights [rows, width] of one kind of router by linear. width: None for d_in, or with `outputs` for d_out."""
        found = {}
        for path in self.names:
            tensor, linear = self.routers[path, name].float(), self.base.linears[path]
            wanted = (rows, width or (linear.out_features if outputs else linear.in_features))
            if tuple(tensor.shape) != wanted:
                raise UserError(f"{self.file}: lora_{name} of {path} has shape {tuple(tensor.shape)}, expected {wanted}.")
            found[path] = tensor.contiguous()
        return found

    def options(self) -> list[str]:
        return [f"method.rank={self.rank}", f"method.alpha={self.alpha}", f"method.experts={self.count}",
                f"method.dropout={self.settings.get('lora_dropout', 0.0)}"]  # fmt: skip

    def said(self, projector: dict[str, Tensor]) -> str:
        return (
            f"{self.folder.name}: {len(self.experts)} tensors of {self.count} experts in {len(self.names)} linears, rank "
            f"{self.rank}, alpha {self.alpha}; {len(self.routers)} of routers; {len(projector)} of the projector; none left over"
        )


def as_modules(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Router weights by linear as `Routers` (adapters/token_gates.py) stores them in a stage."""
    return {f"modules.{name}.linears.{path.replace('.', '/')}.weight": tensor for path, tensor in weights.items()}


def read_moelora(folder: Path, base: Base) -> tuple[Imported, list[str]]:
    """A checkpoint of CoIN's MoELoRA, and the options of its run.

    Raises:
        UserError: a tensor that has no place, is missing or of another shape.
    """
    mixture = Mixture(folder, base, ("router",))
    if mixture.on_projector:
        raise UserError(f"{mixture.file}: {min(mixture.on_projector)} is an expert of the projector, which MoELoRA has not.")
    if str(mixture.settings.get("peft_type", "")).endswith("HiDe"):
        raise UserError(f"{folder}: is a checkpoint of HiDe ({mixture.settings['peft_type']}), whose routers are never used; "
                        "use `import hide-reference`.")  # fmt: skip
    config, tensors = mixture.adapter()
    projector = with_projector(base, folder)
    state = as_modules("router", mixture.router("router", mixture.count))
    return Imported(folder, NAME, config, tensors, projector, state, mixture.said(projector)), mixture.options()


def read_smolora(folder: Path, base: Base, current: int) -> tuple[Imported, list[str]]:
    """A checkpoint of SMoLoRA as its published code computes it, and the options of its run. current: its task, from 0.

    Its adapter_config.json holds an embedding [384] of each task's instruction, by which the code chooses an expert when it is
    told the task: `instruction: oracle`.

    Raises:
        UserError: as of `read_moelora`; or the experts on the projector were trained, which the method here does not have.
    """
    mixture = Mixture(folder, base, ("vu_gate", "ins_gate", "fc_A", "fc_B"))
    trained = sorted(key for key, tensor in mixture.on_projector.items() if "lora_B" in key and bool(tensor.any()))
    if trained:
        raise UserError(
            f"{mixture.file}: {trained[0]} and {len(trained) - 1} more are trained experts on the projector; smolora here trains "
            "the projector whole and has none there, so that it would answer otherwise than this checkpoint."
        )
    means = _instructions(mixture.settings, folder)
    half, width = mixture.count // 2, means.shape[1]
    config, tensors = mixture.adapter()
    heads = [mixture.router(name, 1, outputs=True) for name in ("fc_A", "fc_B")]
    fusion = {path: torch.cat([head[path] for head in heads]) for path in mixture.names}
    state: dict[str, Any] = {
        **as_modules("visual", mixture.router("vu_gate", half)), **as_modules("fusion", fusion),
        **as_modules("instruction", mixture.router("ins_gate", half, width)),
        **{f"instruction.{task}": mean for task, mean in enumerate(means)}, "sentence_width": width, "current": current,
    }  # fmt: skip
    projector = with_projector(base, folder)
    options = [*mixture.options(), "method.gates=random", "method.pool=call", "method.instruction=oracle"]
    said = mixture.said(projector)
    if mixture.on_projector:
        said += f"; {len(mixture.on_projector)} of untrained experts on the projector, which change nothing"
    return Imported(folder, NAME, config, tensors, projector, state, said), options


def _instructions(settings: dict[str, Any], folder: Path) -> Tensor:
    """[tasks, d]: the embedding of each task's instruction."""
    try:
        found = torch.tensor(settings["ins_emb"], dtype=torch.float32)
        assert found.dim() == 2
    except (KeyError, TypeError, ValueError, AssertionError):
        raise UserError(f"{folder}/adapter_config.json: no ins_emb, a list with an embedding of each task's instruction; this is "
                        "not a checkpoint of SMoLoRA.") from None  # fmt: skip
    return found
