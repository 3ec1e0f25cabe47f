"""Runs side by side: which share a table, which share a row, what is printed about them."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import statistics
from pathlib import Path

import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from synthetic import RERUN, TASKS, joint_run, sequential_run, write
from test_report import Page

from hide_llava.config import compose
from hide_llava.errors import UserError
from hide_llava.results.comparison import compare, write_comparison
from hide_llava.results.conditions import option
from hide_llava.results.costs import costs
from hide_llava.results.figures import loss_curves, task_curves
from hide_llava.results.grouping import differences, tables_of
from hide_llava.results.mean_curves import mean_curves, short_names
from hide_llava.results.run_reader import read_run
from hide_llava.training.run import Run
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


def test_only_some_tasks_count(tmp_path: Path) -> None:
    """Their columns and their means; the stages of the others stay, so what these made forget is seen."""
    runs = [sequential_run(tmp_path), joint_run(tmp_path)]
    tasks = [TASKS[0][0], TASKS[3][0]]
    done = call("compare", *runs, "--task", tasks[0], "--task", tasks[1], "--output", tmp_path / "cmp")
    assert done.code == 0 and f"Only {', '.join(tasks)} count here" in done.out
    (row, joint) = csv.DictReader((tmp_path / "cmp" / "comparison.csv").open())
    first, fourth = ([float(line[j]) for line in RERUN[j:]] for j in (0, 3))
    assert TASKS[1][1] not in row and float(row["Last"]) == pytest.approx((first[-1] + fourth[-1]) / 2, abs=0.006)
    forgot = (max(first[:-1]) - first[-1] + max(fourth[:-1]) - fourth[-1]) / 2
    assert float(row["Forgetting"]) == pytest.approx(forgot, abs=0.006) and joint["Forgetting"] == ""
    wrong = call("compare", *runs, "--task", "nosuch", "--output", tmp_path / "cmp")
    assert wrong.code == 2 and "trains no task nosuch; it has" in wrong.err
    both = call("compare", *runs, "--task", tasks[0], "--published", "--output", tmp_path / "cmp")
    assert both.code == 2 and "Published means are those of all tasks" in both.err


def test_tasks_learned_later_have_curves_too(tmp_path: Path) -> None:
    """From the first stage on after which one of them is learned."""
    runs = [sequential_run(tmp_path), sequential_run(tmp_path, "lora", "lora", shift=2)]
    assert call("compare", *runs, "--task", TASKS[2][0], "--task", TASKS[4][0], "--output", tmp_path / "cmp").code == 0
    assert (tmp_path / "cmp" / "comparison.png").is_file()


def test_runs_whose_tasks_are_not_known_have_figures(tmp_path: Path) -> None:
    """A task that no stage trains, and no configuration that says so; and a run whose own tasks have no cell."""
    run = sequential_run(tmp_path)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["tasks"].append({"id": "unseen", "title": "Unseen", "metric": "exact_upper"})
    edited(run, manifest)
    (run / "config.yaml").unlink(missing_ok=True)
    shutil.copytree(run / "eval/06-flickr30k/imagenet-r", run / "eval/06-flickr30k/unseen")
    (table,) = tables_of([read_run(run)])
    assert mean_curves(table.rows) is not None
    (run / "config.yaml").write_text(yaml.safe_dump({"benchmark": {"tasks": [{"id": "unseen", "train": None}]}}))
    for folder in run.glob("eval/*/*"):
        if folder.name != "unseen":
            shutil.rmtree(folder)
    assert task_curves(read_run(run)) is None
    assert call("report", run).code == 0


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


def test_rows_asked_after_the_last_stage_only(tmp_path: Path) -> None:
    """They have no curve, and LaTeX names the one row that was asked after every stage, not the others."""
    runs = seeds(tmp_path, [0.0]) + [seeds(tmp_path, [float(k)], f"preset{k}")[0] for k in range(1, 5)]
    for run in runs[1:]:
        for cell in sorted((run / "eval").glob("*/"))[:-1]:
            shutil.rmtree(cell)
    (table,) = tables_of([read_run(run) for run in runs])
    figure = mean_curves(table.rows)
    assert figure is not None and len(figure.axes) == 1 and "hide" in " ".join(t.get_text() for t in figure.axes[0].texts)
    assert not any("preset" in text.get_text() for text in figure.axes[0].texts)
    write_comparison(runs, tmp_path)
    assert "All but hide: asked after the last stage only" in (tmp_path / "comparison.tex").read_text()


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
    assert f"hide; lora: {note}" in (tmp_path / "comparison.tex").read_text().replace(r"$\pm$", "±")


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


def test_a_repeated_seed_is_no_further_sample(tmp_path: Path) -> None:
    """A copy of a run would give a standard deviation of 0; seeds 0 and 1 are pooled, the copy of seed 0 stands alone."""
    one, two = seeds(tmp_path, [0.0, 3.0])
    copy = Path(shutil.copytree(one, tmp_path / "copy-of-hide-0"))
    (view,) = compare([one, two, copy])
    assert view.names == ["hide, hide-0", "hide, copy-of-hide-0"] and view.counts == ["2", "1"]
    assert view.aggregates[1]["last"].sd is None
    assert any("seed and task order of hide-0 once more: no further sample" in n and rows == [1]
               for n, rows in view.notes.items())  # fmt: skip
    (view,) = compare([one, copy])
    assert view.counts == [] and all(stat.sd is None for row in view.aggregates for stat in row.values() if stat)


def test_a_mean_says_of_how_many_runs(tmp_path: Path) -> None:
    page = write_comparison([*seeds(tmp_path, [0.0, 3.0]), joint_run(tmp_path)], tmp_path / "out")
    text, tex = (page.with_suffix(suffix).read_text() for suffix in (".md", ".tex"))
    assert "| Method preset | n | ImageNet-R |" in text and "| hide [1] | 2 |" in text and "| multitask | 1 |" in text
    assert r"Method & n & ImageNet-R" in tex and "hide & 2 & " in tex and tex.count("{lrrrrrrrrr}") == 1
    assert [row["n"] for row in csv.DictReader(page.with_suffix(".csv").open())] == ["2", "1"]
    assert '<th scope="col">n</th>' in page.read_text()
    head = page.read_text().partition("</thead>")[0]
    assert head.index("Avg (column mean)") < head.index(">Last<") < head.index("ImageNet-R")  # in sight without scrolling


def resolved(preset: str, seed: int = 0, order: list[str] | None = None, **changes: object) -> str:
    """A whole config.yaml, with values replaced by their dotted keys (`__` for the dot)."""
    config = compose(["benchmark=ucit", f"method={preset}", "model=llava-1.5-7b", f"seed={seed}",
                      *([f"task_order=[{','.join(order)}]", f"tasks=[{','.join(order)}]"] if order else [])])  # fmt: skip
    tree = config.model_dump()
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree[section][name] = value
    return yaml.safe_dump(tree)


@pytest.mark.parametrize(
    "changes, scores, says",
    [
        ({"model__quantization": "4bit"}, {}, ("base model in none", "base model in 4bit")),
        ({"model__dtype": "float32"}, {}, ("dtype auto on an unknown device", "dtype float32")),
        ({"train__learning_rate": 1e-5}, {}, ("learning rate 0.0002", "learning rate 1e-05")),
        ({"train__epochs": 7.0, "train__adapter_dtype": "bfloat16"}, {},
         ("epochs 1.0, adapter dtype float32", "epochs 7.0, adapter dtype bfloat16")),
        ({"router__encoder": "open_clip:a:b"}, {}, ("encoder clip", "encoder open_clip:a:b")),
        ({}, {"dtype": ("torch.bfloat16", "torch.float32")}, ("dtype bfloat16", "dtype float32")),
        ({}, {"batch_size": (16, 4)}, ("answers per batch 16", "answers per batch 4")),
        ({}, {"tf32": (True, False)}, ("TF32 True", "TF32 False")),
        ({}, {"versions": ({"torch": "2.13"}, {"torch": "2.12"})}, ("torch 2.13", "torch 2.12")),
    ],
)  # fmt: skip
def test_what_else_differs_is_said_of_every_row(tmp_path: Path, changes: dict, scores: dict, says: tuple) -> None:
    """In every format: a reader must not take the model, the number format or the recipe for the method's work."""
    a, b = ({key: pair[k] for key, pair in scores.items()} for k in (0, 1))
    runs = [edited(sequential_run(tmp_path, "a", "lora"), cell=a, config=resolved("lora")),
            edited(sequential_run(tmp_path, "b", "hide", shift=3.0), cell=b, config=resolved("hide", **changes))]  # fmt: skip
    (view,) = compare(runs)
    notes = {rows[0]: note for note, rows in view.notes.items() if note.startswith("not the same in every row")}
    assert [said in notes[k] for k, said in enumerate(says)] == [True, True], notes
    assert len(notes[0].split(", ")) == len(says[0].split(", ")), notes  # and nothing that is the same
    page = write_comparison(runs, tmp_path / "out")
    rows = list(csv.DictReader(page.with_suffix(".csv").open()))
    *_, last = says[1].split(", ")
    column = next(key for key in rows[1] if last.startswith(f"{key} "))
    assert rows[1][column] == last.removeprefix(f"{column} ") != rows[0][column]
    for suffix in (".md", ".html", ".tex", ".csv"):
        text = page.with_suffix(suffix).read_text().replace(r"\_", "_")
        assert all(said in text for said in says), suffix


