"""A run whose questions and pictures can be read, for the tests of the sample browser."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import yaml
from PIL import Image
from synthetic import TASKS, sequential_run, write

from hide_llava.config import compose
from hide_llava.storage import sha256
from hide_llava.training.run import Run

HOSTILE = "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'> \u2028\u2029 \"'`${1} \\ \U0001f600"


def browsed_run(root: Path, done: int = 3, questions: int = 20) -> Path:
    """A run of `sequential_run` with questions of its first two tasks; every second question has two pictures.

    ImageNet-R: question 1 is lost after ArxivQA, question 3 after VizWiz, odd ones else stay right, even ones never were. After
    the last stage question 5 was routed to VizWiz's expert.
    """
    run = sequential_run(root, done=done)
    config = compose(["benchmark=mini-ucit", "method=hide-mini", "model=mini", f"data_root={root / 'data'}"])
    write(run / "config.yaml", yaml.safe_dump(config.model_dump()))
    for task in Run.at(run).tasks[:2]:
        asked = [{"question_id": k, "text": f"What is {k}?", "answer": f"gold {k}", "image": images(k)} for k in range(questions)]
        write(task.question_files[0], asked)
        for name in (name for k in range(questions) for name in images(k)):
            file = task.question_images / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (320, 200), (10 * len(name), 90, 160)).save(file)
    for cell in run.glob("eval/*/*"):
        change_cell(cell, questions)
    return run


def images(k: int) -> list[str]:
    return [f"a/{k}.png", f"a/{k} & two.jpg"] if k % 2 else [f"a/{k}.png"]


def change_cell(cell: Path, questions: int) -> None:
    stage, task = int(cell.parent.name[:2]), cell.name
    rows = [json.loads(line) for line in (cell / "predictions.jsonl").read_text().splitlines()][:questions]
    score = json.loads((cell / "score.json").read_text())
    score["verdicts"] = {str(row["question_id"]): score["verdicts"][str(row["question_id"])] for row in rows}
    if task == "imagenet-r":
        lost = {1: 2, 3: 3}
        for row in rows:
            k = row["question_id"]
            right = bool(k % 2) and stage < lost.get(k, 9)
            score["verdicts"][str(k)] = float(right)
            row["text"] = f"gold {k}" if right else "" if k == 1 else "I really do not know what this is" if k == 3 else "pear"
            if k == 5 and stage == 3:
                row["routing"] = {"imagenet-r": 0.2, "arxivqa": 0.1, "vizwiz": 0.7}
    store(cell, rows, score)


def store(cell: Path, rows: list[dict], score: dict) -> None:
    """Answers and the score that belongs to them."""
    answers = "".join(json.dumps(row) + "\n" for row in rows)
    write(cell / "predictions.jsonl", answers)
    write(cell / "score.json", {**score, "predictions_sha256": hashlib.sha256(answers.encode()).hexdigest()})


def hostile_run(root: Path) -> Path:
    """The same with names, ids, prompts and answers that would harm a page which takes them for anything but text."""
    run = browsed_run(root, done=2, questions=6)
    manifest = json.loads((run / "manifest.json").read_text())
    for entry in (*manifest["tasks"], *manifest["stages"]):
        entry["title"] = f"{entry['title']} {HOSTILE}"
    write(run / "manifest.json", manifest | {"name": HOSTILE})
    ids = ["../../../outside", "__proto__", "/" + "etc/passwd", HOSTILE, "constructor", ".."]
    task = Run.at(run).tasks[0]
    name = "b/'\"<img onerror=harm>.png"
    (task.question_images / "b").mkdir()
    Image.new("RGB", (32, 32), "red").save(task.question_images / name)
    asked = [{"question_id": i, "text": HOSTILE, "answer": HOSTILE, "image": name} for i in ids]
    write(task.question_files[0], asked)
    for cell in run.glob(f"eval/*/{TASKS[0][0]}"):
        score = json.loads((cell / "score.json").read_text())
        routing = {HOSTILE: 0.5, "__proto__": 0.5}
        rows = [{"question_id": i, "prompt": HOSTILE, "text": f"{HOSTILE} {i}", "routing": routing} for i in ids]
        verdicts = {i: float(cell.parent.name[:2] == "01") for i in ids}
        store(cell, rows, {**score, "verdicts": verdicts, "questions_sha256": sha256(task.question_files[0])})
    return run
