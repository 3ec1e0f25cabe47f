"""One cell of the accuracy matrix: answer a task's questions after a stage, resumably, then score them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from hide_llava.adapters.anchors import ranks
from hide_llava.benchmarks.places import image_root
from hide_llava.config import RunConfig, TaskConfig
from hide_llava.data.collator import Collator
from hide_llava.data.dataset import QuestionDataset
from hide_llava.errors import UserError
from hide_llava.evaluation.batches import automatic_batch_size, within_memory
from hide_llava.evaluation.binding import refuse_other, scored_with, stored_settings
from hide_llava.evaluation.questions import (
    mix_answers,
    read_questions,
    reference_file,
    score_labels,
    score_options,
    with_suffix,
)
from hide_llava.metrics import score
from hide_llava.progress import Progress
from hide_llava.storage import read_json, sha256, write_bytes, write_json, write_jsonl, writing
from hide_llava.training.session import Session


def answer(
    session: Session,
    questions: list[dict[str, Any]],
    images: Path,
    folder: Path,
    settings: dict[str, Any],
    batch_size: int | None,
    workers: int | None = None,
    label: str = "answers",
    task: int | None = None,
) -> Path:
    """Answer `questions` greedily into `folder/predictions.jsonl`; call inside `with session:`.

    `settings`: of `answered_with`; they say transform, length and suffix. `task`: the index an oracle is told.
    `batch_size`: None takes that of the answers which are there already, else what fits into memory.

    Batches are cut once from the length-sorted list and never change, so that an answer cannot depend on where an
    earlier attempt stopped; their size is part of what the answers were made with. Every process appends its batches to
    a part file; parts are merged when all is answered.

    Raises:
        UserError: an image is missing or unreadable, a part file is damaged before its last line, or the folder holds
            answers made with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rank, world = ranks()
    known = stored_settings(folder) or {}
    done = {json.dumps(row["question_id"]) for part in parts(folder) for row in read_part(part)}
    if world > 1:
        torch.distributed.barrier()  # nobody writes while another still reads
    routing = "reference" if "zero_image" in session.method.needs else "question"
    questions = with_suffix(questions, settings["prompt_suffix"])
    data = QuestionDataset(questions, images, session.loaded.tokenizer, session.loaded.transform(
        settings["image_transform"]), session.loaded.image_tokens, routing,
        settings["image_orientation"])  # fmt: skip
    order = sorted(range(len(questions)), key=lambda i: (-len(questions[i]["text"]), i))
    longest = max((len(q["text"]) for q in questions), default=0)  # characters: more than tokens
    length = session.loaded.image_tokens + longest + settings["max_new_tokens"]
    size = batch_size or known.get("batch_size") or automatic_batch_size(session.core.llava, length)
    settings = {**settings, "batch_size": size}
    if rank == 0:
        refuse_other(folder, known, settings)
        write_json(folder / "settings.json", settings)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    mine = [
        b for i, b in enumerate(batches)
        if i % world == rank and any(json.dumps(questions[q]["question_id"]) not in done for q in b)
    ]  # fmt: skip
    workers = (4 if session.core.llava.device.type == "cuda" else 0) if workers is None else workers
    loader = DataLoader(data, batch_sampler=mine, collate_fn=_Collate(), num_workers=workers)
    part = folder / f"part-{rank}.jsonl"
    asked = 0  # by this process; batches are dealt evenly, so the main one's share says how far all are
    with (
        writing(part), open(part, "a", encoding="utf-8") as file,
        Progress(label, sum(map(len, mine)), "question") as progress,
    ):  # fmt: skip
        for batch in loader:
            rows = within_memory(lambda b: answer_batch(session, b, settings["max_new_tokens"], task), batch)
            fresh = [row for row in rows if json.dumps(row["question_id"]) not in done]
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in fresh))
            file.flush()
            os.fsync(file.fileno())
            asked += len(batch["ids"])
            progress.at(asked)
    if world > 1:
        torch.distributed.barrier()
    if rank == 0:
        merge(folder, questions)
    if world > 1:
        torch.distributed.barrier()
    return folder / "predictions.jsonl"


class _Collate:
    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {**Collator(side="left")(samples), "prompts": [s["prompt"] for s in samples]}


def answer_batch(
    session: Session, batch: dict[str, Any], max_new_tokens: int, task: int | None
) -> list[dict[str, Any]]:
    """Rows {question_id, prompt, text, token_ids, routing} of one left-padded batch."""
    device = session.core.llava.device
    batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    if session.method.oracle:
        batch["task"] = task
    ids, route = session.routed.generate(batch, max_new_tokens)
    tokenizer, rows = session.loaded.tokenizer, []
    names = list(route.weights)
    weights = torch.stack([route.weights[n] for n in names], 1).tolist() if names else [[]] * len(ids)  # one copy to the host
    for b, tokens in enumerate(ids.tolist()):
        if tokenizer.eos_token_id in tokens:
            tokens = tokens[: tokens.index(tokenizer.eos_token_id) + 1]
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


def evaluate_cell(
    session: Session, task: TaskConfig, folder: Path, settings: dict[str, Any], label: str
) -> dict[str, Any] | None:
    """Answer and score one cell; call inside `with session:`. Only rank 0 returns the score.

    settings: of `answered_with`.
    """
    config = session.config
    questions, _ = read_questions(config, task)
    answer(session, questions, image_root(config, task, test=True), folder, settings, config.eval.batch_size,
           config.eval.num_workers, label, oracle_task(session, task))  # fmt: skip
    return None if ranks()[0] else score_cell(config, task, folder)


def score_cell(config: RunConfig, task: TaskConfig, folder: Path) -> dict[str, Any]:
    """Score the complete answers of a cell and write `score.json`, which also says all that the score depends on."""
    questions, in_file = read_questions(config, task)
    predictions = folder / "predictions.jsonl"
    rows, labels = mix_answers(read_part(predictions), config, task)
    labels += score_labels(config, task, len(questions), in_file)
    options = score_options(config, task, partial=len(questions) < in_file)
    result = score(task.metric, rows, questions, reference_file(config, task), options)
    result |= {**read_json(folder / "settings.json"), **scored_with(config, task)}
    result |= {"labels": [*labels, *result["labels"]], "predictions_sha256": sha256(predictions)}
    write_json(folder / "score.json", result)
    return result


def oracle_task(session: Session, task: TaskConfig) -> int | None:
    """The task id an oracle method is told: the task's own, or that of the task whose instruction it borrows."""
    names = [t.id for t in session.tasks]
    name = task.instruction_of or task.id
    return names.index(name) if name in names else None
