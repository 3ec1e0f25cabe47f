"""What a router study found, as tables, CSV and figures."""

from __future__ import annotations

from hide_llava.results.tables import number
from hide_llava.studies.findings import Findings
from hide_llava.studies.router import figures
from hide_llava.studies.router.fingerprint import CUES
from hide_llava.studies.router.measures import Agreement
from hide_llava.studies.router.study import RouterStudy

HEADER = ("Task", "Questions", "routed right %", "answered right %", "if routed right %", "if routed wrong %", "both right %")
CUE_TITLES = {"text": "prompt text", "content": "prompt without its template", "size": "picture size"}
NOTE = (
    "Routed right: an expert of the question's own task has the most weight. Answered right: a verdict of 0.5 or more (of "
    "captions CIDEr, with caption7 the mean of its parts). Both right is strict matching. Calibration error: how far the weight "
    "of the top expert is from the share of questions routed right, on average. Told by a cue alone: a naive Bayes classifier "
    "that sees nothing else, trained on training records; where it does as well as the router, the benchmark does not show what "
    "the router reads."
)


def percent(value: float | None, digits: int = 1) -> str:
    return number(None if value is None else 100 * value, digits)


def findings(found: RouterStudy) -> Findings:
    """All of a study as it is written and printed."""
    titles = list(found.titles.values())
    experts = [found.experts[expert] for expert in found.confusion.experts]
    placed = found.overall.routed is not None
    rows = [_row(found.titles[task], one) for task, one in found.agreement.items()]
    tables = [("By task", HEADER, [*rows, _row("All", found.overall)] if len(rows) > 1 else rows)]
    tables += [
        ("True task and top expert, questions", ["Task", *experts], _grid(titles, found.confusion.counts, str)),
        ("True task and mean weight", ["Task", *experts],
         _grid(titles, found.confusion.weights, lambda weight: number(weight, 3))),
    ]  # fmt: skip
    drawn = {"confusion": ("Which expert gets which task's questions", lambda theme: figures.confusion(found, theme))}
    if placed and found.calibration and not found.calibration.hard:
        drawn["calibration"] = ("Do the weights mean what they say?", lambda theme: figures.reliability(found, theme))
    if found.oracle:
        rows = [[found.titles.get(one.task, one.task), number(one.score), number(one.oracle), number(one.gap),
                 f"{number(one.interval[0])} … {number(one.interval[1])}" if one.interval else ""]
                for one in found.oracle.rows]  # fmt: skip
        tables.append(("Gap to the oracle", ("Task", "Score", "Oracle", "Gap", "95 %"), rows))
    for kind, (names, cosines) in found.anchors.items():
        tables.append((f"Cosine of the {kind} anchors", ["Task", *names], _grid(names, cosines, lambda value: number(value, 3))))
        drawn[f"anchors-{kind}"] = (f"How alike the {kind} anchors are",
                                    lambda theme, kind=kind: figures.anchors(found, kind, theme))  # fmt: skip
    if found.fingerprint:
        tables.append(("Can the task be told without the router?", ("Task", *(f"{CUE_TITLES[cue]} %" for cue in CUES)),
                       _fingerprint_rows(found)))  # fmt: skip
        drawn["fingerprint"] = ("Can the task be told without the router?", lambda theme: figures.cues(found, theme))
    if found.curve:
        curve = found.curve
        rows = [[str(n), percent(a), percent(d)] for n, a, d in zip(curve.counts, curve.accuracy, curve.deviation)]
        tables.append(("Records that an anchor needs", ("Records of each task", "routed right %", "± over draws"),
                       [*rows, ["all (stored)", percent(curve.stored), ""]]))  # fmt: skip
        drawn["anchor-records"] = ("How many records an anchor needs", lambda theme: figures.records(found, theme))
    title = f"The router of {found.run} after {found.stage}"
    return Findings(title, _lines(found), tables, drawn, _csv(found), found.as_json(), NOTE)


def _row(title: str, one: Agreement) -> list[str]:
    shares = (one.routed, one.answered, one.if_right, one.if_wrong, one.strict)
    return [title, str(one.questions), *map(percent, shares)]


def _grid(titles: list[str], values: list[list], text: object) -> list[list[str]]:
    return [[title, *map(text, row)] for title, row in zip(titles, values)]


