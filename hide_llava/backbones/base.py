"""The contract of a backbone: what the adapters, the methods, training and evaluation ask of a vision-language model.

Nothing outside this folder knows a model family. A family is one file here: how it is loaded, how it reads (`Reader`), where
its decoder, its projector and its linears are, and how a batch becomes the decoder's input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from hide_llava.backbones.decode import Seen, end_tokens
from hide_llava.data.reader import ROUTING_PIXELS, Reader
from hide_llava.errors import UserError
from hide_llava.schema import ModelConfig

if TYPE_CHECKING:
    from PIL import Image

# Which linears of a decoder layer are adapted, by the names that LLaMA and most decoders after it give them.
TARGETS = {
    "all": r"self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj)",
    "attention": r"self_attn\.(q_proj|k_proj|v_proj|o_proj)",
    "ffn": r"mlp\.(gate_proj|up_proj|down_proj)",
    "gate_up": r"mlp\.(gate_proj|up_proj)",
}


@dataclass
class Vision:
    """One pass of the vision tower over the pictures of a batch; what else it holds, its backbone knows.

    pooled: [rows with a picture, d_v] fp32, the mean of the frozen tower's states over a row's pictures.
    """

    pooled: Tensor


@dataclass
class Ready:
    """A batch as the decoder takes it.

    inputs: arguments of the model's forward that stand for the tokens. attention_mask [B, N]. labels [B, N], None without.
    inserted: prompt positions that were put in before every label. prompts [B, P, d] and where [B, N] bool: vectors whose
    places in `inputs` hold placeholder tokens. beside: a scalar of the projector by which a batch without a picture still takes
    part in its gradient.
    """

    inputs: dict[str, Any]
    attention_mask: Tensor
    labels: Tensor | None
    inserted: int = 0
    prompts: Tensor | None = None
    where: Tensor | None = None
    beside: Tensor | None = None


class Backbone(ABC):
    """One vision-language model of transformers.

    model: upstream's class. tokenizer: None where only shapes matter. clip: folder of the CLIP that samples are routed by, if
    there is one.

    What a class says of its family, for those who have no model in memory: title, for people. several: a record may have
    several pictures. own_clip: the vision tower is that of `model.clip`. recorded: its published code was recorded, so that
    options which repeat that code's faults mean something (`train.label_masks=reference`, `text_only: reference`, …).
    transforms: pictures are padded or cropped as a benchmark says; else as the model's own processor does. shrinks: rows that
    have ended can leave their batch, and keys and values can lie in a static buffer. lacks: what its decoder layers do not
    have among TARGETS.
    """

    title = ""
    several = False
    own_clip = False
    recorded = False
    transforms = False
    shrinks = False
    lacks: frozenset[str] = frozenset()

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, clip: Path | None = None
    ):
        self.model, self.tokenizer, self.clip = model, tokenizer, clip

    @classmethod
    @abstractmethod
    def load(cls, config: ModelConfig, folder: Path, clip: Path | None) -> Backbone:
        """Model, tokenizer and picture settings from a folder; the model is frozen, on its device, in eval mode.

        Raises:
            UserError: not a model of this family, or files of it are missing.
        """

    @classmethod
    @abstractmethod
    def reader_of(cls, folder: Path, config: ModelConfig | None = None, clip: Path | None = None, masks: str = "exact") -> Reader:
        """How the model in a folder reads, without its weights. config: its image budget; None: the model's own.

        Raises:
            UserError: no tokenizer there, or nothing says how a picture is read.
        """

    # ---- its parts ---------------------------------------------------------------------------------------------------
    @property
    @abstractmethod
    def decoder(self) -> nn.Module:
        """The text model behind the word embeddings, which takes ids or embeddings and gives hidden states."""

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, from the first to the last."""
        return self.decoder.layers

    @property
    @abstractmethod
    def projector(self) -> nn.Module:
        """All that maps the tower's states into the decoder's space: what `projector: shared` trains."""

    @abstractmethod
    def linears(self, targets: str) -> str:
        """A regular expression of the module names of the decoder's linears, as peft's `target_modules`; never the tower's."""

    @property
    def width(self) -> int:
        """Of a word embedding."""
        return self.model.config.get_text_config().hidden_size

    @abstractmethod
    def reader(
        self, transform: str = "pad", masks: str = "exact", routing: str = "question",
        beside: Callable[[Image.Image], Tensor] | None = None,
    ) -> Reader:  # fmt: skip
        """How it reads records and questions.

        transform: of pictures, `pad` or `crop`, where the family pads or crops as a benchmark says. masks: `exact`, or
        `reference` for the labels of the published code. routing: `question`, or `reference` for the text that the published
        code routes by. beside: an RGB picture → what a routing encoder that stands beside the model takes of it [3, H, W];
        it comes with the pixels, as `routing` [k, 3, H, W].
        """

    # ---- a batch -----------------------------------------------------------------------------------------------------
    @abstractmethod
    def see(self, batch: dict[str, Any]) -> Vision | None:
        """The batch's pictures through the frozen vision tower, once; None without a picture.

        batch: of the collator, on the model's device; read are `pixels`, one entry a row.
        """

    @abstractmethod
    def ready(
        self, batch: dict[str, Any], vision: Vision | None, projectors: dict[str, dict[str, Tensor]],
        weights: dict[str, Tensor] | None, prompts: Tensor | None, train: bool,
    ) -> Ready:  # fmt: skip
        """The decoder's input.

        projectors, weights: named copies of the projector's weights, and how much of each a row [B] takes; weights None: the
        projector itself. prompts: [B, P, d] vectors that are put in behind the first token. train: a batch without images
        still takes part in the projector's gradient, as several processes need.
        """

    def run(self, ready: Ready, **more: Any) -> ModelOutput:
        """The forward of the whole decoder. more: arguments of upstream's forward, as labels."""
        return self.model(**ready.inputs, attention_mask=ready.attention_mask, use_cache=False, **more)

    @abstractmethod
    def answer(
        self, ready: Ready, max_new_tokens: int, leave: Callable[[Tensor], None] | None = None, static: bool = False,
        seen: Seen | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Greedy answers, each up to and with its end token; leave, static: of `decode.greedy`, where the family `shrinks`.

        seen: called with each token as soon as it is known, and perhaps with padding behind the end of a row.
        """

    @classmethod
    def plain(cls, sample: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
        """A question's sample as arguments of the forward of `model`, upstream's own class of this family; a batch of one."""
        inputs = {"input_ids": sample["input_ids"], "attention_mask": torch.ones_like(sample["input_ids"]), **sample["types"]}
        inputs = {name: value[None] for name, value in inputs.items()}
        pixels = {name: value for name, value in (sample["pixels"] or {}).items() if name != ROUTING_PIXELS}
        return {**inputs, **{k: v.to(model.dtype) if v.is_floating_point() else v for k, v in pixels.items()}}

    def complete(self, source: Path) -> bool:
        """Whether transformers alone loads the folder that this model is from, with the token ids of `write_processor`."""
        return True

    def write(self, folder: Path, source: Path, weights: dict[str, Tensor], transform: str) -> None:
        """Write a folder that transformers alone loads: this model with other weights, and all that reads a prompt.

        folder: new or empty. source: the folder that this model was loaded from. weights: of `Core.weights`, in the dtype in
        which they are written. transform: of pictures, as in `reader`.

        Raises:
            UserError: the family does not say how it is written.
        """
        raise UserError(f"a model of the family {self.title} cannot be exported: its backbone has no write().")

    def write_processor(self, folder: Path, source: Path, transform: str) -> None:
        """Of `write`, what reads a prompt: tokenizer, picture settings, chat template."""
        raise UserError(f"a model of the family {self.title} cannot be exported: its backbone has no write_processor().")

    def logits(self, states: Tensor) -> Tensor:
        """Hidden states of the decoder's last layer [..., d] → logits [..., V]."""
        return self.model.get_output_embeddings()(states)

    @property
    def vocabulary(self) -> int:
        """Tokens that a text can have; a table of embeddings may have more rows."""
        rows = self.model.get_input_embeddings().num_embeddings
        return rows if self.tokenizer is None else min(rows, len(self.tokenizer))

    @property
    def stop_ids(self) -> set[int]:
        """Tokens that end an answer."""
        return end_tokens(self.model)


def divided(model: nn.Module) -> bool:
    """Whether ZeRO-3 has its weights divided among processes: then all of them must run the same modules, or they wait for each
    other for ever, so that a batch without pictures needs a look at nothing."""
    return hasattr(next(model.parameters()), "ds_id")
