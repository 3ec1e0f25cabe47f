"""`analyze agreement`: coefficients by hand and against scipy, who is compared with whom, and what the command writes."""

import csv
import json
import shutil
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from hide_llava.results import published
from hide_llava.results.drawing import LIGHT, new_figure
from hide_llava.results.point_labels import label_points
from hide_llava.studies.agreement.correlation import DISTINCT, coefficients, correlate, permutation_test, resampled
from hide_llava.studies.agreement.protocols import protocols
from hide_llava.studies.agreement.report import findings
from hide_llava.studies.agreement.study import ranks, study
from tests.cli.call import call, refused
from tests.results.synthetic import TASKS, manifest, write

RECAP = {"lora": 61.24, "olora": 64.35, "moelora": 58.98, "modalprompt": 52.53, "clmoe": 58.49, "hide-mini": 62.29,
         "sefe": 66.54, "same": 67.12}  # fmt: skip


def write_run(root: Path, preset: str, last: float, seed: int = 0, learned: float = 90.0, done: int = 2, **told: object) -> Path:
    """Two tasks: learned with `learned`, the first of them forgotten so that the mean after the second is `last`."""
    run, ids = root / f"{preset}-seed{seed}", [task for task, _, _ in TASKS[:2]]
    stages = [{"name": f"0{t + 1}-{ids[t]}", "title": ids[t], "train_tasks": [ids[t]], "eval_tasks": ids[: t + 1],
               "status": "complete"} for t in range(2)]  # fmt: skip
    scores = [[learned], [2 * last - learned, learned]]
    if preset in ("zero_shot", "multitask"):
        stages = [{"name": "01-joint", "train_tasks": ids if preset == "multitask" else [], "eval_tasks": ids}]
        scores = [[last, last]]
    tasks = [{"id": task, "title": title, "metric": metric} for task, title, metric in TASKS[:2]]
    write(run / "manifest.json", {**manifest(run.name, preset, stages), "seed": seed, "tasks": tasks, **told})
    write(run / "config.yaml", f"seed: {seed}\n")
    for stage, row in list(zip(stages, scores))[:done]:
        for task, score in zip(ids, row):
            write(run / "eval" / stage["name"] / task / "score.json", {"score": score, "metric": "exact_upper"})
    return run


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


# ------------------------------------------------------------------------------------------------------------ coefficients


def test_coefficients_by_hand() -> None:
    """Ranks 1 2 3 4 against 1 3 2 4: one pair of six turned; Σ d² = 2. With a tie: five pairs of one side, six of the other."""
    rho, tau = coefficients(np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 40]))
    assert (rho, tau) == (pytest.approx(1 - 6 * 2 / (4 * 15)), pytest.approx((5 - 1) / 6))
    rho, tau = coefficients(np.array([1.0, 2, 2, 4]), np.array([10.0, 30, 20, 40]))
    assert tau == pytest.approx(5 / np.sqrt(5 * 6)) and rho == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert all(np.isnan(coefficients(np.ones(4), np.arange(4.0))))
    assert coefficients(np.array([0.1 + 0.2, 1.0, 2.0, 3.0]), np.array([0.3, 1.0, 2.0, 3.0]))[1] == 1.0


def test_coefficients_are_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    for n in (4, 7, 12):
        x, y = generator.integers(6, size=(2, 20, n)).astype(float)  # full of ties
        rho, tau = coefficients(x, y)
        np.testing.assert_allclose(rho, [scipy.stats.spearmanr(a, b).statistic for a, b in zip(x, y)])
        np.testing.assert_allclose(tau, [scipy.stats.kendalltau(a, b).statistic for a, b in zip(x, y)])


