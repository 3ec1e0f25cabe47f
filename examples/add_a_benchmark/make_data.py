"""Draw dice and write the two tasks of dice.yaml in LLaVA's JSON format.

    python examples/add_a_benchmark/make_data.py data/dice
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

NUMBERS = ("one", "two", "three", "four", "five", "six")
SPOTS = {1: [4], 2: [0, 8], 3: [0, 4, 8], 4: [0, 2, 6, 8], 5: [0, 2, 4, 6, 8], 6: [0, 2, 3, 5, 6, 8]}  # cells of a 3 × 3 grid
QUESTIONS = {
    "count": "How many dots are there?\nAnswer the question using a single word or phrase.",
    "parity": "Is the number of dots odd or even?\nAnswer the question using a single word or phrase.",
}
SIZES = {"train": 48, "test": 24}
COLOURS = ("red", "green", "blue", "purple", "orange")


def draw(dots: int, colour: str) -> Image.Image:
    """A die of 48 × 48 pixels."""
    picture = Image.new("RGB", (48, 48), "white")
    pen = ImageDraw.Draw(picture)
    for cell in SPOTS[dots]:
        x, y = 8 + 16 * (cell % 3), 8 + 16 * (cell // 3)
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour)
    return picture


def write(folder: Path, seed: int = 0) -> None:
    """`folder/images` and `folder/instructions`; the same files for the same seed."""
    chance = random.Random(seed)
    for split, count in SIZES.items():
        rows: dict[str, list[dict]] = {task: [] for task in QUESTIONS}
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            dots = 1 + i % 6
            name = f"{split}/{i:03d}.png"
            draw(dots, chance.choice(COLOURS)).save(folder / "images" / name)
            answers = {"count": NUMBERS[dots - 1], "parity": "odd" if dots % 2 else "even"}
            for task, question in QUESTIONS.items():
                rows[task].append(record(split, f"{task}-{i}", name, question, answers[task]))
        for task, records in rows.items():
            file = folder / "instructions" / task / f"{split}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def record(split: str, name: str, image: str, question: str, answer: str) -> dict:
    """A training record is a conversation; a test record is a question with its answer."""
    if split == "test":
        return {"question_id": name, "image": image, "text": question, "answer": answer}
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": image, "conversations": turns}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="data_root/dice")
    write(parser.parse_args().folder)