def test_a_run_on_a_quantised_base_is_labelled(tmp_path: Path) -> None:
    words = ["benchmark=ucit", "method=lora", "model=llava-1.5-7b", f"output={tmp_path}"]
    assert Run(compose(words)).new_manifest()["labels"] == []
    (label,) = Run(compose([*words, "train=24gb"])).new_manifest()["labels"]
    assert label == "base model in 4bit: not comparable with runs on an unquantised one"


def test_another_model_is_told_once(tmp_path: Path) -> None:
    other = {"model__name": "other", "model__path": "/elsewhere", "model__clip": "/there"}
    runs = [edited(sequential_run(tmp_path, "a", "lora"), config=resolved("lora")),
            edited(sequential_run(tmp_path, "b"), {"model": "other"}, config=resolved("hide", **other))]  # fmt: skip
    (view,) = compare(runs)
    said = [note for note in view.notes if note.startswith("not the same")]
    assert said == ["not the same in every row: model llava-1.5-7b", "not the same in every row: model other"]
    assert view.names == ["lora", "hide"]
    moved = {"model__path": "/elsewhere"}  # one name, two folders: perhaps two models
    (view,) = compare([runs[0], edited(sequential_run(tmp_path, "c"), config=resolved("hide", **moved))])
    assert any("path /elsewhere" in note for note in view.notes)


