"""The data of the sample browser: every question of a run with its answers after all stages, beside the page of the run.

    results/samples/browser.js    the code, the same for every run
    results/samples/index.js      what filters and sorts need, a few bytes of each question
    results/samples/HASH.js       the texts of SHARD questions, loaded when one of them is shown or searched
    results/samples/pictures/     thumbnails

A page that was opened from a disk may load scripts, but not read files, so the data are scripts that call one function. A
shard is named by its content and the index is written after all shards, so that a page finds its old data or its new ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hide_llava.errors import UserError
from hide_llava.metrics.error_profile import KINDS, kind_of
from hide_llava.results.asked import Asked, cut
from hide_llava.results.per_sample import RIGHT, History, histories
from hide_llava.results.routing import expert_title, misrouted, own_experts, usable_weights
from hide_llava.results.run_reader import CellScore, StoredRun
from hide_llava.results.thumbnails import MOST, Source, remove_others, write_thumbnails
from hide_llava.storage import write_bytes

SHARD = 100  # questions
LONGEST = 2_000  # letters of a prompt or an answer
OF_FORMAT = ("empty", "case", "punctuation", "article", "longer_answer", "wrong_format")
"""Kinds of mistakes of an answer that has not the form asked for, whatever it says."""
SHARDS = re.compile(r"[0-9a-f]{20}\.js")
CODE = Path(__file__).parent / "templates" / "browser.js"


@dataclass(frozen=True)
class Answer:
    """One answer of a question. kind: of its mistake, None for a right answer and where that is not known."""

    prompt: str
    text: str
    kind: str | None
    weights: dict[str, float]


@dataclass(frozen=True)
class Sample:
    """One question of a task. answers: after each stage, None where it was not asked. pictures: None where they are not known."""

    id: str
    history: History
    answers: list[Answer | None]
    shown: str
    pictures: list[Source] | None

    @property
    def last(self) -> Answer | None:
        return next((answer for answer in reversed(self.answers) if answer is not None), None)


def write_browser(run: StoredRun, asked: dict[str, Asked], folder: Path, most: int = MOST) -> dict[str, int] | None:
    """Write `folder`; how many questions and answers it holds, or None for a run without any.

    asked: the questions by task. most: thumbnails at most; lost questions have theirs first. Files that are right already are
    left as they are.

    Raises:
        UserError: `folder` cannot be written.
    """
    every = {task: _samples(run, task, past, asked.get(task)) for task, past in histories(run).items()}
    tasks = {task: samples for task, samples in every.items() if samples}
    samples = [sample for task in tasks.values() for sample in task]
    if not samples:
        return None
    lost_first = sorted(samples, key=lambda sample: sample.history.lost is None)
    copies = write_thumbnails(folder / "pictures", (p for s in lost_first for p in s.pictures or ()), most)
    experts = list(dict.fromkeys(name for s in samples for answer in s.answers if answer for name in answer.weights))
    shards = []
    for start in range(0, len(samples), SHARD):
        content = _safe([_detail(sample, experts, copies) for sample in samples[start : start + SHARD]])
        shards.append(hashlib.sha256(content.encode()).hexdigest()[:20])
        _write(folder / f"{shards[-1]}.js", _call(shards[-1], content))
    _write(folder / CODE.name, CODE.read_bytes())
    _write(folder / "index.js", _call("index", _safe(_index(run, tasks, experts) | {"size": SHARD, "shards": shards})))
    for file in folder.glob("*.js"):
        if SHARDS.fullmatch(file.name) and file.stem not in shards:
            file.unlink(missing_ok=True)
    if all(sample.pictures is not None for sample in samples):  # else copies that are not wanted now may be wanted again
        remove_others(folder / "pictures", set(copies.values()))
    return {"questions": len(samples), "answers": sum(answer is not None for s in samples for answer in s.answers)}


# ----------------------------------------------------------------------------------------------------------- reading


def _samples(run: StoredRun, task: str, past: dict[str, History], asked: Asked | None) -> list[Sample]:
    """The questions of a task in the order of the answer file of its last stage; those asked only before come last."""
    cells = [run.cells.get((stage, task)) or run.general.get((stage, task)) for stage in run.matrix.stages]
    if asked is not None and not all(asked.belongs_to(cell) for cell in cells if cell):
        asked = None  # the files hold other questions now
    rows = [_rows(cell) for cell in cells]
    learned = dict(zip(run.matrix.tasks, run.matrix.learned_at)).get(task)
    order = dict.fromkeys(question for stage in reversed(rows) for question in stage)
    found = []
    for question in [*order, *(q for q in past if q not in order)]:
        history = past.get(question) or History((None,) * len(cells), learned)
        gold = asked.expected.get(question, []) if asked else []
        answers = [
            _answer(stage[question], verdict, gold) if question in stage else None
            for stage, verdict in zip(rows, history.verdicts)
        ]
        pictures = asked.pictures.get(question) if asked else None
        sources = pictures and [Source(asked.images, asked.place, name, asked.orientation) for name in pictures]
        found.append(Sample(question, history, answers, asked.shown.get(question, "") if asked else "", sources))
    return found


def _rows(cell: CellScore | None) -> dict[str, dict[str, Any]]:
    """Answer rows by question id; of two with one id the first counts. A damaged file is told with the cell's other answers."""
    try:
        rows = cell.predictions() if cell else []
    except UserError:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(str(row.get("question_id", "")), row)
    return found


