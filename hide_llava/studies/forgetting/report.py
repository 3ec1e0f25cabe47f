"""Forgetting question by question as tables, CSV and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hide_llava.results.drawing import LIGHT, Theme, cut, ink_on, new_figure, new_panels
from hide_llava.results.tables import number
from hide_llava.studies.findings import Findings
from hide_llava.studies.forgetting.fates import FATES, Anatomy, Course

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "kept": "kept", "format": "lost by format", "content": "lost by content", "unknown": "lost", "gained": "right only now",
    "never": "wrong then and now",
}  # fmt: skip
HEADER = ("Task", "Questions", "right when learned", "kept", "lost", "by format", "by content", "lost %", "right only now")
NOTE = (
    "Right: a verdict of 0.5 or more (of captions CIDEr, with caption7 the mean of its parts). Lost by format: the answer does "
    "not have the form that its references have, or only its form is wrong (empty, case, punctuation, article, a longer answer "
    "that holds the right one); by content: the form is right and the answer is not. A question that was lost and came back "
    "counts as kept."
)


def findings(found: Anatomy) -> Findings:
    """All of an anatomy as it is written and printed."""
    figures = {"fates": ("What became of each task's questions", lambda theme: fates(found, theme))}
    if len(found.stages) > 1:
        figures["course"] = ("Questions of each task after each stage", lambda theme: course(found, theme))
    tables = [("After the last stage", HEADER, [_row(found, task) for task in found.tasks]),
              ("After each stage", ("After", "Task", *HEADER[2:], "newly lost", "regained"),
               [_stage_row(found, one) for one in found.courses])]  # fmt: skip
    return Findings(f"What {found.run} forgot", _lines(found), tables, figures, _csv(found), found.as_json(), NOTE)


def _lines(found: Anatomy) -> list[str]:
    last = [found.last(task) for task in found.tasks]
    known, lost = sum(one.known for one in last), sum(one.lost for one in last)
    by = {fate: sum(one.counts[fate] for one in last) for fate in FATES}
    lines = [f"{known} questions were answered right when their task was learned; {lost} of them "
             f"({_share(lost, known)} %) are wrong now."]  # fmt: skip
    if lost:
        told = [f"{by[fate]} {how} ({_share(by[fate], lost)} %)" for fate, how in
                (("format", "by format"), ("content", "by content"), ("unknown", "not told apart")) if by[fate]]  # fmt: skip
        lines.append(f"Lost: {', '.join(told)}.")
        worst = max(last, key=lambda one: one.lost)
        lines.append(f"Most were lost of {found.tasks[worst.task]}: {worst.lost} of {worst.known}.")
        after: dict[int, int] = {}
        for one in found.lost:
            after[one.after] = after.get(one.after, 0) + 1
        stage = max(after, key=lambda t: after[t])
        lines.append(f"Most were lost after {found.stages[stage]}: {after[stage]}.")
    regained = sum(one.regained for one in found.courses)
    lines += [f"Lost at one stage and right again at another: {regained} times."] if regained else []
    lines += [f"{title} is left out: {why}." for title, why in found.left_out.items()]
    return lines + found.notes


def _share(part: int, whole: int) -> str:
    return number(100 * part / whole, 1) if whole else "0"


def _numbers(one: Course) -> list[str]:
    counts = one.counts
    return [str(one.known), str(counts["kept"]), str(one.lost), str(counts["format"]), str(counts["content"]),
            _share(one.lost, one.known), str(counts["gained"])]  # fmt: skip


def _row(found: Anatomy, task: str) -> list[str]:
    one = found.last(task)
    return [found.tasks[task], str(sum(one.counts.values())), *_numbers(one)]


def _stage_row(found: Anatomy, one: Course) -> list[str]:
    return [found.stages[one.stage], found.tasks[one.task], *_numbers(one), str(one.newly_lost), str(one.regained)]


def _csv(found: Anatomy) -> dict[str, tuple]:
    counts = [[found.stages[one.stage], one.task, *(one.counts[fate] for fate in FATES), one.newly_lost, one.regained]
              for one in found.courses]  # fmt: skip
    lost = [[one.task, one.question, found.stages[one.after], one.by, one.kind, one.like, one.expected, one.then, one.now,
             one.prompt, one.pictures] for one in found.lost]  # fmt: skip
    header = ["task", "question_id", "lost_after", "lost_by", "mistake", "form_like", "expected", "answer_when_learned",
              "answer_now", "prompt", "pictures"]  # fmt: skip
    return {"counts": (["after", "task", *FATES, "newly_lost", "regained"], counts), "lost": (header, lost)}


def colours(theme: Theme) -> dict[str, str]:
    """Okabe and Ito's colours, which colour-blind readers tell apart; what was never right is as pale as the grid."""
    return {"kept": theme.series[0], "format": theme.series[1], "content": theme.series[3], "unknown": theme.muted,
            "gained": theme.series[2], "never": theme.grid}  # fmt: skip