def test_runs_of_one_method_alone_and_untrained_ones_have_no_such_note(tmp_path: Path) -> None:
    """zero_shot trains nothing, so the recipe says nothing about it; options of the method are the method's own."""
    runs = [edited(sequential_run(tmp_path, "a", "lora"), config=resolved("lora", train__epochs=3.0)),
            edited(joint_run(tmp_path, "z", "zero_shot"), config=resolved("zero_shot"))]  # fmt: skip
    (view,) = compare(runs)
    assert not any("not the same" in note for note in view.notes)


def test_more_than_three_options_are_told_in_a_note(tmp_path: Path) -> None:
    options = {"method__rank": 4, "method__alpha": 8.0, "method__dropout": 0.3, "method__projector": "frozen"}
    runs = [edited(sequential_run(tmp_path, "a", "lora"), config=resolved("lora")),
            edited(sequential_run(tmp_path, "b", "lora"), config=resolved("lora", **options))]  # fmt: skip
    (view,) = compare(runs)
    assert view.names[1] == "lora, alpha=8.0, dropout=0.3, projector=frozen"
    assert any("method.rank 4" in note for note in view.notes)


def test_a_key_that_is_newer_than_a_run_has_its_default(tmp_path: Path) -> None:
    old = yaml.safe_load(resolved("hide", seed=0))
    del old["train"]["timeout_minutes"], old["model"]["quantization"], old["method"]["routing"], old["train"]["engine"]
    runs = [edited(sequential_run(tmp_path, "a"), {"seed": 0}, config=yaml.safe_dump(old)),
            edited(sequential_run(tmp_path, "b", shift=2.0), {"seed": 1}, config=resolved("hide", seed=1))]  # fmt: skip
    (view,) = compare(runs)
    assert view.names == ["hide"] and view.counts == ["2"]


