"""LLaVA-1.5 (Liu et al., arXiv 2310.03744): a CLIP tower, a projector of two layers and a LLaMA, spoken to as vicuna_v1.

It reads and computes as the authors' code does, which recordings hold it to: their tokenizer, prompt, label masks, picture
transform and splice. transformers' LLaVA does the splice inside its forward, but routing and prompts need the image *before*
the decoder, and the tower must not run twice, so the three upstream pieces (embedding, tower, projector) are called here.
Image positions hold IMAGE_TOKEN (−200), which is outside every vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from transformers import GenerationConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from hide_llava.backbones.base import TARGETS, Backbone, Ready, Vision
from hide_llava.backbones.clip_pixels import ImageTransform
from hide_llava.backbones.decode import greedy
from hide_llava.backbones.llama_tokenizer import encode, load_tokenizer
from hide_llava.backbones.loading import attention_of, device_of, dtype_of, resolve, resolve_file
from hide_llava.backbones.original import is_original, load_original
from hide_llava.backbones.quantized import quantize
from hide_llava.backbones.vicuna import (
    IMAGE_TOKEN,
    MASKS,
    ROLES,
    Encoded,
    encode_question,
    encode_training,
    reference_routing_text,
)
from hide_llava.data.measured import file_of
from hide_llava.data.reader import Read, Reader
from hide_llava.data.turns import IGNORE, Turn, routing_text
from hide_llava.errors import BadRecord, UserError
from hide_llava.precision import allow_tf32
from hide_llava.schema import ModelConfig
from hide_llava.storage import read_json

ROUTING = ("question", "reference")


@dataclass
class Llava15Reader(Reader):
    """How LLaVA-1.5 reads. image_positions: decoder positions of an image, the same for every image. transform: RGB image →
    pixels, None where nobody asks for pixels. masks, routing: of `Backbone.reader`."""

    tokenizer: PreTrainedTokenizerFast
    image_positions: int
    transform: Callable[[Image.Image], Tensor] | None = None
    masks: str = "exact"
    routing: str = "question"
    image_id: int = IMAGE_TOKEN

    def __post_init__(self) -> None:
        for name, allowed in (("masks", MASKS), ("routing", ROUTING)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}.")

    @property
    def special(self) -> Sequence[str] | None:
        return self.tokenizer.all_special_tokens if self.masks == "exact" else None  # else the label walk judges answers

    def training(self, turns: Sequence[Turn], has_image: bool, max_length: int) -> Read:
        encoded, ids, labels = supervised(turns, has_image, self.tokenizer, self.image_positions, max_length, self.masks)
        if self.routing == "reference":
            return Read(ids, labels, reference_routing_text(encoded.input_ids[:max_length], self.tokenizer))
        return Read(ids, labels, routing_text(turns))

    def draft(self, turns: Sequence[Turn], has_image: bool, max_length: int) -> tuple[list[int], list[int], int]:
        ids, labels, _ = encode_training(turns, has_image, self.tokenizer, max_length, self.masks)
        return ids, labels, self.image_positions if has_image and IMAGE_TOKEN in ids else 0

    def question(self, text: str, has_image: bool) -> Read:
        ids = encode_question(text, has_image, self.tokenizer)
        routed_by = reference_routing_text(ids, self.tokenizer) if self.routing == "reference" else routing_text(text)
        return Read(expand_image(ids, None, self.image_positions, None)[0], None, routed_by)

    def answer_start(self, text: str) -> list[int]:
        start = f"{ROLES['gpt']}:"
        return encode(f"{start} {text}", self.tokenizer)[len(encode(start, self.tokenizer)) :]

    def pixels(self, image: Image.Image) -> Tensor:
        """float32 [3, H, W]."""
        return self.transform(image)

    def settings(self) -> list[Any]:
        return [file_of(self.tokenizer), self.image_positions, self.masks]

    def piece(self, token: int) -> str:
        return self.tokenizer.convert_ids_to_tokens(token).replace("▁", " ").replace("<0x0A>", "\n")


class Llava15(Backbone):
    """LLaVA-1.5. preprocessor: folder of the picture settings. clip: folder of the CLIP that the tower is from, for routing."""

    def __init__(
        self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast | None = None,
        preprocessor: Path | None = None, clip: Path | None = None,
    ):  # fmt: skip
        super().__init__(model, tokenizer)
        self.preprocessor, self.clip = preprocessor, clip

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.language_model

    @property
    def projector(self) -> nn.Module:
        return self.model.model.multi_modal_projector

    @property
    def width(self) -> int:
        return self.model.config.text_config.hidden_size

    def linears(self, targets: str) -> str:
        return rf".*language_model\.layers\.\d+\.({TARGETS[targets]})"

    @cached_property
    def image_positions(self) -> int:
        """Decoder positions of one image."""
        return image_tokens(self.model)

    def reader(self, transform: str = "pad", masks: str = "exact", routing: str = "question") -> Llava15Reader:
        pixels = None if self.preprocessor is None else ImageTransform(self.preprocessor, mode=transform)
        return Llava15Reader(self.tokenizer, self.image_positions, pixels, masks, routing)

    def see(self, batch: dict[str, Any]) -> Vision | None:
        pixels = batch.get("pixel_values")
        return None if pixels is None or not len(pixels) else see(self.model, pixels)

    def blank(self) -> Tensor:
        size = self.model.config.vision_config.image_size
        return torch.zeros(1, 3, size, size, device=self.model.device)

    def ready(
        self, batch: dict[str, Any], vision: Vision | None, projectors: dict[str, dict[str, Tensor]],
        weights: dict[str, Tensor] | None, prompts: Tensor | None, train: bool,
    ) -> Ready:  # fmt: skip
        def project(patches: Tensor) -> Tensor:
            if weights is None:
                return self.projector(patches.to(self.projector.linear_1.weight.dtype))
            return mixed(self.projector, patches, projectors, {n: w[batch["has_image"]] for n, w in weights.items()})

        embeds = splice(self.model, batch["input_ids"], vision, project)
        if vision is None and train:  # a batch without images still takes part in the projector's gradient (DDP)
            linear = self.projector.linear_1
            nothing = embeds.new_zeros(1, 1, linear.in_features, dtype=linear.weight.dtype)
            embeds = embeds + 0.0 * self.projector(nothing).sum().to(embeds.dtype)
        mask, labels, inserted = batch["attention_mask"], batch.get("labels"), 0
        if prompts is not None:
            embeds, mask, labels = insert_prompts(prompts, embeds, mask, labels)
            inserted = prompts.shape[1]
        return Ready({"inputs_embeds": embeds}, mask, labels, inserted)

    def answer(
        self, ready: Ready, max_new_tokens: int, leave: Callable[[Tensor], None] | None = None, static: bool = False
    ) -> list[list[int]]:
        return greedy(self.model, ready.inputs["inputs_embeds"], ready.attention_mask, max_new_tokens, leave, static)


def mixed(
    projector: nn.Module, patches: Tensor, copies: dict[str, dict[str, Tensor]], weights: dict[str, Tensor]
) -> Tensor:
    """Patches [n, P, d_v] → [n, P, d] by named copies of a projector's weights, each image by its weights [n] of them."""
    total = torch.zeros((), device=patches.device)
    for name, weight in weights.items():
        own = copies[name]
        dtype = own["linear_1.weight"].dtype  # a trained copy is fp32, whatever the model's own projector is
        projected = functional_call(projector, own, (patches.to(dtype),))
        total = total + weight.to(dtype)[:, None, None] * projected
    return total


