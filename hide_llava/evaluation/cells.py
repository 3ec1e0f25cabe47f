"""Cells of the accuracy matrix: answer a task's questions after a stage, resumably, then score them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hide_llava.adapters.route import Route
from hide_llava.backbones.decode import Seen
from hide_llava.benchmarks.files import BenchmarkTask, with_suffix
from hide_llava.data.collator import Collator, moved
from hide_llava.data.dataset import QuestionDataset
from hide_llava.distributed import ranks
from hide_llava.errors import UserError
from hide_llava.evaluation.batches import automatic_batch_size, within_memory
from hide_llava.evaluation.binding import refuse_other, scored_with, shrinks, stored_settings
from hide_llava.evaluation.vllm import VLLM, serve
from hide_llava.metrics import score
from hide_llava.progress import Progress
from hide_llava.storage import read_json, sha256, write_bytes, write_json, write_jsonl, writing
from hide_llava.training.session import Session

WORKERS = 8  # pictures of 12 MP come from so many as fast as one H100 answers (by arithmetic); smaller ones need two


@dataclass
class Cell:
    """Questions to answer into `folder`, and what they are answered with.

    settings: of `answered_with`; they say transform, length and suffix. batch_size: None takes that of the answers which are
    there already, else what fits into memory. index: what an oracle is told. stage: its number, from 1. task: None for
    questions that are not scored.
    """

    folder: Path
    questions: list[dict[str, Any]]
    images: Path
    settings: dict[str, Any]
    batch_size: int | None = None
    label: str = "answers"
    index: int | None = None
    stage: int = 0
    task: BenchmarkTask | None = None
    seconds: float = 0.0  # that answering took

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions.jsonl"


def answer(
    session: Session, cells: list[Cell], workers: int | None = None, answered: Callable[[Cell], None] = lambda cell: None
) -> None:
    """Answer the questions of each cell greedily into its `predictions.jsonl`; call inside `with session:`.

    One loader reads the pictures of all cells, so that its workers are started once and are at work on the next cell while
    the last batch of this one is decoded. A batch is of one cell. answered: called with each cell that is complete.

    Batches are cut once from the length-sorted list and never change, so that an answer cannot depend on where an
    earlier attempt stopped; their size is part of what the answers were made with. Every process appends its batches to
    a part file; parts are merged when all is answered. With `eval.backend=vllm` a server answers (`evaluation.vllm`).

    Raises:
        UserError: an image is missing or unreadable, a part file is damaged before its last line, or the folder holds
            answers made with other settings.
    """
    begun = [Begun(session, cell) for cell in cells]
    if ranks()[1] > 1:
        torch.distributed.barrier()  # nobody writes while another still reads
    if session.run.eval.backend == VLLM and any(one.mine for one in begun):
        serve(session, begun)
    batches = [[(place, q) for q in batch] for place, one in enumerate(begun) for batch in one.mine]
    workers = min(automatic_workers(session.core.llava.device) if workers is None else workers, len(batches))
    pinned = workers > 0 and session.core.llava.device.type == "cuda"
    loader = iter(DataLoader(_Questions([one.data for one in begun]), batch_sampler=batches, collate_fn=_Collate(),
                             num_workers=workers, pin_memory=pinned))  # fmt: skip
    for one in begun:
        one.answer(islice(loader, len(one.mine)))
        answered(one.cell)


def automatic_workers(device: torch.device) -> int:
    """Processes that read pictures: the cores that this process may use, shared among those of its machine, at most 8.

    On a CPU none: there the model needs the cores.
    """
    if device.type != "cuda":
        return 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(WORKERS, len(os.sched_getaffinity(0)) // processes))


class Begun:
    """A cell on whose questions work begins, or goes on."""

    def __init__(self, session: Session, cell: Cell):
        self.session, self.cell = session, cell
        self.rank, self.world = ranks()
        self.rows = self._rows  # answers a batch; replaced where a server does
        self.known = stored_settings(cell.folder) or {}
        self.done = {json.dumps(row["question_id"]) for part in parts(cell.folder) for row in read_part(part)}
        settings = cell.settings
        self.questions = with_suffix(cell.questions, settings["prompt_suffix"])
        self.reader = session.reader(settings["image_transform"])
        self.data = QuestionDataset(self.questions, cell.images, self.reader, settings["image_orientation"])
        size = cell.batch_size or self.known.get("batch_size") or automatic_batch_size(session.core.llava, self._length)
        served = {"vllm": self.known["vllm"]} if "vllm" in self.known else {}
        self.settings = {**settings, "batch_size": size, **served}
        order = sorted(range(len(self.questions)), key=lambda i: (-len(self.questions[i]["text"]), i))
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        self.mine = [b for i, b in enumerate(batches) if i % self.world == self.rank and not all(map(self._is_done, b))]

    def _length(self) -> int:
        """Tokens of the longest question, with its image and the longest answer."""
        return self.data.longest() + self.cell.settings["max_new_tokens"]

    def _is_done(self, question: int) -> bool:
        return json.dumps(self.questions[question]["question_id"]) in self.done

    def answer(self, batches: Iterable[dict[str, Any]]) -> None:
        """Append the answers of this process's batches, and merge when all processes have."""
        cell, begun, asked = self.cell, time.monotonic(), 0
        cell.folder.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            refuse_other(cell.folder, self.known, self.settings)
            write_json(cell.folder / "settings.json", self.settings)
        part = cell.folder / f"part-{self.rank}.jsonl"
        with (
            writing(part), open(part, "a", encoding="utf-8") as file,
            Progress(cell.label, sum(map(len, self.mine)), "question") as progress,
        ):  # fmt: skip
            for batch in batches:
                rows = within_memory(self.rows, batch)
                fresh = [row for row in rows if json.dumps(row["question_id"]) not in self.done]
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in fresh))
                file.flush()
                os.fsync(file.fileno())
                asked += len(batch["ids"])  # by this process; batches are dealt evenly, so its share says how far all are
                progress.at(asked)
        if self.world > 1:
            torch.distributed.barrier()
        if self.rank == 0:
            merge(cell.folder, self.questions)
        if self.world > 1:
            torch.distributed.barrier()
        cell.seconds = time.monotonic() - begun

    def batch(self, places: Iterable[int]) -> dict[str, Any]:
        """Questions of the cell, collated."""
        return collated([self.data[place] for place in places])

    def _rows(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return answer_batch(self.session, batch, self.cell.settings["max_new_tokens"], self.cell.index)


class _Questions(Dataset):
    """The questions of several cells, by (cell, place in it)."""

    def __init__(self, cells: list[QuestionDataset]):
        self.cells = cells

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        return self.cells[place[0]][place[1]]


class _Collate:
    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return collated(samples)


def collated(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Questions (items of `QuestionDataset`) → one left-padded batch, with their prompts."""
    return {**Collator(side="left")(samples), "prompts": [s["prompt"] for s in samples]}


def answer_batch(
    session: Session, batch: dict[str, Any], max_new_tokens: int, task: int | None, seen: Seen | None = None,
    route: Route | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows {question_id, prompt, text, token_ids, routing} of one left-padded batch; seen, route: of `RoutedLlava.generate`."""
    device = session.core.llava.device
    run = session.run
    batch = moved(batch, device, non_blocking=True)
    if session.method.oracle:
        batch["task"] = task
    ids, route = session.routed.generate(batch, max_new_tokens, shrinks(run), run.eval.static_cache, seen, route)
    tokenizer, ends, rows = session.backbone.tokenizer, session.backbone.stop_ids, []
    names = list(route.weights)
    weights = torch.stack([route.weights[n] for n in names], 1).tolist() if names else [[]] * len(ids)  # one copy to the host
    for b, tokens in enumerate(ids.tolist()):
        if (end := next((place for place, token in enumerate(tokens) if token in ends), None)) is not None:
            tokens = tokens[: end + 1]  # what follows is padding
        rows.append({
            "question_id": batch["ids"][b], "prompt": batch["prompts"][b],
            "text": tokenizer.decode(tokens, skip_special_tokens=True).strip(), "token_ids": tokens,
            "routing": {name: round(weight, 6) for name, weight in zip(names, weights[b])},
        })  # fmt: skip
    return rows


def parts(folder: Path) -> list[Path]:
    """Files that hold answers: the merged one and the parts of every process, in a fixed order."""
    merged = folder / "predictions.jsonl"
    return ([merged] if merged.is_file() else []) + sorted(folder.glob("part-*.jsonl"))


def read_part(path: Path) -> list[dict[str, Any]]:
    """Rows of a part file. A last line without its end was cut by a kill: it is dropped, its questions asked again.

    Raises:
        UserError: a finished line is damaged.
    """
    *lines, rest = path.read_bytes().split(b"\n")
    if rest:
        write_bytes(path, b"".join(line + b"\n" for line in lines))
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not {"question_id", "text"} <= row.keys():
            raise UserError(f"{path}: line {number} is damaged (not a JSON row with question_id and text); delete that "
                            "line and run again, its question is then asked again.")  # fmt: skip
        rows.append(row)
    return rows


def merge(folder: Path, questions: list[dict[str, Any]]) -> None:
    """All parts into `predictions.jsonl`, in question order, every question exactly once."""
    rows = {json.dumps(row["question_id"]): row for part in parts(folder) for row in read_part(part)}
    missing = [q["question_id"] for q in questions if json.dumps(q["question_id"]) not in rows]
    if missing:
        raise UserError(f"{folder}: {len(missing)} questions were not answered, first {missing[0]!r}; run again.")
    write_jsonl(folder / "predictions.jsonl", [rows[json.dumps(q["question_id"])] for q in questions])
    for part in folder.glob("part-*.jsonl"):
        part.unlink()


def cell_of(session: Session, task: BenchmarkTask, folder: Path, settings: dict[str, Any], label: str, stage: int) -> Cell:
    """The cell of a task in `folder`; settings: of `answered_with`; stage: its number, from 1."""
    questions, _ = task.questions()
    return Cell(folder, questions, task.question_images, settings, session.run.eval.batch_size, label,
                oracle_task(session, task), stage, task)  # fmt: skip


def evaluate_cells(session: Session, cells: list[Cell], scored: Callable[[Cell, dict[str, Any]], None]) -> None:
    """Answer and score cells of tasks; call inside `with session:`.

    A cell is scored by the main process in a thread while the next is answered: captions take seconds of Java, in which the
    GPU would idle. scored: called in that thread with each score. All are there when this returns. Stopped before, what was
    answered and is not scored yet is scored by the next start.

    Raises:
        UserError: of answering or of scoring; it names the cell.
    """

    def score_one(cell: Cell) -> None:
        try:
            scored(cell, score_cell(cell.task, cell.folder))
        except UserError as error:
            raise UserError(f"{cell.label}: {error}") from None
        except Exception as error:
            error.add_note(f"while {cell.label} was scored")
            raise

    pool, scores = ThreadPoolExecutor(1, "scores"), []

    def answered(cell: Cell) -> None:
        for future in scores:
            if future.done():
                future.result()  # an error does not wait for the other cells
        if ranks()[0] == 0:
            scores.append(pool.submit(score_one, cell))

    try:
        answer(session, cells, session.run.eval.num_workers, answered)
        for future in scores:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # what is being scored is finished


def score_cell(task: BenchmarkTask, folder: Path) -> dict[str, Any]:
    """Score the complete answers of a cell and write `score.json`, which also says all that the score depends on."""
    questions, in_file = task.questions()
    predictions = folder / "predictions.jsonl"
    settings = read_json(folder / "settings.json")
    result = scored_rows(task, read_part(predictions), questions, in_file)
    if settings.get("backend") == VLLM:
        result["labels"].append(f"answered by vLLM {settings['vllm']['version']}")
    result |= {**settings, **scored_with(task), "predictions_sha256": sha256(predictions)}
    write_json(folder / "score.json", result)
    return result


def scored_rows(task: BenchmarkTask, rows: list[dict[str, Any]], questions: list[dict[str, Any]], in_file: int) -> dict[str, Any]:
    """The score of answers to these questions, in their order, with all that must stand beside it; in_file: how many the
    task's question file holds."""
    rows, labels = task.mix_answers(rows)
    labels += task.score_labels(len(questions), in_file)
    options = task.score_options(partial=len(questions) < in_file)
    result = score(task.metric, rows, questions, task.reference_file, options)
    return result | {"labels": [*labels, *result["labels"]]}


def oracle_task(session: Session, task: BenchmarkTask) -> int | None:
    """The task id an oracle method is told: the task's own, or that of the task whose instruction it borrows."""
    names = [t.id for t in session.tasks]
    name = task.entry.instruction_of or task.id
    return names.index(name) if name in names else None