def test_of_few_methods_every_order_is_looked_at() -> None:
    """The share of the 120 orders that are as far from zero, counted one by one with scipy; of four equal orders 2/24."""
    x, y = np.array([3.0, 1, 4, 1, 5]), np.array([2.0, 7, 1, 8, 3])
    (rho_p, tau_p), orders, exact = permutation_test(x, y)
    assert (orders, exact) == (120, True)
    for p, measure in ((rho_p, scipy.stats.spearmanr), (tau_p, scipy.stats.kendalltau)):
        given = abs(measure(x, y).statistic)
        far = sum(abs(measure(x, np.array(order)).statistic) >= given - 1e-9 for order in permutations(y))
        assert p == pytest.approx(far / 120)
    assert permutation_test(np.arange(4.0), np.arange(4.0))[0] == (2 / 24, 2 / 24)
    assert permutation_test(np.arange(4.0), -np.arange(4.0))[0] == (2 / 24, 2 / 24)
    assert permutation_test(np.arange(8.0), np.arange(8.0))[1:] == (40_320, True)


def test_of_many_methods_orders_are_drawn() -> None:
    """Never a p of zero, the same for the same seed, and near scipy's exact p of Kendall's without ties."""
    x = np.arange(10.0)
    assert permutation_test(x, x)[0] == (1 / 10_001, 1 / 10_001)
    y = np.array([2.0, 1, 0, 5, 3, 4, 8, 9, 6, 7])
    y[[0, 9]] = y[[9, 0]]
    found, orders, exact = permutation_test(x, y)
    assert (orders, exact) == (10_000, False) and found == permutation_test(x, y)[0] != permutation_test(x, y, seed=1)[0]
    wanted = scipy.stats.kendalltau(x, y, method="exact").pvalue
    assert 0.01 < wanted < 0.9 and found[1] == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / 10_000))


def test_resamples_of_two_methods_are_dropped_and_counted() -> None:
    """Of 4⁴ draws 4 have one method, and 6 · (2⁴ − 2) = 84 two: 34.4 %."""
    ours = [np.array([value]) for value in (1.0, 2, 4, 3)]
    rhos, taus, dropped = resampled(np.arange(4.0), ours, 4000, 0)
    assert len(rhos) == len(taus) == 4000 - dropped and DISTINCT == 3
    assert dropped / 4000 == pytest.approx(88 / 256, abs=0.03)
    again = resampled(np.arange(4.0), ours, 4000, 0)
    assert (rhos == again[0]).all() and dropped == again[2]


def test_seeds_widen_the_interval() -> None:
    """The same means; with runs that differ, another draw of runs changes the order."""
    theirs, means = np.arange(8.0), np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    sure = correlate(theirs, [np.array([mean]) for mean in means])
    torn = correlate(theirs, [np.array([mean - 3, mean, mean + 3]) for mean in means])
    assert sure.rho.value == torn.rho.value == 1.0 and sure.rho.interval == (sure.rho.interval.__class__(1.0, 1.0))
    assert torn.rho.interval.low < 0.9 and torn.tau.interval.low < sure.tau.interval.low


def test_no_order_no_correlation() -> None:
    assert correlate(np.ones(4), [np.array([float(k)]) for k in range(4)]) is None
    for n, ours in ((3, [np.ones(1)] * 3), (4, [np.ones(1)] * 5), (4, [np.ones(0)] * 4)):
        with pytest.raises(ValueError, match="at least 4"):
            correlate(np.arange(float(n)), ours)
    assert ranks({"a": 1.0, "b": 3.0, "c": 3.0, "d": 0.1 + 0.2, "e": 0.3}) == {"b": 1.5, "c": 1.5, "a": 3, "d": 4.5, "e": 4.5}


# ------------------------------------------------------------------------------------------------------------- whose order


