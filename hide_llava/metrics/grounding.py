"""Box overlap: CoIN's Grounding task (spec hide.md §4.3, defect 51)."""

from __future__ import annotations

import math
import re
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.base import Job, Metric, per_question, per_row, with_parts
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


def overlaps_legacy(text: str, record: dict, options: dict) -> int:
    """1 iff IoU > 0.5 (strict) with the legacy parser."""
    return int(overlap_legacy(text, record, options) > THRESHOLD)


def overlaps(text: str, record: dict, options: dict) -> int:
    """1 iff IoU > 0.5 (strict) with the box that the answer holds."""
    return int(overlap(text, record, options) > THRESHOLD)


def boxes_legacy(job: Job) -> dict:
    """Share of result rows above the threshold, and their mean IoU (not in the published script)."""
    return {**per_row(overlaps_legacy)(job), "mean_iou": per_row(overlap_legacy)(job)["score"]}


IOU50 = Metric(
    name="iou50",
    summary="IoU with the reference box > 0.5; legacy loses digits while parsing, clean reads four numbers",
    source="spec hide.md §4.3: CoIN Grounding",
    records=box_records,
    legacy=boxes_legacy,
    clean=with_parts(per_question(overlaps), mean_iou=overlap),
)
