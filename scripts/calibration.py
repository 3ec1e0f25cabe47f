"""How near a small benchmark comes to what is published of LLaVA-1.5-7B on UCIT: the table of docs/MINI_UCIT.md.

    METHODS="zero_shot lora multitask individual" bash scripts/compare_methods.sh
    python scripts/calibration.py runs/compare-methods

Reads the four reference runs METHOD-seedN of all seeds that are there, and the benchmark's files for the score of the commonest
training answer. `python scripts/calibration.py --majority RUN` prints that row alone, of the benchmark of any run.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean, median

from hide_llava.benchmarks.files import BenchmarkTask, stored_tasks
from hide_llava.errors import UserError
from hide_llava.evaluation.cells import scored_rows
from hide_llava.results.aggregates import last
from hide_llava.results.matrix import AccuracyMatrix, last_row
from hide_llava.results.run_reader import read_run
from hide_llava.studies.weights.across_layers import analyse

REFERENCES = ("zero_shot", "lora", "multitask", "individual")
PUBLISHED = {"zero-shot ÷ joint": "31.7 / 72.5 = 0.44", "sequential Last ÷ joint": "0.66 to 0.84", "individual ÷ joint": "1.05",
             "weight change of one task": "not published", "largest ÷ smallest joint score": "about 1.7"}  # fmt: skip


def rows_of(folder: Path, method: str) -> tuple[list[float], list[AccuracyMatrix], list[Path]]:
    """(score on every task after the last stage, mean over the seeds; matrices; run folders) of one reference.

    Raises UserError when no run of it is there, or one is not evaluated to its end.
    """
    runs = sorted(path for path in folder.glob(f"{method}-seed*") if path.is_dir())
    matrices = [read_run(run).matrix for run in runs]
    if not runs or any(value is None for matrix in matrices for value in last_row(matrix)):
        raise UserError(f"{folder} has no complete run of {method}: METHODS={method} bash scripts/compare_methods.sh goes on.")
    return [fmean(column) for column in zip(*map(last_row, matrices))], matrices, runs


def majority(task: BenchmarkTask) -> float:
    """Percent that giving every question the commonest answer of the task's training records scores; of equals the first by
    alphabet. Raises UserError where the benchmark's files are not there."""
    turns = (turn for conversation in task.records()["conversations"] for turn in conversation)
    counts = Counter(turn["value"] for turn in turns if turn["from"] == "gpt")
    answer = min(counts, key=lambda text: (-counts[text], text))
    questions, in_file = task.questions()
    rows = [{"question_id": question["question_id"], "text": answer} for question in questions]
    return scored_rows(task, rows, questions, in_file)["score"]


def majority_row(run: Path) -> list[float]:
    """`majority` of every task of a run's benchmark, in order."""
    stored = read_run(run)
    known = stored_tasks(stored.config)
    return [majority(known[task]) for task in stored.matrix.tasks]


def line(name: str, row: list[float]) -> str:
    """A row of the table of tasks, its mean last."""
    return f"| {name} | " + " | ".join(f"{value:.2f}" for value in (*row, fmean(row))) + " |"


def measured(folder: Path) -> tuple[dict[str, str], list[str]]:
    """(reached value of every target as text, lines of the table of tasks).

    Zero-shot and individual are set against joint training as the means of all tasks; the weight change is the median over
    all adapted linears and all tasks of ‖sBA‖ ÷ ‖W‖ of the individual experts.
    """
    scores = {method: rows_of(folder, method) for method in REFERENCES}
    means = {method: fmean(found[0]) for method, found in scores.items()}
    joint, zero = scores["multitask"][0], scores["zero_shot"][0]
    ratios = [z / j for z, j in zip(zero, joint)]
    report = analyse(read_run(scores["individual"][2][0]))
    changes = [one.norms[u] / one.base for one in report.linears for u in range(len(report.updates)) if one.norms[u] and one.base]
    reached = {
        "zero-shot ÷ joint": f"{means['zero_shot'] / means['multitask']:.2f} (of tasks {min(ratios):.2f} to {max(ratios):.2f}, "
                             f"{sum(ratio > 0.15 for ratio in ratios)} above 0.15)",
        "sequential Last ÷ joint": f"{fmean(last(m) for m in scores['lora'][1]) / means['multitask']:.2f}",
        "individual ÷ joint": f"{means['individual'] / means['multitask']:.2f}",
        "weight change of one task": f"{100 * median(changes):.1f} % ({100 * min(changes):.1f} to {100 * max(changes):.1f})",
        "largest ÷ smallest joint score": f"{max(joint) / min(joint):.2f}",
    }  # fmt: skip
    titles = scores["lora"][1][0].task_titles
    learned = [fmean(m.cells[j][j] for m in scores["lora"][1]) for j in range(len(titles))]
    rows = {"commonest answer": majority_row(scores["lora"][2][0]), **{method: found[0] for method, found in scores.items()}}
    rows["lora, when learned"] = learned
    lines = ["| run | " + " | ".join((*titles, "mean")) + " |", "|---|" + "---:|" * (len(titles) + 1)]
    return reached, lines + [line(name, row) for name, row in rows.items()]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the runs METHOD-seedN lie; with --majority a run")
    parser.add_argument("--majority", action="store_true", help="only the row of the commonest training answer")
    args = parser.parse_args()
    if args.majority:
        print(line("commonest answer", majority_row(args.folder)))
        return
    reached, lines = measured(args.folder)
    print("| quantity | 7B on UCIT | reached |\n|---|---|---|")
    for name, value in reached.items():
        print(f"| {name} | {PUBLISHED[name]} | {value} |")
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
