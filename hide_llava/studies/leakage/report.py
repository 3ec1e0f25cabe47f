"""The leakage audit as Markdown, CSV, JSON and a figure, beside the gap between zero-shot and joint training."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hide_llava.results.drawing import DARK, LIGHT, Theme, can_draw, new_figure, png
from hide_llava.results.html import write
from hide_llava.results.run_reader import StoredRun
from hide_llava.results.tables import markdown_table, number
from hide_llava.storage import write_json, write_text
from hide_llava.studies.leakage.shares import Leakage, Overlap, scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Gaps = dict[str, tuple[float | None, float | None]]
"""task id -> (zero-shot score, score of joint training), percent, means over the runs given."""

HEADER = ("Task", "Split", "Images", "by path", "by content", "by look", "in the mix %", "Questions", "asked there %",
          "about the same image %")  # fmt: skip
READ = (
    "Images: distinct images of the file and how many of them are in the mix: their path names the same image, their "
    "file is equal, or they look the same (each image counts once). Questions asked there: the text occurs in the mix, "
    "about any image (a constant prompt makes this 0 or 100 %). About the same image: share of the questions about an "
    "image that the mix asks about that image."
)


def gaps(found: dict[str, dict[str, list[float]]], tasks: list[str]) -> Gaps:
    """Mean scores of `leakage.scores`, for the tasks that either method has one of."""
    both = {t: tuple(fmean(found[m][t]) if t in found[m] else None for m in ("zero_shot", "multitask")) for t in tasks}
    return {task: pair for task, pair in both.items() if pair != (None, None)}


def cells(row: Overlap) -> list[str]:
    """One row of the table as text."""
    return [
        row.title, row.split, f"{row.images:,}", f"{row.by_path:,}", f"{row.by_content:,}", f"{row.by_look:,}",
        number(row.image_share, 1), f"{row.questions:,}", number(row.question_share, 1), number(row.pair_share, 1),
    ]  # fmt: skip


def body(audit: Leakage) -> list[list[str]]:
    """The rows: every file, then the totals of each split."""
    totals = [audit.total(split) for split in ("train", "test") if any(row.split == split for row in audit.rows)]
    return [cells(row) for row in [*audit.rows, *totals]]


def gap_rows(audit: Leakage, found: Gaps) -> list[list[str]]:
    """[task, zero-shot, joint, gap, share of test images in the mix] of the tasks with a score."""
    shares = {row.task: row for row in audit.rows if row.split == "test"}
    rows = []
    for task, (zero, joint) in found.items():
        gap = joint - zero if zero is not None and joint is not None else None
        row = shares[task]
        rows.append([row.title, number(zero), number(joint), number(gap), number(row.image_share, 1)])
    return rows


def markdown(audit: Leakage, found: Gaps, labels: list[str]) -> str:
    """The whole report."""
    lines = [f"# {audit.benchmark} in {audit.mix}", ""]
    lines += [f"The mix holds {audit.mix_records:,} records and {audit.mix_images:,} distinct images.", ""]
    lines += [*markdown_table(list(HEADER), body(audit), "ll" + "r" * (len(HEADER) - 2)), "", READ]
    if found:
        header = ["Task", "Zero-shot", "Multi-task", "Gap", "test images in the mix %"]
        lines += ["", *markdown_table(header, gap_rows(audit, found)), ""]
        lines += ["Gap: multi-task minus zero-shot (percent); small where the base model has seen the task."]
    notes = [*audit.notes, *labels]
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def comma_separated(audit: Leakage, found: Gaps) -> str:
    """One line per file and per total; the scores stand in the test lines."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Overlap)]
    shares = ["image_share", "question_share", "pair_share"]
    writer.writerow([*names, *shares, "zero_shot", "multitask"])
    totals = [audit.total(split) for split in ("train", "test") if any(row.split == split for row in audit.rows)]
    for row in [*audit.rows, *totals]:
        pair = found.get(row.task, (None, None)) if row.split == "test" else (None, None)
        values = [getattr(row, name) for name in names]
        writer.writerow([*values, *(number(getattr(row, name), 4) for name in shares), *map(number, pair)])
    return out.getvalue()


def as_json(audit: Leakage, found: Gaps, labels: list[str]) -> dict[str, Any]:
    """Everything as numbers."""
    rows = [_row(row) for row in audit.rows]
    totals = {name: _row(audit.total(split)) for name, split in (("train", "train"), ("test", "test"), ("both", None))}
    means = {task: {"zero_shot": zero, "multitask": joint} for task, (zero, joint) in found.items()}
    return {**dataclasses.asdict(audit), "rows": rows, "total": totals, "scores": means, "labels": labels}


