"""`hide-llava lmms-tasks`: the tasks of a benchmark as tasks of lmms-eval, with its question files and our scorers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from hide_llava.benchmarks.files import BenchmarkTask, with_suffix
from hide_llava.data.records import pictures
from hide_llava.errors import UserError
from hide_llava.interop.lmms_requests import OWN
from hide_llava.interop.lmms_scoring import BENCHMARK
from hide_llava.storage import write_json, write_jsonl, write_text
from hide_llava.training.run import Run

CALLS = """\
doc_to_visual: !function hide_llava.interop.lmms_scoring.doc_to_visual
doc_to_text: !function hide_llava.interop.lmms_scoring.doc_to_text
doc_to_messages: !function hide_llava.interop.lmms_scoring.doc_to_messages
doc_to_target: target
process_results: !function hide_llava.interop.lmms_scoring.process_results
metric_list:
  - metric: score
    aggregation: !function hide_llava.interop.lmms_scoring.score
    higher_is_better: true
"""


def write(run: Run, folder: Path) -> list[str]:
    """Write the tasks of a run's benchmark, those of general ability too, for `lmms-eval --include_path FOLDER`.

    Returns their names, the group of all last. Pictures stay where they are, and are named by their whole paths.

    Raises:
        UserError: the folder is not empty, or a question file is missing or bad.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not an empty folder; choose another --output, or delete it.")
    folder = folder.resolve()
    group, common = f"{OWN}_{_plain(run.benchmark.name)}", run.common
    asked = [(task, *task.questions()) for task in [*run.tasks, *run.all_general]]
    for task, questions, in_file in asked:
        task.check_scoring(questions, in_file)  # before anything is written
    names = []
    for task, questions, _ in asked:
        names.append(f"{group}_{_plain(task.id)}")
        rows = folder / "questions" / f"{names[-1]}.jsonl"
        write_jsonl(rows, documents(task, questions, folder))
        about = {
            "task": names[-1], "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test", "output_type": "generate_until",
            "generation_kwargs": {
                "max_new_tokens": task.settings()["max_new_tokens"], "temperature": 0, "do_sample": False, "until": [],
            },
            "metadata": {"version": 1.0, "metric": task.metric},
        }  # fmt: skip
        write_text(folder / f"{names[-1]}.yaml", yaml.safe_dump(about, sort_keys=False) + CALLS)
    write_text(folder / f"{group}.yaml", yaml.safe_dump({"group": group, "task": names}, sort_keys=False))
    write_json(folder / BENCHMARK, {
        "benchmark": run.benchmark.model_dump(mode="json"), "eval": run.eval.model_dump(mode="json"),
        "data_root": str(run.data.resolve()), "limit": common.limit, "seed": common.seed,
        "train": {"on_bad_sample": common.on_bad_sample}, "caption": {"tokenizer": common.tokenizer},
    })  # fmt: skip
    return [*names, group]


def documents(task: BenchmarkTask, questions: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """A row for each question. text: as the file has it, for our own model; prompt: with the task's suffix, for others;
    question_id, target: as JSON, because a column has one type."""
    settings = task.settings()
    return [
        {
            OWN: f"{task.common.benchmark.name}/{task.id}", "folder": str(folder),
            "question_id": json.dumps(question["question_id"]), "text": question["text"], "prompt": prompt["text"],
            "images": [str((task.question_images / name).resolve()) for name in pictures(question)],
            "orientation": settings["image_orientation"], "target": json.dumps(question.get("answer"), ensure_ascii=False),
        }
        for question, prompt in zip(questions, with_suffix(questions, settings["prompt_suffix"]))
    ]  # fmt: skip


def _plain(name: str) -> str:
    """A name as lmms-eval's have it: commas and `=` part its options."""
    return "".join(c if c.isalnum() else "_" for c in name.lower())
