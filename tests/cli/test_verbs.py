"""Every verb on the tiny world, as a user calls it."""

import json
import os
import re
import shutil
import sys
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hide_llava.backbones.loading import PACKAGE
from hide_llava.backbones.vicuna import IMAGE_TOKEN
from hide_llava.benchmarks.mini.generate import generate
from hide_llava.config import names
from hide_llava.data.turns import IGNORE
from tests.cli.call import call, content, known_verbs, manifest, refused
from tests.cli.conftest import edit
from tests.golden_reference import GOLDEN
from tests.tiny import arguments

VERBS = ("run", "train", "eval", "plan", "doctor", "report", "predict", "score", "preview", "ls", "export", "import", "demo")


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------------------------------------- train, eval, report


def test_run_trains_evaluates_and_reports(finished: Path) -> None:
    names = ["01-task0", "02-task1", "03-task2"]
    assert sorted(p.name for p in (finished / "stages").iterdir()) == names
    cells = sorted(str(p.parent.relative_to(finished / "eval")) for p in finished.glob("eval/*/*/score.json"))
    assert cells == [f"{names[t]}/task{j}" for t in range(3) for j in range(t + 1)]
    matrix = json.loads((finished / "results" / "matrix.json").read_text())
    assert "task2" in json.dumps(matrix) and (finished / "results" / "report.html").is_file()


def test_train_then_eval_equals_run(finished: Path, world: Path, tmp_path: Path) -> None:
    words = arguments(world, "hide", tmp_path / "run", "train.epochs=1")
    trained = call("train", *words)
    assert trained.code == 0 and not (tmp_path / "run" / "eval").exists()
    assert "03-task2: trained" in trained.out
    evaluated = call("eval", *words)
    assert evaluated.code == 0 and "training" not in evaluated.out
    assert f"run: {tmp_path / 'run'}" in evaluated.out and "Task 2" in evaluated.out
    ours, theirs = content(tmp_path / "run"), content(finished)
    same = [f for f in theirs if f.endswith((".safetensors", "predictions.jsonl", "score.json", "matrix.json"))]
    assert len(same) > 15 and {f: ours[f] for f in same} == {f: theirs[f] for f in same}


def test_eval_of_an_existing_run(run: Path, finished: Path) -> None:
    """Cells are answered with the settings given, which are stored; the run's configuration stays."""
    shutil.rmtree(run / "eval" / "03-task2")
    before, listed = content(run), manifest(run)
    called = call("eval", run, "eval.max_new_tokens=2", "eval.batch_size=3")
    assert called.code == 2  # the other cells have answers of 6 tokens
    shutil.rmtree(run / "eval")
    called = call("eval", run, "eval.max_new_tokens=2", "eval.batch_size=3")
    assert called.code == 0, called.err
    short, long = (rows_of(folder / "eval" / "03-task2" / "task0" / "predictions.jsonl") for folder in (run, finished))
    assert [r["token_ids"] for r in short] == [r["token_ids"][:2] for r in long]
    assert json.loads((run / "eval" / "03-task2" / "task0" / "score.json").read_text())["max_new_tokens"] == 2
    after = content(run)
    kept = [f for f in before if f.startswith("stages/") or f == "config.yaml"]
    assert {f: after[f] for f in kept} == {f: before[f] for f in kept}
    assert manifest(run) == listed


def test_eval_without_changes_does_nothing(run: Path) -> None:
    answers = {f: h for f, h in content(run).items() if f.startswith(("eval/", "stages/"))}
    called = call("eval", run)
    assert called.code == 0 and "loading" not in called.out
    assert {f: h for f, h in content(run).items() if f.startswith(("eval/", "stages/"))} == answers


def test_report_writes_what_is_gone(run: Path) -> None:
    before = content(run)
    shutil.rmtree(run / "results")
    called = call("report", run)
    assert called.code == 0 and f"report: {run / 'results' / 'report.html'}" in called.out
    assert content(run)["results/matrix.json"] == before["results/matrix.json"]
    assert re.search(r"Task 1\b.*\d+\.\d\d", called.out)


# ------------------------------------------------------------------------------------------------------------- predict


def predict(run: Path, world: Path, output: Path, *more: str) -> list[dict]:
    called = call("predict", run, "--stage", "2", "--questions", world / "data" / "task1" / "test.json", "--images",
                  world / "data", "--output", output, *more)  # fmt: skip
    assert called.code == 0, called.err
    assert called.out.strip().endswith(f"6 answers in {output}")
    return rows_of(output)


