"""What a metric is, how it is entered, and the joins that make one score of many answers.

`legacy` repeats the published evaluation script, quirks included, so that numbers compare with the papers; `clean` is
the same rule without the quirks. Both are always computed. Which of them is the headline is the metric's to say: the form
by which a benchmark's published tables were made, or the rule that its authors publish today (docs/METRICS.md lists them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.filters import ByOption, Rule
from hide_llava.metrics.rows import answer_records, check_unique, question_rows

SWITCHES = ("allow_partial", "allow_duplicates", "allow_unanswerable", "spice")  # true or false
OPTIONS = ("allow_partial", "allow_duplicates", "headline", "tokenizer")
"""Options that every metric accepts."""


@dataclass
class Job:
    """One scoring task after checking: result rows in file order, reference records in question order."""

    rows: list[dict]
    gold: list[dict]
    options: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.joinable = all(record.get("question_id") is not None for record in self.gold)
        # Duplicates in an annotation file: the reference builds a dict, so the last record wins.
        self.by_id = {record["question_id"]: record for record in self.gold} if self.joinable else {}
        # Duplicates among answers: the first one is the answer given without a second try.
        self.answers: dict[str, dict] = {}
        for row in self.rows:
            self.answers.setdefault(row["question_id"], row)

    @property
    def n_expected(self) -> int:
        return len(self.by_id) if self.joinable else len(self.gold)

    @property
    def n_scored(self) -> int:
        return sum(qid in self.by_id for qid in self.answers) if self.joinable else len(self.rows)

    @property
    def in_order(self) -> bool:
        """Whether line i answers question i, which is all that positional legacy scripts look at."""
        return all(row["question_id"] == record["question_id"] for row, record in zip(self.rows, self.gold))


Clean = Callable[[Job], tuple[dict, dict[str, float]]]
"""What a clean join makes of a rule: job -> ({"score", "n", …}, {question_id: 0…1})."""


class Metric:
    """What every metric is: attributes that say what it needs, and three steps.

    `records` reads and checks the references, `legacy` scores as the published script does, `clean` without its quirks.
    A metric of its own kind subclasses this and is entered by `@register`; one that scores answer by answer is an
    `AnswerMetric`, which only has to be declared.
    """

    name: str
    summary: str
    """The rule in one line; `hide-llava ls metrics` prints it."""
    source: str
    """The paper, or the repository and the file of the published script."""
    needs: str = "questions"
    """What `references` must be: "questions" (records with answers), "coco", "gqa", "textvqa" or "scienceqa"."""
    positional: bool = False
    options: tuple[str, ...] = ()
    """Names of the options this metric reads besides `OPTIONS`."""
    headline: str = "legacy"
    """The form that `score` shows unless the option `headline` asks for the other one: "legacy" or "clean"."""
    averages: tuple[str, ...] = ("legacy", "clean")
    """Which of the two scores are means over questions, so that per-question verdicts may explain them."""

    def records(self, questions: list[dict], references: Path | None, options: dict) -> list[dict]:
        """The reference records; UserError for every record that the two rules could not use."""
        raise NotImplementedError

    def legacy(self, job: Job) -> dict | None:
        """{"score": percent, "n", …}, or None where the published script would stop."""
        raise NotImplementedError

    def clean(self, job: Job) -> tuple[dict, dict[str, float]] | None:
        """({"score": percent, "n", …}, {question_id: 0…1}), or None where ids cannot be joined."""
        raise NotImplementedError

    def labels(self, options: dict) -> list[str]:
        """What every table must say beside this score, given the options: a judge's name, a tokenizer, "local"."""
        return []

    def check(self, options: dict) -> None:
        """Raises UserError when this machine cannot compute the metric with these options; ask before generating."""

    def gold(
        self, questions: list[dict], references: Path | None, options: dict, source: str = "questions"
    ) -> list[dict]:
        """The reference records, checked for everything that scoring would stumble over: ask before generating.

        questions: rows {question_id, text, …} of the test file, which errors call `source`; [] when the references are
        all there is. references: the extra file or folder some metrics need.

        Raises:
            UserError: a record that cannot be used, an id that occurs twice (unless allow_duplicates), or no record.
        """
        apart = not options.get("allow_duplicates")
        asked = question_rows(questions, source, apart) if questions else []
        records = self.records(asked, references, options)
        if not records:
            raise UserError("The reference file holds no questions; nothing can be scored against it.")
        if all(record.get("question_id") is not None for record in records):
            check_unique(records, "the reference file", options)
        return records


METRICS: dict[str, Metric] = {}
"""Every metric by its name; `register` enters them."""


def register(metric: type[Metric] | Metric) -> type[Metric] | Metric:
    """Make a metric known under its name: a class decorator, or a call with a declared `AnswerMetric`.

    Raises:
        UserError: another metric has that name.
    """
    if metric.name in METRICS:
        raise UserError(f"There is a metric {metric.name!r} already; give yours another name.")
    METRICS[metric.name] = metric() if isinstance(metric, type) else metric
    return metric


def percent(right: float, n: int) -> float:
    """100·right/n."""
    return 100.0 * right / n if n else 0.0


def group_scores(hits: Iterable[tuple[str, float]]) -> dict[str, float]:
    """{group: percent right}, in the order of the groups' names. hits: for each answer its group, and 0…1."""
    groups: dict[str, list[float]] = {}
    for group, hit in hits:
        groups.setdefault(group, []).append(hit)
    return {group: percent(sum(own), len(own)) for group, own in sorted(groups.items())}


