"""How many questions are answered at once: what fits into free memory, and half of it when that was too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hide_llava.distributed import ranks
from hide_llava.errors import UserError

ON_CPU = 16
LARGEST = 128
SHARE = 0.7  # of the free memory; the rest is for activations of the prefill and for fragmentation


def key_value_bytes(text: PretrainedConfig, width: int) -> int:
    """Bytes of keys and values of one token in numbers of `width` bytes; text: the decoder's configuration."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * head * width


def sample_bytes(text: PretrainedConfig, width: int, length: int) -> int:
    """Bytes of keys and values of one sample of `length` tokens, plus its prefill activations of one layer."""
    return length * (key_value_bytes(text, width) + 4 * width * (text.hidden_size + text.intermediate_size))


def cache_bytes(llava: PreTrainedModel, length: int) -> int:
    """`sample_bytes` of a loaded model."""
    return sample_bytes(llava.config.get_text_config(), llava.dtype.itemsize, length)


def largest_batch(free: float, sample: int) -> int:
    """The largest power of two, at most LARGEST, of samples of `sample` bytes that take at most SHARE of `free` bytes."""
    fits = max(1, int(SHARE * free / sample))
    return min(LARGEST, 1 << (fits.bit_length() - 1))


def automatic_batch_size(llava: PreTrainedModel, length: Callable[[], int]) -> int:
    """The largest power of two of at most 128 whose cache fits into free GPU memory, the same in every process.

    length: tells the tokens of the longest sample; not asked on a CPU.
    """
    if llava.device.type != "cuda":
        return ON_CPU
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(llava.device)
    size = torch.tensor([largest_batch(free, cache_bytes(llava, length()))], device=llava.device)
    if ranks()[1] > 1:
        torch.distributed.all_reduce(size, torch.distributed.ReduceOp.MIN)
    return int(size)


def halves(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """A collated batch cut in two by rows."""
    rows = len(batch["ids"])

    def part(value: Any, start: int, stop: int) -> Any:
        if isinstance(value, dict):
            return {key: part(inner, start, stop) for key, inner in value.items()}
        return value[start:stop] if isinstance(value, (list, torch.Tensor)) else value

    return [part(batch, 0, rows // 2), part(batch, rows // 2, rows)]


def within_memory(answer: Callable[[dict[str, Any]], list[Any]], batch: dict[str, Any]) -> list[Any]:
    """`answer(batch)`; when the device runs out of memory, the same for each half, down to single questions.

    Raises:
        UserError: one question alone does not fit.
    """
    try:
        return answer(batch)
    except torch.OutOfMemoryError:
        if len(batch["ids"]) == 1:
            raise UserError(f"question {batch['ids'][0]!r} alone does not fit into the device's memory; lower "
                            "eval.max_new_tokens, or set model.quantization=4bit.") from None  # fmt: skip
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [row for half in halves(batch) for row in within_memory(answer, half)]
