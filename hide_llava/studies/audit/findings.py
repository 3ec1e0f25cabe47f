"""What an audit finds, and how serious it is."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 10  # examples named per finding

# kind -> level. error: a run would stop, or a score would be wrong. warning: numbers need a caveat (published
# benchmarks have some of these). note: a property to know.
LEVELS = {
    "missing file": "error",
    "broken JSON": "error",
    "bad record": "error",
    "missing image": "error",
    "unreadable image": "error",
    "no records": "error",
    "wrong count": "warning",  # a run says it, and a score has it as a label
    "duplicate id": "error",  # answers are joined by id
    "duplicate train id": "warning",  # never used as a key in training
    "empty answer": "error",
    "train/test pair": "error",  # the same question about the same image
    "train/test text": "warning",  # the same question without an image
    "train/test image": "warning",
    "train/test copy": "warning",
    "train/test near copy": "warning",
    **dict.fromkeys(
        (f"{splits} {kind}" for splits in ("train/val", "val/test") for kind in ("pair", "text", "image", "copy", "near copy")),
        "warning",  # what is chosen on validation questions is chosen on seen ones
    ),
    "cannot be scored": "error",  # the metric refuses the questions or their references
    "metric not here": "warning",  # the data are sound, but this machine cannot compute their score
    "repeated id": "note",
    "turned image": "note",
    "16-bit image": "note",
    "constant prompt": "note",
    "shared prompt": "note",
    "long prompt": "note",
}
ORDER = ("error", "warning", "note")


@dataclass
class Finding:
    """`text` is a sentence with the number; `examples` name the first SHOWN places."""

    kind: str
    task: str
    split: str
    count: int
    text: str
    examples: list[str] = field(default_factory=list)

    @property
    def level(self) -> str:
        return LEVELS[self.kind]


def plural(count: int, word: str) -> str:
    """`1 record`, `2,000 records`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"
