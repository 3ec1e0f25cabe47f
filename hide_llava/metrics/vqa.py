"""VQA accuracy over ten answers (Antol et al. 2015, arXiv 1505.00468), with the answer normalisation of its script.

`vqa_soft10` is TextVQA's form, whose prediction and references always go through the normaliser of the EvalAI server.

`vqa_standard` is VQAv2's own script, which exists in two states. The one of today (since 2021) is the clean form and the
headline; the one of before, by which older papers were scored, is the legacy form. Both average min(1, matches / 3) over
the ten subsets of nine answers, and both compare texts as they are after the same steps; they differ in which side those
steps are done to.
"""

from __future__ import annotations

import re
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics.base import AnswerMetric, register
from hide_llava.metrics.rows import question_rows, read_table, select, text_list, where

N_REFERENCES = 10
_NUMBERS = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0", **{word: str(i) for i, word in enumerate(_NUMBERS.split())}}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# "Preceded by a digit" was meant but is not checked (the published pattern looks for a literal "<=" there), so any
# period not followed by a digit goes: "3.5" keeps it, "10." loses it.
PERIOD = re.compile(r"\.(?!\d)")
MAX_PERIODS = 32  # the published call passes a flag (re.UNICODE = 32) where the replacement count belongs

# The standard VQA contraction table, kept as its right-hand sides. Its left-hand sides are these words with exactly
# ONE apostrophe missing ("dont", "couldnt've", "couldn'tve"); the one entry that does not follow is added below. The
# published entries for "I'm", "I've" and "I'd've" are keyed with a capital I, so they never meet lower-cased text.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't
we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
you'll you're you've
"""
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTIONS.split()
    for i, character in enumerate(word)
    if character == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # a slip of the published table


def normalise(answer: str) -> str:
    """The EvalAI normaliser, step by step as published.

    lower; drop ',' and '?'; "'s" → " 's"; blanks; punctuation; digits, articles and contractions.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return process_words(process_punctuation(text))


def process_punctuation(text: str) -> str:
    """Each mark is deleted if it stands next to a space anywhere (or the text has digit,digit), else becomes a space.

    The conditions look at the text before this pass, the edits accumulate, both as published.
    """
    out = text
    for mark in PUNCTUATION:
        glued = mark + " " in text or " " + mark in text or DIGIT_COMMA_DIGIT.search(text)
        out = out.replace(mark, "" if glued else " ")
    return PERIOD.sub("", out, count=MAX_PERIODS)


def process_words(text: str) -> str:
    """Lower case, number words as digits, articles dropped, apostrophes put back into contractions."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def textvqa_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with "answers" (ten strings) and "normalised" (the same after `normalise`).

    references: TextVQA's {"data": […]}, VQA's {"annotations": […]} or a list of records; without it the question
    records themselves. Answers are strings or {"answer": string}. UserError unless there are ten.
    """
    rows = questions
    if references is not None:
        table = read_table(references, "VQA annotation file")
        if isinstance(table, dict):
            table = next((table[key] for key in ("data", "annotations") if key in table), None)
        if not isinstance(table, list):
            raise UserError(f'{references}: expected {{"data": [records]}}, {{"annotations": [records]}} or a list.')
        gold = question_rows(table, str(references), apart=not options.get("allow_duplicates"))
        rows = select(_by_image(gold, questions), questions, references, options)
    for row in rows:
        answers = row.get("answers")
        if not isinstance(answers, list) or len(answers) != N_REFERENCES:
            raise UserError(
                f"{where(row)}: answers must be a list of exactly ten strings for VQA soft accuracy; use the annotations "
                "of a split that has answers (TextVQA_0.5.1_val.json; test has none)."
            )
    rows = [{**row, "answers": text_list(row)} for row in rows]
    return [{**row, "normalised": [normalise(answer) for answer in row["answers"]]} for row in rows]


def _by_image(gold: list[dict], questions: list[dict]) -> list[dict]:
    """The annotations under the questions' ids, where those are ids of pictures: LLaVA's TextVQA file is so made.

    Each question then belongs to the annotation of that picture whose question is a line of its text. The annotations
    as they are where the questions have the annotations' own ids, or where one finds no such partner.
    """
    own = {record["question_id"] for record in gold}
    if all(row["question_id"] in own for row in questions):
        return gold
    asked = {(str(r.get("image_id")), str(r.get("question")).strip().lower()): r for r in gold}
    found = []
    for row in questions:
        image = row["question_id"].rpartition("#")[0] or row["question_id"]
        lines = [line.strip().lower() for line in str(row.get("text", "")).split("\n")]
        record = next((asked[image, line] for line in lines if (image, line) in asked), None)
        if record is None:
            return gold
        found.append({**record, "question_id": row["question_id"]})
    return found


def leave_one_out(text: str, answers: list[str]) -> float:
    """Mean over i of min(1, #{j ≠ i : answer_j == text} / 3)."""
    hits = [answer == text for answer in answers]
    return sum(min(1.0, (sum(hits) - hit) / 3) for hit in hits) / len(hits)


def soft_accuracy(text: str, record: dict, options: dict) -> float:
    """VQA soft accuracy of one answer, 0…1; 0 when the normalised answer is no reference."""
    return leave_one_out(normalise(text), record["normalised"])


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _processed(text: str) -> str:
    return process_words(process_punctuation(text))


def before_2021(text: str, record: dict, options: dict) -> float:
    """The older script: the prediction is always normalised, the answers only when they differ, and then only partly.

    Punctuation goes from differing answers; case, articles, number words and contractions stay as they are. So "Two"
    meets an answer "2" but never an answer "two".
    """
    answers = [_plain(answer) for answer in record["answers"]]
    answers = [process_punctuation(a) for a in answers] if len(set(answers)) > 1 else answers
    return leave_one_out(_processed(_plain(text)), answers)


def official(text: str, record: dict, options: dict) -> float:
    """Today's script: when the ten answers differ, they and the prediction are normalised; else neither is.

    So "Black." is wrong where all ten say "black", and right where nine do.
    """
    text, answers = _plain(text), [_plain(answer) for answer in record["answers"]]
    if len(set(answers)) > 1:
        text, answers = _processed(text), [_processed(answer) for answer in answers]
    return leave_one_out(text, answers)


register(
    AnswerMetric(
        name="vqa_soft10",
        summary="VQA soft accuracy with ten references after EvalAI normalisation",
        source="Ghy0501/HiDe-LLaVA eval_textvqa.py (CoIN's TextVQA) with LLaVA's m4c_evaluator.py",
        legacy_rule=soft_accuracy,
        clean_rule=soft_accuracy,
        read=textvqa_records,
        needs="textvqa",
    )
)
register(
    AnswerMetric(
        name="vqa_standard",
        summary="VQA accuracy over ten answers by today's official script; legacy: by the one of before 2021",
        source="Antol et al. 2015 (arXiv 1505.00468), VQAv2's evaluation script",
        legacy_rule=before_2021,
        clean_rule=official,
        read=textvqa_records,
        headline="clean",
    )
)
