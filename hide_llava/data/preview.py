"""Show records as the trainer will see them: ids, labels, what is supervised. Needs no model weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hide_llava.data.dataset import TrainingDataset
from hide_llava.data.reader import Reader, collapse
from hide_llava.data.records import load_records, unusable
from hide_llava.data.turns import IGNORE, routing_text


def preview(
    data: Path, images: Path, reader: Reader, max_length: int, limit: int | None, as_json: bool
) -> Iterator[str]:
    """One JSON line a record {id, input_ids, labels, image_tokens, routing_text}, or readable text.

    A record that the trainer would refuse has `error` too, and its ids and labels before they are cut for the image.
    """
    records = load_records(data, images, on_bad="keep")
    if limit is not None:
        records = records.select(range(min(limit, len(records))))
    dataset = TrainingDataset(records, images, reader, max_length, on_bad_sample="show")
    reasons = {bad["index"]: bad["reason"] for bad in dataset.skipped}
    for index, record in enumerate(records):
        shown: dict[str, Any] = {"id": json.loads(record["id"])}
        if index in reasons:
            turns = record["conversations"] if unusable(record, reader.several) is None else []
            ids, labels, span = reader.draft(turns, dataset.sizes(record), max_length)
            shown["error"], text = reasons[index], routing_text(turns)
        else:
            read = dataset.encode(record)
            (ids, labels, span), text = collapse(read, reader.image_id), read.routed_by
        shown |= {"input_ids": ids, "labels": labels, "image_tokens": span, "routing_text": text}
        yield json.dumps(shown, ensure_ascii=False) if as_json else _readable(shown, reader)


def _readable(shown: dict[str, Any], reader: Reader) -> str:
    text, inside, pictures = "", False, max(1, shown["input_ids"].count(reader.image_id))
    each = f"{shown['image_tokens'] / pictures:g}"  # pictures of different sizes: their mean
    for token, label in zip(shown["input_ids"], shown["labels"]):
        if (label != IGNORE) != inside:
            inside = not inside
            text += "⟦" if inside else "⟧"
        text += f"[image × {each}]" if token == reader.image_id else reader.piece(token)
    supervised = sum(label != IGNORE for label in shown["labels"])
    length = len(shown["input_ids"]) - shown["input_ids"].count(reader.image_id) + shown["image_tokens"]
    head = f"── {shown['id']}: {length} positions, {supervised} supervised (between ⟦ ⟧), routed by {shown['routing_text']!r}"
    head += f"\n   NOT USABLE: {shown['error']}" if "error" in shown else ""
    return f"{head}\n{text}{'⟧' if inside else ''}"
