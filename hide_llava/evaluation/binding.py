"""What an answer and a score depend on. All of it is stored beside them, and nothing made otherwise is taken over.

`settings.json` of a cell says what its answers were made with, `score.json` that and what they were scored with. Pictures are
known by their names only: reading all of them would take longer than answering.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hide_llava import __version__
from hide_llava.backbones.loading import attention_of, device_of, dtype_of
from hide_llava.benchmarks.files import BenchmarkTask
from hide_llava.errors import UserError
from hide_llava.metrics import get
from hide_llava.plugins import versions
from hide_llava.schema import as_stored
from hide_llava.storage import read_json, sha256
from hide_llava.training.run import Run

ANSWERING = ("torch", "transformers", "peft", "tokenizers", "pillow")  # packages that decide answers
SCORING = ("pycocoevalcap",)
WORDS = {"questions_sha256": "another question file", "weights_sha256": "other weights",
         "model_sha256": "other files of the model", "references_sha256": "another reference file",
         "other_answers_sha256": "another file of another model's answers"}  # fmt: skip


def answered_with(run: Run, task: BenchmarkTask | None, weights: str | None) -> dict[str, Any]:
    """What decides the answers of a cell but the batch size, which is chosen when the first is given.

    weights: the chain of the stage (`training.lineage`), None for the untouched base. task: None for questions from
    outside a benchmark, whose file the caller adds.
    """
    settings, model = run.common.settings(task and task.entry), run.model
    if not run.family.transforms:  # as the model's own processor does, within its budget
        settings |= {"image_transform": "processor", "image_budget": model.image.model_dump()}
    if task is not None:
        settings["questions_sha256"] = task.questions_sha256()
    return {
        **settings, "weights_sha256": weights, "model_sha256": run.model_sha256(),
        "dtype": str(dtype_of(model)).removeprefix("torch."), "device": device_of(model).type,
        "attention": attention_of(model), "tf32": model.tf32, "shrink_batches": shrinks(run),
        "static_cache": run.eval.static_cache, "backend": run.eval.backend, "versions": versions(ANSWERING),
    }  # fmt: skip


def scored_with(task: BenchmarkTask) -> dict[str, Any]:
    """What decides the score of given answers."""
    options = {k: v for k, v in task.score_options().items() if k != "allow_partial"}
    return {
        "metric": get(task.metric).name, "metric_options": options,
        "references_sha256": _hash(task.reference_file), "other_answers_sha256": _hash(task.other_answers),
        "scorer": {"hide_llava": __version__, **versions(SCORING)},
    }  # fmt: skip


def _hash(path: Path | None) -> str | None:
    if path is None:
        return None
    if path.is_dir():
        return "\n".join(f"{p.relative_to(path)} {sha256(p)}" for p in sorted(path.rglob("*")) if p.is_file())
    return sha256(path)


def shrinks(run: Run) -> bool:
    """Whether rows that have ended leave their batch, where the model's family can: as `eval.shrink_batches` says, else in
    fp32 on a CPU, where the answers stay the same and each row costs its time."""
    if run.eval.shrink_batches is not None or not run.family.shrinks:
        return bool(run.eval.shrink_batches)
    return dtype_of(run.model) == torch.float32 and device_of(run.model).type == "cpu"


def differences(stored: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, in words. A key that is not stored was not known to the version that wrote it, and counts as equal."""
    return [_words(key, stored[key], now[key]) for key in now if key in stored and stored[key] != now[key]]


def _words(key: str, there: Any, now: Any) -> str:
    if key in WORDS:
        return WORDS[key]
    if isinstance(there, dict) and isinstance(now, dict):
        parts = [k for k in {**there, **now} if there.get(k) != now.get(k)]
        return ", ".join(f"{k} {there.get(k, 'absent')} there, {now.get(k, 'absent')} now" for k in parts)
    return f"{key}: {there!r} there, {now!r} now"


def refuse_other(folder: Path, stored: dict[str, Any], settings: dict[str, Any], remedy: str = "delete it") -> None:
    """Raises UserError if the answers in a folder were made with other settings; all that differs is named."""
    differing = differences(stored, settings)
    if differing:
        raise UserError(f"{folder}: was answered with other settings ({'; '.join(differing)}). Give the old ones back, or "
                        f"{remedy} to answer it anew.")  # fmt: skip


def edited(folder: Path) -> bool:
    """Whether a cell has a score, and answers that are not those that it is of."""
    score, answers = folder / "score.json", folder / "predictions.jsonl"
    if not (score.is_file() and answers.is_file()):
        return False
    return read_json(score).get("predictions_sha256") not in (None, sha256(answers))


def stored_settings(folder: Path) -> dict[str, Any] | None:
    """What the answers in a cell's folder were made with, None where there are none.

    Raises:
        UserError: there are answers, and nothing says how they were made.
    """
    for name in ("settings.json", "score.json"):
        if (folder / name).is_file():
            return as_stored(read_json(folder / name))
    if any(folder.glob("*.jsonl")):
        raise UserError(f"{folder}: holds answers, but no settings.json says how they were made; delete the folder.")
    return None
