"""The speed harnesses run at toy size and print complete tables. Nothing here looks at how fast anything is."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.chromium import installed

ROOT = Path(__file__).parent.parent
TOY = {"hidden": 32, "layers": 2, "heads": 2, "vocabulary": 64, "vision-hidden": 16, "image-tokens": 4,
       "prompt-tokens": 6, "experts": 2, "rank": 2, "rounds": 1}  # fmt: skip
# what the package needs beyond torch, transformers, peft and pydantic (and their own requirements)
ABSENT = ("ijson", "datasets", "pyarrow", "sentencepiece", "PIL", "bitsandbytes", "deepspeed")


def output_of(words: list[str], **environment: str) -> str:
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def harness(name: str, *more: str) -> str:
    return output_of([sys.executable, str(ROOT / "perf" / f"{name}.py"), *more])


def toy(name: str, *more: str) -> str:
    return harness(name, *(f"--{k}={v}" for k, v in TOY.items()), *more)


def rows(output: str) -> list[dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line)) for line in lines[2:]]


@pytest.fixture(scope="module")
def generation() -> str:
    return toy("generation", "--batch", "1,2", "--new-tokens", "3", "--no-memory")


def test_generation_prints_every_variant(generation: str) -> None:
    table = rows(generation)
    wanted = [("base", "1"), ("hide", "1"), ("naive", "1"), ("base", "2"), ("hide", "2")]
    assert [(row["variant"], row["batch"]) for row in table] == wanted
    for row in table:
        assert all(float(row[key]) > 0 for key in ("ms/sample", "ratio to base", "CPU-time ratio", "ratio to hide"))


def test_the_folded_and_the_naive_model_are_the_same_function(generation: str) -> None:
    assert "hide and naive give the same tokens: yes" in generation


@pytest.mark.nightly
def test_every_shape_of_records_is_read_and_measured() -> None:
    table = rows(harness("record_formats", "--records", "30", "--kilobytes", "2", "--random", "5"))
    assert [row["shape"] for row in table] == ["LLaVA JSON", "messages", "Parquet", "saved"]
    assert all(row["records"] == "30" and float(row["ratio"]) > 0.5 for row in table)


@pytest.mark.nightly
def test_the_sample_browser_is_written_and_timed() -> None:
    table = {row["what"]: row["time"] for row in rows(harness("sample_browser", "--questions", "30", "--rounds", "1"))}
    assert table["thumbnails"].startswith("180 files, ") and "first" in " ".join(table)
    assert installed() is None or float(table["sort: id"].removesuffix(" ms")) > 0


@pytest.mark.nightly
def test_training_step_prints_variants_and_trains_one_task_only() -> None:
    chosen = ["peft", "hide", "naive", "all_three"]
    table = rows(toy("training_step", "--batch", "1", "--answer-tokens", "3", "--variants", ",".join(chosen)))
    assert [row["variant"] for row in table] == chosen
    for row in table:
        assert all(float(row[key]) > 0 for key in ("ms/sample", "ratio to peft", "CPU-time ratio", "peak MiB"))
    peft, hide, naive, *others = (int(row["optimizer state bytes"]) for row in table)
    assert {hide, *others} == {peft} and peft < naive


def test_gpu_runs_with_torch_transformers_and_peft_alone(tmp_path: Path) -> None:
    lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in ABSENT)]
    (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
    out = output_of(["bash", str(ROOT / "perf" / "gpu.sh"), "--small"], PYTHON=sys.executable, PYTHONPATH=str(tmp_path))
    table = rows(out)
    measured = [
        (row["part"], row["variant"], row["batch"]) for row in table if row["part"] in ("answers", "training step")
    ]
    wanted = [("answers", name, batch) for name in ("base", "hide") for batch in "12"] + [("answers", "naive", "1")]
    wanted += [("training step", name, "1") for name in ("peft", "hide", "naive") for _ in ("on", "off")]
    assert measured == wanted
    assert all(float(row["ms"]) > 0 for row in table if row["part"] != "optimizer state")
    assert [row["variant"] for row in table if row["part"] == "stages"] == ["fold", "unfold", "swap"]
    assert "63,000 answers" in out


def test_gpu_shows_what_it_had_no_time_or_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "perf"))
    from gpu import Report

    def out_of_memory() -> None:
        raise torch.OutOfMemoryError

    def rows_of(part: str, seconds: float, rows: Callable[[Report], object]) -> list[list[str]]:
        report = Report("cpu", 1, seconds)
        report.section(part, "hide", lambda: rows(report))
        return [[cell for cell in row if cell] for row in report.rows]

    def two_sizes(report: Report) -> None:
        for size in (1, 1000):  # the second is expected to take 1000 times the first
            report.measure("training step", "hide", "sdpa", size, lambda: lambda: time.sleep(0.05), lambda _: [])

    assert rows_of("answers", 0.0, two_sizes) == [["answers", "hide", "not run (time)"]]
    assert rows_of("answers", 60.0, lambda _: out_of_memory()) == [["answers", "hide", "model does not fit"]]
    first, second = rows_of("training step", 60.0, two_sizes)
    assert float(first[-1]) >= 50 and second[-2:] == ["1000", "not run (time)"]


CHECKOUT = ("llava/eval/model_answer.py", "llava/train/train_MOE.py", "HiDe/peft/tuners/clitmoelora.py")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--checkout and --python are needed"),
        (("--checkout", "{tmp}", "--python", "{python}"), "no llava/eval/model_answer.py, so it is not the authors' code"),
        (("--checkout", "{tmp}/theirs", "--python", "{tmp}/absent"), "cannot be run (No such file or directory)"),
        (("--checkout", "{tmp}/theirs", "--python", "{other}"), "expected transformers 4.31.x and what it needs; found 5.23.0"),
        (("--checkout", "{tmp}/theirs", "--python", "{fake}", "--what", "training,decoding"), "--what decoding: expected"),
        (("--checkout", "{tmp}/theirs", "--python", "{fake}", "--folder", "{tmp}"), "is there already"),
        (("--checkout", "{tmp}/theirs", "--python", "{fake}", "--experts", "1"), "--experts 1: expected 2 or more"),
    ],
)
def test_reference_says_what_it_needs_and_how_to_get_it(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their environment is not in the tests, so that only what is refused can be looked at."""
    monkeypatch.syspath_prepend(str(ROOT / "perf"))
    import reference

    for file in CHECKOUT:
        (tmp_path / "theirs" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "theirs" / file).touch()
    for name, version in (("fake", "4.31.0"), ("other", "5.23.0")):  # what a python of such an environment would say
        (tmp_path / name).write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / name).chmod(0o755)
    names = {"tmp": tmp_path, "python": sys.executable, "fake": tmp_path / "fake", "other": tmp_path / "other"}
    monkeypatch.setattr(sys, "argv", ["reference.py", *(word.format(**names) for word in words)])
    with pytest.raises(SystemExit) as refused:
        reference.main()
    assert message in str(refused.value)
    if "--what" not in words and "--folder" not in words and "--experts" not in words:
        assert "git clone https://github.com/Ghy0501/HiDe-LLaVA" in str(refused.value)
        assert "pip install --no-deps peft==0.4.0" in str(refused.value)


