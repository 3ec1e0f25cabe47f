"""The table of rules: per metric what is extracted, how it is normalised and matched, and where legacy and clean differ.

Each entry names the repository and the file of the published script, whose rule the legacy form repeats, or the paper.
A chain without `extract` compares the whole answer. Answers are joined to questions by id and divided by the number of
result rows (`per_row`) in the legacy form, by the number of questions in the clean one, unless a join is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics import base, scienceqa
from hide_llava.metrics import filters as f
from hide_llava.metrics.base import AnswerMetric, Job, per_question, per_row, percent, with_parts
from hide_llava.metrics.filters import ByOption, ByRecord, Chain, Rule
from hide_llava.metrics.letters import check_options, option_letters
from hide_llava.metrics.rows import answer_records, list_records, where

EXACT_SOURCES = ("AI2D", "TQA", "VQA", "SciVerse")


# ------------------------------------------------------------------------------------- records, kinds and joins of rules


def option_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records {question_id, answer}, perhaps with options; UserError where those are no list of texts."""
    rows = answer_records(questions, references, options)
    for row in rows:
        check_options(row)
    return rows


def letter_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records whose answer is the letter of one of their options; UserError otherwise."""
    rows = option_records(questions, references, options)
    for row in rows:
        letters = option_letters(row)
        if not re.fullmatch(r"\s*[A-Za-z]\s*", row["answer"]) or row["answer"].strip().upper() not in letters:
            raise UserError(
                f"{where(row)}: answer is {row['answer']!r}, expected one option letter ({letters[0]}–{letters[-1]})."
            )
    return [{**row, "answer": row["answer"].strip().upper()} for row in rows]


def sci_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with answer and image, whose file name says the source. UserError without an image name."""
    rows = answer_records(questions, references, options)
    for row in rows:
        if not isinstance(row.get("image"), str):
            raise UserError(
                f"{where(row)}: metric sci_mixed takes the source from the image's file name, but "
                f"image is {row.get('image')!r}; give the benchmark's own test file."
            )
    return rows


def sci_source(record: dict) -> str:
    """The first "_" part of the image's file name when it is one of the four; "MapQA" for every other."""
    prefix = record["image"].split("/")[-1].split("_")[0]
    return prefix if prefix in EXACT_SOURCES else "MapQA"


def sci_kind(record: dict) -> str:
    """ "one of four" sources; for MapQA "list" where the question asks "Which states", else "map"."""
    if sci_source(record) != "MapQA":
        return "one of four"
    return "list" if "Which states" in str(record.get("text", "")) else "map"


def gold_kind(record: dict) -> str:
    """What the gold answer is: "letter", "yes or no" or "text"."""
    gold = record["answer"].strip()
    return "letter" if re.fullmatch("[A-Za-z]", gold) else "yes or no" if gold.lower() in ("yes", "no") else "text"


def per_row_by_prompt(rule: Rule) -> Callable[[Job], dict]:
    """`per_row`, where the prompt stored with the answer stands for the question's text."""

    def legacy(job: Job) -> dict:
        total = 0.0
        for row in job.rows:
            record = job.by_id[row["question_id"]]
            asked = str(row.get("prompt", record.get("text", "")))
            total += rule(row["text"], {**record, "text": asked}, job.options)
        return {"score": percent(total, len(job.rows)), "n": len(job.rows)}

    return legacy


def per_row_and_count(rule: Rule) -> Callable[[Job], dict]:
    """`per_row`, and "count" over the rows of task Count (None without any; the published script crashes)."""

    def legacy(job: Job) -> dict:
        rows = [row for row in job.rows if job.by_id[row["question_id"]].get("task") == "Count"]
        count = per_row(rule)(Job(rows, job.gold, job.options))["score"] if rows else None
        return {**per_row(rule)(job), "count": count}

    return legacy


# ------------------------------------------------------------------------------------------------------------ the table

SAME_UPPER = Chain(normalise=(str.upper,), match=f.equal)
SAME_LOWER = Chain(normalise=(str.lower,), match=f.equal)
SAME_TRIMMED = Chain(normalise=(f.trim,), match=f.equal_not_empty)
SAME_SQUEEZED = Chain(normalise=(f.squeeze,), match=f.equal_not_empty)
WHOLE_WORDS = Chain(match=f.has_words)
NAMED_OPTION = Chain(extract=(f.named_option,), match=f.equal)

