"""What the tasks that `hide-llava lmms-tasks` writes call in lmms-eval: pictures and prompts of a document, and our scorers.

A document is a row of `questions/TASK.jsonl` (`lmms_tasks.document`). Nothing here needs lmms-eval.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from hide_llava.benchmarks.files import BenchmarkTask, stored_tasks
from hide_llava.data.images import taken
from hide_llava.data.turns import IMAGE_TEXT, interleaved, routing_text
from hide_llava.errors import UserError
from hide_llava.evaluation.cells import scored_rows
from hide_llava.interop.lmms_requests import OWN
from hide_llava.metrics import get
from hide_llava.storage import read_json

BENCHMARK = "benchmark.json"
Doc = dict[str, Any]


def doc_to_visual(doc: Doc) -> list[Image.Image]:
    return [taken(image, doc["orientation"]) for image in doc["images"]]


def doc_to_text(doc: Doc) -> str:
    """The question with its task's suffix, without places of pictures."""
    return routing_text(doc["prompt"]) if IMAGE_TEXT in doc["prompt"] else doc["prompt"]


def doc_to_messages(doc: Doc) -> list[dict[str, Any]]:
    """One turn, each picture where the question has a place for it."""
    images = iter(doc_to_visual(doc))
    pieces = interleaved(doc["prompt"], len(doc["images"]))
    content = [{"type": "image", "url": next(images)} if p is None else {"type": "text", "text": p} for p in pieces]
    return [{"role": "user", "content": content}]


def process_results(doc: Doc, results: list[str]) -> dict[str, Any]:
    """All that the score needs of one answer; the score is of all of them together."""
    given = {"question_id": json.loads(doc["question_id"]), "text": results[0]}
    return {"score": {"folder": doc["folder"], "task": doc[OWN], **given}}


def score(rows: list[dict[str, Any]]) -> float:
    """The headline score of a cell with these answers, in percent. Of a part of the questions (`--limit`): of these.

    Raises:
        UserError: an answer to a question that the task no longer has, or answers that its metric cannot score.
    """
    task = task_of(rows[0]["folder"], rows[0]["task"].partition("/")[2])
    texts = {json.dumps(row["question_id"]): row["text"] for row in rows}
    asked, in_file = task.questions()
    if get(task.metric).needs == "coco":  # its references know a question by its place in the file
        asked = [{"image_id": place, **q} for place, q in enumerate(asked, 1)]
    questions = [q for q in asked if json.dumps(q["question_id"]) in texts]
    if len(questions) != len(rows):
        raise UserError(f"{rows[0]['folder']}: {len(rows)} answers, of which {len(questions)} are to different questions of "
                        f"{task.named_files}; write the tasks anew, and ask each question once.")  # fmt: skip
    answers = [{"question_id": q["question_id"], "text": texts[json.dumps(q["question_id"])]} for q in questions]
    return scored_rows(task, answers, questions, in_file)["score"]


@lru_cache
def task_of(folder: str, name: str) -> BenchmarkTask:
    """A task as it was when the folder was written."""
    return stored_tasks(read_json(Path(folder) / BENCHMARK))[name]