def test_published_tables_by_our_names() -> None:
    found = {protocol.title: protocol for protocol in protocols(published.load())}
    recap = found["RECAP paper, ucit"]
    assert recap.of("last") == {name.removesuffix("-mini"): value for name, value in RECAP.items()}
    assert recap.others == ["LoRA-FT + vanilla RAG", "SAME + vanilla RAG", "RECAP"] and recap.printed["lora"] == "LoRA-FT"
    joined = found["MCITlib with RECAP and DGG, ucit"]
    assert joined.of("last") == {**recap.of("last"), "disco": 69.66, "eblora": 72.8, "dgg": 73.82}
    assert joined.of("last", bounds=True).keys() - joined.of("last").keys() == {"individual", "multitask"} and joined.because
    branch = found["BranchLoRA paper, coin, LLaVA-1.5-7B"]  # BWT of an unknown normaliser orders methods all the same
    assert branch.of("bwt")["ewc"] == -27.46 and "avg" not in found["FCIT paper, fcit-hom"].values["ewc"]
    assert not any("ablation" in table for protocol in found.values() for table in protocol.tables)
    assert all(protocol.sources and protocol.evidence for protocol in found.values())


def test_the_same_order_agrees(tmp_path: Path) -> None:
    """Our Last is the published one by half: all eight agree. MFT is tied, so there is no order; two seeds are one method."""
    runs = [write_run(tmp_path, preset, value / 2 + seed, seed) for preset, value in RECAP.items() for seed in (0, 1)]
    runs += [write_run(tmp_path, "llavac", 1.0), write_run(tmp_path, "lora-attention", 99.0)]
    found = study(runs)
    last = next(one for one in found.agreed if one.protocol.title == "RECAP paper, ucit")
    assert last.quantity == "last" and not last.bounds and last.found.n == 8 and last.found.exact
    assert last.found.rho.value == last.found.tau.value == pytest.approx(1) and last.found.rho.p == 2 / 40_320
    assert found.ours.unmatched == ["llavac", "lora-attention"]  # a preset of lora that is no LoRA as published
    assert [(one.first, one.second, one.n, one.rho) for one in found.seeds] == [("0", "1", 8, pytest.approx(1))]
    hide = next(one for one in found.methods if one.name == "hide-mini")
    assert hide.ranks["RECAP paper, ucit"] == (4, 4) and hide.rank == 5 and hide.last.count == 2  # lora-attention is first
    assert hide.forgetting.mean == pytest.approx(2 * (90 - hide.last.mean)) and hide.weights is hide.routed is None
    pair = next(one for one in found.tables if (one.first, one.second) == ("RECAP paper, ucit", "RECAP paper, coin"))
    theirs = [protocol.of("last") for protocol in found.protocols if protocol.name == "RECAP paper"]
    shared = list(theirs[0])
    wanted = scipy.stats.spearmanr([theirs[0][m] for m in shared], [theirs[1][m] for m in shared]).statistic
    assert (pair.n, pair.rho) == (8, pytest.approx(wanted))


