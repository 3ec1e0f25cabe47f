"""Requests of lmms-eval as questions to a run, and our benchmarks as its tasks; none of it needs lmms-eval."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hide_llava.errors import UserError
from hide_llava.evaluation.model import Question
from hide_llava.interop import lmms_scoring
from hide_llava.interop.lmms_requests import decoding, question, until
from tests.cli.call import call, refused
from tests.tiny import write_benchmark

if importlib.util.find_spec("tomllib"):
    import tomllib

ROOT = Path(__file__).parent.parent.parent
POPE = {"max_new_tokens": 128, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": ["\n\n"]}


def image(url: str) -> dict:
    return {"type": "image", "url": url}


def text(said: str) -> dict:
    return {"type": "text", "text": said}


def user(*content: dict) -> dict:
    return {"role": "user", "content": list(content)}


def test_greedy_options_are_read() -> None:
    how = decoding({**POPE, "image_aspect_ratio": "original"}, "pope")
    assert how.max_new_tokens == 128 and how.until == ("\n\n",) and how.ignored == ("image_aspect_ratio",)
    assert decoding({"do_sample": False, "temperature": 0.7, "until": "END"}, "x").until == ("END",)  # idle beside do_sample
    assert decoding({}, "x") == decoding({"until": None, "num_beams": None}, "x")


@pytest.mark.parametrize(("options", "says"), [
    ({"do_sample": True}, "do_sample=True samples"),
    ({"temperature": 0.2}, "temperature=0.2 samples"),
    ({"num_beams": 3}, "num_beams=3"),
    ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ({"max_new_tokens": "many"}, "max_new_tokens='many'"),
    ({"until": ["", "x"]}, "until="),
])  # fmt: skip
def test_other_options_are_refused(options: dict, says: str) -> None:
    with pytest.raises(UserError, match=f"mmmu, document 3.*{says}"):
        decoding(options, "mmmu, document 3")


def test_an_answer_ends_at_the_first_stop() -> None:
    assert until("Yes.\n\nBecause ASSISTANT:", ["ASSISTANT:", "\n\n"]) == "Yes."
    assert until("Yes. ", []) == "Yes. " and until("Yes", ["no"]) == "Yes"


def test_messages_become_a_question() -> None:
    front = [user(image("a.png"), text("What is it?"))]
    assert question(front, 5, None, "x") == Question("What is it?", ["a.png"], None, (), 5)
    assert question([{"role": "user", "content": "Hello?"}], None, "t", "x") == Question("Hello?", None, "t")
    between = [user(text("First "), image("a.png"), text(" and second "), image("b.png"), text("?"))]
    assert question(between, None, None, "x") == Question("First <image> and second <image>?", ["a.png", "b.png"])
    two = [user(image("a.png"), image("b.png"), text("Same?"))]
    assert question(two, None, None, "x") == Question("Same?", ["a.png", "b.png"])
    marked = [user(image("a.png"), text("<image>\nWhat?"))]
    assert question(marked, None, None, "x").text == "<image>\nWhat?"
    said = {"role": "assistant", "content": [text("A cat.")]}
    later = question([*front, said, user(text("And here? "), image("b.png"))], None, None, "x")
    assert later == Question("And here? <image>", ["a.png", "b.png"], None, (("<image>What is it?", "A cat."),))


@pytest.mark.parametrize(("messages", "says"), [
    ([{"role": "system", "content": "Be brief."}, user(text("?"))], "of system, user"),
    ([user(text("?")), {"role": "assistant", "content": "!"}], "of user, assistant"),
    ([], "of nobody"),
    ([user({"type": "video", "url": "a.mp4"}, text("?"))], "'video'"),
])  # fmt: skip
def test_messages_that_are_no_question(messages: list, says: str) -> None:
    with pytest.raises(UserError, match=says):
        question(messages, None, None, "x")


# ---- our tasks -------------------------------------------------------------------------------------------------------
@pytest.fixture
def bench(tmp_path: Path) -> list[str]:
    """Words that name a benchmark of three tasks; the second has a suffix and its own length."""
    write_benchmark(tmp_path)
    tree = json.loads((tmp_path / "bench.yaml").read_text())
    tree["benchmark"]["tasks"][1] |= {"prompt_suffix": "\nOne word.", "max_new_tokens": 3}
    (tmp_path / "bench.yaml").write_text(json.dumps(tree))
    return [f"benchmark={tmp_path}/bench.yaml", f"data_root={tmp_path}"]


def documents(folder: Path, task: str) -> list[dict]:
    lines = (folder / "questions" / f"hide_llava_tiny_{task}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_tasks_of_a_benchmark(bench: list[str], tmp_path: Path) -> None:
    out = tmp_path / "tasks"
    called = call("lmms-tasks", *bench, "--output", out)
    assert called.code == 0 and "hide_llava_tiny_task1" in called.out, called.err
    assert yaml.safe_load((out / "hide_llava_tiny.yaml").read_text())["task"][1] == "hide_llava_tiny_task1"
    written = (out / "hide_llava_tiny_task1.yaml").read_text()
    for word in written.split():
        if word.startswith("hide_llava.interop."):
            module, _, name = word.rpartition(".")
            assert callable(getattr(importlib.import_module(module), name))
    assert yaml.safe_load(written.replace("!function ", ""))["generation_kwargs"] == {
        "max_new_tokens": 3, "temperature": 0, "do_sample": False, "until": []}  # fmt: skip
    first, last = documents(out, "task1")[0], documents(out, "task1")[-1]
    asked = json.loads((tmp_path / "data" / "task1" / "test.json").read_text())
    assert first["text"] == asked[0]["text"] and first["prompt"] == asked[0]["text"] + "\nOne word."
    assert lmms_scoring.doc_to_text(first) == first["prompt"]
    assert lmms_scoring.doc_to_visual(first)[0].size == Image.open(tmp_path / "data" / asked[0]["image"]).size
    (turn,) = lmms_scoring.doc_to_messages(first)
    assert [part["type"] for part in turn["content"]] == ["image", "text"]
    assert json.loads(last["question_id"]) == asked[-1]["question_id"]
    refused("lmms-tasks", *bench, "--output", out, says=(out, "not an empty folder"))


def test_pictures_stand_where_a_question_has_them(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    doc = {"images": [str(tmp_path / "a.png"), str(tmp_path / "b.png")], "orientation": "exif",
           "prompt": "Is <image> like <image>?"}  # fmt: skip
    (turn,) = lmms_scoring.doc_to_messages(doc)
    assert [part.get("text", "picture") for part in turn["content"]] == ["Is ", "picture", " like ", "picture", "?"]


def test_the_score_is_that_of_our_scorer(bench: list[str], tmp_path: Path) -> None:
    out = tmp_path / "tasks"
    assert call("lmms-tasks", *bench, "--output", out).code == 0
    docs = documents(out, "task1")
    right = [json.loads(doc["target"]) for doc in docs]
    given = [lmms_scoring.process_results(d, [a if i % 3 else "none"])["score"] for i, (d, a) in enumerate(zip(docs, right))]
    assert lmms_scoring.score(given) == pytest.approx(100 * 4 / 6)
    assert lmms_scoring.score(given[::-1]) == lmms_scoring.score(given)
    assert lmms_scoring.score(given[:2]) == 50.0  # of a part: of the questions that were asked
    with pytest.raises(UserError, match="ask each question once"):
        lmms_scoring.score([*given, given[0]])
    with pytest.raises(UserError, match="ask each question once"):
        lmms_scoring.score([*given[:5], {**given[5], "question_id": "another"}])


def test_what_is_not_written(bench: list[str], tmp_path: Path) -> None:
    refused("lmms-tasks", tmp_path, bench[0], "--output", tmp_path / "out", says=("=",))
    shutil.rmtree(tmp_path / "data" / "task2")
    refused("lmms-tasks", *bench, "--output", tmp_path / "out", says=("task2", "test.json"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not importlib.util.find_spec("tomllib"), reason="Python 3.10 reads no TOML")
def test_the_entry_point_names_a_function() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    module, _, name = points["hide_llava"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