def see(llava: LlavaForConditionalGeneration, pixel_values: Tensor) -> Vision:
    """Run the frozen vision tower once on [n, 3, H, W]."""
    tower, config = llava.model.vision_tower, llava.config
    with torch.no_grad():
        out = tower(pixel_values.to(tower.dtype), output_hidden_states=True)
    chosen = out.hidden_states[config.vision_feature_layer]
    return Vision(chosen[:, 1:] if config.vision_feature_select_strategy == "default" else chosen,
                  out.last_hidden_state[:, 0])  # fmt: skip


def splice(
    llava: LlavaForConditionalGeneration, input_ids: Tensor, vision: Vision | None, project: Callable[[Tensor], Tensor]
) -> Tensor:
    """Token embeddings [B, N, d] with the projected patches at the image positions, in row order."""
    places = input_ids == IMAGE_TOKEN
    embeds = llava.get_input_embeddings()(input_ids.masked_fill(places, 0))
    if vision is None:
        return embeds
    patches = project(vision.patches).to(embeds.dtype)
    if int(places.sum()) != patches.shape[0] * patches.shape[1]:
        raise ValueError(f"{int(places.sum())} image positions for {patches.shape[0]}×{patches.shape[1]} patches")
    return embeds.masked_scatter(places.unsqueeze(-1), patches)