COUNTED = """
import sys
sys.path.insert(0, "perf")
import flops
from shapes import Shape
from torch.utils.flop_counter import FlopCounterMode
from training_step import Variant

# eager: torch counts the attention's two products as they are written
shape = Shape(hidden=64, layers=2, heads=2, vocabulary=96, vision_hidden=32, image_tokens=16, prompt_tokens=6,
              answer_tokens=3, experts=2, rank=2, attention="eager")
for recompute in (False, True):
    variant = Variant("hide" if recompute else "peft", shape)
    if recompute:
        variant.llava.gradient_checkpointing_enable({"use_reentrant": False})
    call = variant.step(2)
    with FlopCounterMode(display=False) as counter:
        call()
    # hide forms logits where one of two records has a label: three places, and one more as their prompts differ by a token
    useful, again = flops.step(shape, 1 + 16 + 6 + 3, 4 if recompute else None)
    print(counter.get_total_flops(), 2 * (useful + again * recompute))
"""


def test_the_formula_of_a_step_is_what_torch_counts() -> None:
    plain, checkpointed = output_of([sys.executable, "-c", COUNTED.replace('"perf"', repr(str(ROOT / "perf")))]).split(
        "\n"
    )[:2]
    counted, formula = map(int, plain.split())
    assert counted == formula
    counted, formula = map(int, checkpointed.split())  # plus routing's one matmul, less what recomputation stops before
    assert abs(counted / formula - 1) < 0.002


def test_growth_counts_bytes_that_are_flat_in_the_number_of_tasks() -> None:
    table = {row[""]: row["2"] for row in rows(harness("growth", "--axis", "tasks", "--points", "2", "--rounds", "1"))}
    assert len(table) == 13
    assert table["activations"] == table["state"] == "1.00 / 1.00"
    assert table["gates"] == "2.00 / 2.00"
    assert table["kept"].split(" / ")[0] == table["kept"].split(" / ")[1]


@pytest.mark.nightly
def test_evaluation_divides_the_time_of_a_cell(tmp_path: Path) -> None:
    table = rows(harness("evaluation", "--folder", str(tmp_path), "--task", "flickr30k", "--rounds", "1", "limit=6"))
    assert [(row["task"], row["answers"]) for row in table] == [("flickr30k", "6")]
    shares = [float(table[0][part].rstrip(" %")) for part in ("generation", "pictures", "score", "rest")]
    assert all(share > 0 for share in shares) and abs(sum(shares) - 100) < 0.3


def test_memory_of_a_preset_and_its_published_size() -> None:
    """The first lines of the preset say what this prints, rounded."""
    out = harness("preset_memory", "--preset", "smolvlm2")
    row = next(line for line in out.splitlines() if "smolvlm2" in line).split("│")
    found, published = (float(cell.replace(",", "")) for cell in row[2:4])
    assert abs(found / published - 1) < 0.005
    said = re.search(r"about (\d+) GiB", (ROOT / "configs" / "model" / "smolvlm2.yaml").read_text())
    assert round(float(re.search(r"([\d.]+) GiB", row[4]).group(1))) == int(said.group(1))
