"""Of an export's adapters: loaded by peft alone, each number of each file must be in the model, and nothing of it left over."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hide_llava.errors import UserError


def with_adapters(model: PreTrainedModel, folders: dict[str, Path]) -> tuple[PeftModel, dict[str, int]]:
    """A plain model with adapters by name, and how many linears each is on.

    Raises:
        UserError: a tensor of a file is not in the model, or the model has one that the file lacks.
    """
    peft, counts = None, {}
    for name, folder in folders.items():
        if peft is None:
            peft = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
        else:
            peft.load_adapter(str(folder), name)
        stored = load_file(folder / "adapter_model.safetensors")
        there = get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False)
        if stray := stored.keys() ^ there.keys():
            raise UserError(f"{folder}: {len(stray)} tensors belong to no linear or are missing, first: {sorted(stray)[0]}.")
        wrong = [key for key, tensor in stored.items() if not torch.equal(tensor.to(there[key].dtype), there[key].cpu())]
        if wrong:
            raise UserError(f"{folder}: {wrong[0]} was not loaded as it is stored.")
        counts[name] = sum(".lora_A." in key for key in stored)
    return peft.eval(), counts
