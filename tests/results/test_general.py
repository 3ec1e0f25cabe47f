"""General ability against the untouched model: change, retention and H-score, in every table that shows them."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from hide_llava.results.comparison import write_comparison
from hide_llava.results.general import at_the_end, base_cells
from hide_llava.results.report import write_report
from hide_llava.results.run_reader import read_run
from tests.results.synthetic import joint_run, sequential_run, write

GENERAL = {"pope": "POPE", "mme": "MME"}
AFTER = {"pope": (86.0, 84.0, 81.7), "mme": (70.0, 62.5, 56.0)}  # of the untouched model, after stage 1, after stage 6


def with_general(run: Path, cells: dict[str, dict[str, float]], **changes: object) -> Path:
    """Give a run general tests. cells: {stage: {task: score}}."""
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["general"] = [{"id": task, "title": title, "metric": "yes_no"} for task, title in GENERAL.items()]
    write(run / "manifest.json", manifest)
    source = next((run / "eval").glob("*/imagenet-r"))
    for stage, scores in cells.items():
        for task, score in scores.items():
            folder = Path(shutil.copytree(source, run / "eval" / stage / task))
            data = json.loads((folder / "score.json").read_text())
            write(folder / "score.json", {**data, "metric": "yes_no", "score": score, **changes})
    return run


def hide(root: Path, base: bool = True, **options: object) -> Path:
    found = {f"0{k}-{name}": {task: AFTER[task][i] for task in GENERAL} for i, k, name in
             ((0, 0, "base"), (1, 1, "imagenet-r"), (2, 6, "flickr30k")) if base or k}  # fmt: skip
    return with_general(sequential_run(root, **options), found)


KEPT = 100 * (81.7 / 86 + 56 / 70) / 2  # 87.5
LAST = (83.5 + 90.6 + 48.51 + 66.6 + 61.63 + 55.32) / 6
BOTH = 2 * KEPT * LAST / (KEPT + LAST)


def test_by_hand(tmp_path: Path) -> None:
    run = read_run(hide(tmp_path))
    (pope, mme), kept, both = at_the_end(run)
    assert (pope.delta, mme.delta) == pytest.approx((-4.3, -14.0)) and (pope.retention, mme.retention) == pytest.approx((95, 80))
    assert kept == pytest.approx(KEPT) == pytest.approx(87.5) and both == pytest.approx(BOTH)
    assert "base" not in " ".join(run.matrix.stages) and len(run.general) == 4


def test_the_page_and_the_files_of_a_run(tmp_path: Path) -> None:
    run = hide(tmp_path)
    general = write_report(run).read_text().split("<h2>General ability</h2>")[1].split("<h2>")[0]
    assert "Untouched model" in general and "-14.00" in general and "Mean retention" in general
    assert f"{BOTH:.2f}" in general and "87.50" in general and "no scores of the untouched model" not in general
    rows = [*csv.reader((run / "results" / "general.csv").open())]
    assert rows[1] == ["POPE", "86.00", "81.70", "-4.30", "95.00"] and ["H-score", f"{BOTH:.2f}"] in rows
    assert r"Mean retention & & & & 87.50 \\" in (run / "results" / "general.tex").read_text().replace("  ", " ")
    assert "| MME | 70.00 | 56.00 | -14.00 | 80.00 |" in (run / "results" / "general.md").read_text()


def test_without_the_untouched_model_nothing_is_made_up(tmp_path: Path) -> None:
    run = hide(tmp_path, base=False)
    (pope, _), kept, both = at_the_end(read_run(run))
    assert (pope.delta, pope.retention, kept, both) == (None, None, None, None) and pope.score == 81.7
    general = write_report(run).read_text().split("<h2>General ability</h2>")[1].split("<h2>")[0]
    assert "POPE, MME: no scores of the untouched model" in general and "Mean retention" not in general
    plain = sequential_run(tmp_path, "plain")
    write_report(plain)
    assert not (plain / "results" / "general.csv").exists()


@pytest.mark.parametrize(
    "change, says",
    [
        ({"questions_sha256": "other"}, "with another questions sha256"),
        ({"headline": "clean"}, "with another headline"),
        ({"verdicts": {"77": 1}}, "asked other questions"),
        ({"score": 0.0}, "the untouched model scores 0"),
    ],
)
def test_a_base_that_was_asked_otherwise_is_none(tmp_path: Path, change: dict, says: str) -> None:
    run = hide(tmp_path)
    for file in (run / "eval").glob("0[16]*/*/score.json"):
        write(file, {"questions_sha256": "ours", **json.loads(file.read_text())})
    file = run / "eval" / "00-base" / "pope" / "score.json"
    write(file, {"questions_sha256": "ours", **json.loads(file.read_text()), **change})
    (pope, mme), kept, both = at_the_end(read_run(run))
    assert pope.retention is None and kept is None and both is None and mme.retention is not None
    assert says in write_report(run).read_text()


def test_a_comparison_takes_the_base_from_a_zero_shot_run_of_the_model(tmp_path: Path) -> None:
    zero = with_general(joint_run(tmp_path, "zero", "zero_shot"), {"01-joint": {task: AFTER[task][0] for task in GENERAL}})
    manifest = json.loads((zero / "manifest.json").read_text())
    write(zero / "manifest.json", {**manifest, "method": "zero_shot"})
    assert {task: cell.score for task, cell in base_cells(read_run(zero)).items()} == {"pope": 86.0, "mme": 70.0}
    run, plain = hide(tmp_path, base=False), sequential_run(tmp_path, "lora", "lora", shift=2)
    page = write_comparison([run, zero, plain], tmp_path / "out")
    rows = [*csv.DictReader((tmp_path / "out" / "comparison.csv").open())]
    assert (rows[0]["general: MME"], rows[0]["general: MME change"]) == ("56.00", "-14.00")
    assert (rows[0]["general: retention"], rows[0]["general: H-score"]) == ("87.50", f"{BOTH:.2f}")
    assert rows[1]["general: MME"] == "70.00" and rows[1]["general: MME change"] == rows[2]["general: MME"] == ""
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "56.00 (-14.00)" in text and f"| 87.50 | {BOTH:.2f} |" in text
    assert "56.00 (-14.00)" in (tmp_path / "out" / "comparison.tex").read_text()
    general = page.read_text().split("<h2>General ability</h2>")[1].split("<h2>")[0]
    assert "-14.00" in general and "harmonic mean of retention and Last" in general
    write(zero / "manifest.json", {**manifest, "method": "zero_shot", "model": "another"})
    write_comparison([run, zero], tmp_path / "out")
    assert "no scores of the untouched model" in (tmp_path / "out" / "comparison.md").read_text()


def test_seeds_are_averaged(tmp_path: Path) -> None:
    runs = []
    for seed, shift in ((0, 0.0), (1, 2.0)):
        run = hide(tmp_path, name=f"s{seed}")
        manifest = json.loads((run / "manifest.json").read_text())
        write(run / "manifest.json", {**manifest, "seed": seed})
        file = run / "eval" / "06-flickr30k" / "mme" / "score.json"
        write(file, {**json.loads(file.read_text()), "score": 56 + shift})
        runs.append(run)
    write_comparison(runs, tmp_path / "out")
    assert "57.00 ± 1.41 (-13.00 ± 1.41)" in (tmp_path / "out" / "comparison.md").read_text()


def changed(file: Path, **fields: object) -> None:
    write(file, {**json.loads(file.read_text()), **fields})


def test_a_test_that_was_asked_otherwise_is_left_out_and_told(tmp_path: Path) -> None:
    """A subset of its questions, for instance: the two seeds have no mean, and the other test stays."""
    runs = [hide(tmp_path, name="s0"), hide(tmp_path, name="s1")]
    changed(runs[1] / "manifest.json", seed=1)
    for file in runs[1].glob("eval/*/mme/score.json"):
        changed(file, questions_sha256="first", max_new_tokens=7)
    for file in runs[0].glob("eval/*/mme/score.json"):
        changed(file, questions_sha256="all")
    write_comparison(runs, tmp_path / "out")
    (row,) = csv.DictReader((tmp_path / "out" / "comparison.csv").open())
    assert row["general: MME"] == row["general: retention"] == "" and row["general: POPE"] == "81.70"
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "MME: left out, since s0 was asked it with another max new tokens, questions." in text


def test_a_mean_over_tests_is_one_over_all_of_them(tmp_path: Path) -> None:
    run = hide(tmp_path, name="stopped")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"][-1]["general_tasks"] = ["pope", "mme"]
    write(run / "manifest.json", manifest)
    for folder in run.glob("eval/*/mme"):
        shutil.rmtree(folder)
    (_, mme), kept, both = at_the_end(read_run(run))
    assert (mme.score, kept, both) == (None, None, None)
    write_report(run)
    assert "| Mean retention |  |" in (run / "results" / "general.md").read_text()
    del manifest["stages"][-1]["general_tasks"]  # it is not to be asked MME; another run was
    manifest["general"] = manifest["general"][:1]
    write(run / "manifest.json", manifest)
    assert at_the_end(read_run(run))[1] == pytest.approx(95)
    write_comparison([hide(tmp_path, name="whole", preset="lora"), run], tmp_path / "out")
    whole, part = csv.DictReader((tmp_path / "out" / "comparison.csv").open())
    assert (whole["general: retention"], part["general: retention"], part["general: POPE"]) == ("87.50", "", "81.70")
    assert "MME: none of the tests of this run" in (tmp_path / "out" / "comparison.md").read_text()


def test_which_base_fits_does_not_depend_on_the_order_of_the_runs(tmp_path: Path) -> None:
    zero = with_general(joint_run(tmp_path, "zero", "zero_shot"), {"01-joint": {task: AFTER[task][0] for task in GENERAL}})
    changed(zero / "manifest.json", method="zero_shot")
    other, run = hide(tmp_path, name="bf16", preset="lora"), hide(tmp_path, name="fp32", base=False)
    for folder, dtype in ((zero, "float32"), (other, "bfloat16"), (run, "float32")):
        for file in folder.glob("eval/*/*/score.json"):
            changed(file, dtype=dtype)
    for order in ([zero, other, run], [other, zero, run], [run, other, zero]):
        write_comparison(order, tmp_path / "out")
        rows = {row["Method preset"]: row for row in csv.DictReader((tmp_path / "out" / "comparison.csv").open())}
        assert [rows[name]["general: retention"] for name in rows if name not in ("zero_shot",)] == ["87.50", "87.50"], rows