def insert_prompts(
    prompts: Tensor, embeds: Tensor, attention_mask: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Insert [B, P, d] vectors after each row's BOS, wherever left padding has put it; labels there are −100."""
    batch, count = prompts.shape[:2]
    length = embeds.shape[1]
    start = attention_mask.long().argmax(1, keepdim=True) + 1  # position after BOS
    position = torch.arange(length + count, device=embeds.device).expand(batch, -1)
    source = torch.where(position < start, position, position - count)
    inserted = (position >= start) & (position < start + count)
    source = torch.where(inserted, length + position - start, source)
    take = source.unsqueeze(-1)
    both = torch.cat([embeds, prompts.to(embeds.dtype)], 1)
    mask = torch.cat([attention_mask, attention_mask.new_ones(batch, count)], 1).gather(1, source)
    if labels is not None:
        labels = torch.cat([labels, labels.new_full((batch, count), -100)], 1).gather(1, source)
    return both.gather(1, take.expand(-1, -1, both.shape[-1])), mask, labels


def expand_image(
    input_ids: Sequence[int], labels: Sequence[int] | None, image_tokens: int, max_length: int | None
) -> tuple[list[int], list[int] | None]:
    """Repeat IMAGE_TOKEN `image_tokens` times, with labels IGNORE, and cut to `max_length` (None: no limit).

    In the reference's order: the un-expanded text is cut first, then the expanded sequence. UserError if the cut would
    fall before or inside the image: half an image is never trained on.
    """
    ids, labels = list(input_ids[:max_length]), None if labels is None else list(labels[:max_length])
    if IMAGE_TOKEN in input_ids:
        at = ids.index(IMAGE_TOKEN) if IMAGE_TOKEN in ids else len(ids)
        if max_length is not None and at + image_tokens > max_length:
            raise BadRecord(
                f"the image ends at token {list(input_ids).index(IMAGE_TOKEN) + image_tokens}, beyond the limit of "
                f"{max_length}; shorten the text before it or raise max_length",
                "too long",
            )
        ids[at : at + 1] = [IMAGE_TOKEN] * image_tokens
        if labels is not None:
            labels[at : at + 1] = [IGNORE] * image_tokens
    return ids[:max_length], None if labels is None else labels[:max_length]


def supervised(
    turns: Sequence[Turn],
    has_image: bool,
    tokenizer: PreTrainedTokenizerFast,
    image_tokens: int,
    max_length: int,
    label_masks: str = "exact",
) -> tuple[Encoded, list[int], list[int]]:
    """One conversation as encoded, and its ids and labels with the image expanded; at least one label is to be learned.

    Raises:
        BadRecord: no token of an answer is left within `max_length`, or the reference's label walk gives the record up.
    """
    encoded = encode_training(turns, has_image, tokenizer, max_length, label_masks)
    if encoded.mismatch:
        raise BadRecord(
            "its tokens do not line up with its turns (an empty or missing answer, or a literal '</s>', '<unk>' or "
            "' ASSISTANT: ' in the text), so it has no supervised token; train.label_masks=exact finds its answers",
            "no supervised token",
        )
    ids, labels = expand_image(encoded.input_ids, encoded.labels, image_tokens, max_length)
    if all(label == IGNORE for label in labels):
        raise BadRecord(
            f"no token of an answer is left within train.max_length={max_length}; shorten its text or raise the limit",
            "too long",
        )
    return encoded, ids, labels


def load_llava15(config: ModelConfig, root: Path) -> Llava15:
    """A LLaVA-1.5 from a Hugging Face folder or hub id, or from an original-format folder, with all that goes with it.

    root: the folder that models lie under.

    Raises:
        UserError: folder missing, not a LLaVA-1.5, weights missing, tokenizer not exact.
    """
    allow_tf32(config.tf32)
    folder, clip = resolve(config.path, root), resolve(config.clip, root)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json, so it is not a model folder; set model.path to a LLaVA-1.5 folder.")
    dtype = dtype_of(config)
    if not is_original(folder):
        _check_architecture(folder)
    tokenizer = load_tokenizer(folder)
    if is_original(folder):
        if clip is None:
            raise UserError(f"{folder}: an original-format LLaVA needs model.clip (its CLIP folder).")
        projector = resolve_file(config.projector, folder)
        llava = load_original(folder, clip, dtype, projector)
        preprocessor = clip
    else:
        llava, preprocessor = _load_hf(folder, dtype), folder
    vocabulary = len(tokenizer)
    if llava.get_input_embeddings().num_embeddings > vocabulary:
        llava.resize_token_embeddings(vocabulary)  # drop <image>/<pad> rows: no answer or loss can contain them
    try:
        llava.set_attn_implementation(attention_of(config))
    except (ValueError, ImportError) as error:
        raise UserError(f"model.attention={config.attention}: {' '.join(str(error).split())[:200]}") from None
    if config.quantization != "none":
        quantize(llava, config.quantization, dtype)
    llava.to(device_of(config)).eval().requires_grad_(False)
    # Greedy means greedy: upstream fills in whatever the folder's generation_config.json says (repetition penalties,
    # suppressed words, a time limit), so that file is not used.
    llava.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
    )
    return Llava15(llava, tokenizer, preprocessor, clip)


