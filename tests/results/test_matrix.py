"""Aggregates of docs/METRICS.md on the published numbers, and what a missing cell does to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import RERUN, TASKS

from hide_llava.errors import UserError
from hide_llava.results.aggregates import (
    AGGREGATES,
    References,
    aggregates,
    avg,
    bwt,
    bwt_coin,
    by_name,
    forgetting,
    last,
    maa,
    mft,
    reason,
)
from hide_llava.results.matrix import AccuracyMatrix, column_means, last_row, mean, row_means

NAMES = [task for task, _, _ in TASKS]
ABROAD = {"fwt", "learning_gain", "intransigence"}  # they need another run


def rerun(**changes: float | None) -> AccuracyMatrix:
    rows = [list(row) for row in RERUN]
    for cell, value in changes.items():
        t, j = int(cell[1]), int(cell[2])
        rows[t][j] = value
    return AccuracyMatrix.from_rows(rows, NAMES)


def test_the_public_rerun() -> None:
    m = rerun()
    found = {key: round(value, 2) for key, value in aggregates(m).items() if value is not None}
    assert found == {
        "last": 67.69,
        "avg": 70.11,
        "maa": 79.84,
        "mft": 74.01,
        "bwt": -7.58,
        "bwt_coin": -6.31,
        "forgetting": 7.58,
    }
    assert m.cells[0][1:] == [None] * 5  # the upper triangle stays empty


def test_the_papers_rows_average_to_its_headline() -> None:
    assert round(mean([85.70, 92.70, 54.10, 66.87, 59.12, 55.15]), 2) == 68.94
    assert round(mean([80.50, 89.83, 48.78, 62.90, 47.97, 55.15]), 2) == 64.19


def test_by_hand() -> None:
    m = AccuracyMatrix.from_rows([[80], [60, 90], [70, 50, 30]], ["a", "b", "c"])
    assert last(m) == 50
    assert column_means(m) == [70, 70, 30] and avg(m) == pytest.approx(170 / 3)
    assert row_means(m) == [80, 75, 50] and maa(m) == pytest.approx(205 / 3)
    assert mft(m) == pytest.approx(200 / 3)
    assert bwt(m) == pytest.approx((70 - 80 + 50 - 90) / 2) and bwt_coin(m) == pytest.approx(-50 / 3)
    assert forgetting(m) == pytest.approx((80 - 70 + 90 - 50) / 2)
    # A task that was best in the middle: forgetting counts from the best, BWT from when it was learned.
    m = AccuracyMatrix.from_rows([[50], [80, 90], [60, 90, 10]], ["a", "b", "c"])
    assert (bwt(m), forgetting(m)) == (5, 10)


def test_zero_is_a_score_and_none_is_not() -> None:
    assert last(rerun(c50=0.0)) == pytest.approx((sum(RERUN[5]) - 83.50) / 6)
    missing_last = aggregates(rerun(c52=None))
    assert {key for key, value in missing_last.items() if value is not None} == {"mft"}
    early = aggregates(rerun(c20=None))
    assert {key for key, value in early.items() if value is None} - ABROAD == {"avg", "maa", "forgetting"}
    diagonal = aggregates(rerun(c22=None))
    assert {key for key, value in diagonal.items() if value is not None} == {"last"}


def test_one_stage_for_all_tasks() -> None:
    m = AccuracyMatrix.from_rows([[10.0, 20.0, 60.0]], ["a", "b", "c"])
    assert m.joint and not m.sequential
    assert aggregates(m) == {a.key: 30.0 if a.key == "last" else None for a in AGGREGATES}
    assert last(AccuracyMatrix.from_rows([[10.0, None, 60.0]], ["a", "b", "c"])) is None


def test_a_single_task() -> None:
    m = AccuracyMatrix.from_rows([[70.0]], ["a"])
    assert (last(m), avg(m), maa(m), mft(m)) == (70, 70, 70, 70)
    assert (bwt(m), forgetting(m)) == (None, None)


def test_prefix_is_the_matrix_of_a_shorter_run() -> None:
    m = rerun().prefix(3)
    assert (m.tasks, m.stages, last_row(m)) == (NAMES[:3], ["01", "02", "03"], RERUN[2])
    assert aggregates(m) == aggregates(AccuracyMatrix.from_rows(RERUN[:3], NAMES[:3]))
    assert aggregates(rerun().prefix(0)) == {a.key: None for a in AGGREGATES}


@pytest.mark.parametrize("rows, tasks", [([[1.0, 2.0]], ["a"]), ([["x"]], ["a"]), ([[float("nan")]], ["a"])])
def test_bad_matrices_are_refused(rows, tasks) -> None:
    with pytest.raises(UserError):
        AccuracyMatrix.from_rows(rows, tasks)


@given(st.integers(2, 6).flatmap(lambda n: st.lists(st.floats(0, 100), min_size=n * n, max_size=n * n)))
def test_identities(values: list[float]) -> None:
    n = int(len(values) ** 0.5)
    rows = [values[t * n : t * n + t + 1] for t in range(n)]
    m = AccuracyMatrix.from_rows(rows, [str(j) for j in range(n)])
    assert bwt_coin(m) == pytest.approx(bwt(m) * (n - 1) / n, abs=1e-9)
    assert last(m) - mft(m) == pytest.approx(bwt_coin(m), abs=1e-9)
    assert forgetting(m) >= -bwt(m) - 1e-9
    constant = AccuracyMatrix.from_rows([[values[0]] * (t + 1) for t in range(n)], [str(j) for j in range(n)])
    assert avg(constant) == pytest.approx(values[0]) == maa(constant)


def test_numbers_that_need_other_runs() -> None:
    """Written out by hand; the cells above the diagonal are what forward transfer needs."""
    m = AccuracyMatrix.from_rows([[80, 20, None], [60, 90, 35], [70, 50, 30]], ["a", "b", "c"])
    others = References({"a": 10.0, "b": 15.0, "c": 5.0}, {"a": 95.0, "b": 92.0, "c": 60.0})
    found = aggregates(m, others)
    assert found["fwt"] == pytest.approx(((20 - 15) + (35 - 5)) / 2)
    assert found["learning_gain"] == pytest.approx((80 - 10 + 90 - 15 + 30 - 5) / 3)
    assert found["intransigence"] == pytest.approx((95 - 80 + 92 - 90 + 60 - 30) / 3)
    assert {key for key, value in aggregates(m).items() if value is None} == ABROAD
    unasked = AccuracyMatrix.from_rows([[80], [60, 90], [70, 50, 30]], ["a", "b", "c"])
    assert aggregates(unasked, others)["fwt"] is None and aggregates(unasked, others)["learning_gain"] is not None
    assert aggregates(m, References({"a": 10.0, "b": None, "c": 5.0}))["learning_gain"] is None
    reordered = AccuracyMatrix.from_rows([[90], [50, 80]], ["b", "a"])
    assert aggregates(reordered, others)["learning_gain"] == (90 - 15 + 80 - 10) / 2  # by task, not by place


def test_every_empty_number_says_why() -> None:
    why = {a.key: reason(a, rerun(c50=None, c20=None)) for a in AGGREGATES}
    assert why["mft"] == "" and why["last"] == "1 cell missing, first imagenet-r after 06"
    assert why["avg"] == "2 cells missing, first imagenet-r after 03"
    assert why["bwt"] == why["last"] and why["fwt"] == "needs a zero_shot run"
    zero = References(dict.fromkeys(NAMES, 0.0))
    by_key = {a.key: a for a in AGGREGATES}
    assert reason(by_key["fwt"], rerun(), zero) == "5 cells missing, first arxivqa after 01"
    assert reason(by_key["learning_gain"], rerun(), References({})) == "the zero_shot run has no score of some task"
    assert reason(by_key["bwt"], AccuracyMatrix.from_rows([[70.0]], ["a"])) == "there is a single task"
    joint = AccuracyMatrix.from_rows([[10.0, None]], ["a", "b"])
    assert reason(by_key["avg"], joint) == "a run with one stage has no sequence"
    assert reason(by_key["last"], joint) == "1 cell missing, first b after 01"
    assert reason(by_key["last"], rerun().prefix(0)) == "no stage is evaluated"
    for m in (rerun(), rerun(c33=None), joint, rerun().prefix(0)):
        values = aggregates(m)
        assert all((values[a.key] is None) == bool(reason(a, m)) for a in AGGREGATES)


def test_names_of_the_field() -> None:
    assert {by_name(n).key for n in ("Last", "mfn", "AP", "ACC")} == {"last"}
    assert {by_name(n).key for n in ("MAA", "map", "MAA (row mean)")} == {"maa"} and by_name("Avg").key == "avg"
    names = [n.casefold() for a in AGGREGATES for n in {a.key, *a.aliases}]
    assert len(names) == len(set(names))
    with pytest.raises(UserError, match="MFN"):
        by_name("BLEU")


def test_columns_that_were_selected_keep_the_stages_of_the_others() -> None:
    """As if the tasks in between had no columns: stages 2 and 4 learn the two that count."""
    cells = [[None, None], [80.0, None], [70.0, None], [50.0, 60.0], [30.0, 40.0]]
    m = AccuracyMatrix(list("abcde"), ["x", "y"], cells, [1, 3], list("ABCDE"), ["X", "Y"], selected=True)
    found = aggregates(m, References(zero_shot={"x": 10.0, "y": 20.0}))
    assert (found["last"], found["mft"]) == (35.0, 70.0)
    assert found["avg"] == ((80 + 70 + 50 + 30) / 4 + (60 + 40) / 2) / 2
    assert found["maa"] == (80 + 70 + 55 + 35) / 4  # from the first stage that has a column
    assert (found["bwt"], found["bwt_coin"], found["forgetting"]) == (-35.0, -35.0, 35.0)
    assert found["fwt"] is None and found["learning_gain"] == 55.0
    at_the_end = AccuracyMatrix(list("abcde"), ["x", "y"], cells, [1, 4], list("ABCDE"), ["X", "Y"], selected=True)
    assert aggregates(at_the_end)["forgetting"] == 50.0  # what is learned last has nothing to forget
    assert not AccuracyMatrix(list("abcde"), ["x", "y"], cells, [1, 3], list("ABCDE"), ["X", "Y"]).sequential
