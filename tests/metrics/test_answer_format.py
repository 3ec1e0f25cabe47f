"""MIF: the format rules of CVIT (docs/PROTOCOLS.md, Metrics)."""

from __future__ import annotations

import pytest

from hide_llava.errors import UserError
from hide_llava.metrics import score
from hide_llava.metrics.answer_format import mif


def one(metric: str, text: str, **fields) -> tuple[float | None, float]:
    result = score(metric, [{"question_id": 1, "text": text}], [{"question_id": 1, **fields}])
    return result.get("legacy", {}).get("score"), result["clean"]["score"]


@pytest.mark.parametrize(
    "text, legacy, clean",
    [
        ("A", 100, 100),
        (" b ", 100, 100),
        ("Q", 100, 0),
        ("C", 100, 0),
        ("A.", 0, 0),
        ("AB", 0, 0),
        ("", 0, 0),
        ("7", 0, 0),
    ],
)
def test_one_letter(text, legacy, clean) -> None:
    assert one("format_letter", text, answer="A", choices=["x", "y"]) == (legacy, clean)


@pytest.mark.parametrize(
    "text, answer, legacy, clean",
    [
        ("red", "blue", 100, 100),  # right or wrong does not matter
        ("two words", "x", 100, 100),
        ("three words here", "x", 0, 0),
        ("Three Words Here", "three words here", 100, 100),
        ("", "x", 100, 0),
        ("three words here", ["three words here", "x"], None, 100),  # the published script stops here
        ("red", ["blue"], 100, 100),
    ],
)
def test_short(text, answer, legacy, clean) -> None:
    assert one("format_short", text, answer=answer) == (legacy, clean)


@pytest.mark.parametrize(
    "text, answer, legacy, clean",
    [
        ("a man rides a horse.", ["x"], 100, 100),
        ("a man rides a horse", ["x"], 0, 0),
        ("a man rides on.", ["x"], 0, 0),
        ("a man rides.", ["A man rides. Then he stops."], 100, 100),
        ("a man rides.", ["a man walks."], 0, 0),
        ("a man rides.", "a man rides.", 0, 100),  # a plain string is walked character by character
        (".", ["a man rides."], 100, 0),
        ("", ["x"], 0, 0),
    ],
)
def test_sentence(text, answer, legacy, clean) -> None:
    assert one("format_sentence", text, answer=answer) == (legacy, clean)


def test_denominators_and_duplicates() -> None:
    questions = [{"question_id": i, "answer": "A"} for i in range(4)]
    rows = [{"question_id": 0, "text": "A"}, {"question_id": 1, "text": "a b c"}, {"question_id": 1, "text": "B"}]
    options = {"allow_partial": True, "allow_duplicates": True}
    assert score("format_letter", rows, questions, options=options)["legacy"] == {"score": 50, "n": 4}
    assert score("format_short", rows, questions, options=options)["legacy"] == {
        "score": 100,
        "n": 2,
    }  # the last counts
    assert score("format_short", rows, questions, options=options)["clean"]["score"] == 25  # the first counts, of four


def test_the_aggregate_is_a_plain_mean() -> None:
    assert mif({"scienceqa": 100, "textvqa": 50, "flickr30k": 30}) == 60
    with pytest.raises(UserError, match="at least one task"):
        mif({})
