"""The proof of an export: two prompts' logits as the run gives them, and as transformers and peft alone do with what was written.

Several programs load an adapter of a vision-language model whose names they do not know without a word, and then answer as the
base model. So an export is finished only if it gives the run's logits, and if these are not the base's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from hide_llava.adapters.route import Route
from hide_llava.backbones.base import Backbone
from hide_llava.data.collator import Collator, moved
from hide_llava.data.dataset import item
from hide_llava.errors import UserError
from hide_llava.training.session import Session

QUESTIONS = ("What is shown in the picture?", "Describe the colours of the picture in one sentence.")
SIZE = (64, 48)
# How far logits may be apart, as a share of the largest: folded weights and low-rank sums round differently.
NEAR = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass
class Prompt:
    """One prompt's comparison. difference, effect: the largest distance of the export's logits from the run's and of the run's
    from the base model's, as shares of the run's largest logit. next: whether the most likely next token is the same."""

    question: str
    difference: float
    effect: float
    next: bool


def picture() -> Image.Image:
    """A gradient with a disc, the same on every machine."""
    across = torch.linspace(0, 255, SIZE[0]).expand(SIZE[1], -1)
    down = torch.linspace(0, 255, SIZE[1])[:, None].expand(-1, SIZE[0])
    x, y = torch.meshgrid(torch.arange(SIZE[1]), torch.arange(SIZE[0]), indexing="ij")
    disc = ((x - 24) ** 2 + (y - 32) ** 2 < 200) * 255.0
    return Image.fromarray(torch.stack([across, down, disc], -1).to(torch.uint8).numpy())


def samples(session: Session, transform: str) -> list[dict[str, Any]]:
    """The two prompts as the run reads them."""
    reader, image = session.reader(transform), picture()
    return [
        {**item(reader.question(text, [image.size]), reader.pixels([image]), [image.size]), "question_id": text}
        for text in QUESTIONS
    ]


def batch_of(session: Session, sample: dict[str, Any], task: int | None = None) -> dict[str, Any]:
    """A batch of one sample, on the model's device; task: what an oracle is told."""
    batch = moved(Collator(side="left")([sample]), session.core.llava.device)
    return batch if task is None else {**batch, "task": task}


@torch.no_grad()
def of_base(session: Session, asked: list[dict[str, Any]]) -> list[Tensor]:
    """Logits [N, V] of each sample by the untouched base: of a session that nothing was restored into."""
    session.core.follow(Route())
    backbone, found = session.backbone, []
    for sample in asked:
        batch = batch_of(session, sample)
        ready = backbone.ready(batch, backbone.see(batch), {}, None, None, False)
        found.append(backbone.run(ready).logits[0].float().cpu())
    return found


@torch.no_grad()
def of_run(session: Session, asked: list[dict[str, Any]], task: int | None = None) -> tuple[list[Tensor], list[Route]]:
    """Logits of each sample as the run answers, inside `with session:`, and the routes they took."""
    outputs = [session.routed(**batch_of(session, sample, task)) for sample in asked]
    return [output.logits[0].float().cpu() for output in outputs], [output.route for output in outputs]


@torch.no_grad()
def of_plain(model: PreTrainedModel, family: type[Backbone], asked: list[dict[str, Any]], own: Any = None) -> list[Tensor]:
    """Logits of each sample by upstream's class. own: what is called in place of `model` itself, a PeftModel around it."""
    found = []
    for sample in asked:
        inputs = {name: value.to(model.device) for name, value in family.plain(sample, model).items()}
        found.append((own or model)(**inputs, use_cache=False).logits[0].float().cpu())
    return found


def compared(ours: list[Tensor], theirs: list[Tensor], base: list[Tensor], dtype: torch.dtype, what: str) -> list[Prompt]:
    """Raises UserError where an export's logits are not the run's, or the run's are the base's."""
    found = []
    for question, own, other, bare in zip(QUESTIONS, ours, theirs, base):
        other, bare = other[:, : own.shape[1]], bare[:, : own.shape[1]]  # a written LLaVA-1.5 has rows for <image> and <pad>
        size = own.abs().max()
        difference, effect = ((own - other).abs().max() / size).item(), ((own - bare).abs().max() / size).item()
        found.append(Prompt(question, difference, effect, bool(own[-1].argmax() == other[-1].argmax())))
    worst, least = max(prompt.difference for prompt in found), min(prompt.effect for prompt in found)
    if not worst <= NEAR[dtype]:  # also where it is not a number
        raise UserError(
            f"{what} was not finished: loaded again, its logits are {worst:.2g} of the largest away from the run's (at most "
            f"{NEAR[dtype]:.0e} is allowed in {str(dtype).removeprefix('torch.')}); nothing was kept."
        )
    if least <= 2 * worst or not least:
        raise UserError(
            f"{what} was not finished: its logits cannot be told from the base model's ({least:.2g} of the largest away), so "
            "there is nothing in it; was the stage trained? Nothing was kept."
        )
    return found


def as_rows(found: list[Prompt]) -> list[dict[str, Any]]:
    return [asdict(prompt) for prompt in found]


def loaded(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model folder by transformers alone.

    Raises:
        UserError: weights are missing, or some belong to nothing.
    """
    model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise UserError(f"{folder}: {len(info[kind])} {kind.replace('_', ' ')}, first: {sorted(map(str, info[kind]))[0]}.")
    return model.to(device).eval()


def put_projector(model: PreTrainedModel, file: Path) -> None:
    """Raises UserError for a weight that the model does not have."""
    wrong = model.load_state_dict(load_file(file), strict=False).unexpected_keys
    if wrong:
        raise UserError(f"{file}: {wrong[0]} is no weight of the model.")

