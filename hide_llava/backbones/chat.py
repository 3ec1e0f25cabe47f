"""Any `AutoModelForImageTextToText` of transformers that takes `mm_encoder_outputs`; a family overrides what it does otherwise.

Three of upstream's own ways carry it:

    get_image_features(**pixels)       one pass of tower and projector; its `last_hidden_state` is the frozen tower's
    mm_encoder_outputs={"image": …}    the decoder takes that output instead of pixels, in `forward` and in `generate`
    input_ids, not inputs_embeds       so that positions in three dimensions, features added to deeper layers, scaled
                                       embeddings and masks that let pictures look both ways stay upstream's

With `inputs_embeds` half of the families would go on without an error and with other logits.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.utils import ModelOutput

from hide_llava.backbones.base import TARGETS, Backbone, Ready, Vision, divided
from hide_llava.backbones.chat_reader import BLANK, ChatReader
from hide_llava.backbones.decode import Seen, Told
from hide_llava.backbones.image_budget import Limit
from hide_llava.backbones.loading import device_of, dtype_of, load_weights, set_attention
from hide_llava.backbones.processors import load_processor, stop_ids, write_processor
from hide_llava.backbones.quantized import quantize
from hide_llava.data.turns import IGNORE
from hide_llava.errors import UserError
from hide_llava.schema import ImageConfig, ModelConfig

Pixels = dict[str, Tensor]  # one row's picture tensors, by the names of `get_image_features`


@dataclass
class ChatVision(Vision):
    """output: upstream's, as the decoder takes it. extra: what the decoder must be told of the pictures."""

    output: ModelOutput
    extra: dict[str, Tensor]


