"""Greedy decoding: what upstream's `generate` does for it, with one look at the tokens a step, and rows that may leave.

The same calls of the model with the same inputs as `generate` makes, so the same tokens (tests/methods/test_contract.py). It
differs in two things. The host looks at the tokens once a step (beside that, upstream's forward looks at the mask). And rows
that have ended can leave: when at most half of the rows still speak, keys, values and mask are cut down to them, so that
one answer that does not end does not cost a batch. The rule looks at the batch alone, so the batch repeats; but products
of another number of rows may differ in their last bits, which fp32 hardly ever shows and bf16 now and then does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, LlavaForConditionalGeneration, PreTrainedModel, StaticCache
from transformers.generation.streamers import BaseStreamer

Seen = Callable[[int, int], None]  # (row of the batch, its next token)


def greedy(
    llava: LlavaForConditionalGeneration, embeds: Tensor, mask: Tensor, max_new_tokens: int,
    leave: Callable[[Tensor], None] | None = None, static: bool = False, seen: Seen | None = None,
) -> list[list[int]]:  # fmt: skip
    """The likeliest tokens of each row, up to and with its end-of-sequence token, at most `max_new_tokens`.

    embeds [B, N, d], mask [B, N] long, padded on the left. leave: called with the places [b] of the rows that stay
    whenever others leave; None: all stay to the end. static: keys and values in one buffer that is written in place,
    instead of one that is copied with every token; then all stay. seen: called with each token as soon as it is known.
    """
    ends = end_tokens(llava)
    cache = _cache(llava, static, embeds.shape[1] + max_new_tokens)
    positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    padded = not bool(mask.all())  # as upstream: without padding the kernels need no mask
    answers: list[list[int]] = [[] for _ in embeds]
    rows, inputs = list(range(len(answers))), {"inputs_embeds": embeds}  # rows: whose answers the batch holds
    while True:
        out = llava(**inputs, attention_mask=mask if padded else None, position_ids=positions, past_key_values=cache,
                    use_cache=True, logits_to_keep=1)  # fmt: skip
        tokens = out.logits[:, -1].float().argmax(-1)
        del out
        for row, token in zip(rows, tokens.tolist()):
            if not answers[row] or answers[row][-1] not in ends:
                answers[row].append(token)
                if seen is not None:
                    seen(row, token)
        open_places = [i for i, row in enumerate(rows) if answers[row][-1] not in ends]
        if not open_places or len(answers[rows[open_places[0]]]) >= max_new_tokens:
            return answers
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
        if leave is not None and not static and 2 * len(open_places) <= len(rows):
            kept = torch.tensor(open_places, device=tokens.device)
            cache.batch_select_indices(kept)
            tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
            rows = [rows[i] for i in open_places]
            leave(kept)
        inputs = {"input_ids": tokens[:, None]}


class Told(BaseStreamer):
    """`seen`, for upstream's `generate`, which tells the prompt first, and padding behind the end of a row."""

    def __init__(self, seen: Seen):
        self.seen, self.begun = seen, False

    def put(self, value: Tensor) -> None:
        for row, token in enumerate(value.tolist() if self.begun else ()):
            self.seen(row, token)
        self.begun = True

    def end(self) -> None:
        pass


def end_tokens(llava: PreTrainedModel) -> set[int]:
    """Tokens that end an answer, of which some models have several."""
    token = llava.generation_config.eos_token_id
    return set() if token is None else {token} if isinstance(token, int) else set(token)


def _cache(llava: LlavaForConditionalGeneration, static: bool, length: int) -> DynamicCache | StaticCache:
    config = llava.config.get_text_config()
    return StaticCache(config=config, max_cache_len=length) if static else DynamicCache(config=config)