RULES = (
    AnswerMetric(
        name="exact_upper",
        summary="upper(p) == upper(g)",
        source="Ghy0501/HiDe-LLaVA eval_deepseek_r1.py (UCIT); Minato-Zackie/SMoLoRA eval_vqav2.py, eval_vizwiz.py",
        legacy_rule=SAME_UPPER,
        clean_rule=SAME_UPPER,
    ),
    AnswerMetric(
        name="exact_lower_unanswerable",
        summary='lower(p) == lower(g); legacy: wrong when p contains "Unanswerable"',
        source="Minato-Zackie/SMoLoRA eval_ocrvqa.py (CoIN's OCR-VQA)",
        legacy_rule=Chain(extract=(f.answerable,), normalise=(str.lower,), match=f.equal),
        clean_rule=SAME_LOWER,
    ),
    AnswerMetric(  # legacy: the empty answer is a substring of every gold answer, and so is right
        name="substring_bidir",
        summary="g in p or p in g; legacy pairs lines by position, clean joins by id and needs a non-empty answer",
        source="Ghy0501/HiDe-LLaVA eval_imagenet.py (CoIN's ImageNet); Minato-Zackie/SMoLoRA eval_ImagetNet.py",
        legacy_rule=ByOption("case", {
            "sensitive": Chain(match=f.either_contains),
            "insensitive": Chain(normalise=(str.lower,), match=f.either_contains),
        }),
        clean_rule=ByOption("case", {
            "sensitive": Chain(match=f.filled(f.either_contains)),
            "insensitive": Chain(normalise=(str.lower,), match=f.filled(f.either_contains)),
        }),
        legacy_join=base.per_position,
        positional=True,
        options=("case",),
    ),
    AnswerMetric(
        name="option_letter_hide",
        summary='answer letter: "A", "A. …" or one "The answer is A."',
        source="Ghy0501/HiDe-LLaVA eval_science_qa.py",
        legacy_rule=Chain(extract=(scienceqa.parse_hide, scienceqa.offered), match=f.equal),
        clean_rule=Chain(extract=(scienceqa.named_choice,), match=f.equal),
        legacy_join=scienceqa.per_prediction,
        clean_join=scienceqa.with_images,
        read=scienceqa.scienceqa_records,
        needs="scienceqa",
        options=("split", "allow_unanswerable"),
    ),
    AnswerMetric(
        name="option_letter_coin",
        summary='answer letter: "A", "A. …" or the first one-character word',
        source="zackschen/CoIN; Minato-Zackie/SMoLoRA eval_science_qa.py",
        legacy_rule=Chain(extract=(scienceqa.parse_coin, scienceqa.offered), match=f.equal),
        clean_rule=Chain(extract=(scienceqa.named_choice,), match=f.equal),
        legacy_join=scienceqa.per_problem,
        clean_join=scienceqa.with_images,
        read=scienceqa.scienceqa_records,
        needs="scienceqa",
        options=("split", "allow_unanswerable"),
    ),
    AnswerMetric(  # legacy: how the closed server read longer texts is not known; an unanswered question was sent as "Z"
        name="option_exact_local",
        summary="the submitted text is the option letter; clean: the parsed letter is",
        source="bjzhb666/MLLM-CL convert_result_to_submission.py (MLLM-ACL APP)",
        legacy_rule=Chain(normalise=(str.strip, str.upper), match=f.equal),
        clean_rule=NAMED_OPTION,
        legacy_join=lambda rule: lambda job: per_question(rule)(job)[0],
        read=letter_records,
        label="APP-local: scored here; published numbers come from a server that has closed",
    ),
    AnswerMetric(
        name="substring_wordish",
        summary="g in p with the published word-boundary hacks; clean: g as whole words of p",
        source="bjzhb666/MLLM-CL eval_ai2d.py (MLLM-DCL RS, AD)",
        legacy_rule=Chain(extract=(f.answerable,), normalise=(str.lower,), match=f.contains_wordish),
        clean_rule=WHOLE_WORDS,
        clean_join=with_parts(strict=SAME_TRIMMED),
    ),
    AnswerMetric(
        name="substring_lower",
        summary="lower(g) in lower(p); clean: g as whole words of p",
        source="bjzhb666/MLLM-CL eval_pvqa.py (MLLM-DCL Med)",
        legacy_rule=Chain(extract=(f.answerable,), normalise=(str.lower,), match=f.contains),
        clean_rule=WHOLE_WORDS,
        clean_join=with_parts(strict=SAME_TRIMMED),
    ),
    AnswerMetric(  # legacy: "2" is in "12", and "1 2" is "12"
        name="substring_squeezed",
        summary="g in p without spaces and periods; clean: g as whole words of p",
        source="bjzhb666/MLLM-CL eval_sat.py (MLLM-ACL VP)",
        legacy_rule=Chain(normalise=(f.squeeze,), match=f.contains),
        clean_rule=WHOLE_WORDS,
        legacy_join=per_row_and_count,
        clean_join=with_parts(strict=SAME_TRIMMED),
    ),
    AnswerMetric(  # legacy: the gold answer keeps its spaces and periods, so that "goes up" is never right
        name="exact_squeezed",
        summary="p without spaces and periods == g; clean: the letter or yes/no that p says",
        source="bjzhb666/MLLM-CL eval_finvis.py (MLLM-DCL Fin)",
        legacy_rule=Chain(extract=(f.answerable, f.without_spaces_and_periods), normalise=(str.lower,), match=f.equal),
        clean_rule=ByRecord(gold_kind, {
            "letter": Chain(extract=(f.named_option,), normalise=(str.strip, str.upper), match=f.equal),
            "yes or no": Chain(extract=(f.yes_no,), normalise=(str.strip, str.lower), match=f.equal),
            "text": SAME_SQUEEZED,
        }),
        read=option_records,
    ),
    AnswerMetric(
        name="sci_mixed",
        summary="equality, partial credit for lists, or substring, by the image's file name",
        source="bjzhb666/MLLM-CL eval_sci.py (MLLM-DCL Sci)",
        legacy_rule=ByRecord(sci_kind, {
            "one of four": Chain(extract=(f.answerable,), normalise=(str.lower,), match=f.equal),
            "list": Chain(extract=(f.answerable,), normalise=(str.lower,), match=f.share_of_items),
            "map": Chain(extract=(f.answerable,), normalise=(str.lower,), match=f.contains),
        }),
        clean_rule=ByRecord(sci_kind, {
            "one of four": SAME_TRIMMED,
            "list": Chain(match=f.overlap_of_items),
            "map": WHOLE_WORDS,
        }),
        legacy_join=per_row_by_prompt,
        clean_join=with_parts(group=lambda record: f"source:{sci_source(record)}"),
        read=sci_records,
    ),
    AnswerMetric(  # legacy: two empty texts are alike
        name="anls_prism",
        summary="normalised Levenshtein similarity without the 0.5 threshold",
        source="LAMDA-CL/Prism eval_ucit.py (TriGap DocVQA, InfographicVQA)",
        legacy_rule=Chain(normalise=(str.strip, str.lower), match=f.similarity, gold="answers"),
        clean_rule=Chain(normalise=(str.strip, str.lower), match=f.filled(f.similarity), gold="answers"),
        read=list_records,
    ),
    AnswerMetric(  # headline clean: the challenge's script counts every question, answered or not
        name="anls",
        summary="normalised Levenshtein similarity, 0 below 0.5",
        source="Biten et al. 2019 (arXiv 1907.00490)",
        legacy_rule=Chain(normalise=(str.lower, f.single_spaces), match=f.similarity_from_a_half, gold="answers"),
        clean_rule=Chain(normalise=(str.lower, f.single_spaces), match=f.filled(f.similarity_from_a_half), gold="answers"),
        read=list_records,
        headline="clean",
    ),
    AnswerMetric(  # legacy: "5%" is 0.05; a gold answer of 0 is compared as text
        name="relaxed_chart",
        summary="numbers within 5 %, texts equal",
        source="Masry et al. 2022, ChartQA (arXiv 2203.10244)",
        legacy_rule=Chain(normalise=(str.lower,), match=f.within_five_percent),
        clean_rule=Chain(normalise=(f.trim,), match=f.within_five_percent_unsigned),
    ),
)  # fmt: skip

for rule in RULES:
    base.register(rule)
