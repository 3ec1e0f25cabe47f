"""The decoder's linears in 4 or 8 bits (bitsandbytes), so that a 7B trains and answers on a 24 GB card.

Only the linears inside decoder layers are quantised; the vision tower, the projector, embeddings and the output layer
keep their dtype. The quantised weights never change: experts that would be merged stay low-rank (adapters/core.py).
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import nn
from transformers import PreTrainedModel

from hide_llava.errors import UserError


def bitsandbytes(bits: str) -> ModuleType:
    """The package. Raises UserError if it cannot be imported; bits: of `model.quantization`."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(f"model.quantization={bits}: bitsandbytes cannot be imported ({error}); "
                        "pip install -e '.[quant]', or use model.quantization=none.") from None  # fmt: skip
    return bitsandbytes


def quantize(model: PreTrainedModel, decoder: nn.ModuleList, bits: str, dtype: torch.dtype) -> None:
    """Replace every linear of a model's decoder layers by bitsandbytes' layer, in place; it quantises when it is moved to its
    device.

    bits: "4bit" (NF4 with double quantisation, QLoRA §3) or "8bit" (LLM.int8). dtype: what the layers compute in.

    Raises:
        UserError: bitsandbytes cannot be imported.
    """
    bnb = bitsandbytes(bits)
    for path, linear in [(p, m) for p, m in decoder.named_modules() if isinstance(m, nn.Linear)]:
        shape = (linear.in_features, linear.out_features, linear.bias is not None)
        if bits == "4bit":
            layer = bnb.nn.Linear4bit(
                *shape, compute_dtype=dtype, compress_statistics=True, quant_type="nf4", device="meta"
            )
            weight = bnb.nn.Params4bit(
                linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
            )
        else:
            layer = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=6.0, device="meta")
            weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
        layer.weight, layer.bias = weight, linear.bias
        decoder.set_submodule(path, layer)
    setattr(model, f"is_loaded_in_{bits}", True)  # where peft looks to choose its own layer
