"""Runs side by side: which share a table, which share a row, what is printed about them."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import pytest
from synthetic import RERUN, TASKS, joint_run, sequential_run, write
from test_report import Page

from hide_llava.errors import UserError
from hide_llava.results.comparison import compare, write_comparison
from hide_llava.results.costs import costs
from hide_llava.results.grouping import differences, tables_of
from hide_llava.results.mean_curves import mean_curves
from hide_llava.results.run_reader import read_run
from tests.cli.call import call

NAMES = [title for _, title, _ in TASKS]


def edited(run: Path, manifest: dict | None = None, cell: dict | None = None, config: str | None = None) -> Path:
    """The run with values of its manifest, of every score.json, or its configuration replaced."""
    write(run / "manifest.json", {**json.loads((run / "manifest.json").read_text()), **(manifest or {})})
    for path in run.glob("eval/*/*/score.json") if cell else ():
        write(path, {**json.loads(path.read_text()), **cell})
    if config is not None:
        write(run / "config.yaml", config)
    return run


def seeds(root: Path, shifts: list[float], preset: str = "hide") -> list[Path]:
    return [
        edited(
            sequential_run(root, f"{preset}-{k}", preset, shift=shift),
            {"seed": k},
            config=f"seed: {k}\noutput: runs/{k}\nmethod: {{name: hide, preset: {preset}}}\n",
        )
        for k, shift in enumerate(shifts)
    ]


def test_methods_by_tasks(tmp_path: Path) -> None:
    runs = [
        sequential_run(tmp_path),
        sequential_run(tmp_path, "b", "seq_lora", shift=5.0),
        sequential_run(tmp_path, "c", "o_lora", done=2, labels=["oracle: task id given at inference"]),
        joint_run(tmp_path),
    ]
    page = write_comparison(runs, tmp_path / "cmp")
    parsed = Page(page.read_text())
    assert all(source.startswith("data:") for source in parsed.sources)
    for shown in ("hide", "seq_lora", "multitask", "oracle: task id", "unfinished, 2 of 6"):
        assert shown in parsed.text
    text = (tmp_path / "cmp" / "comparison.md").read_text()
    assert "| hide | 83.50 | 90.60 | 48.51 | 66.60 | 61.63 | 55.32 | 70.11 | 67.69 | 79.84 | 74.01 |" in text
    assert "| multitask | 90.60 | 91.30 | 61.80 | 73.90 | 73.60 | 57.50 |  | 74.78 |" in text
    assert "| o_lora [1][2] |  |" in text
    rows = list(csv.DictReader((tmp_path / "cmp" / "comparison.csv").open()))
    assert rows[1]["Runs"] == "b" and rows[3]["Forgetting"] == "" and rows[0]["Last"] == "67.69"
    tex = (tmp_path / "cmp" / "comparison.tex").read_text()
    assert r"Method & " + " & ".join(NAMES) + r" & Avg & Last \\" in tex
    assert r"hide & 83.50 & 90.60 & 48.51 & 66.60 & 61.63 & 55.32 & 70.11 & 67.69 \\" in tex
    alone = write_comparison(runs[:1], tmp_path / "one.html")
    assert alone == tmp_path / "one.html" and (tmp_path / "one.csv").is_file()


def test_reference_runs_give_the_numbers_that_need_them(tmp_path: Path) -> None:
    zero = [10.0, 20.0, 30.0, 15.0, 25.0, 5.0]
    runs = [sequential_run(tmp_path), joint_run(tmp_path, "z", "zero_shot", zero), joint_run(tmp_path)]
    for run in runs[1:]:
        edited(run, {"method": json.loads((run / "manifest.json").read_text())["preset"]})
    (view,) = compare(runs)
    diagonal = [row[-1] for row in RERUN]
    assert view.aggregates[0]["learning_gain"].mean == pytest.approx(sum(diagonal) / 6 - sum(zero) / 6)
    joint = [90.6, 91.3, 61.8, 73.9, 73.6, 57.5]
    assert view.aggregates[0]["intransigence"].mean == pytest.approx(sum(joint) / 6 - sum(diagonal) / 6)
    assert view.aggregates[0]["fwt"] is None and view.aggregates[1]["learning_gain"] is None
    assert compare(runs[:1])[0].aggregates[0]["intransigence"] is None


def test_the_figure_has_a_line_per_row_and_a_panel_each_when_they_are_many(tmp_path: Path) -> None:
    runs = [*seeds(tmp_path, [0.0, 3.0, 7.5]), joint_run(tmp_path)]
    (table,) = tables_of([read_run(run) for run in runs])
    values = [
        [score - s * (t - j) for j, score in enumerate(row)] for s in (0.0, 3.0, 7.5) for t, row in enumerate(RERUN)
    ]
    means = [[statistics.mean(values[6 * k + t]) for t in range(6)] for k in range(3)]
    (axes,) = mean_curves(table.rows).axes
    line, level = axes.lines
    assert list(line.get_ydata()) == pytest.approx([statistics.mean(column) for column in zip(*means)])
    (band,) = axes.collections  # mean ± sd; the run without repetitions has none
    assert max(y for _, y in band.get_paths()[0].vertices) >= max(line.get_ydata())
    assert level.get_ydata()[0] == pytest.approx(74.78, abs=0.01)
    assert [text.get_text().split()[0] for text in axes.texts] == ["hide", "multitask"]

    many = runs + [seeds(tmp_path, [float(k)], f"preset{k}")[0] for k in range(1, 9)]
    (table,) = tables_of([read_run(run) for run in many])
    panels = [axes for axes in mean_curves(table.rows).axes if axes.get_title(loc="left")]
    assert [panel.get_title(loc="left").split()[0] for panel in panels] == [row.name for row in table.rows]
    assert all(len(panel.lines) == len(table.rows) + 1 for panel in panels)  # all in grey, its own on top
    assert mean_curves([row for row in table.rows if row.name == "multitask"]) is None


def test_a_note_that_rows_share_is_written_once(tmp_path: Path) -> None:
    write_comparison(
        [*seeds(tmp_path, [0.0, 3.0]), *seeds(tmp_path, [1.0, 2.0], "lora"), joint_run(tmp_path)], tmp_path
    )
    text = (tmp_path / "comparison.md").read_text()
    assert "| hide [1] |" in text and "| lora [1] |" in text and "| multitask |" in text
    assert text.count("mean ± sd over 2 runs") == 1 and "[2]" not in text
    note = "mean ± sd over 2 runs (seeds 0, 1; 1 task order)"
    rows = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert [row["Notes"] for row in rows] == [note, note, ""]
    assert f"hide, lora: {note}" in (tmp_path / "comparison.tex").read_text().replace(r"$\pm$", "±")


def test_seeds_and_orders_are_one_row(tmp_path: Path) -> None:
    runs = seeds(tmp_path, [0.0, 3.0, 7.5])
    (view,) = compare([*runs, *seeds(tmp_path, [1.0], "lora")])
    assert view.names == ["hide", "lora"]
    last = [sum(value - s * (5 - j) for j, value in enumerate(RERUN[5])) / 6 for s in (0.0, 3.0, 7.5)]
    found = view.aggregates[0]["last"]
    assert (found.mean, found.count) == (pytest.approx(statistics.mean(last)), 3)
    assert found.sd == pytest.approx(statistics.stdev(last)) and view.aggregates[1]["last"].sd is None
    assert "mean ± sd over 3 runs (seeds 0, 1, 2; 1 task order)" in view.notes
    reordered = json.loads((runs[2] / "manifest.json").read_text())
    reordered["tasks"].reverse()
    reordered["stages"][0]["train_tasks"], reordered["stages"][1]["train_tasks"] = ["arxivqa"], ["imagenet-r"]
    write(runs[2] / "manifest.json", reordered)
    (view,) = compare(runs)
    assert view.names == ["hide"] and any("2 task orders" in note for note in view.notes)


def test_costs_are_told_as_multiples_of_sequential_lora(tmp_path: Path) -> None:
    """Training time over all stages, time of an answer over all answers; an interrupted run counts for neither."""

    def timed(run: Path, trained: int, *seconds: tuple[float | None, float]) -> Path:
        stages = json.loads((run / "manifest.json").read_text())["stages"]
        for stage, (train, evaluation) in zip(stages, seconds):
            stage |= {"trainable": trained, "train_seconds": train, "eval_seconds": evaluation}
        return edited(run, {"stages": stages})

    lora = timed(seeds(tmp_path, [0.0], "lora")[0], 1000, *[(10.0, 4.0)] * 6)
    hide = [timed(run, 250, *[(s, 10.0)] * 6) for run, s in zip(seeds(tmp_path, [0.0, 1.0, 2.0]), (5.0, 7.0, None))]
    (view,) = compare([lora, *hide])
    base, ours = costs(view.table)
    answers = 20 * 21
    assert (base.trainable, base.train.mean, base.answer.mean) == (1000, 60, pytest.approx(1000 * 24 / answers))
    assert (ours.trainable, ours.train.mean, ours.train.count) == (250, 36, 2)
    assert (ours.train_ratio, ours.answer_ratio) == (pytest.approx(0.6), pytest.approx(2.5))
    page = write_comparison([lora, *hide], tmp_path / "out")
    assert "| 0.60" in page.with_suffix(".md").read_text() and "Training ÷ lora" in page.read_text()
    row = list(csv.DictReader(page.with_suffix(".csv").open()))[1]
    assert (row["Trained in one task"], row["Training ÷ lora"], row["Answer ÷ lora"]) == ("250", "0.60", "2.50")


def test_an_unfinished_seed_is_named_and_left_out(tmp_path: Path) -> None:
    runs = seeds(tmp_path, [0.0, 3.0, 9.0])
    (runs[2] / "eval" / "06-flickr30k" / "iconqa" / "score.json").unlink()
    (view,) = compare(runs)
    assert view.aggregates[0]["last"].count == 2
    assert any("hide-2: unfinished, 5 of 6 stages evaluated, not in the mean" in note for note in view.notes)
    assert compare(runs[:2])[0].aggregates[0]["last"] == view.aggregates[0]["last"]


def test_another_configuration_is_another_row(tmp_path: Path) -> None:
    """The same preset with one key changed, as an ablation is run, is no repetition."""
    runs = [
        edited(sequential_run(tmp_path, name), config=f"seed: 1\nmethod: {{preset: hide, fusion: {name}}}\n")
        for name in ("delta_sum", "factor_sum")
    ]
    (view,) = compare(runs)
    assert view.names == ["hide, fusion=delta_sum", "hide, fusion=factor_sum"]
    assert [stat.mean for stat in (row["last"] for row in view.aggregates)] == [pytest.approx(67.6933, abs=1e-3)] * 2


@pytest.mark.parametrize(
    "cell, reason",
    [
        ({"image_transform": "crop"}, "image transform: crop, not pad"),
        ({"max_new_tokens": 64}, "max new tokens: 64, not 128"),
        ({"split": "val"}, "split: val, not test"),
        ({"headline": "clean"}, "headline: clean, not legacy"),
        ({"limit": 20}, "limit: 20, not None"),
        ({"metric": "other"}, "metric: other, not"),
        ({"labels": ["caption6-python, not comparable"]}, "labels: caption6-python, not comparable, not none"),
        ({"questions_sha256": "f00"}, "another question file"),
    ],
)
def test_other_settings_are_another_table(tmp_path: Path, cell: dict, reason: str) -> None:
    a, b = sequential_run(tmp_path), edited(sequential_run(tmp_path, "b", shift=4.0), cell=cell)
    views = compare([a, b])
    assert len(views) == 2 and views[0].table.reasons == []
    assert any(reason in found for found in views[1].table.reasons), views[1].table.reasons
    page = write_comparison([a, b], tmp_path / "cmp")
    assert "A table of its own" in page.read_text() and (tmp_path / "cmp" / "comparison-2.csv").is_file()
    assert (page.parent / "comparison.tex").read_text().count(r"\begin{table}") == 2


def test_one_deviating_task_is_named(tmp_path: Path) -> None:
    a, b = sequential_run(tmp_path), sequential_run(tmp_path, "b")
    for path in b.glob("eval/*/arxivqa/score.json"):
        write(path, {**json.loads(path.read_text()), "image_transform": "crop"})
    assert differences(read_run(b), read_run(a)) == ["image transform: crop, not pad (ArxivQA)"]
    assert differences(read_run(a), read_run(a)) == []


def test_other_benchmarks_are_other_tables(tmp_path: Path) -> None:
    a, b = sequential_run(tmp_path), edited(sequential_run(tmp_path, "b"), {"benchmark": "coin"})
    assert [table.benchmark for table in tables_of([read_run(a), read_run(b)])] == ["ucit", "coin"]
    text = (write_comparison([a, b], tmp_path / "cmp").parent / "comparison.md").read_text()
    assert "# ucit" in text and "# coin" in text
    with pytest.raises(UserError, match="at least one"):
        write_comparison([], tmp_path / "cmp")


def test_a_baseline_is_compared_question_by_question(tmp_path: Path) -> None:
    def exact(name: str, right: int, **more: object) -> Path:
        verdicts = {str(q): float(q < right) for q in range(200)}
        score = {
            "score": right / 2,
            "verdicts": verdicts,
            "clean": {"score": right / 2},
            "metric": "exact_upper",
            **more,
        }
        return edited(sequential_run(tmp_path, name, name), cell=score)

    base, better = exact("base", 100), exact("better", 130)
    (view,) = compare([base, better], baseline=base)
    (row,) = view.against
    assert row.name == "better" and all(d.value == 15.0 and d.p < 0.01 and d.questions == 200 for d in row.tasks)
    assert [bool(i) for i in view.intervals[0]] == [True] * 6
    legacy = exact("legacy", 130, score=66.0)
    (view,) = compare([legacy], baseline=base)  # the baseline need not be named twice
    assert set(view.names) == {"legacy", "base"} and "legacy one" in view.against[0].tasks[0]
    called = call("compare", base, better, "--baseline", base, "--output", tmp_path / "out")
    assert called.code == 0 and "+15.00 [" in called.out and "report: " in called.out, called.err
    assert "<b" not in called.out and "p = 0.001" in (tmp_path / "out" / "comparison.html").read_text()


def test_published_ranges_stand_beside_ours(tmp_path: Path) -> None:
    run = sequential_run(tmp_path)
    called = call("compare", run, "--published", "--output", tmp_path / "out")
    assert called.code == 0, called.err
    line = next(text for text in called.out.splitlines() if text.startswith("| hide (LLaVA-1.5-7B)"))
    assert "62.29–67.69 (3)" in line and "68.94–70.11 (2)" in line  # Last and the column mean, never mixed
    assert "HiDe paper, Table 1: Last 64.19" in called.out and "(computed from its matrix)" in called.out
    page = Page((tmp_path / "out" / "comparison.html").read_text())
    assert "48.12–61.24 (2)" in page.text and "each with its own protocol" in page.text
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert any(row["Method preset"] == "published: hide (LLaVA-1.5-7B)" for row in rows)
    tex = (tmp_path / "out" / "comparison.tex").read_text()
    assert "62.29--67.69 (3)" in tex
    limited = edited(sequential_run(tmp_path, "few"), cell={"limit": 20})
    called = call("compare", limited, "--published", "--output", tmp_path / "few-out")
    assert "partial (limit 20) and compare with none" in called.out
    unknown = edited(sequential_run(tmp_path, "mini"), {"benchmark": "mini-ucit"})
    called = call("compare", unknown, "--published", "--output", tmp_path / "mini-out")
    assert called.code == 0 and "No published values are known for mini-ucit." in called.out


def test_compare_refuses_what_is_no_run(tmp_path: Path) -> None:
    called = call("compare", tmp_path / "nothing", "--output", tmp_path / "out")
    assert called.code == 2 and "is not a run folder" in called.err