def last_answers(job: Job) -> Job:
    """The same job with the LAST answer of each id alone, as scripts have it that build a dict of the answers."""
    return Job([*{row["question_id"]: row for row in job.rows}.values()], job.gold, job.options)


def per_row(rule: Rule) -> Callable[[Job], dict]:
    """Legacy join: every result row is looked up by id; the denominator is the number of RESULT rows."""

    def legacy(job: Job) -> dict:
        right = sum(rule(row["text"], job.by_id[row["question_id"]], job.options) for row in job.rows)
        return {"score": percent(right, len(job.rows)), "n": len(job.rows)}

    return legacy


def per_distinct(rule: Rule) -> Callable[[Job], dict]:
    """Legacy join through a dict of the answers: the LAST answer of an id counts, the denominator is distinct ids."""
    return lambda job: per_row(rule)(last_answers(job))


def per_position(rule: Rule) -> Callable[[Job], dict]:
    """Legacy join of CoIN's ImageNet script: line i of the answers meets record i of the test file."""

    def legacy(job: Job) -> dict:
        if len(job.rows) > len(job.gold):
            raise UserError(f"{len(job.rows)} answers for {len(job.gold)} questions; remove the surplus lines.")
        right = sum(rule(row["text"], record, job.options) for row, record in zip(job.rows, job.gold))
        return {"score": percent(right, len(job.rows)), "n": len(job.rows)}

    return legacy


def last_per_question(rule: Rule) -> Callable[[Job], dict]:
    """Legacy join over all QUESTIONS: the LAST answer of an id counts, a missing one is wrong."""
    return lambda job: per_question(rule)(last_answers(job))[0]


def per_question(rule: Rule) -> Clean:
    """Clean join: by id, the denominator is the number of QUESTIONS, a missing answer is wrong."""

    def clean(job: Job) -> tuple[dict, dict[str, float]]:
        verdicts = {
            qid: rule(job.answers[qid]["text"], record, job.options) if qid in job.answers else 0
            for qid, record in job.by_id.items()
        }
        return {"score": percent(sum(verdicts.values()), len(verdicts)), "n": len(verdicts)}, verdicts

    return clean


def with_parts(group: Callable[[dict], str] | None = None, **rules: Rule) -> Callable[[Rule], Clean]:
    """The clean join with further numbers beside the score: other rules on the same answers, and the score by group.

    rules: name → rule, each over all questions. group(record) names the record's group.
    """

    def join(rule: Rule) -> Clean:
        def clean(job: Job) -> tuple[dict, dict[str, float]]:
            result, verdicts = per_question(rule)(job)
            result |= {name: per_question(part)(job)[0]["score"] for name, part in rules.items()}
            by_group = group_scores((group(record), verdicts[qid]) for qid, record in job.by_id.items() if group)
            return result | by_group, verdicts

        return clean

    return join


@dataclass(frozen=True, kw_only=True)
class AnswerMetric(Metric):
    """A metric that is one rule for one answer, in its two forms, and the joins that make a score of many answers.

    legacy_rule, clean_rule: usually a `filters.Chain`. read: the function that makes the reference records.
    """

    name: str
    summary: str
    source: str
    legacy_rule: Rule
    clean_rule: Rule
    legacy_join: Callable[[Rule], Callable[[Job], dict | None]] = per_row
    clean_join: Callable[[Rule], Clean] = per_question
    read: Callable[[list[dict], Path | None, dict], list[dict]] = answer_records
    needs: str = "questions"
    positional: bool = False
    options: tuple[str, ...] = ()
    headline: str = "legacy"
    label: str | None = None
    """What every table must say beside this score."""

    def records(self, questions: list[dict], references: Path | None, options: dict) -> list[dict]:
        return self.read(questions, references, options)

    def legacy(self, job: Job) -> dict | None:
        return self.legacy_join(self.legacy_rule)(job)

    def clean(self, job: Job) -> tuple[dict, dict[str, float]]:
        return self.clean_join(self.clean_rule)(job)

    def labels(self, options: dict) -> list[str]:
        return [self.label] if self.label else []

    def check(self, options: dict) -> None:
        for rule in (self.legacy_rule, self.clean_rule):
            if isinstance(rule, ByOption):
                rule.chosen(options)


def check_join(job: Job) -> list[str]:
    """Ids, duplicates and completeness. Returns labels; UserError where a number would mislead.

    options: allow_partial (score an incomplete answer file, labelled "partial"), allow_duplicates.
    """
    labels = []
    if job.joinable:
        unknown = [row["question_id"] for row in job.rows if row["question_id"] not in job.by_id]
        if unknown:
            raise UserError(
                f"{len(unknown)} predictions answer questions that are not in the reference file (first: question_id "
                f"{unknown[0]}); score them against the file they were generated from."
            )
        labels += check_unique(job.rows, "predictions", job.options)
        labels += check_unique(job.gold, "the reference file", job.options)
    if job.n_scored < job.n_expected:
        if not job.options.get("allow_partial"):
            missing = next((qid for qid in job.by_id if qid not in job.answers), None)
            first = f" (first missing: question_id {missing})" if missing is not None else ""
            raise UserError(
                f"Only {job.n_scored} of {job.n_expected} questions are answered{first}; finish the evaluation, or "
                "set allow_partial (--allow-partial) to score it as partial."
            )
        labels.append("partial")
    elif job.n_expected < job.gold[0].get("n_reference", 0):  # the question file itself was only a part
        labels.append("partial")
    return labels
