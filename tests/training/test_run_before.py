"""A run folder written by an earlier version loads, reports and goes on inside a task.

`tests/fixtures/run_before_house` is a run of commit 674a7ad (configuration by omegaconf, `model=mini`, two tasks of mini-ucit, 16
records each): its first task is learned and scored, its second was stopped behind step 2 of 4. `expected/` holds what that
same version then made of it, on two cores of an x86-64 CPU with the packages of constraints.txt. Its base is
`tests/fixtures/mini_base_before`, its files and the pictures that it drew are in `data.zip`; the package has others since.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hide_llava.benchmarks.mini.generate import SIZES, VERSION
from hide_llava.config import from_yaml
from hide_llava.evaluation.binding import ANSWERING, SCORING
from hide_llava.pipeline import run
from hide_llava.plugins import versions
from hide_llava.results.report import write_report
from hide_llava.results.run_reader import read_run

FIXTURE = Path(__file__).parent.parent / "fixtures" / "run_before_house"
BASE = FIXTURE.parent / "mini_base_before"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A copy of the run, whose base is where it lies now and whose answers were made with the packages installed here."""
    folder = shutil.copytree(FIXTURE, tmp_path / "run", ignore=shutil.ignore_patterns("expected", "data.zip"))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("package:assets/mini", str(BASE)))
    for file in folder.glob("eval/*/*/*.json"):
        stored = json.loads(file.read_text())
        stored["versions"] = versions(ANSWERING)
        if "scorer" in stored:
            stored["scorer"] |= versions(SCORING)
        file.write_text(json.dumps(stored))
    return folder


def test_it_loads_and_reports(before: Path) -> None:
    read = read_run(before)
    assert [stage["status"] for stage in read.manifest["stages"]] == ["complete", "training"]
    assert read.matrix.tasks == ["arxivqa", "iconqa"] and not read.problems
    assert write_report(before).stat().st_size > 10_000


def test_it_goes_on_inside_the_task(before: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tmp_path / "data"
    shutil.unpack_archive(FIXTURE / "data.zip", data)
    known = {"name": "mini-ucit", "version": VERSION, "seed": 0, "sizes": SIZES}  # else today's files would replace these
    (data / "mini-ucit/manifest.json").write_text(json.dumps(known))
    config = from_yaml(before / "config.yaml", [f"data_root={data}", f"output={before}"])
    run(config, report=False)
    assert "02-iconqa: going on at step 3 of 4" in capsys.readouterr().out
    name = "adapter_model.safetensors"
    ours, theirs = load_file(before / "stages/02-iconqa/adapter" / name), load_file(FIXTURE / "expected" / name)
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-6, rtol=1e-5)
    for task in ("arxivqa", "iconqa"):
        files = (before / "eval/02-iconqa" / task / "predictions.jsonl", FIXTURE / "expected" / f"{task}.jsonl")
        ours, theirs = ([json.loads(line)["token_ids"] for line in file.read_text().splitlines()] for file in files)
        assert ours == theirs