class ChatBackbone(Backbone):
    """A model whose prompts are a chat template's. processor: None where only shapes matter."""

    several = True
    reads: type[ChatReader] = ChatReader
    limit: Limit | None = None  # how an image budget is kept to; None: as image_budget.py says of the model's type
    told: tuple[str, ...] = ()  # of the pixels, what the decoder wants beside the encoded pictures

    def __init__(self, model: PreTrainedModel, processor: Any = None, clip: Path | None = None):
        super().__init__(model, getattr(processor, "tokenizer", None), clip)
        self.processor = processor
        decoder = model.get_decoder()
        self.path = next(name for name, module in model.named_modules() if module is decoder)
        self._projector = nn.ModuleList(self.projector_modules())
        for part in self._projector:  # when it trains it is fp32, also beside a bf16 tower
            part.register_forward_pre_hook(in_own_dtype, with_kwargs=True)
        self._readers: dict[Any, ChatReader] = {}

    @classmethod
    def load(cls, config: ModelConfig, folder: Path, clip: Path | None) -> ChatBackbone:
        processor, dtype = load_processor(folder, config.image, cls.limit), dtype_of(config)
        model = load_weights(AutoModelForImageTextToText, folder, dtype, cls.title)
        set_attention(model, config)
        cls.within_budget(model, processor, config.image)
        if config.quantization != "none":
            quantize(model, model.get_decoder().layers, config.quantization, dtype)
        model.to(device_of(config)).eval().requires_grad_(False)
        tokenizer = processor.tokenizer
        # Greedy means greedy: published folders sample, or penalise words, which with ids would reach the question's own.
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=sorted(stop_ids(folder, tokenizer)),
            pad_token_id=0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )  # fmt: skip
        return cls(model, processor, clip)

    @classmethod
    def reader_of(
        cls, folder: Path, config: ModelConfig | None = None, clip: Path | None = None, masks: str = "exact"
    ) -> ChatReader:
        processor = load_processor(folder, None if config is None else config.image, cls.limit)
        return cls.reads(processor, stop_ids(folder, processor.tokenizer))

    # ---- what a family may do otherwise ------------------------------------------------------------------------------
    @classmethod
    def within_budget(cls, model: PreTrainedModel, processor: Any, image: ImageConfig) -> None:
        """Tell the model of an image budget that it must know too; the processor keeps to it already."""

    def projector_modules(self) -> list[nn.Module]:
        """All that maps the tower's states into the decoder's space."""
        inner = self.model.model
        return [getattr(inner, name) for name in ("multi_modal_projector", "connector") if hasattr(inner, name)]

    def tower_rows(self, pixels: Pixels) -> int:
        """Rows of the tower's `last_hidden_state` (first dimension) that are one row's: its tiles."""
        return len(pixels["pixel_values"])

    def projector_rows(self, pixels: Pixels) -> int:
        """Rows of the projector's result (first dimension) that are one row's."""
        return self.tower_rows(pixels)

    def pool(self, states: Tensor, counts: list[int]) -> Tensor:
        """[rows, d_v]: the mean of the tower's states [sum of counts, (P,) d_v] over each row's share."""
        states = states.mean(1) if states.dim() == 3 else states
        return torch.stack([part.mean(0) for part in states.split(counts)])

    def prompt_start(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B] where prompts are put in: behind BOS, or, where a row has none, before everything."""
        first, bos = mask.long().argmax(1), self.model.generation_config.bos_token_id
        return first if bos is None else first + (ids.gather(1, first[:, None])[:, 0] == bos).long()

    # ---- parts -------------------------------------------------------------------------------------------------------
    @property
    def decoder(self) -> nn.Module:
        return self.model.get_submodule(self.path)

    @property
    def projector(self) -> nn.Module:
        return self._projector

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        return self.model.get_encoder(modality="image")

    def linears(self, targets: str) -> str:
        """Raises UserError where a decoder layer has none of them."""
        if targets in self.lacks:
            raise UserError(f"{self.title}: its decoder layers have no linears of targets={targets}; use attention.")
        return rf"{re.escape(self.path)}\.layers\.\d+\.({TARGETS[targets]})"

    def reader(
        self, transform: str = "pad", masks: str = "exact", routing: str = "question",
        beside: Callable[[Image.Image], Tensor] | None = None,
    ) -> ChatReader:  # fmt: skip
        for option, value, only in (("train.label_masks", masks, "exact"), ("the routing text", routing, "question")):
            if value != only:
                raise UserError(f"{self.title}: {option} can only be '{only}'; '{value}' repeats code of LLaVA-1.5.")
        if beside not in self._readers:
            self._readers[beside] = self.reads(self.processor, self.stop_ids, beside)
        return self._readers[beside]

    # ---- a batch through tower and projector -------------------------------------------------------------------------
    def see(self, batch: dict[str, Any]) -> ChatVision | None:
        """One pass of tower and projector; gradients reach the projector only, as all else is frozen."""
        rows = [row for row in batch["pixels"] if row is not None]
        if not rows:
            return None
        if self.tower.training:
            self.tower.eval()  # some have dropout, and what a sample is routed by must not depend on it
        features = self.model.model.get_image_features
        merged = {key: joined([row[key] for row in rows]) for key in rows[0]}
        wanted = inspect.signature(features).parameters
        dtype = self.model.dtype
        given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in merged.items() if k in wanted}
        output = features(**given, return_dict=True)
        pooled = self.pool(output.last_hidden_state.detach().float(), [self.tower_rows(row) for row in rows])
        return ChatVision(pooled, output, {key: merged[key] for key in self.told if key in merged})

    @contextlib.contextmanager
    def mixing(
        self, copies: dict[str, dict[str, Tensor]], weights: dict[str, Tensor], pixels: Sequence[Pixels | None]
    ) -> Iterator[None]:
        """Inside, the projector gives Σ_k weights[k] · (its copy k), each picture by the weights [rows with one] of its row."""
        rows = [row for row in pixels if row is not None]
        counts = torch.tensor([self.projector_rows(row) for row in rows], device=self.model.device)
        inside: list[bool] = []

        def mix(part: nn.Module, args: tuple, kwargs: dict, output: Tensor, prefix: str) -> Tensor | None:
            if inside:  # a copy's own forward
                return None
            inside.append(True)
            total = torch.zeros((), device=output.device)
            for name, weight in weights.items():
                copy = {k[len(prefix) :]: v for k, v in copies[name].items() if k.startswith(prefix)}
                own = cast_all(next(iter(copy.values())).dtype, args, kwargs)  # a trained copy is fp32
                each = weight.repeat_interleave(counts).to(output.dtype)
                made = functional_call(part, copy, *own).to(output.dtype)
                total = total + each.view(-1, *[1] * (output.dim() - 1)) * made
            inside.clear()
            return total

        handles = [
            part.register_forward_hook(lambda m, a, k, o, p=f"{i}.": mix(m, a, k, o, p), with_kwargs=True)
            for i, part in enumerate(self._projector)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ---- a batch through the decoder ---------------------------------------------------------------------------------
    def ready(
        self, batch: dict[str, Any], vision: ChatVision | None, projectors: dict[str, dict[str, Tensor]],
        weights: dict[str, Tensor] | None, prompts: Tensor | None, train: bool,
    ) -> Ready:  # fmt: skip
        if weights is not None and vision is not None:  # each row has a projector of its own: a second look
            shares = {name: weight[batch["has_image"]] for name, weight in weights.items()}
            with self.mixing(projectors, shares, batch["pixels"]):
                vision = self.see(batch)
        inputs = {"input_ids": batch["input_ids"], **batch["types"]}
        mask, labels, where = batch["attention_mask"], batch.get("labels"), None
        if prompts is not None:
            inputs, mask, labels, where = self._with_places(inputs, mask, labels, prompts.shape[1])
        if vision is not None:
            inputs |= {**vision.extra, "mm_encoder_outputs": {"image": vision.output}}
        inserted = 0 if prompts is None else prompts.shape[1]
        return Ready(inputs, mask, labels, inserted, prompts, where, self._beside() if vision is None and train else None)

    def _beside(self) -> Tensor:
        """Something of the projector, for the gradient of a batch without pictures (DDP and ZeRO wait for one)."""
        if not divided(self.model):
            return sum(p.sum() for p in self.projector.parameters())
        blank = self.reader().pixels([Image.new("RGB", BLANK)])
        output = self.see({"pixels": [{name: value.to(self.model.device) for name, value in blank.items()}]}).output
        parts = [output.pooler_output, *(output.get("deepstack_features") or ())]
        return sum(p.sum() for part in parts for p in ([part] if isinstance(part, Tensor) else part))

    def _with_places(
        self, inputs: dict[str, Tensor], mask: Tensor, labels: Tensor | None, count: int
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | None, Tensor]:
        """Rows with `count` placeholder tokens put in, and where [B, N + count] these are."""
        start = self.prompt_start(inputs["input_ids"], mask)[:, None]
        position = torch.arange(mask.shape[1] + count, device=mask.device).expand(len(mask), -1)
        where = (position >= start) & (position < start + count)
        source = torch.where(position < start, position, (position - count).clamp(min=0))

        def longer(values: Tensor, fill: int) -> Tensor:
            return values.gather(1, source).masked_fill(where, fill)

        filler = {"input_ids": self.model.generation_config.pad_token_id or 0}
        inputs = {name: longer(values, filler.get(name, 0)) for name, values in inputs.items()}
        return inputs, longer(mask, 1), None if labels is None else longer(labels, IGNORE), where

    @contextlib.contextmanager
    def _prompted(self, ready: Ready) -> Iterator[None]:
        """Inside, the word embeddings at `where` are the prompts, whatever the model does to its embeddings."""
        if ready.prompts is None:
            yield
            return

        def put(_: nn.Module, __: tuple, output: Tensor) -> Tensor | None:
            if output.shape[:2] != ready.where.shape:  # a token that is being decoded
                return None
            return output.masked_scatter(ready.where.unsqueeze(-1), ready.prompts.to(output.dtype))

        handle = self.model.get_input_embeddings().register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()

    def run(self, ready: Ready, **more: Any) -> ModelOutput:
        labels = more.pop("labels", None)
        of_loss = {key: more.pop(key) for key in ("num_items_in_batch", "shift_labels") if key in more}
        with self._prompted(ready):
            output = self.model(**ready.inputs, attention_mask=ready.attention_mask, use_cache=False, **more)
        if labels is not None:  # not every forward divides by the tokens of the whole batch
            output.loss = ForCausalLMLoss(output.logits, labels, output.logits.shape[-1], **of_loss)
            if ready.beside is not None:
                output.loss = output.loss + 0.0 * ready.beside.to(output.loss)
        return output

    def answer(
        self, ready: Ready, max_new_tokens: int, leave: Callable[[Tensor], None] | None = None, static: bool = False,
        seen: Seen | None = None,
    ) -> list[list[int]]:  # fmt: skip
        ends = self.stop_ids
        with self._prompted(ready):
            made = self.model.generate(
                **ready.inputs, attention_mask=ready.attention_mask, max_new_tokens=max_new_tokens, do_sample=False,
                streamer=None if seen is None else Told(seen),
            )  # fmt: skip
        answers = []
        for row in made[:, ready.attention_mask.shape[1] :].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
            answers.append(row[: end + 1])
        return answers

    # ---- as a folder -------------------------------------------------------------------------------------------------
    def write(self, folder: Path, source: Path, weights: dict[str, Tensor], transform: str) -> None:
        self.model.save_pretrained(folder, state_dict=dict(weights))
        self.write_processor(folder, source, transform)

    def write_processor(self, folder: Path, source: Path, transform: str) -> None:
        """The source's own files; an image budget is written into the picture settings."""
        write_processor(self.processor, folder, source)



def in_own_dtype(part: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """A pre-hook: what a module reads, in the dtype of its parameters; under autocast nothing is to be done."""
    first = next(part.parameters())
    return None if torch.is_autocast_enabled(first.device.type) else cast_all(first.dtype, args, kwargs)


def cast_all(dtype: torch.dtype, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Floating point tensors of a call in `dtype`; under autocast as they are."""

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value if torch.is_autocast_enabled(value.device.type) else value.to(dtype)

    return tuple(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors one behind the other along their first dimension, the others padded with zeros to the largest."""
    shape = [max(part.shape[d] for part in parts) for d in range(1, parts[0].dim())]
    out = []
    for part in parts:
        pad = [n for d in range(part.dim() - 1, 0, -1) for n in (0, shape[d - 1] - part.shape[d])]
        out.append(nn.functional.pad(part, pad) if any(pad) else part)
    return torch.cat(out)