def test_orders_of_chosen_tasks_are_pooled(tmp_path: Path) -> None:
    """The configuration holds the order under `tasks` as well; it is no difference."""
    ids = [task for task, _, _ in TASKS]
    runs = []
    for k, order in enumerate((ids, ids[::-1])):
        run = edited(sequential_run(tmp_path, f"r{k}", shift=2.0 * k), config=resolved("hide", order=order))
        stages = json.loads((run / "manifest.json").read_text())["stages"]
        for stage, task in zip(stages, order):
            stage["train_tasks"] = [task]
        runs.append(edited(run, {"stages": stages, "tasks": [{"id": i, "title": i, "metric": "x"} for i in order]}))
    (view,) = compare(runs)
    assert view.names == ["hide"] and any("2 task orders" in note for note in view.notes)


def test_formats_of_numbers_are_not_pooled(tmp_path: Path) -> None:
    one, two = seeds(tmp_path, [0.0, 3.0])
    edited(one, cell={"dtype": "torch.float32"}), edited(two, cell={"dtype": "torch.bfloat16"})
    (view,) = compare([one, two])
    assert view.names == ["hide, hide-0", "hide, hide-1"] and view.counts == []


def test_options_of_a_metric_are_another_table(tmp_path: Path) -> None:
    tree = yaml.safe_load(resolved("hide"))
    tree["benchmark"]["tasks"][0]["metric_options"] = {"case": "insensitive"}
    runs = [edited(sequential_run(tmp_path, "a"), config=resolved("hide")),
            edited(sequential_run(tmp_path, "b"), config=yaml.safe_dump(tree))]  # fmt: skip
    _, other = compare(runs)
    (reason,) = other.table.reasons
    assert reason == "metric options: {'case': 'insensitive'}, not none (ImageNet-R)"


def test_what_is_no_run_is_left_out(tmp_path: Path) -> None:
    """`compare runs/*` meets pages, sweeps' folders, files, and runs that have only begun."""
    runs = [sequential_run(tmp_path, "a"), sequential_run(tmp_path, "b", "lora", shift=1.0)]
    write_comparison(runs, tmp_path / "comparison")
    (tmp_path / "x-sweep").mkdir()
    write(tmp_path / "notes.txt", "x")
    sequential_run(tmp_path, "begun", "ewc", done=0)
    write(sequential_run(tmp_path, "damaged") / "manifest.json", "{")
    called = call("compare", *sorted(p for p in tmp_path.iterdir()), "--output", tmp_path / "out")
    assert called.code == 0, called.err
    said = "Left out: comparison, notes.txt, x-sweep (no run folder); begun (nothing evaluated yet); "
    assert said in called.out and "damaged/manifest.json" in called.out
    assert said in (tmp_path / "out" / "comparison.html").read_text()
    assert "| hide |" in called.out and "| lora |" in called.out
    logs = [tmp_path / f"{name}.log" for name in "abcd"]
    for log in logs:
        write(log, "x")
    called = call("compare", *runs, *logs, tmp_path / "x-sweep", "--output", tmp_path / "out")
    assert "Left out: x-sweep, 4 files (no run folder)." in called.out
    called = call("compare", tmp_path / "x-sweep", tmp_path / "begun", "--output", tmp_path / "none")
    assert called.code == 2 and "nothing to compare. Left out: x-sweep (no run folder)" in called.err
    called = call("compare", runs[0], "--baseline", tmp_path / "x-sweep", "--output", tmp_path / "none")
    assert called.code == 2 and "x-sweep is not a run folder" in called.err


def test_labels_of_a_figure_are_short_and_apart(tmp_path: Path) -> None:
    names = ["hide, image=0, text=1", "hide, image=0, text=2", "hide, image=0, text=3"]
    assert short_names(names) == ["text=1", "text=2", "text=3"]
    assert short_names(["hide", "lora"]) == ["hide", "lora"] and short_names(["hide"]) == ["hide"]
    assert short_names(["hide", "hide, rank=4"]) == ["hide", "hide, rank=4"]  # nothing would be left of the first
    runs = [
        edited(sequential_run(tmp_path, f"r{k}"),
               config=f"seed: 1\nmethod: {{preset: hide, a_long_option: {k}, temperature: {k}.5, rank: 3}}\n")
        for k in range(3)
    ]  # fmt: skip
    (table,) = tables_of([read_run(run) for run in runs])
    for rows in (table.rows, table.rows[:1]):
        figure = mean_curves(rows)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        panels = [axes for axes in figure.axes if axes.axison]
        assert len(panels) == len(rows) and all("rank" not in axes.get_title(loc="left") for axes in panels)
        ticks = [text for text in panels[-1].get_xticklabels() if text.get_text()]
        for texts in ([axes._left_title for axes in panels if axes.get_title(loc="left")], ticks):
            boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
            slanted = all(text.get_rotation() for text in texts)
            assert slanted or not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


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