def fates(found: Anatomy, theme: Theme = LIGHT) -> Figure:
    """A bar for each task: its questions by fate after the last stage, in percent, the count in each part."""
    from matplotlib.colors import to_rgba

    figure, axes = new_figure(theme, 7.6, 1.1 + 0.46 * len(found.tasks))
    for row, task in enumerate(found.tasks):
        one, left = found.last(task), 0.0
        total = sum(one.counts.values())
        for fate in FATES:
            share = 100 * one.counts[fate] / total
            axes.barh(row, share, left=left, height=0.68, color=colours(theme)[fate])
            if share > 4:
                axes.text(left + share / 2, row, str(one.counts[fate]), ha="center", va="center", fontsize=9,
                          color=ink_on(to_rgba(colours(theme)[fate])))  # fmt: skip
            left += share
    axes.set_yticks(range(len(found.tasks)), [cut(title) for title in found.tasks.values()])
    axes.set_ylim(len(found.tasks) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent of the questions", color=theme.muted, fontsize=9)
    _legend(figure, found, theme)
    return figure


def course(found: Anatomy, theme: Theme = LIGHT) -> Figure:
    """A panel for each task: its questions by fate after every stage since it was learned, in percent, stacked."""
    columns = min(4 if len(found.tasks) == 4 else 3, len(found.tasks))
    rows = -(-len(found.tasks) // columns)
    figure, panels = new_panels(theme, 7.6, 0.9 + 1.7 * rows, rows, columns)
    for panel, (task, title) in zip(panels, found.tasks.items()):
        for one in (one for one in found.courses if one.task == task):
            total, bottom = sum(one.counts.values()), 0.0
            for fate in FATES:
                share = 100 * one.counts[fate] / total
                panel.bar(one.stage + 1, share, bottom=bottom, width=0.8, color=colours(theme)[fate])
                bottom += share
        panel.set_title(cut(title), color=theme.ink, fontsize=9, loc="left")
        panel.set_xticks(range(1, len(found.stages) + 1))
        panel.set_xlim(0.4, len(found.stages) + 0.6)
        panel.set_ylim(0, 100)
    for place, panel in enumerate(panels):
        panel.set_visible(place < len(found.tasks))
        panel.tick_params(labelbottom=place + columns >= len(found.tasks))
    figure.supxlabel("after stage", color=theme.muted, fontsize=9)
    figure.supylabel("percent of the questions", color=theme.muted, fontsize=9)
    _legend(figure, found, theme)
    return figure


def _legend(figure: Figure, found: Anatomy, theme: Theme) -> None:
    from matplotlib.patches import Patch

    there = [fate for fate in FATES if any(one.counts[fate] for one in found.courses)]
    patches = [Patch(color=colours(theme)[fate], label=NAMES[fate]) for fate in there]
    legend = figure.legend(handles=patches, loc="outside upper center", ncols=len(there), frameon=False, fontsize=8.5,
                           handlelength=1.0, columnspacing=1.2)  # fmt: skip
    for text in legend.get_texts():
        text.set_color(theme.ink)