def _answer(row: dict[str, Any], verdict: float | None, gold: list[str]) -> Answer:
    text = str(row.get("text", ""))
    kind = kind_of(text, gold) if verdict is not None and verdict < RIGHT else None
    return Answer(str(row.get("prompt", "")), text, kind, usable_weights(row))


# ----------------------------------------------------------------------------------------------------------- writing


def _detail(sample: Sample, experts: list[str], copies: dict[Source, str]) -> list[Any]:
    """[prompt, expected, pictures | null, [[text, verdict, kind, weights] | null, …]]; a picture is [copy or why none, name]."""
    pictures = sample.pictures and [[copies[source], Path(source.name).name] for source in sample.pictures]
    answers = [
        [
            cut(answer.text, LONGEST),
            _number(verdict),
            None if answer.kind is None else KINDS.index(answer.kind),
            [round(answer.weights.get(name, 0), 3) for name in experts] if answer.weights else None,
        ]
        if answer is not None
        else None
        for answer, verdict in zip(sample.answers, sample.history.verdicts)
    ]
    prompt = cut(sample.last.prompt, LONGEST) if sample.last else ""
    return [prompt, sample.shown, pictures, answers]


def _index(run: StoredRun, tasks: dict[str, list[Sample]], experts: list[str]) -> dict[str, Any]:
    """Titles, and columns whose element k belongs to question k; templates/browser.js reads them."""
    samples = [sample for task in tasks.values() for sample in task]
    own = own_experts(run, experts)
    wrong_way = [bool(s.last and misrouted(s.last.weights, own.get(task, ()))) for task in tasks for s in tasks[task]]
    wrong_form = [bool(s.last and s.last.kind in OF_FORMAT) for s in samples]
    by_id = sorted(range(len(samples)), key=lambda k: _natural(samples[k].id))
    place = [0] * len(samples)
    for rank, k in enumerate(by_id):
        place[k] = rank
    return {
        "stages": run.matrix.stage_titles,
        "experts": [expert_title(run, name) for name in experts],
        "kinds": [kind.replace("_", " ") for kind in KINDS],
        "tasks": [
            {
                "id": task,
                "title": run.task_title(task),
                "count": len(of_task),
                "learned": of_task[0].history.learned,
                "own": [experts.index(name) for name in sorted(own.get(task, ()))],
                "known": of_task[0].pictures is not None,
            }
            for task, of_task in tasks.items()
        ],
        "ids": [sample.id for sample in samples],
        "place": place,
        "state": "".join(sample.history.state[0] for sample in samples),
        "lost": [-1 if sample.history.lost is None else sample.history.lost for sample in samples],
        "score": [_number(sample.history.last) for sample in samples],
        "flags": "".join(str(way + 2 * form) for way, form in zip(wrong_way, wrong_form)),
        "routed": bool(own),
    }


def _number(verdict: float | None) -> float | None:
    """A verdict as JavaScript reads it."""
    return round(float(verdict), 4) if verdict is not None and math.isfinite(verdict) else None


def _natural(text: str) -> list[tuple[int, int, str]]:
    """A key by which img_9 stands before img_10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return [(0, int(part[:18]), part) if part.isdecimal() else (1, 0, part) for part in parts]


def _safe(value: Any) -> str:
    """JSON that is also JavaScript, and harmless inside of a page: ASCII, without "<"."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _call(name: str, content: str) -> bytes:
    return f'hideLlavaSamples("{name}",{content});\n'.encode("ascii")


def _write(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content)
