"""What became of every question that was answered right when its task was learned."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from hide_llava.errors import UserError
from hide_llava.metrics.error_profile import form_of
from hide_llava.results.asked import Asked, asked_questions
from hide_llava.results.per_sample import RIGHT, History, histories
from hide_llava.results.run_reader import StoredRun
from hide_llava.studies.forgetting.kinds import UNKNOWN, lost_by, main_form

FATES = ("kept", "format", "content", "unknown", "gained", "never")
"""kept: right when learned and right now. format, content, unknown: right when learned, wrong now, by what it is lost. gained:
wrong when learned, right now. never: wrong then and now."""


@dataclass
class Course:
    """One task after one stage. counts: questions by fate; newly_lost, regained: of those right when learned, wrong for the
    first time since the stage before, or right again."""

    task: str
    stage: int
    counts: dict[str, int]
    newly_lost: int
    regained: int

    @property
    def known(self) -> int:
        """Questions that were right when the task was learned."""
        return sum(self.counts[fate] for fate in ("kept", "format", "content", "unknown"))

    @property
    def lost(self) -> int:
        return self.known - self.counts["kept"]


@dataclass
class Lost:
    """A question that was right when its task was learned and is wrong after the last stage that asked it.

    after: the stage since which it is wrong. then, now: the answers of the two stages. like: a task whose references mostly
    have the form that the answer has now, if its own do not and there is one that was learned since.
    """

    task: str
    question: str
    after: int
    by: str
    kind: str
    then: str
    now: str
    prompt: str
    expected: str
    pictures: str
    like: str


@dataclass
class Anatomy:
    """stages, tasks: id → title. courses: of every task after every stage since it was learned. left_out: tasks without a
    verdict for each question."""

    run: str
    stages: list[str]
    tasks: dict[str, str]
    courses: list[Course]
    lost: list[Lost]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def last(self, task: str) -> Course:
        return max((course for course in self.courses if course.task == task), key=lambda course: course.stage)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def anatomy(run: StoredRun) -> Anatomy:
    """Follow every question of the trained tasks through the stages of a run.

    Raises:
        UserError: no task was asked after a stage of its own with a verdict for each question.
    """
    matrix, known = run.matrix, histories(run)
    asked = asked_questions(run, matrix.tasks)
    found = Anatomy(run.name, matrix.stage_titles, {}, [], [])
    forms = {task: main_form(one.expected.values()) for task, one in asked.items()}
    for task, title, learned in zip(matrix.tasks, matrix.task_titles, matrix.learned_at):
        judged = {q: h for q, h in known[task].items() if h.right_when_learned is not None}
        if not judged:
            why = "no stage trained it alone", "its answers have no verdict each after the stage that trained it"
            found.left_out[title] = why[learned is not None]
            continue
        found.tasks[task] = title
        own = _Task(run, task, judged, asked.get(task), learned)
        if not own.readable:
            found.notes.append(f"{title}: its questions are not where the run's configuration says, so that form and content "
                               "cannot be told apart.")  # fmt: skip
        found.courses += own.courses()
        later = [name for name, stage in zip(matrix.tasks, matrix.learned_at) if stage is not None and stage > learned]
        found.lost += own.lost(forms.get(task), {run.task_title(name): forms.get(name) for name in later})
    if not found.tasks:
        raise UserError(f"{run.path}: no task was asked after a stage of its own with a verdict for each question, so what was "
                        "forgotten cannot be followed.")  # fmt: skip
    return found


class _Task:
    """One task with its histories and the answers of every stage."""

    def __init__(self, run: StoredRun, task: str, judged: dict[str, History], asked: Asked | None, learned: int):
        self.task, self.judged, self.learned = task, judged, learned
        known = {t for history in judged.values() for t, verdict in enumerate(history.verdicts) if verdict is not None}
        self.stages = sorted(t for t in known if t >= learned)
        cells = {t: run.cells[run.matrix.stages[t], task] for t in self.stages}
        self.asked = asked if asked and all(asked.belongs_to(cell) for cell in cells.values()) else None
        self.rows = {t: {str(row["question_id"]): row for row in cell.predictions()} for t, cell in cells.items()}

    @property
    def readable(self) -> bool:
        return self.asked is not None and bool(self.asked.expected)

    def text(self, stage: int, question: str) -> str:
        return str(self.rows[stage].get(question, {}).get("text", ""))

    def by(self, stage: int, question: str) -> tuple[str, str]:
        """By what a wrong answer is lost, and the kind of mistake."""
        if self.asked is None or question not in self.rows[stage]:
            return UNKNOWN, ""
        return lost_by(self.text(stage, question), self.asked.expected.get(question, []))

    def fate(self, stage: int, question: str) -> str | None:
        """None where it was not asked or has no verdict."""
        history, verdict = self.judged[question], self.judged[question].verdicts[stage]
        if verdict is None:
            return None
        if verdict >= RIGHT:
            return "kept" if history.right_when_learned else "gained"
        return self.by(stage, question)[0] if history.right_when_learned else "never"

    def courses(self) -> list[Course]:
        found, before = [], {}
        for stage in self.stages:
            fates = {q: fate for q in self.judged if (fate := self.fate(stage, q)) is not None}
            counts = Counter(fates.values())
            was = {q: before.get(q) for q in fates}
            newly = sum(was[q] == "kept" and fate in ("format", "content", "unknown") for q, fate in fates.items())
            again = sum(fate == "kept" and was[q] in ("format", "content", "unknown") for q, fate in fates.items())
            found.append(Course(self.task, stage, {fate: counts[fate] for fate in FATES}, newly, again))
            before |= fates
        return found

    def lost(self, own: str | None, later: dict[str, str | None]) -> list[Lost]:
        """own: the main form of its references; later: title → main form of the tasks learned since, in order."""
        found = []
        for question, history in self.judged.items():
            if not history.right_when_learned or history.lost is None:
                continue
            now = max(stage for stage in self.stages if history.verdicts[stage] is not None)
            by, kind = self.by(now, question)
            row = self.rows[now].get(question, {})
            found.append(Lost(
                self.task, question, history.lost, by, kind, self.text(self.learned, question), self.text(now, question),
                str(row.get("prompt", "")), self.asked.shown.get(question, "") if self.asked else "",
                " ".join(self.asked.pictures.get(question, [])) if self.asked else "",
                _like(self.text(now, question), own, later) if by == "format" else "",
            ))  # fmt: skip
        return found


def _like(text: str, own: str | None, later: dict[str, str | None]) -> str:
    form = form_of(text)
    return "" if form == own else next((title for title, other in reversed(later.items()) if other == form), "")