def test_predict(finished: Path, world: Path, tmp_path: Path) -> None:
    """The rows of the run's own evaluation, at any batch size; nothing but the output file is left."""
    before = content(finished)
    rows = predict(finished, world, tmp_path / "four.jsonl", "--batch-size", "4")
    asked = json.loads((world / "data" / "task1" / "test.json").read_text())
    for row, question in zip(rows, asked, strict=True):
        assert list(row) == ["question_id", "prompt", "text", "token_ids", "routing"]
        assert row["question_id"] == question["question_id"] and row["prompt"] == question["text"]
        assert 1 <= len(row["token_ids"]) <= 6
        assert list(row["routing"]) == ["expert-01", "expert-02"] and sum(row["routing"].values()) == pytest.approx(1)
    assert rows == rows_of(finished / "eval" / "02-task1" / "task1" / "predictions.jsonl")
    single = predict(finished, world, tmp_path / "one.jsonl", "--batch-size", "1")
    assert [r["token_ids"] for r in single] == [r["token_ids"] for r in rows]
    for one, four in zip(single, rows):
        assert one["routing"] == pytest.approx(four["routing"], abs=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["four.jsonl", "one.jsonl"]
    assert content(finished) == before


def test_predict_in_another_number_format(finished: Path, world: Path, tmp_path: Path) -> None:
    rows = predict(finished, world, tmp_path / "half.jsonl", "--dtype", "bfloat16", "--max-new-tokens", "2")
    assert all(1 <= len(row["token_ids"]) <= 2 for row in rows)


def test_predict_goes_on_and_never_mixes(finished: Path, world: Path, tmp_path: Path) -> None:
    """Answers of a killed call are kept; the same output with another stage is refused."""
    rows = predict(finished, world, tmp_path / "all.jsonl", "--max-new-tokens", "3")
    assert max(len(r["token_ids"]) for r in rows) == 3
    parts = tmp_path / "new.jsonl.part"
    words = ["predict", finished, "--questions", world / "data" / "task1" / "test.json", "--images", world / "data",
             "--output", tmp_path / "new.jsonl", "--max-new-tokens", "3"]  # fmt: skip
    broken = tmp_path / "broken"
    shutil.copytree(world / "data", broken)
    last = min(json.loads((broken / "task1" / "test.json").read_text()), key=lambda q: len(q["text"]))
    whole = (broken / last["image"]).read_bytes()
    (broken / last["image"]).write_bytes(b"not an image")
    words[5] = broken
    stopped = call(*words, "--stage", "2", "--batch-size", "1")
    assert stopped.code == 2 and "cannot be decoded" in stopped.err
    kept = rows_of(parts / "part-0.jsonl")
    assert 0 < len(kept) < 6
    refused = call(*words, "--stage", "3")
    assert refused.code == 2 and "other weights" in refused.err and "delete" in refused.err
    assert rows_of(parts / "part-0.jsonl") == kept
    (broken / last["image"]).write_bytes(whole)
    assert call(*words, "--stage", "2").code == 0  # in the batches that it was begun with
    assert [r["token_ids"] for r in rows_of(tmp_path / "new.jsonl")] == [r["token_ids"] for r in rows]


# --------------------------------------------------------------------------------------------------------------- score


def test_score_prints_one_object(finished: Path, world: Path, tmp_path: Path) -> None:
    asked = json.loads((world / "data" / "task0" / "test.json").read_text())
    right = [{"question_id": q["question_id"], "text": q["answer"] if i < 4 else "no"} for i, q in enumerate(asked)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, right)))
    words = ("score", "--metric", "exact_upper", "--references", world / "data" / "task0" / "test.json")
    called = call(*words, "--predictions", tmp_path / "a.jsonl")
    result = json.loads(called.out)
    assert called.code == 0 and called.err == ""
    assert result["score"] == pytest.approx(100 * 4 / 6) and result["n_scored"] == result["n_expected"] == 6
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, right[:5])))
    result = json.loads(call(*words, "--predictions", tmp_path / "a.jsonl", "--allow-partial").out)
    assert result["labels"] == ["partial"] and result["n_scored"] == 5
    cell = finished / "eval" / "03-task2" / "task0"
    result = json.loads(call(*words, "--predictions", cell / "predictions.jsonl").out)
    stored = json.loads((cell / "score.json").read_text())
    assert {k: stored[k] for k in result} == result


