"""Box overlap: CoIN's Grounding task (RefCOCO)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.base import AnswerMetric, Job, per_row, register, with_parts
from hide_llava.metrics.filters import Rule
from hide_llava.metrics.rows import annotation_rows, is_number, where

Box = tuple[float, float, float, float]
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
THRESHOLD = 0.5


def box_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with "box" (x1, y1, x2, y2, normalised coordinates) and "scale" = max(size), 1 without a size."""
    records = []
    for row in annotation_rows(questions, references, options):
        raw = row.get("answer_bbox", row.get("answer"))
        numbers = raw if isinstance(raw, list) else NUMBER.findall(raw) if isinstance(raw, str) else []
        box = [float(x) for x in numbers if is_number(x) or (isinstance(x, str) and NUMBER.fullmatch(x.strip()))]
        if len(numbers) != 4 or len(box) != 4 or not all(map(math.isfinite, box)):
            raise UserError(f'{where(row)}: answer_bbox is {raw!r}, expected four numbers like "[0.1, 0.2, 0.5, 0.6]".')
        size = row.get("size") or [1]
        if not isinstance(size, list) or not all(is_number(x) and x > 0 for x in size):
            raise UserError(f"{where(row)}: size is {size!r}, expected the width and height of the picture.")
        records.append({**row, "box": tuple(box), "scale": max(size)})
    return records


def iou(a: Box, b: Box) -> float:
    """inter / union with inter = max(0, Δx)·max(0, Δy), union = sum of SIGNED areas − inter; 0 if union ≤ 0."""
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def parse_box_legacy(text: str) -> Box | None:
    """The published parser: remove every bracket, THEN drop the first and last character, split on commas.

    "[0.12,…,0.68]" becomes ".12,…,0.6"; "0.7" as last number becomes "0." = 0. None when not four floats.
    """
    parts = text.replace("[", "").replace("]", "")[1:-1].split(",")
    if len(parts) != 4:
        return None
    try:
        return tuple(float(part) for part in parts)
    except ValueError:
        return None


def parse_box(text: str) -> Box | None:
    """Four numbers: those in the first bracket that holds exactly four, else the only four in the text; else None."""
    groups = [NUMBER.findall(group) for group in re.findall(r"\[([^\[\]]*)\]", text)]
    for numbers in [*groups, NUMBER.findall(text)]:
        if len(numbers) == 4:
            return tuple(float(x) for x in numbers)
    return None


def overlap_legacy(text: str, record: dict, options: dict) -> float:
    """IoU with the legacy parser, 0 without a box. Both boxes are scaled by max(size), as published."""
    box = parse_box_legacy(text)
    if box is None:
        return 0.0
    return iou(*(tuple(x * record["scale"] for x in b) for b in (box, record["box"])))


def overlap(text: str, record: dict, options: dict) -> float:
    """IoU of a proper box (x2 > x1, y2 > y1), 0 without one."""
    box = parse_box(text)
    if box is None or box[2] <= box[0] or box[3] <= box[1]:
        return 0.0
    return iou(box, record["box"])


def above_half(rule: Rule) -> Rule:
    """1 iff the rule's IoU is above 0.5, strictly."""
    return lambda text, record, options: int(rule(text, record, options) > THRESHOLD)


def with_mean_iou(rule: Rule) -> Callable[[Job], dict]:
    """`per_row`, and the mean IoU of the result rows, which the published script does not print."""
    return lambda job: {**per_row(rule)(job), "mean_iou": per_row(overlap_legacy)(job)["score"]}


register(
    AnswerMetric(
        name="iou50",
        summary="IoU with the reference box > 0.5; legacy loses digits while parsing, clean reads four numbers",
        source="Ghy0501/HiDe-LLaVA eval_grounding.py (CoIN's Grounding)",
        legacy_rule=above_half(overlap_legacy),
        clean_rule=above_half(overlap),
        legacy_join=with_mean_iou,
        clean_join=with_parts(mean_iou=overlap),
        read=box_records,
    )
)
