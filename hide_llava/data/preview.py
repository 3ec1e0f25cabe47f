"""Show records as the trainer will see them: ids, labels, what is supervised. Needs no model weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hide_llava.data.conversation import IGNORE, IMAGE_TOKEN, encode_training, routing_text
from hide_llava.data.dataset import TrainingDataset
from hide_llava.data.records import load_records, unusable
from hide_llava.data.tokenizer import load_tokenizer
from hide_llava.errors import UserError
from hide_llava.storage import read_json


def image_tokens(model: Path, clip: Path | None) -> int:
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


def collapse(ids: list[int], labels: list[int]) -> tuple[list[int], list[int], int]:
    """Expanded ids and labels with the image span as one IMAGE_TOKEN, and the length of the span."""
    keep = [i for i, token in enumerate(ids) if token != IMAGE_TOKEN or i == 0 or ids[i - 1] != IMAGE_TOKEN]
    return [ids[i] for i in keep], [labels[i] for i in keep], ids.count(IMAGE_TOKEN)


def preview(
    data: Path, images: Path, model: Path, clip: Path | None, max_length: int, limit: int | None, as_json: bool,
    label_masks: str = "exact",
) -> Iterator[str]:  # fmt: skip
    """One JSON line a record {id, input_ids, labels, image_tokens, routing_text}, or readable text.

    A record that the trainer would refuse has `error` too, and its ids and labels before they are cut for the image.
    """
    tokenizer, count = load_tokenizer(model), image_tokens(model, clip)
    records = load_records(data, images, on_bad="keep")
    if limit is not None:
        records = records.select(range(min(limit, len(records))))
    dataset = TrainingDataset(records, images, tokenizer, lambda image: None, count, max_length, on_bad_sample="show",
                              label_masks=label_masks)  # fmt: skip
    reasons = {bad["index"]: bad["reason"] for bad in dataset.skipped}
    for index, record in enumerate(records):
        shown: dict[str, Any] = {"id": json.loads(record["id"])}
        if index in reasons:
            turns, has_image = record["conversations"], record["image"] is not None
            turns = turns if unusable(record) is None else []
            ids, labels, _ = encode_training(turns, has_image, tokenizer, max_length, label_masks)
            span, text = count if has_image and IMAGE_TOKEN in ids else 0, routing_text(turns)
            shown["error"] = reasons[index]
        else:
            *expanded, text = dataset.encode(record)
            ids, labels, span = collapse(*expanded)
        shown |= {"input_ids": ids, "labels": labels, "image_tokens": span, "routing_text": text}
        yield json.dumps(shown, ensure_ascii=False) if as_json else _readable(shown, tokenizer)


def _readable(shown: dict[str, Any], tokenizer: Any) -> str:
    text, inside = "", False
    for token, label in zip(shown["input_ids"], shown["labels"]):
        if (label != IGNORE) != inside:
            inside = not inside
            text += "⟦" if inside else "⟧"
        if token == IMAGE_TOKEN:
            text += f"[image × {shown['image_tokens']}]"
        else:
            text += tokenizer.convert_ids_to_tokens(token).replace("▁", " ").replace("<0x0A>", "\n")
    supervised = sum(label != IGNORE for label in shown["labels"])
    length = len(shown["input_ids"]) + shown["input_ids"].count(IMAGE_TOKEN) * (shown["image_tokens"] - 1)
    head = f"── {shown['id']}: {length} positions, {supervised} supervised (between ⟦ ⟧), routed by {shown['routing_text']!r}"
    head += f"\n   NOT USABLE: {shown['error']}" if "error" in shown else ""
    return f"{head}\n{text}{'⟧' if inside else ''}"
