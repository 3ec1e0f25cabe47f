"""A run folder made of invented numbers, in the layout of docs/CHECKPOINTS.md, for the tests of hide_llava.results."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

TASKS = [
    ("imagenet-r", "ImageNet-R", "exact_upper"),
    ("arxivqa", "ArxivQA", "exact_upper"),
    ("vizwiz", "VizWiz", "caption7"),
    ("iconqa", "IconQA", "exact_upper"),
    ("clevr-math", "CLEVR-Math", "exact_upper"),
    ("flickr30k", "Flickr30k", "caption7"),
]
# The public rerun of HiDe on UCIT that published.yaml holds (hybrid-llava-readme).
RERUN = [
    [91.87],
    [91.30, 93.27],
    [89.10, 92.33, 54.88],
    [87.23, 90.83, 49.07, 81.67],
    [84.73, 91.57, 46.19, 66.67, 67.03],
    [83.50, 90.60, 48.51, 66.60, 61.63, 55.32],
]


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def write_cell(run: Path, stage: str, k: int, score: float, n: int = 20, labels: tuple[str, ...] = ()) -> Path:
    """One evaluated cell with n answers; routing prefers the expert of the true task."""
    task, _, metric = TASKS[k]
    folder = run / "eval" / stage / task
    rows = []
    for q in range(n):
        weights = {t: math.exp(3.0 * (t == task) + 0.4 * math.sin(q + i)) for i, (t, _, _) in enumerate(TASKS)}
        total = sum(weights.values())
        prompt = f"What is shown in picture {q}? <b>&\nAnswer with a word."
        text = "A <i>cat</i> & a dog" if q % 2 else "goldfish"
        routing = {t: round(w / total, 6) for t, w in weights.items()}
        rows.append({"question_id": q, "prompt": prompt, "text": text, "routing": routing})
    answers = "".join(json.dumps(row) + "\n" for row in rows)
    write(folder / "predictions.jsonl", answers)
    data = {
        "metric": metric,
        "score": score,
        "headline": "legacy",
        "legacy": {"score": score, "n": n},
        "clean": {"score": score - 1, "n": n},
        "n_expected": n,
        "n_scored": n,
        "labels": list(labels),
        "verdicts": {str(q): q % 2 for q in range(n)},
        "image_transform": "pad",
        "max_new_tokens": 128,
        "split": "test",
        "predictions_sha256": hashlib.sha256(answers.encode()).hexdigest(),
    }
    write(folder / "score.json", data)
    return folder


def manifest(name: str, preset: str, stages: list[dict], labels: list[str] | None = None) -> dict:
    return {
        "schema": 1,
        "name": name,
        "method": preset.split("-")[0],
        "preset": preset,
        "benchmark": "ucit",
        "model": "llava-1.5-7b",
        "seed": 42,
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"python": "3.11", "torch": "2.9"},
        "git": "0123456789abcdef",
        "global_batch": 96,
        "labels": labels or [],
        "tasks": [{"id": i, "title": t, "metric": m} for i, t, m in TASKS],
        "stages": stages,
    }


def sequential_run(
    root: Path, name: str = "ucit-hide", preset: str = "hide", done: int = 6, shift: float = 0.0, labels=None
) -> Path:
    """Six stages, the first `done` of them trained and evaluated, scores of the rerun minus `shift` where forgotten."""
    run = root / name
    stages = [
        {
            "name": f"{t + 1:02d}-{TASKS[t][0]}",
            "title": TASKS[t][1],
            "train_tasks": [TASKS[t][0]],
            "eval_tasks": [TASKS[j][0] for j in range(t + 1)],
            "status": "complete" if t < done else "pending",
        }
        for t in range(6)
    ]
    write(run / "manifest.json", manifest(name, preset, stages, labels))
    write(run / "config.yaml", f"seed: 42\nmethod:\n  name: hide\n  preset: {preset}\n  rank: 8  # <script>\n")
    for t in range(done):
        for j, score in enumerate(RERUN[t]):
            write_cell(run, stages[t]["name"], j, score - shift * (t - j))
        log = [
            {"step": s, "loss": 0.4 + 1.6 * math.exp(-s / (12 + 4 * t)) + 0.12 * math.sin(7.3 * s), "grad_norm": 1.0}
            for s in range(1, 61)
        ]
        write(run / "stages" / stages[t]["name"] / "trainer_log.jsonl", "".join(json.dumps(r) + "\n" for r in log))
    return run


def joint_run(root: Path, name: str = "ucit-multitask", preset: str = "multitask", scores=None) -> Path:
    """One stage, evaluated on all tasks: zero-shot (trains nothing) or multi-task."""
    run = root / name
    train = [] if preset == "zero_shot" else [t for t, _, _ in TASKS]
    stage = {
        "name": "01-joint",
        "title": "all tasks" if train else "no training",
        "train_tasks": train,
        "eval_tasks": [t for t, _, _ in TASKS],
        "status": "complete",
    }
    write(run / "manifest.json", manifest(name, preset, [stage]))
    write(run / "config.yaml", "seed: 42\n")
    for j, score in enumerate(scores or [90.6, 91.3, 61.8, 73.9, 73.6, 57.5]):
        write_cell(run, "01-joint", j, score)
    return run
