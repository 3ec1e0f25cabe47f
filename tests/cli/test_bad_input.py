"""Everything a user may get wrong ends in one clear sentence, exit code 2, and loses nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hide_llava.config import from_yaml
from tests.cli.call import assert_refusal, call, content, refused
from tests.cli.conftest import edit
from tests.golden_reference import GOLDEN
from tests.tiny import arguments

Words = Callable[..., list[str]]
CHECKOUT = Path(__file__).parent.parent.parent


def cut(file: Path, keep: float = 0.6) -> Path:
    """Leave the first part of a file, as a full disk or a broken download does."""
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    return file


# ------------------------------------------------------------------------------------------------------ training data


def test_missing_image(mine: Path, words: Words) -> None:
    (mine / "data" / "task0" / "train3.png").unlink()
    refused("train", *words(), says=("task0/train.json", "record 3 (id '0-3')", "train3.png does not exist",
                                     "train.on_bad_sample=skip"))  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_image(workers: int, mine: Path, words: Words) -> None:
    """Also from a data worker process, whose exceptions arrive as the text of a traceback."""
    cut(mine / "data" / "task0" / "train3.png")
    says = ("task0/train.json", "record 3 (id '0-3')", "train3.png cannot be decoded", "replace the file")
    message = refused("train", *words(f"train.num_workers={workers}"), says=says)
    assert "worker" not in message


def test_bad_records_can_be_skipped_and_are_listed(mine: Path, words: Words, tmp_path: Path) -> None:
    cut(mine / "data" / "task0" / "train3.png")
    (mine / "data" / "task0" / "train5.png").unlink()
    called = call("train", *words("train.on_bad_sample=skip"))
    assert called.code == 0, called.err
    stage = json.loads((tmp_path / "out" / "manifest.json").read_text())["stages"][0]
    assert stage["records"] == 6 and [bad["id"] for bad in stage["skipped"]] == ["0-3", "0-5"]
    assert [bad["kind"] for bad in stage["skipped"]] == ["undecodable picture", "missing picture"]
    assert "01-task0: 2 of 8 records left out (1 × undecodable picture, 1 × missing picture)" in called.out


def test_a_malformed_record_is_refused_by_all_or_skipped_by_all(mine: Path, words: Words, tmp_path: Path) -> None:
    """`check`, `plan` and `run` say the same of it, whatever the task; with skip they go on."""
    edit(mine / "data" / "task1" / "train.json", lambda rows: rows[2].update(img=rows[2].pop("image")))
    says = ("task1/train.json", "record 2 (id '1-2')", "has 'img', which is not read")
    assert call("check", *words()[:2], words()[3]).code == 1
    assert all(said in call("check", *words()[:2], words()[3]).out for said in says)
    refused("plan", *words(), says=says)
    refused("run", *words(), says=says)
    skip = words("train.on_bad_sample=skip", method="lora")
    assert re.search(r"2 Task 1 +7 records", call("plan", *skip).out)
    called = call("train", *skip)
    assert called.code == 0 and "02-task1: 1 of 8 records left out (1 × picture under another key)" in called.out


def test_a_run_may_be_changed_from_error_to_skip_but_not_back(mine: Path, words: Words, tmp_path: Path) -> None:
    cut(mine / "data" / "task1" / "train3.png")
    says = ("task1/train.json", "record 3 (id '1-3')", "train.on_bad_sample=skip")
    refused("train", *words(method="lora"), says=says)
    first = json.loads((tmp_path / "out" / "manifest.json").read_text())["stages"]
    assert [stage["status"] for stage in first] == ["complete", "pending", "pending"]  # met before the stage began
    called = call("train", *words("train.on_bad_sample=skip", method="lora"))
    assert called.code == 0, called.err
    stages = json.loads((tmp_path / "out" / "manifest.json").read_text())["stages"]
    assert [len(stage["skipped"]) for stage in stages] == [0, 1, 0]
    assert "on_bad_sample: skip" in (tmp_path / "out" / "config.yaml").read_text()
    refused("train", *words(method="lora"), says=("train.on_bad_sample: 'skip' there, 'error' now",))


def test_a_run_begun_before_the_keys_existed_goes_on_as_it_did(words: Words, tmp_path: Path) -> None:
    """Its config.yaml and scores lack them: pictures as stored, answers as searched for, said in a line."""
    train = words(method="lora")
    assert call("run", *train, "benchmark.image_orientation=ignore", "train.label_masks=reference").code == 0
    config = tmp_path / "out" / "config.yaml"
    kept = [line for line in config.read_text().splitlines() if "image_orientation" not in line and "label_masks" not in line]
    config.write_text("\n".join(kept) + "\n")
    for score in (tmp_path / "out" / "eval").glob("*/*/score.json"):
        edit(score, lambda value: value.pop("image_orientation") and None)
    called = call("run", *train)
    assert called.code == 0, called.err
    assert "goes on as it did: benchmark.image_orientation=ignore, train.label_masks=reference" in called.out
    assert "training" not in called.out
    stored = from_yaml(config)
    assert (stored.benchmark.image_orientation, stored.train.label_masks) == ("ignore", "reference")
    assert call("eval", tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: {"records": rows}, ("is not a JSON list",)),
        (lambda rows: [], ("holds no records",)),
        (lambda rows: rows[2].pop("conversations") and None, ("record 2 (id '2-2')", "no conversations")),
        (lambda rows: rows[2]["conversations"][0].update({"from": "user"}),
         ("record 2 (id '2-2'): turn 1", "role 'user'", "'human' and 'gpt'")),
        (lambda rows: rows[2].update({"image": "../../secret.png"}), ("record 2 (id '2-2')", "leaves the image root")),
    ],
    ids=["not a list", "empty", "no conversations", "unknown role", "path out of the root"],
)  # fmt: skip
def test_bad_training_file_of_the_last_task(
    change: Callable, says: tuple, mine: Path, words: Words, tmp_path: Path
) -> None:
    """Found before the first task trains."""
    edit(mine / "data" / "task2" / "train.json", change)
    refused("run", *words(), says=("task2/train.json", *says))
    assert not (tmp_path / "out").exists()


def test_cut_training_file(mine: Path, words: Words) -> None:
    cut(mine / "data" / "task1" / "train.json")
    refused("run", *words(), says=("task1/train.json is not valid JSON", "line 1"))


def test_duplicate_question_ids(mine: Path, words: Words, tmp_path: Path) -> None:
    edit(mine / "data" / "task1" / "test.json", lambda rows: rows[4].update({"question_id": 1, "text": rows[1]["text"]}))
    says = ("task1/test.json: record 4 (question_id 1) repeats the id and the text of record 1", "must be unique")
    refused("run", *words(), says=says)
    assert not (tmp_path / "out").exists()


def test_missing_benchmark_file(mine: Path, words: Words, tmp_path: Path) -> None:
    (mine / "data" / "task2" / "test.json").unlink()
    refused("run", *words(), says=("benchmark 'tiny': 1 of 6 files are missing", "task2/test.json", "data_root="))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- the configuration


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("method=hied",), ("unknown method 'hied'", "Did you mean 'hide'?")),
        (("benchmark=ucti",), ("unknown benchmark 'ucti'", "Did you mean 'ucit'?")),
        (("model=llava-1.5-7",), ("unknown model 'llava-1.5-7'", "Did you mean 'llava-1.5-7b'?")),
        (("train.epoch=2",), ("unknown key 'train.epoch'", "Did you mean 'train.epochs'?")),
        (("trian.epochs=2",), ("unknown key 'trian'", "Did you mean 'train'?")),
        (("method.rnak=2",), ("unknown key 'method.rnak' for method 'hide'", "Did you mean 'method.rank'?")),
        (("train.epochs=many",), ("command line: train.epochs='many': expected a number.",)),
        (("method.rank=many",), ("method.rank", "many")),
        (("method.rank=0",), ("rank=0", "at least 1")),
        (("method.routing=hard",), ("routing=hard", "softmax_learned")),
        (("train=[1]",), ("unknown train '[1]'",)),
        (("benchmark.tasks=5",), ("benchmark.tasks=5: expected a list of mappings",)),
        (("train.epochs=0",), ("train.epochs=0", "greater than 0")),
        (("eval.split=dev",), ("eval.split=dev", "test, val")),
        (("train.epochs",), ("'train.epochs' is not an override", "key=value")),
        (("model.device=tpu9",), ("model.device=tpu9", "auto, cpu or cuda")),
        (("train.schedule=zigzag",), ("train.schedule=zigzag", "linear")),
        (("train.optimizer=adamx",), ("train.optimizer=adamx", "adamw_torch")),
        (("method.expanded_layers=[7]",), ("expanded layers [7]", "2 decoder layers")),
        (("router.encoder=siglip",), ("router.encoder=siglip", "expected clip or open_clip")),
        (("train.global_batch_size=6", "train.per_device_batch_size=4"),
         ("train.global_batch_size=6", "train.per_device_batch_size=4", "possible: 1, 2, 3, 6")),
        (("eval.split=val",), ("task 'task0'", "no val file")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) and "=" in value[0] else "",
)  # fmt: skip
def test_wrong_words(more: tuple, says: tuple, words: Words) -> None:
    refused("run", *words(*more), says=says)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("run --benchmark mini-ucit method=hide", "no option --benchmark. Keys are written without dashes: benchmark=mini-ucit."),
        ("train --benchmark=mini-ucit", "without dashes: benchmark=mini-ucit."),
        ("plan benchmark=ucit --method hide --model x", "without dashes: method=hide."),
        ("check --data-root=/x benchmark=ucit", "without dashes: data_root=/x."),
        ("run method=hide --limit", "without dashes: limit=…"),
        ("report runs/x --verbose", "has no option --verbose. See `hide-llava report --help`."),
        ("evaluate runs/x", "there is no verb 'evaluate'. Did you mean 'eval'?"),
        ("infer runs/x", "Did you mean 'predict'?"),
        ("trian benchmark=ucit", "Did you mean 'train'?"),
        ("compar runs/a runs/b", "Did you mean 'compare'?"),
        ("xyzzy", "there is no verb 'xyzzy'. Known: analyze, ask, chat, check, compare"),
        ("benchmark=ucit method=hide", "the verb is missing, for example: hide-llava run benchmark=ucit method=hide"),
        ("predict runs/x --stage 1", "the following arguments are required: --questions, --images, --output"),
        ("predict runs/x --stage one", "argument --stage: 'one' is not a whole number"),
        ("predict runs/x --stage", "--stage"),
        ("predict runs/x --stag 1", "has no option --stag. Did you mean '--stage'?"),
        ("plan benchmark=ucit --tflops many", "argument --tflops: 'many' is not a number"),
        ("run benchmark=ucit -1", "`hide-llava run` has no option -1."),
        ("check --dep benchmark=ucit", "Did you mean '--deep'?"),
        ("report runs/x runs/y", "runs/y"),
        ("--benchmark ucit", "the verb is missing, for example: hide-llava run benchmark=ucit"),
        ("plan benchmark=ucit --gpus 0", "argument --gpus: '0' is not a whole number of at least 1"),
        ("analyze", "the following arguments are required: KIND"),
        ("analyze ckaa", "Did you mean 'cka'?"),
        ("analyze cka", "the following arguments are required: run, --stage"),
        ("ls everything", "argument what: invalid choice: 'everything' (choose from"),
        ("", "the following arguments are required: VERB"),
    ],
)  # fmt: skip
def test_wrong_lines(line: str, says: str) -> None:
    """What the parser refuses has the form of every other refusal."""
    refused(*line.split(), says=(says,))


def test_unknown_metric(mine: Path, words: Words, tmp_path: Path) -> None:
    edit(mine / "bench.yaml", lambda tree: tree["benchmark"]["tasks"][2].update({"metric": "exact_uper"}))
    refused("run", *words(), says=("no metric 'exact_uper'", "did you mean exact_upper?"))
    assert not (tmp_path / "out").exists()
    rows, asked = mine / "rows.jsonl", mine / "data" / "task0" / "test.json"
    refused("score", "--metric", "exact_uper", "--predictions", rows, "--references", asked, says=("exact_upper",))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("benchmark: [", "not valid YAML"),
        ("- 1", "expected a mapping"),
        ("train: {epochs: 1}", "no top-level 'benchmark:'"),
        ("benchmark: tiny", "must be a mapping, e.g. `benchmark: {name: tiny}`"),
        ("benchmark: {name: x, tasks: [a]}", "benchmark.tasks[0]='a': expected a mapping"),
    ],
)
def test_broken_yaml(text: str, says: str, mine: Path, words: Words) -> None:
    (mine / "bench.yaml").write_text(text)
    refused("run", *words(), says=("bench.yaml", says))


def test_caption_metric_without_java(mine: Path, words: Words, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hide_llava.metrics.caption.java_available", lambda: False)
    (mine / "data" / "coco.json").write_text("{}")
    captions = {"metric": "caption7", "references": "coco.json"}
    edit(mine / "bench.yaml", lambda tree: tree["benchmark"]["tasks"][2].update(captions))
    refused("run", *words(), says=("needs Java", "tokenizer=python"))
    assert not (tmp_path / "out").exists()


def test_caption_metric_without_references(mine: Path, words: Words) -> None:
    edit(mine / "bench.yaml", lambda tree: tree["benchmark"]["tasks"][2].update({"metric": "caption7"}))
    refused("run", *words(), says=("task 'task2'", "caption7", "set its 'references'"))


# ---------------------------------------------------------------------------------------------------------- the model


def test_empty_model_folder(words: Words, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused("run", *words(f"model.path={tmp_path}/empty"), says=(tmp_path / "empty", "no config.json", "model.path"))
    refused("run", *words(f"model.path={tmp_path}/none"), says=(tmp_path / "none", "no such folder", "HIDE_MODELS"))


def test_folder_of_another_architecture(world: Path, words: Words, tmp_path: Path) -> None:
    says = (world / "clip", "holds a model of type 'clip'", "which no backbone is for", "docs/ADD_A_BACKBONE.md")
    refused("run", *words(f"model.path={world}/clip"), says=says)
    shutil.copytree(world / "llava", tmp_path / "llama")
    edit(tmp_path / "llama" / "config.json", lambda tree: tree.update({"architectures": ["CLIPModel"]}))
    refused("run", *words(f"model.path={tmp_path}/llama"), says=("holds CLIPModel", "LlavaForConditionalGeneration"))
    edit(tmp_path / "llama" / "config.json", lambda tree: tree.update({"architectures": ["LlamaForCausalLM"]}))
    refused("run", *words(f"model.path={tmp_path}/llama"), says=(tmp_path / "llama", "holds LlamaForCausalLM"))


def test_truncated_weights(world: Path, words: Words, tmp_path: Path) -> None:
    shutil.copytree(world / "llava", tmp_path / "llava")
    cut(tmp_path / "llava" / "model.safetensors")
    refused("run", *words(f"model.path={tmp_path}/llava"), says=(tmp_path / "llava", "cannot be loaded"))


def test_a_corrected_mistake_does_not_block_the_run_folder(words: Words, tmp_path: Path) -> None:
    """A run that never began holds nothing, so its folder takes the corrected command."""
    refused("run", *words(f"model.path={tmp_path}/none"), says=("no such folder",))
    refused("run", *words("train.schedule=zigzag"), says=("train.schedule=zigzag",))
    assert call("train", *words("train.max_steps=1")).code == 0


def test_missing_text_tower(world: Path, words: Words, tmp_path: Path) -> None:
    refused("run", *words("model.clip=null"), says=("routes by CLIP features", "set model.clip"))
    shutil.copytree(world / "clip", tmp_path / "clip")
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    kept = {k: v.clone() for k, v in weights.items() if not k.startswith("text_model.")}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "clip" / "model.safetensors", {"format": "pt"})
    says = (tmp_path / "clip", "text tower lacks weights", "set model.clip to a full CLIP folder")
    refused("run", *words(f"model.clip={tmp_path}/clip"), says=says)


# ------------------------------------------------------------------------------------------------------- run folders


def test_folder_of_another_run(world: Path, run: Path) -> None:
    before = content(run)
    changed = ("train.epochs=1", "train.learning_rate=1e-4", "method.rank=4", "seed=1", "eval.max_new_tokens=9")
    says = (run, "train.learning_rate: 0.005 there, 0.0001 now", "method.rank: 8 there, 4 now", "seed: 42 there, 1 now",
            "eval.max_new_tokens: None there, 9 now", "output=", "or give the old values back")  # fmt: skip
    assert "more" not in refused("run", *arguments(world, "hide", run, *changed), says=says)
    assert content(run) == before


def test_folder_of_another_method(world: Path, run: Path) -> None:
    """What says most comes first, a key that one side lacks is absent, and what is left out is counted."""
    before = content(run)
    words = arguments(world, "lora", run, "train.epochs=1", "tasks=[task0,task1]")
    first = "(method.name: 'hide' there, 'lora' now; method.preset: 'hide' there, 'lora' now; tasks: None there, "
    message = refused("run", *words, says=(run, first, " there, absent now", " more). Choose another output="))
    assert int(message.split("; and ")[1].split(" more")[0]) > 1 and "None now" not in message
    assert content(run) == before


def test_a_folder_that_is_no_run(world: Path, words: Words, tmp_path: Path) -> None:
    thesis = tmp_path / "out" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    before = content(tmp_path / "out")
    refused("run", *words(), says=(tmp_path / "out", "not a run folder", "thesis.tex", "another output="))
    refused("eval", tmp_path / "out", says=("neither key=value nor a run folder",))
    refused("report", tmp_path / "out", says=("not a run folder",))
    asked = world / "data" / "task0" / "test.json"
    answers = ("--questions", asked, "--images", world / "data", "--output", tmp_path / "a")
    refused("predict", tmp_path / "out", "--stage", "1", *answers, says=("not a run folder",))
    assert content(tmp_path / "out") == before and not list(thesis.parent.glob(".*"))


def test_only_evaluation_of_an_existing_run_may_change(run: Path) -> None:
    before = content(run)
    refused("eval", run, "train.epochs=3", says=("'train.epochs=3'", "only eval.*"))
    refused("eval", run, "eval.batchsize=3", says=("unknown key 'eval.batchsize'", "Did you mean 'eval.batch_size'?"))
    refused("eval", run, "eval.batch_size=many", says=("eval.batch_size", "many"))
    refused("eval", run, "eval.max_new_tokens=3", says=("01-task0/task0", "max_new_tokens: 6 there, 3 now", "--again"))
    assert content(run) == before


def test_stage_that_is_not_there(run: Path, world: Path, tmp_path: Path) -> None:
    before = content(run)
    asked = world / "data" / "task0" / "test.json"
    answers = ("--questions", asked, "--images", world / "data", "--output", tmp_path / "a")
    for stage in ("9", "0"):
        refused("predict", run, "--stage", stage, *answers, says=(f"--stage {stage}", "stages 1 to 3"))
    (run / "stages" / "02-task1" / "method.json").unlink()
    refused("predict", run, "--stage", "2", *answers, says=("02-task1", "not complete", "train it first"))
    before.pop("stages/02-task1/method.json")
    assert content(run) == before and not (tmp_path / "a").exists()


@pytest.mark.parametrize("file", ["adapter/adapter_model.safetensors", "method.safetensors", "projector.safetensors"])
def test_truncated_stage(file: str, run: Path, world: Path) -> None:
    """A later stage that is not evaluated yet meets a damaged earlier one."""
    cut(run / "stages" / "03-task2" / file)
    shutil.rmtree(run / "eval" / "03-task2")
    before = content(run)
    refused("run", *arguments(world, "hide", run, "train.epochs=1"), says=("03-task2", "run again"))
    assert content(run) == before


def test_half_of_a_json_file(run: Path) -> None:
    cut(run / "manifest.json")
    before = content(run)
    refused("eval", run, says=(run / "manifest.json", "JSON"))
    cut(run / "config.yaml", 0.1)
    refused("eval", run, says=(run / "config.yaml",))
    assert content(run).keys() == before.keys()


# --------------------------------------------------------------------------------------------------------- answer files


def test_answer_file_with_a_cut_line(run: Path, world: Path) -> None:
    answers, asked = run / "eval" / "01-task0" / "task0" / "predictions.jsonl", world / "data" / "task0" / "test.json"
    score = ("score", "--metric", "exact_upper", "--predictions", answers, "--references", asked)
    assert call(*score).code == 0
    lines = answers.read_text().splitlines()
    answers.write_text("\n".join([*lines[:2], lines[2][:-9], *lines[3:]]) + "\n")
    refused(*score, says=(answers, "line 3", "not valid JSON"))
    answers.write_text("\n".join([*lines[:5], lines[5][:20]]))
    refused(*score, says=(answers, "the last line (6)", "cut short"))
    answers.write_text("\n".join(lines[:5]) + "\n")
    refused(*score, says=("Only 5 of 6 questions", "question_id 5"))


@pytest.mark.parametrize("damage", ['{"question_id": 4, "te', "17", '{"id": 4}'])
def test_part_file_with_a_cut_line_in_the_middle(damage: str, run: Path) -> None:
    cell = run / "eval" / "02-task1" / "task0"
    lines = (cell / "predictions.jsonl").read_text().splitlines()
    for file in ("score.json", "predictions.jsonl"):
        (cell / file).unlink()
    (cell / "part-0.jsonl").write_text("\n".join([lines[0], damage, lines[1]]) + "\n")
    before = content(run)
    refused("eval", run, says=(cell / "part-0.jsonl", "line 2", "delete that line"))
    assert {f for f, h in before.items() if content(run).get(f) != h} <= {"manifest.json"}  # it says how long restoring took
    (cell / "part-0.jsonl").write_text("\n".join(lines[:2]) + "\n")  # what the message asks for
    assert call("eval", run).code == 0
    assert (cell / "predictions.jsonl").read_text().splitlines() == lines


def test_part_file_of_other_settings(run: Path, world: Path) -> None:
    """Answers of 6 and of 3 new tokens never meet in one file."""
    cell = run / "eval" / "02-task1" / "task0"
    before = content(run)
    (cell / "score.json").unlink()
    (cell / "settings.json").write_text(json.dumps({"image_transform": "pad", "max_new_tokens": 3}))
    refused("eval", run, says=(cell, "max_new_tokens: 3 there, 6 now", "--again"))
    assert content(run)["eval/02-task1/task0/predictions.jsonl"] == before["eval/02-task1/task0/predictions.jsonl"]


def test_truncated_image_of_a_question(mine: Path, words: Words, tmp_path: Path) -> None:
    assert call("train", *words("train.max_steps=1")).code == 0
    cut(mine / "data" / "task0" / "test2.png")
    message = refused("run", *words("train.max_steps=1"), says=("Question 2", "test2.png cannot be decoded"))
    assert "skip" not in message  # a question is never left out


def test_missing_image_of_a_question(run: Path, world: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps([{"question_id": "a", "image": "gone.png", "text": "What?"}]))
    words = ("predict", run, "--stage", "1", "--questions", questions, "--images", world / "data")
    refused(*words, "--output", tmp_path / "answers.jsonl", says=("Question 'a'", "gone.png does not exist"))
    refused(*words[:5], tmp_path / "none.json", *words[6:], "--output", tmp_path / "a", says=("none.json", "not exist"))


@pytest.mark.parametrize(
    ("option", "value"), [("--max-new-tokens", "0"), ("--batch-size", "-1"), ("--batch-size", "x")]
)
def test_numbers_of_predict(option: str, value: str) -> None:
    words = ("predict", "runs/x", "--stage", "1", "--questions", "q", "--images", "i", "--output", "o")
    called = call(*words, option, value)
    assert called.code == 2 and f"argument {option}: '{value}' is not a whole number of at least 1" in called.err


# ------------------------------------------------------------------------------------------------------ other verbs


def test_preview_of_wrong_folders(world: Path, tmp_path: Path) -> None:
    data = ("--data", world / "data" / "task0" / "train.json", "--images", world / "data")
    refused("preview", *data, "--model", tmp_path, says=(tmp_path, "no config.json"))
    shutil.copytree(world / "llava", tmp_path / "llava")
    for file in (tmp_path / "llava").glob("*token*.json"):
        file.unlink()
    refused("preview", *data, "--model", tmp_path / "llava", says=(tmp_path / "llava", "tokenizer"))
    refused("preview", *data, "--model", GOLDEN / "base", says=("--clip",))
    missing = ("--data", tmp_path / "x.json", *data[2:])
    refused("preview", *missing, "--model", world / "llava", says=("x.json", "not exist"))


def test_import_of_something_else(world: Path, tmp_path: Path) -> None:
    says = (tmp_path, "no adapter_config.json", "not a task folder")
    refused("import", "hide-reference", "--checkpoint", tmp_path, "--base", GOLDEN / "base", "--clip", GOLDEN / "clip",
            "--out", tmp_path / "run", says=says)  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "benchmark=ucit", "method=hied", "model=mini"], ("unknown method 'hied'", "Did you mean 'hide'?")),
        (["run", "benchmark=ucit", "method=hide", "model=llava-1.5-7b", "data_root=nowhere"],
         ("benchmark 'ucit'", "14 of 14 files are missing", "nowhere/UCIT")),
        (["predict", "runs/x", "--stage", "1", "--questions", "q", "--images", "i", "--output", "o"],
         ("runs/x", "not a run folder")),
    ],
    ids=["unknown method", "no data", "no run"],
)  # fmt: skip
def test_as_a_process(words: list[str], says: tuple, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hide_llava.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
    assert_refusal(done.returncode, done.stderr, *says)
    assert not any(tmp_path.iterdir())
