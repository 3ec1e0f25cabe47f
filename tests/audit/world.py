"""A clean benchmark of two tasks, to be damaged: every image is different, every prompt, id and pair too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hide_llava.config import compose
from hide_llava.studies.audit.check import CheckReport, check
from hide_llava.training.run import Run

TRAIN, TEST = 12, 6


def draw(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A picture of soft random blobs, like a photograph in its low frequencies; another one for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_world(folder: Path) -> None:
    """`folder/bench.yaml`, `folder/data/<task>/{train,test}.json` and the images beside them."""
    tasks = []
    for t, task in enumerate(("shapes", "signs")):
        home = folder / "data" / task
        home.mkdir(parents=True)
        for split, count in (("train", TRAIN), ("test", TEST)):
            rows: list[dict[str, Any]] = []
            for i in range(count):
                image = f"{task}/{split}{i}.png"
                draw(1000 * t + 100 * (split == "test") + i).save(folder / "data" / image)
                text = f"What is number {i} of {task} {split}?"
                if split == "train":
                    turns = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": "a kite"}]
                    rows.append({"id": f"{task}-{i}", "image": image, "conversations": turns})
                else:
                    rows.append({"question_id": i, "image": image, "text": text, "answer": "a kite"})
            (home / f"{split}.json").write_text(json.dumps(rows))
        tasks.append({"id": task, "title": task, "train": f"{task}/train.json", "test": f"{task}/test.json",
                      "metric": "exact_upper", "n_train": TRAIN, "n_test": TEST})  # fmt: skip
    tree = {"benchmark": {"name": "audited", "instructions": "data", "images": "data", "tasks": tasks}}
    (folder / "bench.yaml").write_text(json.dumps(tree))


def words(folder: Path) -> list[str]:
    return [f"benchmark={folder}/bench.yaml", f"data_root={folder}", "model=mini"]


def audit(folder: Path, deep: bool = False, *more: str) -> CheckReport:
    return check(Run(compose([*words(folder), "method=zero_shot", *more])), deep)


def edit(file: Path, change: Callable[[list], Any]) -> None:
    """Change the records of a file in place."""
    rows = json.loads(file.read_text())
    change(rows)
    file.write_text(json.dumps(rows))