def _fingerprint_rows(found: RouterStudy) -> list[list[str]]:
    print_ = found.fingerprint
    rows = [[found.titles[task], *(percent(print_.accuracy[cue][task]) for cue in CUES)] for task in print_.test]
    return [*rows, ["Mean", *(percent(print_.mean(cue)) for cue in CUES)], ["by chance", *[percent(print_.chance)] * len(CUES)]]


def _lines(found: RouterStudy) -> list[str]:
    one, lines = found.overall, []
    if one.routed is not None:
        experts = len(found.confusion.experts)
        lines.append(f"{percent(one.routed)} % of {one.questions} questions go to an expert of their own task, "
                     f"{one.routed_wrong} do not; there are {experts} experts.")  # fmt: skip
    if one.if_right is not None:
        wrong = f", {percent(one.if_wrong)} % of those routed wrong" if one.if_wrong is not None else ""
        lines.append(f"Answered right: {percent(one.if_right)} % of the questions routed right{wrong}; "
                     f"both right: {percent(one.strict)} %.")  # fmt: skip
    if found.oracle:
        gaps = [row.gap for row in found.oracle.rows]
        lines.append(f"Told the task ({found.oracle.variant}), the mean score is {number(sum(gaps) / len(gaps))} points higher.")
    if one.routed is not None and found.calibration:
        said = "all weight goes to one expert" if found.calibration.hard else (
            f"the top expert has {percent(found.calibration.mean_weight)} % of the weight on average")  # fmt: skip
        lines.append(f"Calibration error {percent(found.calibration.error)} %: {said}.")
    if found.fingerprint:
        print_ = found.fingerprint
        told = ", ".join(f"{CUE_TITLES[cue]} {percent(print_.mean(cue))} %" for cue in CUES)
        lines.append(f"The task can be told without the router from: {told} (by chance {percent(print_.chance)} %).")
    if found.curve:
        curve = found.curve
        told = ", ".join(f"{n}: {percent(a)} %" for n, a in zip(curve.counts, curve.accuracy))
        lines.append(f"Routed right with anchors of so many records: {told}; stored anchors: {percent(curve.stored)} %.")
    return [*lines, *found.notes]


def _csv(found: RouterStudy) -> dict[str, tuple]:
    matrix = found.confusion
    counts = [[task, expert, matrix.counts[i][j], matrix.weights[i][j]]
              for i, task in enumerate(matrix.tasks) for j, expert in enumerate(matrix.experts)]  # fmt: skip
    by_task = [[task, one.questions, one.routed, one.answered, one.if_right, one.if_wrong, one.strict]
               for task, one in [*found.agreement.items(), ("all", found.overall)]]  # fmt: skip
    wrong = [[m.task, m.question, m.expert, *m.weights, m.answered, m.pictures, m.prompt, m.expected, m.text]
             for m in found.misrouted]  # fmt: skip
    made = {
        "confusion": (["task", "expert", "questions", "mean_weight"], counts),
        "agreement": (["task", "questions", "routed_right", "answered_right", "right_if_routed_right", "right_if_routed_wrong",
                       "both_right"], by_task),
        "misrouted": (["task", "question_id", "routed_to", "weight", "weight_of_own", "answered_right", "pictures", "prompt",
                       "expected", "answer"], wrong),
    }  # fmt: skip
    if found.calibration:
        made["calibration"] = (["mean_weight", "routed_right", "questions"], [list(b) for b in found.calibration.bins])
    if found.oracle:
        rows = [[o.task, o.score, o.oracle, o.gap, *(o.interval or (None, None))] for o in found.oracle.rows]
        made["oracle"] = (["task", "score", "oracle", "gap", "low", "high"], rows)
    if found.fingerprint:
        told = found.fingerprint.accuracy
        rows = [[task, cue, value, found.fingerprint.chance] for cue in told for task, value in told[cue].items()]
        made["fingerprint"] = (["task", "cue", "told_right", "by_chance"], rows)
    if found.curve:
        made["anchor-records"] = (["records", "routed_right", "deviation"],
                                  list(zip(found.curve.counts, found.curve.accuracy, found.curve.deviation)))  # fmt: skip
    return made