def _check_architecture(folder: Path) -> None:
    kind = json.loads((folder / "config.json").read_text()).get("architectures") or ["a model of unknown kind"]
    if "LlavaForConditionalGeneration" not in kind:
        raise UserError(
            f"{folder}: holds {kind[0]}, expected LlavaForConditionalGeneration; set model.path to a LLaVA-1.5 folder."
        )


def _load_hf(folder: Path, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    try:
        llava, info = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: cannot be loaded as LLaVA-1.5 ({reason}); are its files complete?") from None
    if info["missing_keys"]:
        raise UserError(f"{folder}: weights are missing, first: {sorted(info['missing_keys'])[0]}.")
    return llava


def image_tokens(llava: nn.Module) -> int:
    vision = llava.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return patches if llava.config.vision_feature_select_strategy == "default" else patches + 1


def stated_image_tokens(model: Path, clip: Path | None) -> int:
    """Decoder positions of one image, from the configuration files.

    Raises:
        UserError: neither folder says how large the image and its patches are.
    """
    for folder in (model, clip):
        if folder is None:
            continue
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no config.json, so this is not a model folder.")
        vision = read_json(folder / "config.json").get("vision_config")
        if vision:
            return (vision.get("image_size", 224) // vision.get("patch_size", 32)) ** 2
    raise UserError(f"{model}: an original-format LLaVA does not describe its vision tower; give --clip DIR.")
