"""A small data set in the exact layout of any benchmark, from its YAML alone: what the files hold follows the metric.

For example `write_benchmark(compose(["benchmark=coin", …]), tmp_path)`.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hide_llava.config import RunConfig, TaskConfig

WORDS = ("red", "blue", "kite", "river", "two", "no", "yes", "circle")
CAPTIONS = ("A kite flies over the river .", "Two red kites .", "A blue circle on the sand .", "One kite .", "A boat .")
OCR_TYPES = ("Regular Text Recognition", "Handwritten Mathematical Expression Recognition", "Scene Text-centric VQA",
             "Key Information Extraction")  # fmt: skip
SCI_SOURCES = ("AI2D", "TQA", "VQA", "SciVerse", "MapQA")


def word(i: int) -> dict[str, Any]:
    return {"answer": WORDS[i % len(WORDS)]}


def letter(i: int) -> dict[str, Any]:
    return {"answer": "ABCD"[i % 4]}


def box(i: int) -> dict[str, Any]:
    return {"answer": "[0.1, 0.2, 0.5, 0.6]", "answer_bbox": "[0.1, 0.2, 0.5, 0.6]", "size": [40, 30]}


def five_captions(i: int) -> dict[str, Any]:
    return {"answer": [CAPTIONS[(i + k) % 5] for k in range(5)]}


def several(i: int) -> dict[str, Any]:
    return {"answer": [WORDS[i % len(WORDS)], WORDS[i % len(WORDS)].upper()]}


def yes_no(i: int) -> dict[str, Any]:
    return {"answer": ("yes", "no")[i % 2]}


def paired(i: int) -> dict[str, Any]:
    return {"answer": ("Yes", "No")[i % 2], "category": "existence"}


def trading(i: int) -> dict[str, Any]:
    return {"answer": ("Yes", "B", "No", "A")[i % 4]}


def ocr(i: int) -> dict[str, Any]:
    return {"answer": ["STOP"], "answer_type": OCR_TYPES[i % 4]}


def count(i: int) -> dict[str, Any]:
    return {"answer": str(i % 4), "type": "2D", "task": "Count"}


def nothing(i: int) -> dict[str, Any]:
    return {}


# metric → (what a test record holds as its answer, the n-th question id)
ANSWERS: dict[str, tuple[Callable[[int], dict[str, Any]], Callable[[int], str | int]]] = {
    "iou50": (box, lambda i: f"box{i}"),
    "caption7": (nothing, lambda i: f"{i:08d}"),
    "cvit_cider_oracle": (five_captions, lambda i: f"f{i}"),
    "cider_d_ws": (five_captions, lambda i: f"c{i}"),
    "cider_d_ptb": (five_captions, lambda i: f"c{i}"),
    "option_letter_hide": (letter, lambda i: str(3 + 5 * i)),
    "option_letter_coin": (letter, lambda i: str(3 + 5 * i)),
    "exact_squeezed": (trading, str),
    "substring_squeezed": (count, lambda i: f"CVBench_2D_{i}"),
    "ocrbench": (ocr, lambda i: f"OCR_test_{i}"),
    "mathvista": (nothing, lambda i: f"testmini_{i}"),
    "option_exact_local": (letter, lambda i: f"ALL_{10475 + i}"),
    "anls_prism": (several, str),
    "anls": (several, str),
    "yes_no": (yes_no, str),
    "mme": (paired, lambda i: f"existence/{i // 2}.png/{i % 2}"),
}


def write_benchmark(config: RunConfig, root: Path, seed: int = 0, train: int = 8, test: int = 4) -> None:
    """All files that `config.benchmark` names, under `root` (= data_root): `train` and `test` records a task."""
    rng = random.Random(seed)
    home = root / config.benchmark.instructions
    for task in [*config.benchmark.tasks, *config.benchmark.general]:
        shared = "" if task.images is not None else f"{Path(task.test).parent.name}/"  # one image folder for all tasks
        images = root / (task.images if task.images is not None else config.benchmark.images)
        if task.train is not None:
            rows = [_training(task, i, shared, rng) for i in range(train)]
            _write(home / task.train, rows, images)
        asked = root / task.test_images if task.test_images is not None else images
        splits = {"test": (task.test, task.references), "val": (task.val, task.val_references)}
        for name, references in splits.values():
            if name is not None:
                rows = [_question(task, i, shared, rng) for i in range(test)]
                _write(home / name, rows, asked)
                if references is not None:
                    write_references(task, home / references, rows)


def _write(file: Path, rows: list[dict], images: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
    for row in rows:
        if "image" in row:
            path = images / row["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(len(row["image"])).integers(0, 256, (28, 36, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def _image(task: TaskConfig, i: int, shared: str, split: str) -> dict[str, str]:
    """The record's image: none in the last record of a task that mixes in text-only ones, as ScienceQA does."""
    if task.metric.startswith("option_letter") and i % 4 == 3:
        return {}
    if task.metric == "mme":  # two questions an image
        return {"image": f"{shared}images/{i // 2}.png"}
    source = f"{SCI_SOURCES[i % 5]}_" if task.metric == "sci_mixed" else f"{split}"
    return {"image": f"{shared}images/{source}{i}.png"}