def test_a_label_says_in_few_words_what_differs(tmp_path: Path) -> None:
    """What most runs of a preset have goes without saying in the label; beside the table every value is told whole."""
    options = ({}, {"fusion": "factor_sum"}, {"expanded_layers": [0, 1, 2, 3, 4, 5]}, {"expanded_layers": [0, 3]})
    runs = [edited(sequential_run(tmp_path, f"r{k}"), config=resolved("hide", **{f"method__{key}": v for key, v in own.items()}))
            for k, own in enumerate(options)]  # fmt: skip
    (view,) = compare([*runs, edited(sequential_run(tmp_path, "l", "lora"), config=resolved("lora"))])
    extras = ("", ", expanded_layers=0–5", ", expanded_layers=[0, 3]", ", fusion=factor_sum")
    assert sorted(view.names) == [*(f"hide{extra}" for extra in extras), "lora"]
    told = {row.name: row.conditions for row in view.table.rows}
    assert told["hide, expanded_layers=0–5"]["method.expanded_layers"] == "[0, 1, 2, 3, 4, 5]"
    assert told["hide"]["method.fusion"] == "delta_sum" and told["hide, fusion=factor_sum"]["method.fusion"] == "factor_sum"
    assert option("method.note", "a" * 99) == "note=" + "a" * 23 + "…" and option("method.rank", "4") == "rank=4"


@pytest.mark.parametrize("title", ["CLEVR-Math", "A rather long title of a task", "Ä" * 60])
def test_stages_below_a_curve_do_not_touch(tmp_path: Path, title: str) -> None:
    run = sequential_run(tmp_path)
    manifest = json.loads((run / "manifest.json").read_text())
    for k, entry in enumerate(manifest["stages"]):
        entry["title"] = f"{title} {k}"
    read = read_run(edited(run, manifest))
    for figure in (task_curves(read), mean_curves(tables_of([read])[0].rows), loss_curves(read)):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        (axes,) = figure.axes
        ticks = [text for text in axes.get_xticklabels() if text.get_text()]
        named = list(axes.texts) if axes.get_ylabel() == "training loss" else ticks
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in named]
        slanted = all(text.get_rotation() for text in named)
        assert len(named) == 6 and (slanted or not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)))
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
        assert axes.get_window_extent().height > 0.3 * figure.bbox.height


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
    other = exact("other", 130, max_new_tokens=64)
    assert [view.uncompared for view in compare([base, better, other], baseline=other)] == [
        "Not compared with other, which stands in a table of its own (max new tokens: 128, not 64).", ""]  # fmt: skip
    called = call("compare", base, other, "--baseline", other, "--output", tmp_path / "apart")
    assert all("Not compared with other" in text for text in (called.out, (tmp_path / "apart/comparison.html").read_text()))
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
    assert "48.12–61.24(2)" in page.text and "HiDe paper, Table 1" in page.text
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


def test_published_means_stand_beside_runs_of_all_their_tasks_only(tmp_path: Path) -> None:
    run = sequential_run(tmp_path)
    manifest = json.loads((run / "manifest.json").read_text())
    for key in ("tasks", "stages"):
        manifest[key] = manifest[key][:2]
    called = call("compare", edited(run, manifest), "--published", "--output", tmp_path / "out")
    assert "Their means over 6 tasks are left out: the runs of this table have 2." in called.out
    line = next(text for text in called.out.splitlines() if text.startswith("| hide (LLaVA-1.5-7B)"))
    assert line == "| hide (LLaVA-1.5-7B) | 80.50–84.03 (3) | 89.83–90.73 (3) |  |  |  |"  # the tasks' own scores stay


def test_compare_refuses_what_is_no_run(tmp_path: Path) -> None:
    called = call("compare", tmp_path / "nothing", "--output", tmp_path / "out")
    assert called.code == 2 and "is not a run folder" in called.err
