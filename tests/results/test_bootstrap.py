"""Intervals and differences against a naive loop that draws questions one by one, and against what they promise."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from hide_llava.results.bootstrap import interval, paired, resampled_means, usable_verdicts


def naive_means(values: list[float], resamples: int, seed: int) -> list[float]:
    """Draw len(values) questions with replacement, average, repeat."""
    draw = random.Random(seed)
    n = len(values)
    return [sum(draw.choice(values) for _ in range(n)) / n for _ in range(resamples)]


@pytest.mark.parametrize(
    "values",
    [[1.0] * 30 + [0.0] * 10, [0.0, 0.3, 0.3, 0.6, 0.9, 1.0] * 6, [math.sin(k) ** 2 for k in range(50)]],
    ids=["right or wrong", "vqa", "continuous"],
)
def test_the_distribution_is_that_of_drawing_questions(values: list[float]) -> None:
    ours, theirs = resampled_means(np.array(values), 4000, 1), np.array(naive_means(values, 4000, 2))
    error = np.std(values) / len(values) ** 0.5  # of a resampled mean
    assert abs(ours.mean() - theirs.mean()) < 0.08 * error and ours.std() == pytest.approx(theirs.std(), rel=0.08)
    for q in (0.025, 0.25, 0.75, 0.975):
        assert abs(np.quantile(ours, q) - np.quantile(theirs, q)) < 0.15 * error


def test_an_interval_is_about_two_standard_errors_and_repeats() -> None:
    values = np.array([1.0] * 2400 + [0.0] * 600)
    found = interval(values)
    half = 196 * (0.8 * 0.2 / 3000) ** 0.5
    assert found.low == pytest.approx(80 - half, abs=0.12) and found.high == pytest.approx(80 + half, abs=0.12)
    assert found == interval(values) != interval(values, seed=1)
    assert found == interval(values[::-1])  # the order of the questions says nothing
    certain = interval(np.ones(50))
    assert certain.low == certain.high == 100
    with pytest.raises(ValueError):
        interval(np.array([]))


def test_chunks_change_no_shape(monkeypatch) -> None:
    monkeypatch.setattr("hide_llava.results.bootstrap.DRAWS", 70)  # seven rows of ten distinct values at a time
    means = resampled_means(np.arange(10) / 10, 50)
    assert means.shape == (50,) and means.mean() == pytest.approx(0.45, abs=0.05)


def test_coverage() -> None:
    """About 95 of 100 intervals hold the value that the samples were drawn from."""
    generator = np.random.default_rng(0)
    samples = generator.binomial(1, 0.7, size=(300, 200)).astype(float)
    hits = sum(i.low <= 70 <= i.high for i in (interval(s, 400, seed=k) for k, s in enumerate(samples)))
    assert 275 <= hits <= 297  # 285 expected; three standard deviations are 11


def test_paired_differences() -> None:
    theirs = {str(q): float(q % 2) for q in range(400)}
    better = {q: 1.0 if int(q) < 40 else v for q, v in theirs.items()}  # 20 more right, none lost
    found = paired(better, theirs)
    assert found.value == pytest.approx(5.0) and found.questions == 400
    assert 0 < found.interval.low < 5 < found.interval.high and found.p < 0.01
    back = paired(theirs, better)
    assert back.value == -found.value and back.interval.low == pytest.approx(-found.interval.high, abs=0.5)
    same = paired(theirs, dict(reversed(theirs.items())))  # joined by id
    assert (same.value, same.p, same.interval.low, same.interval.high) == (0, 1, 0, 0)
    swapped = {q: 1 - v if int(q) < 40 else v for q, v in theirs.items()}  # 20 won, 20 lost
    assert paired(swapped, theirs).p > 0.5
    with pytest.raises(ValueError, match="different questions"):
        paired(theirs, {"0": 1.0})


def test_pairing_is_sharper_than_two_intervals() -> None:
    """Runs that agree on most questions differ clearly although each alone is uncertain."""
    theirs = {str(q): float(q % 2) for q in range(400)}
    better = {q: 1.0 if int(q) < 40 else v for q, v in theirs.items()}
    alone = [interval(np.array(list(v.values()))) for v in (better, theirs)]
    assert alone[0].low < alone[1].high and paired(better, theirs).interval.low > 0


def test_p_values_are_uniform_when_nothing_differs() -> None:
    generator = np.random.default_rng(3)
    pairs = generator.binomial(1, 0.6, size=(300, 2, 150)).astype(float)
    ids = [str(k) for k in range(150)]
    p = [paired(dict(zip(ids, a)), dict(zip(ids, b)), 400, seed=k).p for k, (a, b) in enumerate(pairs)]
    assert 3 <= sum(value < 0.05 for value in p) <= 30 and 0.35 < np.mean(np.array(p) < 0.5) < 0.65


def test_only_a_mean_of_verdicts_gets_an_interval() -> None:
    verdicts = {"1": 1.0, "2": 0.0}
    assert usable_verdicts({"score": 50.0, "verdicts": verdicts}) == (verdicts, "")
    said = {
        "legacy one": {"score": 45.0, "clean": {"score": 50.0}, "verdicts": verdicts},
        "not the mean": {"score": 61.0, "clean": {"score": 61.0}, "verdicts": verdicts},
        "no per-question": {"score": 61.0},
    }
    for words, score in said.items():
        found, why = usable_verdicts(score)
        assert found is None and words in why


def test_a_score_that_only_happens_to_equal_the_mean_gets_none() -> None:
    """BLEU of a corpus, and CVIT's oracle CIDEr whose verdicts are another rule's."""
    nothing = {"score": 0.0, "clean": {"score": 0.0}, "verdicts": {"1": 0.0, "2": 0.0}}
    for metric, headline, words in (
        ("caption7", "legacy", "not the mean"),
        ("caption7", "clean", "not the mean"),
        ("cvit_cider_oracle", "legacy", "the headline is the legacy one"),
    ):
        found, why = usable_verdicts({**nothing, "metric": metric, "headline": headline})
        assert found is None and words in why
    for metric, headline in (("cvit_cider_oracle", "clean"), ("exact_upper", "legacy"), ("of a plug-in", "legacy")):
        assert usable_verdicts({**nothing, "metric": metric, "headline": headline}) == (nothing["verdicts"], "")