def _text(task: TaskConfig, i: int) -> str:
    if task.metric.startswith(("caption", "cider", "cvit_cider")):
        return "What is happening in the presented picture?\nPlease describe it in one complete sentence."
    if task.metric.startswith("option"):
        return "Which one?\nA. red\nB. blue\nC. kite\nD. river\nAnswer with the option's letter from the given choices directly."
    if task.metric == "sci_mixed" and SCI_SOURCES[i % 5] == "MapQA":
        return "Which states are red?"
    return f"What is number {i} in the {task.title} image?\nAnswer the question using a single word or phrase."


def _gold(task: TaskConfig, i: int) -> tuple[dict[str, Any], str | int]:
    answer, identity = ANSWERS.get(task.metric, (word, str))
    return answer(i), identity(i)


def _training(task: TaskConfig, i: int, shared: str, rng: random.Random) -> dict[str, Any]:
    gold = _gold(task, i)[0].get("answer", rng.choice(CAPTIONS))
    image = _image(task, i, shared, "train")
    turns = [{"from": "human", "value": ("<image>\n" if image else "") + _text(task, i)},
             {"from": "gpt", "value": gold[0] if isinstance(gold, list) else gold}]  # fmt: skip
    return {"id": f"{task.id}-{i}", **image, "conversations": turns}


def _question(task: TaskConfig, i: int, shared: str, rng: random.Random) -> dict[str, Any]:
    gold, identity = _gold(task, i)
    return {"question_id": identity, **_image(task, i, shared, "test"), "text": _text(task, i), **gold}


# ---------------------------------------------------------------------------------------------------------- references


def write_references(task: TaskConfig, file: Path, rows: list[dict[str, Any]]) -> None:
    """The file that the metric reads beside the questions, in its published format."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if task.metric.startswith("option_letter"):
        write_scienceqa(file.parent, rows)
    else:
        file.write_text(json.dumps(REFERENCES[task.metric](rows)))


def write_scienceqa(folder: Path, rows: list[dict]) -> None:
    """Two files, with a problem of another split beside ours."""
    problems: dict[str, Any] = {"1": {"choices": ["a", "b"], "answer": 0, "image": None, "split": "train"}}
    for row in rows:
        image = "image.png" if "image" in row else None
        place = "ABCD".index(row["answer"])
        problems[row["question_id"]] = {"choices": list("wxyz"), "answer": place, "image": image, "split": "test"}
    (folder / "problems.json").write_text(json.dumps(problems))
    splits = {"train": ["1"], "val": [], "test": [r["question_id"] for r in rows]}
    (folder / "pid_splits.json").write_text(json.dumps(splits))


def coco(rows: list[dict]) -> dict[str, Any]:
    images = [{"id": i, "file_name": Path(r["image"]).name} for i, r in enumerate(rows, 1)]
    pairs = [(i, k) for i in range(1, len(rows) + 1) for k in range(5)]
    notes = [{"id": 5 * i + k, "image_id": i, "caption": CAPTIONS[(i + k) % 5]} for i, k in pairs]
    return {"images": images, "annotations": notes, "categories": []}


def gqa(rows: list[dict]) -> dict[str, Any]:
    kinds = {"types": {"structural": "query", "semantic": "attr"}, "groups": {"global": "colour", "local": "l"}}
    table = {
        r["question_id"]: {"question": r["text"], "answer": r["answer"], "isBalanced": True, **kinds} for r in rows
    }
    return table | {"other": {"question": "?", "answer": "no", "isBalanced": False, "types": {}, "groups": {}}}


def textvqa(rows: list[dict]) -> dict[str, Any]:
    data = [{"question_id": r["question_id"], "image_id": "1", "answers": [r["answer"]] * 10} for r in rows]
    return {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": data}


def answers(rows: list[dict]) -> list[dict]:
    return [{"question_id": r["question_id"], **{k: v for k, v in r.items() if k.startswith("answer")}} for r in rows]


def testmini(rows: list[dict]) -> dict[str, Any]:
    """MathVista: {pid: problem}; question testmini_<n> is pid n + 1. Every third problem has choices."""
    table = {}
    for i, row in enumerate(rows):
        kind = {"answer_type": "integer", "choices": None}
        if i % 3 == 2:
            kind = {"answer_type": "text", "choices": ["12", "13", "14"]}
        table[str(i + 1)] = {"pid": str(i + 1), "question": row["text"], "answer": str(12 + i % 3), **kind}
    return table


REFERENCES: dict[str, Callable[[list[dict]], Any]] = {
    "caption7": coco, "gqa_exact": gqa, "vqa_soft10": textvqa, "iou50": answers, "exact_upper": answers,
    "exact_lower_unanswerable": answers, "substring_bidir": answers, "option_exact_local": answers, "mathvista": testmini,
}  # fmt: skip
