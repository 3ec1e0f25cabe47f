"""Finished tiny runs for tests of export and import, and models answering without this package."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hide_llava.data.dataset import QuestionDataset
from hide_llava.data.records import load_questions
from hide_llava.training.run import Run
from hide_llava.training.session import Session
from tests.cli.call import call
from tests.tiny import arguments

KINDS = ("llava", "qwen2_5_vl")
STAGE = "02-task1"  # what is exported; two tasks are enough


def trained(world: Path, method: str, folder: Path, *more: str) -> Path:
    """A run of two tasks that learned something, with all its cells answered."""
    few = ("tasks=[task0,task1]", "train.epochs=1", "train.learning_rate=1e-2")
    called = call("run", *arguments(world, method, folder, *few, *more))
    assert called.code == 0, called.err
    return folder


def answers(run: Path, task: str = "task1") -> list[list[int]]:
    """Token ids of a cell, as the run evaluated it."""
    rows = (run / "eval" / STAGE / task / "predictions.jsonl").read_text().splitlines()
    return [json.loads(row)["token_ids"] for row in rows]


def asked(run: Path, world: Path, task: str = "task1") -> tuple[type, list[dict[str, Any]]]:
    """The model's family, and the questions of a cell as samples."""
    session = Session(Run.at(run))
    questions = load_questions(world / "data" / task / "test.json", world / "data")
    data = QuestionDataset(questions, world / "data", session.reader("pad"))
    return type(session.backbone), [data[i] for i in range(len(data))]


@torch.no_grad()
def generated(
    model: PreTrainedModel, family: type, samples: list[dict[str, Any]], own: Any = None, new: int = 6
) -> list[list[int]]:
    """Greedy ids by transformers' own `generate`, each up to and with its end token. own: a PeftModel around the model."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    found = []
    for sample in samples:
        inputs = family.plain(sample, model)
        made = (own or model).generate(**inputs, max_new_tokens=new, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
        stop = next((i for i, token in enumerate(made) if token in ends), len(made) - 1)
        found.append(made[: stop + 1])
    return found


def about(out: Path) -> dict:
    return json.loads((out / "export.json").read_text())


def exported(run: Path, to: str, out: Path, *more: str) -> None:
    called = call("export", run, "--stage", "2", "--to", to, "--output", out, *more)
    assert called.code == 0, called.err
    assert f"exported to {out}" in called.out and [p.name for p in out.parent.iterdir() if p.name[0] == "."] == []
    prompts = about(out)["prompts"]
    assert all(p["difference"] < 1e-4 < 1e-3 < p["effect"] and p["next"] for rows in prompts.values() for p in rows)
