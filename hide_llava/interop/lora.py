"""Import of a plain LoRA: of LLaVA's own training script, of CoIN's and MCITlib's sequential fine-tuning, of peft, of our export.

Tensors: `base_model.model.….layers.L.BLOCK.PROJ.lora_A.weight` and `…lora_B.weight` (`.default` may stand in between), beside
them the projector, in `non_lora_trainables.bin` or as peft's `modules_to_save`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor

from hide_llava.errors import UserError
from hide_llava.interop.foreign import Base, Imported, adapter_of, settings_of, targets_of, with_projector

SIDE = re.compile(r"lora_(?P<side>[AB])\.(?:default\.)?weight$")
# Options of peft's LoRA that make it another formula than y = W x + (alpha / r) B A x, and the value at which they do not.
PLAIN = {"use_dora": False, "use_rslora": False, "use_qalora": False, "fan_in_fan_out": False, "lora_bias": False, "bias": "none",
         "rank_pattern": {}, "alpha_pattern": {}, "trainable_token_indices": None, "layer_replication": None,
         "alora_invocation_tokens": None, "target_parameters": None, "use_bdlora": None, "arrow_config": None,
         "kasa_config": None, "monteclora_config": None}  # fmt: skip
# Ways to begin that leave the base's weights as they are; the others (PiSSA, OLoRA, CorDA, LoftQ) train on a base of their own.
BEGUN = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
NAME = "sequential"  # of the adapter of method=lora


def read(folder: Path, base: Base) -> Imported:
    """One checkpoint folder.

    Raises:
        UserError: a tensor that has no place, one that is missing or of another shape, or another formula than LoRA's.
    """
    settings = settings_of(folder)
    check_formula(folder, settings)
    file, stored = adapter_of(folder)
    tensors: dict[tuple[str, str], Tensor] = {}
    projector: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        place = base.place(key, file)
        side = SIDE.match(place[1]) if place else None
        if side is not None:
            if (place[0], side["side"]) in tensors:
                raise UserError(f"{file}: {key} is there under two names.")
            tensors[place[0], side["side"]] = tensor
        elif (name := base.projector_weight(key)) is not None:
            projector[name] = tensor.float().contiguous()
        else:
            raise UserError(f"{file}: unknown key {key}.")
    base.check(file, tensors, settings["r"])
    base.check_projector(file, projector)
    projector = projector or with_projector(base, folder)
    config = LoraConfig(
        r=settings["r"], lora_alpha=settings["lora_alpha"], lora_dropout=settings.get("lora_dropout", 0.0),
        target_modules=targets_of(base, {name for name, _ in tensors}), task_type="CAUSAL_LM",
    )  # fmt: skip
    said = (f"{folder.name}: {len(tensors)} tensors of {len(tensors) // 2} linears, rank {settings['r']}, alpha "
            f"{settings['lora_alpha']}; {len(projector)} of the projector; none left over")  # fmt: skip
    return Imported(folder, NAME, config, tensors, projector, said=said)


def check_formula(folder: Path, settings: dict[str, Any]) -> None:
    """Raises UserError for a configuration that is not a plain LoRA's."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{folder}/adapter_config.json: peft_type is {kind!r}, and `import lora` reads LORA; for MOE_LORA_CoIN "
                        "there is `import moelora`, for SMoLoRA `import smolora`, for HiDe `import hide-reference`.")  # fmt: skip
    for key, plain in PLAIN.items():
        if settings.get(key, plain) not in (plain, None):
            raise UserError(f"{folder}/adapter_config.json: {key} is {settings[key]!r}; only a plain LoRA is read ({plain!r}).")
    if (begun := settings.get("init_lora_weights")) not in BEGUN:
        raise UserError(f"{folder}/adapter_config.json: init_lora_weights is {begun!r}, which changes the base's weights before "
                        "it trains; save it with peft as a plain LoRA (path_initial_model_for_weight_conversion).")  # fmt: skip
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), int | float):
            raise UserError(f"{folder}/adapter_config.json: no {key}; this is not a LoRA.")


def overrides(stages: list[Imported], targets: str) -> list[str]:
    """What the run's configuration says of its adapter.

    Raises:
        UserError: the checkpoints differ in what a run has one value of.
    """
    config = stages[-1].config
    for one in stages:
        if (one.config.r, one.config.lora_alpha) != (config.r, config.lora_alpha):
            raise UserError(f"{one.source.name} has rank {one.config.r} and alpha {one.config.lora_alpha:g}, "
                            f"{stages[-1].source.name} {config.r} and {config.lora_alpha:g}: they are not of one run; import "
                            "each into a folder of its own.")  # fmt: skip
    frozen = [] if any(one.projector for one in stages) else ["method.projector=frozen"]
    return [f"method.rank={config.r}", f"method.alpha={config.lora_alpha}", f"method.dropout={config.lora_dropout}",
            f"method.targets={targets}", *frozen]  # fmt: skip
