"""General ability by the command line: of a finished run, with the untouched model, and what the tables say of it."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from hide_llava.results.general import at_the_end, h_score
from hide_llava.results.run_reader import read_run
from scripts.prepare_general import main as prepare
from tests.benchmarks import published_files as published
from tests.cli.call import call, content, refused
from tests.tiny import arguments, write_world_of

PAGE = (Path(__file__).parents[2] / "docs" / "GENERAL_ABILITY.md").read_text(encoding="utf-8")


def printed(beginning: str) -> list[list[str]]:
    """The words of the page's commands that begin so, without that beginning."""
    lines = [line for line in PAGE.splitlines() if line.startswith(beginning)]
    return [shlex.split(line.split("  #")[0])[len(beginning.split()) :] for line in lines]


@pytest.fixture(scope="module")
def files(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world with question files of all four under its data_root, made by the page's commands from published files."""
    raw = tmp_path_factory.mktemp("published")
    published.write_tsv(raw / "MMBench_DEV_EN.tsv", published.mmbench_rows())
    published.write_tsv(raw / "MMStar.tsv", published.mmstar_rows(), published.MMSTAR_COLUMNS)
    published.write_seed(raw / "SEED-Bench.json")
    published.write_mmmu(raw / "MMMU")
    commands = printed("python scripts/prepare_general.py")
    assert len(commands) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(raw)
        for words in commands:
            prepare(words)
    shutil.copytree(raw / "data" / "general", world / "general")
    shutil.copytree(raw / "SEED-Bench-image", world / "general" / "SEED-Bench" / "SEED-Bench-image")
    return world


@pytest.fixture(scope="module")
def asked(files: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, asked three general tests by the page's command, and its untouched model too."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("asked") / "hide"))
    before = content(run / "stages")
    (words,) = printed("hide-llava eval RUN")
    assert words == ["benchmark.general=[mmbench,mmstar,seed-bench]", "eval.general_base=true"]
    called = call("eval", run, *words)
    assert called.code == 0, called.err
    assert content(run / "stages") == before
    return run


def score(run: Path, stage: str, task: str) -> dict:
    return json.loads((run / "eval" / stage / task / "score.json").read_text())


def test_a_finished_run_is_asked_general_tests_without_training(asked: Path) -> None:
    manifest = json.loads((asked / "manifest.json").read_text())
    assert [task["id"] for task in manifest["general"]] == ["mmbench", "mmstar", "seed-bench"]
    for stage in manifest["stages"]:
        assert stage["general_tasks"] == ["mmbench", "mmstar", "seed-bench"]
        assert score(asked, stage["name"], "mmbench")["clean"]["n"] == 2  # five rotations of two questions
        assert len(score(asked, stage["name"], "mmstar")["verdicts"]) == 4
    assert "general:" in (asked / "config.yaml").read_text() and "MMBench" in (asked / "results" / "report.html").read_text()
    again = call("eval", asked, "benchmark.general=[mmstar]")
    assert again.code == 0 and "cells were scored already" in again.out
    changed = json.loads((asked / "manifest.json").read_text())["general"]
    assert changed == manifest["general"]  # what is not asked now was asked before, and stays


def test_the_untouched_model_answers_as_a_zero_shot_run(asked: Path, files: Path, tmp_path: Path) -> None:
    zero = tmp_path / "zero"
    words = arguments(files, "zero_shot", zero, "train.epochs=1", "benchmark.general=[mmbench,mmstar,seed-bench]")
    assert call("run", *words).code == 0
    for task in ("mmbench", "mmstar", "seed-bench"):
        rows = [(run / "eval" / stage / task / "predictions.jsonl").read_text() for run, stage in
                ((asked, "00-base"), (zero, "01-zero-shot"))]  # fmt: skip
        assert rows[0] == rows[1]
        theirs, ours = score(zero, "01-zero-shot", task), score(asked, "00-base", task)
        assert theirs["score"] == ours["score"] and ours["weights_sha256"] is None
    # and in a comparison it is the base of a run that has none of its own
    shutil.copytree(asked, tmp_path / "hide")
    shutil.rmtree(tmp_path / "hide" / "eval" / "00-base")
    out = tmp_path / "out"
    assert call("compare", tmp_path / "hide", zero, "--output", out).code == 0
    own, without = read_run(asked), read_run(tmp_path / "hide")
    assert at_the_end(without)[1] is None and "no scores of the untouched model" in at_the_end(without)[0][0].why
    assert "no scores of the untouched model" not in (out / "comparison.md").read_text()
    changes = [ability.delta for ability in at_the_end(own)[0]]
    assert None not in changes
    text = (out / "comparison.csv").read_text()
    assert all(f"general: {title} change" in text for title in ("MMBench", "MMStar", "SEED-Bench"))
    assert "general: H-score" in text and "general ability" in (out / "comparison.tex").read_text()
    assert "General ability" in (out / "comparison.html").read_text()


def test_what_does_not_fit_is_refused(files: Path, run: Path, tmp_path: Path) -> None:
    refused("eval", run, "benchmark.general=[mmbenhc]", says=("there is no test 'mmbenhc'", "Did you mean 'mmbench'?"))
    refused("eval", run, "benchmark.general=[mmmu]", says=("validation_Art_Theory_2", "names 3 pictures"))
    assert not (run / "eval" / "00-base").exists()
    other = 'benchmark.general=[{id: mmstar, title: M, test: "../general/MMStar/questions.json", metric: seed_bench, images: x}]'
    assert call("eval", run, other).code == 2


def test_a_limit_keeps_the_rotations_of_a_question_together(files: Path, tmp_path: Path) -> None:
    words = arguments(files, "zero_shot", tmp_path / "run", "limit=1", "benchmark.general=[mmbench]")
    assert call("run", *words).code == 0
    found = score(tmp_path / "run", "01-zero-shot", "mmbench")
    assert found["n_expected"] in (2, 3) and found["clean"]["n"] == 1
    assert any(label.startswith("partial: ") for label in found["labels"])


def test_h_score_by_hand() -> None:
    assert h_score(90, 60) == pytest.approx(72) and h_score(0, 60) == 0 and h_score(None, 60) is None


def test_a_model_that_reads_several_pictures_is_asked_mmmu(files: Path, tmp_path: Path) -> None:
    """By its published rule, the questions with three pictures too; the other models take what --pictures first writes."""
    world = write_world_of("qwen2_5_vl", tmp_path / "qwen")
    shutil.copytree(files / "general" / "MMMU", world / "general" / "MMMU")
    called = call("run", *arguments(world, "zero_shot", tmp_path / "run", "benchmark.general=[mmmu]"))
    assert called.code == 0, called.err
    found = score(tmp_path / "run", "01-zero-shot", "mmmu")
    assert found["n_scored"] == 3 and {"subject:Math", "domain:Art and Design", "drawn"} <= found["legacy"].keys()
    rows = (tmp_path / "run" / "eval" / "01-zero-shot" / "mmmu" / "predictions.jsonl").read_text().splitlines()
    assert len(rows) == 3 and all(json.loads(row)["token_ids"] for row in rows)