def _row(row: Overlap) -> dict[str, Any]:
    shares = {"image_share": row.image_share, "question_share": row.question_share, "pair_share": row.pair_share}
    return {**dataclasses.asdict(row), "images_in_mix": row.images_in_mix, **shares}


def figure(audit: Leakage, found: Gaps, theme: Theme = LIGHT) -> Figure:
    """Left: share of each task's images in the mix, train and test. Right, with scores: zero-shot to multi-task."""
    tasks = {row.task: row.title for row in audit.rows}
    height = 1.2 + 0.52 * len(tasks)
    drawn, left = new_figure(theme, 10.2 if found else 7.2, height)
    right = None
    if found:
        grid = drawn.add_gridspec(1, 2, width_ratios=(1.0, 0.8))
        left.set_subplotspec(grid[0])
        right = drawn.add_subplot(grid[1], facecolor=theme.paper, sharey=left)
        right.tick_params(colors=theme.ink, labelsize=9, length=0, labelleft=False)
        for spine in right.spines.values():
            spine.set_visible(False)
    _shares(left, audit, list(tasks), theme)
    left.set_yticks(range(len(tasks)), list(tasks.values()))
    left.set_ylim(len(tasks) - 0.4, -0.6)
    if right is not None:
        _dumbbells(right, found, list(tasks), theme)
    return drawn


def _shares(axes: Any, audit: Leakage, tasks: list[str], theme: Theme) -> None:
    for split, shift, colour in (("train", -0.19, theme.series[0]), ("test", 0.19, theme.series[1])):
        rows = [row for row in audit.rows if row.split == split and row.image_share is not None]
        places = [tasks.index(row.task) + shift for row in rows]
        axes.barh(places, [row.image_share for row in rows], height=0.34, color=colour, label=split)
        for row, place in zip(rows, places):
            axes.text(row.image_share + 1, place, f"{row.image_share:.1f}", va="center", fontsize=8, color=theme.ink)
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("images in the instruction mix (percent)", color=theme.muted, fontsize=9)
    _finish(axes, theme, 2)


def _dumbbells(axes: Any, found: Gaps, tasks: list[str], theme: Theme) -> None:
    for k, task in enumerate(tasks):
        zero, joint = found.get(task, (None, None))
        if zero is not None and joint is not None:
            axes.plot([zero, joint], [k, k], color=theme.grid, linewidth=3, zorder=1)
            middle = (zero + joint) / 2
            axes.text(middle, k - 0.2, f"{joint - zero:+.1f}", ha="center", fontsize=8, color=theme.ink)
    for name, column, colour, marker in (
        ("zero-shot", 0, theme.series[3], "o"),
        ("multi-task", 1, theme.series[2], "s"),
    ):
        points = [(found[task][column], k) for k, task in enumerate(tasks) if task in found]
        points = [(score, k) for score, k in points if score is not None]
        if points:
            xs, ys = zip(*points)
            axes.scatter(xs, ys, color=colour, marker=marker, s=38, zorder=2, label=name)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0), max(high, 105))
    axes.set_xlabel("score (percent)", color=theme.muted, fontsize=9)
    _finish(axes, theme, 2)


def _finish(axes: Any, theme: Theme, columns: int) -> None:
    axes.grid(axis="x", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=9, borderpad=0.2
    )
    for text in legend.get_texts():
        text.set_color(theme.ink)


def write_leakage(audit: Leakage, runs: list[StoredRun], folder: Path) -> str:
    """leakage.md, .csv, .json and (with matplotlib) leakage-light.png and -dark.png in `folder`; the Markdown text.

    Raises:
        UserError: a run is neither zero_shot nor multitask, or has none of the audited tasks.
    """
    tasks = list(dict.fromkeys(row.task for row in audit.rows if row.split == "test"))
    found, labels = scores(runs, tasks)
    means = gaps(found, tasks)
    if not can_draw():
        audit.notes.append("No figure: matplotlib is not installed (pip install -e '.[report]').")
    else:
        for theme in (LIGHT, DARK):
            write(folder / f"leakage-{theme.name}.png", png(figure(audit, means, theme)))
    text = markdown(audit, means, labels)
    write_text(folder / "leakage.md", text)
    write_text(folder / "leakage.csv", comma_separated(audit, means))
    write_json(folder / "leakage.json", as_json(audit, means, labels))
    return text
