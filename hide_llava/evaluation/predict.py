"""Answer any question file with a run as it was after a stage."""

from __future__ import annotations

import shutil
from pathlib import Path

from hide_llava.data.records import load_questions
from hide_llava.data.sources import content_sha256
from hide_llava.errors import UserError
from hide_llava.evaluation.binding import answered_with, stored_settings
from hide_llava.evaluation.cells import Cell, answer, read_part
from hide_llava.storage import write_jsonl
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder
from hide_llava.training.session import Session


def predict(
    run: Path, stage: int, questions: Path, images: Path, output: Path, batch_size: int | None = None,
    max_new_tokens: int | None = None, dtype: str | None = None, task: str | None = None,
) -> int:  # fmt: skip
    """Write JSON lines {question_id, prompt, text, token_ids, routing}; the number of answers is returned.

    `task`: ask as this task of the benchmark is asked (transform, length, suffix); None: as the benchmark says, no suffix.
    A killed call goes on where it stopped: answers so far lie in `<output>.part/`.

    Raises:
        UserError: not a run, no such stage or task, or a bad question file.
    """
    config = RunFolder(run).config
    config.eval.backend = "own"  # whatever answered the run's own cells
    of_run = Run(config, run, dtype)
    of_run.check_stage(stage)
    of_task = None if task is None else of_run.task(task)
    if of_run.oracle:
        raise UserError("this run routes by the task id (oracle), which a question file does not state.")
    rows = load_questions(questions, images)
    session = Session(of_run)
    session.restore_after(stage)
    settings = answered_with(of_run, of_task, of_run.chain_after(stage))
    settings["max_new_tokens"] = max_new_tokens or settings["max_new_tokens"]
    settings["questions_sha256"] = content_sha256(questions)
    settings["images"] = str(images.resolve())
    parts = output.with_name(output.name + ".part")
    with session:
        begun = (stored_settings(parts) or {}).get("batch_size")
        cell = Cell(parts, rows, images, settings, batch_size or begun or of_run.eval.batch_size)
        answer(session, [cell], of_run.eval.num_workers)
    write_jsonl(output, read_part(cell.predictions))
    shutil.rmtree(parts)
    return len(rows)