def test_forgetting_is_turned_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours forget in the order in which theirs do: an agreement of 1, as for BWT, which falls where forgetting grows."""
    from hide_llava.studies.agreement import study as module

    presets = ("lora", "lwf", "ewc", "moelora")
    runs = [write_run(tmp_path, preset, value) for preset, value in zip(presets, (10.0, 20.0, 30.0, 40.0))]
    table = protocols(published.load())[0]
    table.values = {name: {"forgetting": 40.0 - k, "bwt": k - 40.0} for k, name in enumerate(presets)}
    monkeypatch.setattr(module, "protocols", lambda known: [table])
    found = {one.quantity: one.found.tau.value for one in study(runs).agreed}
    assert found == {"bwt": pytest.approx(1), "forgetting": pytest.approx(1)}


def test_bounds_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    """FCIT prints zero-shot and joint training around five methods of ours; three are too few, with both they are five."""
    scores = {"lora": 30.0, "ewc": 20.0, "olora": 10.0, "zero_shot": 1.0, "multitask": 99.0}
    runs = [write_run(tmp_path, preset, value) for preset, value in scores.items()]
    of = "FCIT paper, fcit-hom"
    without = [one for one in study(runs).agreed if one.protocol.title == of]
    assert [(one.bounds, sorted(one.methods), one.too_few) for one in without] == [(False, ["ewc", "lora", "olora"], True)]
    last = [one for one in study(runs, with_bounds=True).agreed if one.protocol.title == of]
    assert [(one.bounds, len(one.methods), one.too_few) for one in last] == [(False, 3, True), (True, 5, False)]
    assert last[1].found.tau.value == pytest.approx((7 - 3) / 10)  # the three the other way round, all else as published


def test_settings_of_ones_own(tmp_path: Path) -> None:
    """On another benchmark, where presets need no published name: the other way round, seeds of both sides are means."""
    presets = {"lora": 10.0, "lwf": 20.0, "llavac": 30.0, "merge": 40.0, "sefe": 50.0, "individual": 60.0}
    runs = [write_run(tmp_path / "a", preset, value + seed, seed) for preset, value in presets.items() for seed in (0, 1)]
    for preset, value in presets.items():
        for seed in (0, 1, 2):
            write_run(tmp_path / "b", preset, 80 - value + seed, seed, benchmark="coin")
    (tmp_path / "b" / "logs").mkdir()
    write_run(tmp_path / "b", "multitask-mini", 90.0, benchmark="coin")
    write_run(tmp_path / "b", "lora-attention", 90.0, benchmark="coin")
    write_run(tmp_path / "b", "lora", 1.0, seed=3, done=1, benchmark="coin")
    runs += [write_run(tmp_path / "a", "multitask-mini", 9.0), write_run(tmp_path / "a", "lora", 1.0, seed=3, done=1)]
    found = study(runs, with_bounds=True, against=[tmp_path / "b"])
    last, bounded = [one for one in found.elsewhere if one.quantity == "last"]
    assert (last.protocol.title, last.protocol.benchmark) == ("coin (b)", "coin")
    assert (last.found.n, last.found.rho.value, bounded.found.n) == (5, pytest.approx(-1), 7)
    assert last.protocol.bounds == ["individual", "multitask-mini"]
    assert last.protocol.values["lora"]["last"] == pytest.approx(71.0)  # the mean of 70, 71 and 72
    shown = findings(found)
    left = "lora-seed3 left out: not evaluated to the end."
    assert {left, f"coin (b): {left}"} <= {*shown.lines}
    setting, rows_of = shown.data["other_settings"][0], [row for row in shown.data["agreement"] if row["title"] == "coin (b)"]
    assert setting["name"] == str(tmp_path / "b") and len(setting["sources"]) == 20 and rows_of
    assert any(line.startswith("coin (b), 5 methods by Last: ρ = -1.00") for line in shown.lines)
    assert next(rows for title, _, rows in shown.tables if title.endswith("in other settings"))[0][:4] == [
        "coin (b)", "Last", "5", "-1.00"]  # fmt: skip
    assert "last-coin-b" in shown.figures and study(runs).elsewhere == []
    called = call("analyze", "agreement", *runs, "--against", tmp_path / "b", "--output", tmp_path / "out")
    assert called.code == 0 and "coin (b), 5 methods by Last" in called.out, called.err
    values = [row for row in rows(tmp_path / "out" / "values.csv") if row["protocol"] == "coin (b)"]
    assert {(row["preset"], float(row["published"]), float(row["ours"])) for row in values if row["quantity"] == "last"} == {
        (preset, 81 - value, value + 0.5) for preset, value in presets.items() if preset != "individual"}  # fmt: skip
    shutil.copytree(tmp_path / "b", tmp_path / "c" / "b")
    both = findings(study(runs, against=[tmp_path / "b", tmp_path / "c" / "b"]))
    assert len([name for name in both.figures if name.startswith("last-coin")]) == 2
    refused("analyze", "agreement", *runs, "--against", tmp_path, says=("no run folder lies there", "holds the runs"))
    other = write_run(tmp_path / "b", "llavac", 1.0, 7, benchmark="coin")
    write(other / "config.yaml", "seed: 7\nmethod: {rank: 3}\n")
    refused("analyze", "agreement", *runs, "--against", tmp_path / "b", says=("llavac", "rank=3", "are both llavac"))


def test_what_does_not_count_is_told(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, preset, value) for preset, value in RECAP.items()]
    runs.append(write_run(tmp_path, "lora", 1.0, seed=1, done=1))
    (tmp_path / "not-a-run").mkdir()
    again = write_run(tmp_path / "again", "same", 2.0)
    found = study([*runs, tmp_path / "not-a-run", again])
    notes = " ".join(found.ours.notes)
    assert "lora-seed1 left out: not evaluated to the end" in notes and "not-a-run (no run folder)" in notes
    assert "same-seed0 left out: the same runs as same-seed0 once more" in notes
    assert {one.name: one.last.mean for one in found.methods}["lora"] == pytest.approx(RECAP["lora"])


def test_refusals(tmp_path: Path) -> None:
    lora, hide = write_run(tmp_path, "lora", 50.0), write_run(tmp_path, "hide-mini", 60.0)
    refused("analyze", "agreement", lora, write_run(tmp_path, "hide", 40.0, seed=3), hide,
            says=("hide", "hide-mini", "both stand for hide", "one of them"))  # fmt: skip
    other, elsewhere = write_run(tmp_path, "olora", 50.0, model="another"), write_run(tmp_path, "sefe", 5.0, benchmark="coin")
    refused("analyze", "agreement", lora, other, says=("several models", "another", "one model"))
    refused("analyze", "agreement", lora, elsewhere, says=("do not mean the same", "sefe-seed0", "coin"))
    refused("analyze", "agreement", write_run(tmp_path, "llavac", 5.0), says=("None of these runs", "llavac", "hide-mini"))
    refused("analyze", "agreement", tmp_path / "nothing", says=("not a run folder",))


# -------------------------------------------------------------------------------------------------------- what is written


def test_what_runs_hold_stands_beside_the_ranks(tmp_path: Path) -> None:
    """Weight changes that the study of weights wrote, and routing weights beside the answers; a damaged file is told."""
    runs = [write_run(tmp_path, preset, value) for preset, value in RECAP.items()]
    linear = {"module": "m", "layer": 0, "linear": "q_proj", "cross": None, "ratio": None, "columns": [], "rows": [],
              "by_chance": [None, None], "cosines": []}  # fmt: skip
    linears = [{**linear, "norms": [norm, 2 * norm], "base": 10.0} for norm in (1.0, 2.0, 5.0)]
    report = {"run": "r", "updates": ["a", "b"], "stages": [], "adapters": [], "linears": linears, "notes": [], "files": []}
    write(runs[0] / "results" / "weights" / "weights.json", report)
    write(runs[1] / "results" / "weights" / "weights.json", {"run": "r"})
    own, other = (f"task-{t}" for t in (1, 2))
    answers = [{"question_id": q, "routing": {own: w, other: 1 - w}} for q, w in enumerate((0.9, 0.8, 0.6, 0.1))]
    write(runs[2] / "eval" / "02-arxivqa" / "imagenet-r" / "predictions.jsonl", "".join(json.dumps(a) + "\n" for a in answers))
    found = study(runs)
    measured = {one.name: one for one in found.methods}
    assert measured["lora"].weights.mean == pytest.approx(30.0)  # medians 20 and 40 percent
    assert measured["moelora"].routed.mean == pytest.approx(75.0) and measured["olora"].routed is None
    assert measured["olora"].weights is None and any("olora-seed0" in note and "analyze weights" in note for note in found.notes)
    header, body = next(table[1:] for table in findings(found).tables if table[0] == "Our methods")
    assert header[-2:] == ["Weights changed by, %", "Routed right, %"]
    assert next(row for row in body if row[0] == "lora")[-2:] == ["30.00", ""]


def test_the_command_writes_tables_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hide_llava.studies.agreement import report as module

    for preset, value in RECAP.items():
        write_run(tmp_path, preset, 100 - value, seed=4)
    write_run(tmp_path, "individual", 95.0)
    every = module._figures
    monkeypatch.setattr(module, "_figures", lambda found: dict(list(every(found).items())[:1]))  # one figure is enough here
    called = call("analyze", "agreement", *sorted(tmp_path.glob("*-seed*")), "--bounds", "--output", tmp_path / "out")
    assert called.code == 0, called.err
    said = "RECAP paper, ucit, 8 methods by Last: ρ = -1.00 [-1.00, -1.00], p < 0.001; τ-b = -1.00 [-1.00, -1.00], p < 0.001."
    assert said in called.out and f"written: {tmp_path / 'out'}" in called.out
    stored = json.loads((tmp_path / "out" / "agreement.json").read_text())
    assert stored["settings"]["test"] == "permutation, two-sided" and stored["unmatched"] == []
    table = {(row["protocol"], row["quantity"], row["bounds"]): row for row in rows(tmp_path / "out" / "agreement.csv")}
    recap = table["RECAP paper, ucit", "last", "False"]
    assert (recap["n"], recap["orders"], recap["exact"]) == ("8", "40320", "True")
    assert float(recap["rho"]) == float(recap["tau_b"]) == -1 and int(recap["resamples"]) + int(recap["dropped"]) == 2000
    assert int(table["MCITlib with RECAP and DGG, ucit", "last", "True"]["n"]) == 9
    values = [row for row in rows(tmp_path / "out" / "values.csv") if row["protocol"] == "RECAP paper, ucit"]
    assert {row["preset"]: (float(row["published"]), float(row["ours"])) for row in values} == {
        preset: (value, pytest.approx(100 - value)) for preset, value in RECAP.items()}  # fmt: skip
    page = (tmp_path / "out" / "agreement.md").read_text()
    for text in ("## Fewer than 4 methods in common", "| HiDe paper, ucit | hide, lora, olora | Avg (column mean) |",
                 "## Published orders among themselves, by Last", "M0rtzz/paper-notes:docs", "| individual |"):  # fmt: skip
        assert text in page
    ends = {file.name for file in (tmp_path / "out").glob("last-*")}
    assert ends == {f"last-hide-paper-ucit{end}" for end in ("-light.png", "-dark.png", ".pdf", ".svg")}


def test_names_of_points_do_not_collide() -> None:
    """A crowd in one corner, two points in one place: each name is inside, free of every other and of every marker."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, axes = new_figure(LIGHT, 7.6, 4.8)
    points = [(50.0, 15.0), (50.3, 15.2), (50.3, 15.2), (50.6, 14.8), (51.0, 15.1), (50.2, 14.1), (90.0, 80.0)]
    names = ["modalprompt", "branchlora", "moelora", "smolora", "keeplora-official", "lora", "individual"]
    errors = [0.0, 2.0, 0.0, 0.0, 1.0, 0.0, 4.0]
    for (x, y), error in zip(points, errors):
        axes.errorbar(x, y, error, marker="o", markersize=6.5)
    axes.margins(0.12, 0.08)
    texts = label_points(figure, axes, points, errors, names, LIGHT)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes, room = [text.get_window_extent(renderer) for text in texts], axes.get_window_extent(renderer)
    assert not [(a, b) for (a, one), (b, other) in combinations(zip(names, boxes), 2) if one.overlaps(other)]
    marks = [axes.transData.transform(point) for point in points]
    radius = 6.5 / 2 * figure.dpi / 72
    for name, box in zip(names, boxes):
        assert room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1, name
        assert not [1 for x, y in marks if box.x0 - radius < x < box.x1 + radius and box.y0 - radius < y < box.y1 + radius], name