@pytest.mark.parametrize("tokenizer", ["java", "python"])
def test_score_of_captions(tokenizer: str, tmp_path: Path) -> None:
    """Both names that --help offers are understood."""
    pytest.importorskip("pycocoevalcap")
    if tokenizer == "java" and shutil.which("java") is None:
        pytest.skip("no Java on this machine")
    captions = ["a red circle on grass", "two dogs run fast"]
    images = [{"id": i, "file_name": f"{i}.png"} for i in (1, 2)]
    notes = [{"image_id": i, "id": i, "caption": c} for i, c in enumerate(captions, 1)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": notes}))
    rows = [{"question_id": i, "text": c} for i, c in enumerate(captions, 1)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    called = call("score", "--metric", "caption7", "--predictions", tmp_path / "a.jsonl", "--references",
                  tmp_path / "coco.json", "--tokenizer", tokenizer)  # fmt: skip
    assert called.code == 0, called.err
    result = json.loads(called.out)
    assert result["score"] > 80
    assert any("not comparable" in label for label in result["labels"]) == (tokenizer == "python")


# ---------------------------------------------------------------------------------------------------------------- plan


def test_plan_steps_equal_hand_arithmetic(world: Path, tmp_path: Path) -> None:
    """8 records in batches of 6 are 2 steps an epoch."""
    more = ("train.global_batch_size=6", "train.per_device_batch_size=2", "train.epochs=3")
    called = call("plan", *arguments(world, "hide", tmp_path / "run", *more))
    assert called.code == 0 and not (tmp_path / "run").exists()
    line = "8 records × 3 epoch(s), batch 6 = 2 per device × 3 accumulation × 1 process(es): 6 steps; then "
    for count, row in enumerate(called.out.splitlines()[1:4], 1):
        assert row.endswith(f"{line}{count} task(s) evaluated ({6 * count} answers)")


def test_plan_sizes_equal_hand_arithmetic(world: Path, tmp_path: Path) -> None:
    """LLaVA-1.5-7B from its configuration alone; no weights are needed."""
    text = {"model_type": "llama", "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32}  # fmt: skip
    vision = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "image_size": 336,
              "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}  # fmt: skip
    tree = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": text,
            "vision_config": vision}  # fmt: skip
    (tmp_path / "7b").mkdir()
    (tmp_path / "7b" / "config.json").write_text(json.dumps(tree))
    called = call("plan", *arguments(world, "hide", tmp_path / "run", f"model.path={tmp_path}/7b", "method.rank=8"))
    decoder = 2 * 32064 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
    layer = 4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
    tower = 3 * 14 * 14 * 1024 + 1024 + (24 * 24 + 1) * 1024 + 24 * layer + 4 * 1024
    projector = 1024 * 4096 + 4096 + 4096**2 + 4096
    adapter = 32 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    base, mib = decoder + tower + projector, 2**20
    assert (base, adapter, projector) == (7_063_427_072, 19_988_480, 20_979_712)
    assert [line for line in called.out.splitlines() if not line.startswith("warning: ")][4:10] == [
        f"base model: 7,063.4 M parameters, {base * 4 / mib:,.0f} MiB in torch.float32 (model.dtype=auto on cpu)",
        "adapts 224 linears of 32 decoder layers; none of the vision tower",
        "trained in one task: 40.97 M parameters (adapter 19.99 M, projector 20.98 M)",
        "adapter file of one task: 76.3 MiB in fp32 (38.2 MiB as bf16)",  # with the header of 448 tensors
        "stored with one task: 40.97 M parameters (adapter 19.99 M, projector 20.98 M), 156.3 MiB in fp32",
        f"weights of the trained part, gradients and AdamW state: {(adapter + projector) * 16 / mib:,.0f} MiB",
    ]


def test_plan_of_a_large_model_is_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a laptop too, unless the user says the format or the device."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ("plan", "benchmark=ucit", "method=lora", "model=llava-1.5-7b", f"model_root={tmp_path}", f"data_root={tmp_path}")

    def base(*more: str) -> str:
        called = call(*words, *more)
        assert called.code == 0, called.err
        return next(line for line in called.out.splitlines() if line.startswith("base model"))

    assert "13,472 MiB in torch.bfloat16 (model.dtype=auto: planned for a GPU" in base()
    assert base("model.dtype=float32").endswith("26,945 MiB in torch.float32")
    assert base("model.dtype=float16").endswith("13,472 MiB in torch.float16")
    assert base("model.device=cpu").endswith("26,945 MiB in torch.float32 (model.dtype=auto on cpu)")


def test_plan_of_several_gpus(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    words = arguments(world, "lora", tmp_path / "run", "train.global_batch_size=8")
    called = call("plan", *words, "--gpus", "4")
    assert "batch 8 = 2 per device × 1 accumulation × 4 process(es)" in called.out and "at 400 TFLOP/s" in called.out
    assert os.environ["WORLD_SIZE"] == "1" and "1 process(es)" in call("plan", *words).out
    refused("plan", *words, "--gpus", "3", says=("cannot be split over 3 processes",))


def test_plan_writes_the_embedded_benchmark_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"train": 20, "val": 2, "test": 20}
    monkeypatch.setattr("hide_llava.benchmarks.prepare.generate", lambda root, **named: generate(root, sizes=small, **named))
    called = call("plan", "benchmark=mini-ucit", "method=lora-mini", "limit=16", "tasks=[iconqa]", f"data_root={tmp_path}")
    assert called.code == 0 and " 16 records × " in called.out and "(16 answers)" in called.out, called.err


def test_plan_counts_what_a_run_does(finished: Path, world: Path, tmp_path: Path) -> None:
    called = call("plan", *arguments(world, "hide", tmp_path / "run", "train.epochs=1"))
    planned = [int(n) for n in re.findall(r": (\d+) steps;", called.out)]
    logs = [rows_of(finished / "stages" / f"0{t + 1}-task{t}" / "trainer_log.jsonl") for t in range(3)]
    assert planned == [max(row["step"] for row in log) for log in logs]


def test_plan_without_training(world: Path, tmp_path: Path) -> None:
    called = call("plan", *arguments(world, "zero_shot", tmp_path / "run"))
    assert called.code == 0 and "no training; 3 tasks are evaluated" in called.out
    assert "all evaluation: 18 answers in 3 cells, " in called.out
    assert "\nall evaluation: 36 answers in 6 cells, " in call("plan", *arguments(world, "lora", tmp_path / "run")).out
    (tmp_path / "data").mkdir()
    called = call("plan", *arguments(world, "lora", tmp_path / "run"), f"data_root={tmp_path}")
    assert called.code == 0 and "all evaluation: not known without the question files" in called.out


# ------------------------------------------------------------------------------------------------------------- preview


def golden_preview(*more: str) -> list[dict]:
    called = call("preview", "--data", GOLDEN / "data" / "preprocess_cases.json", "--images", GOLDEN / "data",
                  "--model", GOLDEN / "base", "--clip", GOLDEN / "clip", "--json", *more)  # fmt: skip
    assert called.code == 0, called.err
    return [json.loads(line) for line in called.out.splitlines()]


def test_preview_gives_the_recorded_ids_and_labels() -> None:
    """All 30 odd records of the reference, also those that the trainer refuses."""
    recorded = {r["id"]: r for r in json.loads((GOLDEN / "misc" / "preprocess_v1.json").read_text())["2048"]}
    shown = golden_preview("--label-masks", "reference")
    assert [row["id"] for row in shown] == list(recorded)
    for row in shown:
        expected = recorded[row["id"]]
        assert row["input_ids"] == expected["input_ids"], row["id"]
        assert row["labels"] == expected["labels"], row["id"]
        assert row["image_tokens"] == (576 if IMAGE_TOKEN in row["input_ids"] else 0)
        if expected["n_label"] == 0:
            assert "do not line up" in row["error"] and set(row["labels"]) == {IGNORE}
    refused = {row["id"] for row in shown if "error" in row}
    assert len(refused) == 10 and {"long_image", "image_token_two_turns", "image_no_token"} < refused


def test_preview_cuts_as_the_trainer_does() -> None:
    """A record that is cut, but still trains, is shown cut: 576 positions of the limit go to the image."""
    whole = {row["id"]: row for row in golden_preview()}["long_image_answer"]
    cut = {row["id"]: row for row in golden_preview("--max-length", "1200")}["long_image_answer"]
    kept = 1200 - 576 + 1
    assert "error" not in cut and len(whole["input_ids"]) > kept
    assert cut["input_ids"] == whole["input_ids"][:kept] and cut["labels"] == whole["labels"][:kept]


def test_preview_rows_and_readable_text(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "data", tmp_path / "data")
    (tmp_path / "data" / "task0" / "train1.png").unlink()
    words = ("preview", "--data", tmp_path / "data" / "task0" / "train.json", "--images", tmp_path / "data", "--model",
             world / "llava", "--limit", "2")  # fmt: skip
    rows = [json.loads(line) for line in call(*words, "--json").out.splitlines()]
    assert [list(row) for row in rows] == [
        ["id", "input_ids", "labels", "image_tokens", "routing_text"],
        ["id", "error", "input_ids", "labels", "image_tokens", "routing_text"],
    ]
    assert rows[0]["routing_text"] == "What is the object in the image?" and rows[0]["image_tokens"] == 4
    assert rows[0]["input_ids"].count(IMAGE_TOKEN) == 1 and len(rows[0]["labels"]) == len(rows[0]["input_ids"])
    assert "train1.png does not exist" in rows[1]["error"] and any(label != IGNORE for label in rows[1]["labels"])
    text = call(*words).out
    assert "USER: [image × 4] \nWhat is the object in the image?" in text
    assert "ASSISTANT:⟦ circle</s>⟧" in text
    assert "── 0-1:" in text and "NOT USABLE: Image" in text
    supervised = sum(label != IGNORE for label in rows[0]["labels"])
    assert f"── 0-0: {len(rows[0]['input_ids']) + 3} positions, {supervised} supervised" in text


def test_preview_of_a_file_without_a_good_record(world: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": ""}]
    (tmp_path / "bad.json").write_text(json.dumps([{"id": "x", "conversations": turns}]))
    words = ("--data", tmp_path / "bad.json", "--images", tmp_path, "--model", world / "llava")
    called = call("preview", *words, "--json")
    row = json.loads(called.out)
    assert called.code == 0 and "an answer is empty" in row["error"] and set(row["labels"]) == {IGNORE}


def test_preview_takes_a_models_name_and_a_benchmark(world: Path, tmp_path: Path) -> None:
    files = ("--data", world / "data" / "task0" / "train.json", "--images", world / "data")
    by_name = call("preview", *files, "--model", "mini", "--limit", "1", "--json")
    by_folder = call("preview", *files, "--model", PACKAGE / "assets" / "mini" / "llava", "--limit", "1", "--json")
    assert by_name.code == 0 and by_name.out == by_folder.out, by_name.err
    words = (f"benchmark={world}/bench.yaml", f"model={world}/model.yaml", f"data_root={world}")
    shown = call("preview", *words, "tasks=[task1]", "--limit", "2", "--json")
    assert [json.loads(line)["id"] for line in shown.out.splitlines()] == ["1-0", "1-1"], shown.err
    several = call("preview", *words, "--limit", "1")
    assert [line.rpartition("/")[0].rpartition("/")[2] for line in several.out.splitlines() if line[0] == "═"] == [
        "task0", "task1", "task2"
    ]  # fmt: skip
    for bad, says in (((), "preview needs"), ((*words, *files), "not both"), ((*words, "--model", "minni"), "minni")):
        called = call("preview", *bad)
        assert called.code == 2 and says in called.err


# -------------------------------------------------------------------------------------------------- doctor, ls, import


def test_doctor(world: Path, tmp_path: Path) -> None:
    called = call("doctor")
    assert called.code == 0 and "[ok]   torch " + torch.__version__ in called.out and "[bad]" not in called.out
    words = arguments(world, "hide", tmp_path / "run")
    called = call("doctor", *words)
    assert called.code == 0 and "[ok]   benchmark tiny" in called.out and f"[ok]   CLIP {world / 'clip'}" in called.out
    tree = json.loads((world / "bench.yaml").read_text())
    tree["benchmark"]["tasks"][0]["n_test"] = 99
    (tmp_path / "other.yaml").write_text(json.dumps(tree))
    called = call("doctor", f"benchmark={tmp_path / 'other.yaml'}", *words[1:])
    assert called.code == 0 and "[note]" in called.out and "99" in called.out  # what a run would warn of
    called = call("doctor", *words, f"model.path={tmp_path}/gone", f"data_root={tmp_path}")
    assert called.code == 1 and called.out.count("[bad]") == 2
    assert "files are missing" in called.out and f"{tmp_path}/gone" in called.out and called.err == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "word, says",
    [
        ("model.quantization=4bit", "bitsandbytes cannot be imported"),
        ("model.attention=flash", "flash_attn is not installed"),
        ("model.device=tpu9", "cannot be used here"),
        ("router.encoder=siglip", "expected clip or open_clip"),
    ],
)
def test_what_this_machine_lacks_is_known_before_weights_are_read(
    word: str, says: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("hide_llava.preflight.is_flash_attn_2_available", lambda: False)
    monkeypatch.setattr("hide_llava.backbones.auto.load", lambda *_: 1 / 0)
    words = [*arguments(world, "hide", tmp_path / "run"), word]
    called = call("doctor", *words)
    assert called.code == 1 and says in called.out and called.out.count("[bad]") == 1
    refused("run", *words, says=(word, says))


def test_doctor_tells_of_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old ones, several for one process, and which of them may be used."""
    cards = [SimpleNamespace(name="Tesla V100", total_memory=16 * 2**30, major=7, minor=0),
             SimpleNamespace(name="NVIDIA A100", total_memory=40 * 2**30, major=8, minor=0)]  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(cards))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda i: cards[i])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    text = call("doctor").out
    assert "[ok]   GPU 0: Tesla V100, 16 GiB, compute 7.0 (CUDA_VISIBLE_DEVICES=2,3)" in text
    assert "[note] GPU 0 is older than Ampere" in text and "model.dtype=float16" in text and "[note] GPU 1" not in text
    assert "[note] 2 GPUs are visible, but `hide-llava run` is one process" in text and "scripts/train_all.sh" in text
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "GPUs are visible" not in call("doctor").out
    del cards[0]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "GPUs are visible" not in call("doctor").out
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "[note] no GPU (CUDA_VISIBLE_DEVICES=empty): enough for model=mini" in call("doctor").out


def test_ls(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for what, group in (("methods", "method"), ("benchmarks", "benchmark"), ("models", "model")):
        called = call("ls", what)
        assert called.code == 0
        head, *lines = called.out.splitlines()
        listed = [line.split()[0] for line in lines]
        assert head.isupper() and (sorted(listed) if what == "methods" else listed) == names(group)
    head, *lines = call("ls", "methods").out.splitlines()
    kinds = [line[head.index("KIND") : head.index("YEAR")].strip() for line in lines]
    assert [kind for kind, _ in groupby(kinds)] == list(dict.fromkeys(kinds))  # those of a kind stand together
    assert "ImageNet-R, ArxivQA, VizWiz, IconQA, CLEVR-Math, Flickr30k" in call("ls", "benchmarks").out
    monkeypatch.chdir(tmp_path)
    assert call("ls", "runs").out == "no runs here\n"
    shutil.copytree(finished, tmp_path / "runs" / "mine")
    edit(tmp_path / "runs" / "mine" / "manifest.json", lambda m: m["stages"][2].update({"status": "training"}))
    (tmp_path / "runs" / "theirs").mkdir()
    (tmp_path / "runs" / "theirs" / "manifest.json").write_text('{"name": "of another program"}')
    assert re.search(r"^runs/mine +hide +tiny +2/3 stages$", call("ls", "runs").out, re.MULTILINE)


def test_import_and_predict(tmp_path: Path) -> None:
    """The reference's checkpoints of two tasks answer as recorded."""
    tasks = [GOLDEN / "ckpt_e6" / f"Task{i}_llava_lora_ours" for i in (1, 2)]
    words = [w for task in tasks for w in ("--checkpoint", task)]
    called = call("import", "hide-reference", *words, "--base", GOLDEN / "base", "--clip", GOLDEN / "clip", "--out",
                  tmp_path / "run")  # fmt: skip
    assert called.code == 0 and f"imported into {tmp_path / 'run'}" in called.out, called.err
    recorded = json.loads((GOLDEN / "eval_e6" / "task2.json").read_text())["samples"]
    answered = call("predict", tmp_path / "run", "--stage", "2", "--questions", GOLDEN / "data" / "test.json",
                    "--images", GOLDEN / "data", "--output", tmp_path / "answers.jsonl",
                    "--max-new-tokens", "10")  # fmt: skip
    assert answered.code == 0, answered.err
    rows = rows_of(tmp_path / "answers.jsonl")
    assert [r["token_ids"] for r in rows[: len(recorded)]] == [s["generated_ids"] for s in recorded]


# ---------------------------------------------------------------------------------------------------------------- help


def test_every_verb_is_tested_here() -> None:
    assert set(VERBS) <= set(known_verbs())
