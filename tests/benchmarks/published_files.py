"""Small files in the formats in which MMBench, SEED-Bench, MMStar and MMMU are published."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image", "split"]


def picture(seed: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def in_base64(seed: int, kind: str = "JPEG") -> str:
    return base64.b64encode(picture(seed, kind)).decode()


def write_tsv(file: Path, rows: list[dict], columns: list[str] = COLUMNS) -> Path:
    """A table with tabs, an empty cell where a row has no value."""
    lines = ["\t".join(columns), *("\t".join(str(row.get(name, "")) for name in columns) for row in rows)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def mmbench_rows(rotated: bool = True) -> list[dict]:
    """Two dev questions, one with a hint and three options, and one of the test split; rotations point to its picture."""
    first = {"index": 7, "question": "Which colour?", "hint": "Look.", "A": "red", "B": "None", "C": "blue", "answer": "C",
             "category": "color", "l2-category": "attribute", "image": in_base64(1), "split": "dev"}  # fmt: skip
    second = {"index": 8, "question": "Is it day?", "A": "yes", "B": "no", "answer": "A", "category": "scene",
              "l2-category": "scene", "image": in_base64(2, "PNG"), "split": "dev"}  # fmt: skip
    rows = [first, second, {**second, "index": 9, "split": "test"}]
    if rotated:
        rows += [
            {**first, "index": 1_000_007, "A": "None", "B": "blue", "C": "red", "answer": "B", "image": 7},
            {**first, "index": 2_000_007, "A": "blue", "B": "red", "C": "None", "answer": "A", "image": 7},
            {**second, "index": 1_000_008, "A": "no", "B": "yes", "answer": "B", "image": 8},
        ]
    return rows


def mmstar_rows(count: int = 4) -> list[dict]:
    return [
        {"index": i, "question": "What is it?", "A": "sun", "B": "moon", "C": "star", "D": "sky", "answer": "ABCD"[i % 4],
         "category": "math" if i % 2 else "logical reasoning", "l2_category": f"part {i % 3}", "image": in_base64(i)}
        for i in range(count)
    ]  # fmt: skip


MMSTAR_COLUMNS = ["index", "question", "image", "answer", "category", "l2_category", "A", "B", "C", "D"]


def write_seed(file: Path) -> Path:
    """SEED-Bench's own JSON with two questions on pictures and one on a film; the pictures' files have no ending."""
    common = {"choice_a": "one", "choice_b": "two", "choice_c": "three", "choice_d": "four", "segment": None}
    tree = {
        "question_type": {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10},
        "questions": [
            {"question_id": "101669", "question": "How many?", "answer": "B", "data_type": "image", "data_id": "14_25",
             "question_type_id": 5, **common},
            {"question_id": "101670", "question": "What scene?", "answer": "A", "data_type": "image", "data_id": "15_26",
             "question_type_id": 1, **common},
            {"question_id": "v1", "question": "What is done?", "answer": "A", "data_type": "video", "data_id": "a.webm",
             "question_type_id": 10, **common},
        ],
    }  # fmt: skip
    (file.parent / "SEED-Bench-image").mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(("14_25", "15_26")):
        (file.parent / "SEED-Bench-image" / name).write_bytes(picture(k))
    file.write_text(json.dumps(tree))
    return file


def write_mmmu(folder: Path) -> Path:
    """Two subjects as on the hub: options as Python text, pictures as {bytes, path}, an answer that is a list."""

    def row(number: int, subject: str, question: str, options: str, answer: str, kind: str, pictures: int) -> dict:
        images = {
            f"image_{k}": {"bytes": picture(10 * number + k, "PNG"), "path": f"{k}.png"} if k <= pictures else None
            for k in range(1, 8)
        }
        return {"id": f"validation_{subject}_{number}", "question": question, "options": options, "explanation": "", **images,
                "img_type": "['Tables']", "answer": answer, "topic_difficulty": "Easy", "question_type": kind,
                "subfield": "x"}  # fmt: skip

    tables = {
        "Math": [row(1, "Math", "What is <image 1>?", "[]", "['24/7', '3.429']", "open", 1)],
        "Art_Theory": [
            row(1, "Art_Theory", "<image 1> Who painted it?", "['Monet', \"D'Este\"]", "B", "multiple-choice", 1),
            row(2, "Art_Theory", "Which is like <image 1>?", "['<image 2>', '<image 3>']", "A", "multiple-choice", 3),
        ],
    }
    for subject, rows in tables.items():
        file = folder / subject / "validation-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return folder
