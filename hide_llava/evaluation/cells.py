"""One cell of the accuracy matrix: answer a task's questions after a stage, resumably, then score them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from hide_llava.adapters.anchors import ranks
from hide_llava.config import TaskConfig
from hide_llava.data.collator import Collator
from hide_llava.data.dataset import QuestionDataset
from hide_llava.errors import UserError
from hide_llava.evaluation.batches import automatic_batch_size, within_memory
from hide_llava.evaluation.questions import (
    as_stored,
    generation_settings,
    mix_answers,
    question_file,
    read_questions,
    reference_file,
    score_labels,
    score_options,
    with_suffix,
)
from hide_llava.metrics import score
from hide_llava.storage import read_json, sha256, write_bytes, write_json, write_jsonl, writing
from hide_llava.training.sequence import image_root
from hide_llava.training.session import Session


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Remember what a half-answered folder is answered with, and refuse to go on with anything else.

    A scored cell says it in its score.json.

    Raises:
        UserError: the folder holds answers made with other settings; the differing ones are listed.
    """
    file = folder / "settings.json"
    stored = next((f for f in (file, folder / "score.json") if f.is_file()), None)
    if parts(folder) and stored is not None:
        old = as_stored(read_json(stored))
        differing = [k for k in settings if old.get(k) != settings[k]]
        if differing:
            listed = "; ".join(
                "another question file"
                if k == "questions_sha256"
                else f"{k}: {old.get(k)!r} there, {settings[k]!r} now"
                for k in differing
            )
            raise UserError(f"{folder}: holds answers made with other settings ({listed}); delete it to start again.")
    write_json(file, settings)


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

    `settings`: of `generation_settings`; they say transform, length and suffix. `task`: the index an oracle is told.

    Batches are cut once from the length-sorted list and never change, so that an answer cannot depend on where an
    earlier attempt stopped. Every process appends its batches to a part file; parts are merged when all is answered.

    Raises:
        UserError: an image is missing or unreadable, or a part file is damaged before its last line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rank, world = ranks()
    if rank == 0:
        keep_settings(folder, settings)
    done = {json.dumps(row["question_id"]) for part in parts(folder) for row in read_part(part)}
    if world > 1:
        torch.distributed.barrier()  # nobody appends while another still reads
    routing = "reference" if "zero_image" in session.method.needs else "question"
    questions = with_suffix(questions, settings["prompt_suffix"])
    data = QuestionDataset(questions, images, session.loaded.tokenizer, session.loaded.transform(
        settings["image_transform"]), session.loaded.image_tokens, routing,
        settings["image_orientation"])  # fmt: skip
    order = sorted(range(len(questions)), key=lambda i: (-len(questions[i]["text"]), i))
    longest = max((len(q["text"]) for q in questions), default=0)  # characters: more than tokens
    length = session.loaded.image_tokens + longest + settings["max_new_tokens"]
    size = batch_size or automatic_batch_size(session.core.llava, length)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    mine = [
        b for i, b in enumerate(batches)
        if i % world == rank and any(json.dumps(questions[q]["question_id"]) not in done for q in b)
    ]  # fmt: skip
    workers = (4 if session.core.llava.device.type == "cuda" else 0) if workers is None else workers
    loader = DataLoader(data, batch_sampler=mine, collate_fn=_Collate(), num_workers=workers)
    part = folder / f"part-{rank}.jsonl"
    with writing(part), open(part, "a", encoding="utf-8") as file:
        for batch in tqdm(loader, desc=label, disable=rank > 0 or not os.isatty(2), leave=False):
            rows = within_memory(lambda b: answer_batch(session, b, settings["max_new_tokens"], task), batch)
            fresh = [row for row in rows if json.dumps(row["question_id"]) not in done]
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in fresh))
            file.flush()
            os.fsync(file.fileno())
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
    for b, tokens in enumerate(ids.tolist()):
        if tokenizer.eos_token_id in tokens:
            tokens = tokens[: tokens.index(tokenizer.eos_token_id) + 1]
        rows.append({
            "question_id": batch["ids"][b], "prompt": batch["prompts"][b],
            "text": tokenizer.decode(tokens, skip_special_tokens=True).strip(), "token_ids": tokens,
            "routing": {name: round(float(w[b]), 6) for name, w in route.weights.items()},
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
    session: Session, task: TaskConfig, folder: Path, weights: str | None, label: str
) -> dict[str, Any] | None:
    """Answer and score one cell; call inside `with session:`. Only rank 0 returns the score.

    weights: hash of the stage folder the answers come from (`stage_hash`).
    """
    config, file = session.config, question_file(session.config, task)
    questions, in_file = read_questions(config, task)
    settings = {**generation_settings(config, task), "questions_sha256": sha256(file), "weights_sha256": weights}
    predictions = answer(session, questions, image_root(config, task, test=True), folder, settings,
                         config.eval.batch_size, config.eval.num_workers, label, oracle_task(session, task))  # fmt: skip
    if ranks()[0]:
        return None
    rows, labels = mix_answers(read_part(predictions), config, task)
    labels += score_labels(config, task, len(questions), in_file)
    options = score_options(config, task, partial=len(questions) < in_file)
    result = score(task.metric, rows, questions, reference_file(config, task), options)
    result |= {**settings, "labels": [*labels, *result["labels"]], "predictions_sha256": sha256(predictions)}
    write_json(folder / "score.json", result)
    (folder / "settings.json").unlink(missing_ok=True)  # from here on score.json says it
    return result


def oracle_task(session: Session, task: TaskConfig) -> int | None:
    """The task id an oracle method is told: the task's own, or that of the task whose instruction it borrows."""
    names = [t.id for t in session.tasks]
    name = task.instruction_of or task.id
    return names.index(name) if name in names else None
