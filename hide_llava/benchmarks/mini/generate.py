"""Write `mini-ucit` and `mini-dcl` to disk, in the folder and JSON layouts of UCIT and of MLLM-DCL."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hide_llava.benchmarks.mini.domains import DOMAINS
from hide_llava.benchmarks.mini.drawing import render
from hide_llava.benchmarks.mini.tasks import TASKS, MiniTask
from hide_llava.errors import UserError

VERSION = 5
SIZES = {"train": 960, "val": 100, "test": 100}
ALIKE = 10  # of 255: pictures of which no 8 × 8 block differs by more look the same, `hide-llava check --deep` says
CAPTIONS_PER_IMAGE = 2  # training records per picture of a caption task, as UCIT repeats its pictures


class Suite(NamedTuple):
    """A benchmark: its tasks and where their files lie below its folder. stream: which random numbers it draws."""

    tasks: dict[str, MiniTask]
    records: str  # file of a task's split
    pictures: str  # folder that a record's path starts from
    picture: str  # that path
    stream: tuple[int, ...] = ()


SUITES = {
    "mini-ucit": Suite(TASKS, "instructions/{folder}/{split}.json", "datasets", "{folder}/{split}/{number:05d}.png"),
    "mini-dcl": Suite(
        DOMAINS, "domain/{folder}/{split}.json", "domain/{folder}", "images/{source}_{split}_{number:05d}.png", (1,)
    ),
}


def _write_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _look(picture: Image.Image) -> np.ndarray:
    """The picture at 8 × 8, flat: [192] int16."""
    return np.asarray(picture.resize((8, 8), Image.Resampling.BOX), dtype=np.int16).ravel()


def _split(
    suite: Suite, task: MiniTask, split: str, count: int, root: Path, rng: np.random.Generator, seen: set[str], looks: np.ndarray
) -> np.ndarray:
    """Make one split: its pictures, its records and, for captions, its COCO-style references.

    seen: hashes of all pictures so far. looks: `_look` of the task's earlier splits [n, 192], which no picture resembles;
    returned with this split's.
    """
    own: list[np.ndarray] = []
    repeat = CAPTIONS_PER_IMAGE if task.caption and split == "train" else 1
    records: list[dict] = []
    annotations: list[dict] = []
    images: list[dict] = []
    pictures = root / suite.pictures.format(folder=task.folder)
    while len(records) < count:
        example = task.make(rng)
        picture = render(example.scene, rng)
        digest, look = hashlib.sha256(picture.tobytes()).hexdigest(), _look(picture)
        if digest in seen or (np.abs(looks - look).max(1, initial=0) <= ALIKE).any():
            continue
        seen.add(digest)
        own.append(look)
        number = len(images) + 1
        name = suite.picture.format(folder=task.folder, split=split, number=number, source=task.source)
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(pictures / name, optimize=False)
        images.append({"id": number, "file_name": name})
        for text in example.answers:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "caption": text})
        chosen = rng.permutation(len(example.answers))[:repeat] if split == "train" else [0]
        for index in chosen[: count - len(records)]:
            key = f"{split}_{len(records):05d}"
            answer = example.answers[int(index)]
            if split != "train":
                records.append({"question_id": key, "image": name, "text": example.question, "answer": answer})
                continue
            turns = [
                {"from": "human", "value": "<image>\n" + example.question},
                {"from": "gpt", "value": answer},
            ]
            records.append({"id": key, "image": name, "conversations": turns})
    file = root / suite.records.format(folder=task.folder, split=split)
    _write_json(file, records)
    if task.caption and split != "train":
        coco = {"info": {}, "licenses": [], "type": "captions", "images": images, "annotations": annotations}
        _write_json(file.with_name(f"{split}_coco_type.json"), coco)
    return np.stack([*looks, *own])


def _checked_sizes(name: str, sizes: dict | None) -> dict[str, int]:
    merged = {**SIZES, **(sizes or {})}
    for split, count in merged.items():
        if split not in SIZES or not isinstance(count, int) or count < 1:
            raise UserError(
                f"{name}: size {split}={count!r} is not understood; give a positive number of records for {', '.join(SIZES)}."
            )
    return merged


def _is_there(target: Path, manifest: dict) -> bool:
    try:
        return json.loads((target / "manifest.json").read_text(encoding="utf-8")) == manifest
    except (OSError, ValueError):
        return False


def generate(root: Path, seed: int = 0, sizes: dict | None = None, name: str = "mini-ucit") -> None:
    """Write the benchmark `name`, one of SUITES, to `root`/name, unless the same one is there already.

    `root` is the data root; `sizes` may change the number of records of "train", "val" and "test" per task.
    The work is done in a temporary sibling folder and renamed at the end, so a folder that exists is complete.
    """
    suite, sizes, target = SUITES[name], _checked_sizes(name, sizes), Path(root) / name
    manifest = {"name": name, "version": VERSION, "seed": seed, "sizes": sizes}
    if _is_there(target, manifest):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    former = scratch.with_name(f"{scratch.name}-former")
    try:
        seen: set[str] = set()
        for number, task in enumerate(suite.tasks.values()):
            looks = np.empty((0, 192), dtype=np.int16)
            for part, split in enumerate(SIZES):
                rng = np.random.default_rng([seed, number, part, *suite.stream])
                looks = _split(suite, task, split, sizes[split], scratch, rng, seen, looks)
        _write_json(scratch / "manifest.json", manifest)
        scratch.chmod(0o755)  # mkdtemp makes it private
        # Other processes may do the same at this moment: what they read is never deleted in place.
        if target.exists() and not _is_there(target, manifest):
            with contextlib.suppress(FileNotFoundError):
                os.replace(target, former)
        try:
            os.replace(scratch, target)
        except OSError:
            if not _is_there(target, manifest):  # else another process was quicker
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)
