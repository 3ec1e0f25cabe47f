"""A run that is asked from Python: its answers are those that its evaluation stored, whatever the family and the method."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from hide_llava import Run
from hide_llava.data.images import taken
from hide_llava.errors import UserError
from hide_llava.evaluation.model import Answer, Model, Question
from tests.cli.call import call
from tests.tiny import arguments, write_world, write_world_of

TWO = ("tasks=[task0,task1]", "train.epochs=1")


def trained(world: Path, method: str, *more: str) -> Path:
    folder = world / f"run-{method}"
    if not folder.exists():
        called = call("run", *arguments(world, method, folder, *TWO, *more))
        assert called.code == 0, called.err
    return folder


def stored(run: Path, world: Path, stage: int, task: int) -> list[tuple[Path | None, str, dict]]:
    """(picture, question, stored answer) of one cell."""
    (cell,) = run.glob(f"eval/{stage:02d}-*/task{task}/predictions.jsonl")
    rows = [json.loads(line) for line in cell.read_text(encoding="utf-8").splitlines()]
    questions = json.loads((world / "data" / f"task{task}" / "test.json").read_text())
    pictures = [world / "data" / q["image"] if "image" in q else None for q in questions]
    return [(picture, q["text"], row) for picture, q, row in zip(pictures, questions, rows, strict=True)]


def assert_stored(answer: Answer, row: dict) -> None:
    assert answer.token_ids == row["token_ids"] and answer.text == row["text"] and answer.prompt == row["prompt"]
    assert answer.routing == pytest.approx(row["routing"], abs=1e-5)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world_of("qwen3_vl", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def hide(llava: Path) -> Model:
    """A model that answers and is left as it was."""
    return Run(trained(llava, "hide")).model()


# ------------------------------------------------------------------------------------------------------- as was evaluated


def test_the_answers_are_those_of_the_evaluation(hide: Model, llava: Path) -> None:
    """At every stage, forth and back, with and without a picture; at once, and in pieces."""
    assert hide.stage == 2
    for stage, task in ((2, 0), (1, 0), (2, 1)):
        for picture, text, row in stored(hide.run.folder.path, llava, stage, task):
            assert_stored(hide.at(stage).ask(picture, text), row)
            pieces = hide.stream(picture, text)
            assert "".join(pieces) == pieces.answer.text == row["text"] and pieces.answer.token_ids == row["token_ids"]


def test_another_family_and_an_oracle(qwen: Path) -> None:
    """It is told the task, and asked as the task is; several pictures; experts with projectors of their own."""
    run = trained(qwen, "individual")
    model = Run(str(run)).model(stage=2)
    rows = stored(run, qwen, 2, 1)
    for picture, text, row in rows[:3] + rows[-1:]:
        assert_stored(model.ask(picture, text, task="task1"), row)
        pieces = model.stream(picture, text, task="task1")
        assert "".join(pieces) == pieces.answer.text == row["text"]
    picture, text, row = rows[0]
    alone = model.each_expert(picture, text, task="task0")
    assert list(alone) == ["expert-01", "expert-02"] and alone["expert-02"].token_ids == row["token_ids"]
    assert alone["expert-01"].token_ids == model.ask(picture, text, task="task0").token_ids
    assert alone["expert-01"].token_ids != alone["expert-02"].token_ids
    both = model.ask([picture, rows[1][0]], "What changed from <image> to <image>?", task="task1")
    assert both.prompt == "What changed from  to ?" and both.token_ids
    for wrong, says in ((None, "one of task0, task1"), ("other", "no such task")):
        with pytest.raises(UserError, match=says):
            model.ask(picture, text, task=wrong)
    with pytest.raises(UserError, match=r"at stage 1 give --task .*, one of task0, not task1"):
        model.at(1).ask(picture, text, task="task1")
    assert_stored(model.ask(*stored(run, qwen, 1, 0)[0][:2], task="task0"), stored(run, qwen, 1, 0)[0][2])


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["modalprompt", "mrlora", "merge", "moelora", "lora", "zero_shot", "multitask"])
def test_other_methods(method: str, llava: Path) -> None:
    run = trained(llava, method)
    model = Run(run).model()
    for stage in sorted({model.stage, 1}, reverse=True):
        for picture, text, row in stored(run, llava, stage, 0):
            assert_stored(model.at(stage).ask(picture, text), row)
    if method in ("mrlora", "merge"):
        before = model.at(Run(run).trained[-1]).ask(picture, text)
        assert list(model.each_expert(picture, text)) == ["expert-01", "expert-02"]
        assert model.ask(picture, text) == before
    else:
        with pytest.raises(UserError, match="no expert of its own"):
            model.each_expert(picture, text)


# ------------------------------------------------------------------------------------------------------------ many, turns


def test_many_are_answered_as_one_by_one(hide: Model, llava: Path) -> None:
    asked = [Question(text, picture, task, max_new_tokens=most)
             for picture, text, _ in stored(hide.at(2).run.folder.path, llava, 2, 0)
             for task, most in ((None, None), ("task1", 3))]  # fmt: skip
    asked.append(Question("And now?", asked[0].image, history=[(asked[0].text, "a circle")]))
    together = hide.ask_all(asked, batch_size=4)
    alone = [hide.ask(q.image, q.text, q.max_new_tokens, q.history, q.task) for q in asked]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert [len(a.token_ids) for a in together[1:-1:2]] == [3] * 6
    first, last = alone[0], alone[-1]
    assert last.prompt == "And now?" and last.routing == pytest.approx(first.routing, abs=1e-5)  # of the first question
    assert last.token_ids != hide.ask(asked[0].image, "And now?").token_ids


def test_a_picture_in_every_form(hide: Model, llava: Path, tmp_path: Path) -> None:
    picture, text, row = stored(hide.at(2).run.folder.path, llava, 2, 0)[0]
    for form in (str(picture), picture.read_bytes(), Image.open(picture), [picture]):
        assert_stored(hide.ask(form, text), row)
    turned = Image.open(picture).transpose(Image.Transpose.ROTATE_90)  # stored lying, with the note to turn it upright
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert_stored(hide.ask(tmp_path / "turned.png", text), row)


def test_pixels_are_counted_before_they_are_decoded() -> None:
    image = Image.new("RGB", (40, 30))
    assert taken(image, pixels=1200).size == (40, 30)
    with pytest.raises(UserError, match="40 × 30 pixels, more than the 1,199 that are taken"):
        taken(image, pixels=1199)


# ---------------------------------------------------------------------------------------------------------------- experts


def test_an_expert_alone_is_plain_peft(llava: Path) -> None:
    """The base model with one adapter in upstream's own classes and the projector of the stage, decoded by upstream's generate.
    The adapters are made larger on both sides, so that experts differ. Afterwards the model answers as before."""
    run = trained(llava, "hide")
    model = Run(run).model()
    picture, text, row = stored(run, llava, 2, 0)[0]
    assert list(model.each_expert(picture, text)) == ["expert-01", "expert-02"]
    assert_stored(model.ask(picture, text), row)
    with torch.no_grad():
        for name in model.experts:
            for _, _, layer in model.session.core.layers(name):
                layer.lora_B[name].weight.mul_(20)
    alone = model.each_expert(picture, text)
    assert len({tuple(a.token_ids) for a in alone.values()}) == 2
    reader = model.session.reader("pad")
    image = Image.open(picture).convert("RGB")
    ids = torch.tensor([[511 if token == reader.image_id else token for token in reader.question(text, [image.size]).ids]])
    for number, (name, answer) in enumerate(alone.items(), 1):
        (stage,) = run.glob(f"stages/{number:02d}-*")
        base = LlavaForConditionalGeneration.from_pretrained(llava / "llava").eval()
        base.model.multi_modal_projector.load_state_dict(load_file(run / "stages" / "02-task1" / "projector.safetensors"))
        tuned = PeftModel.from_pretrained(base, stage / "adapter", adapter_name=name)
        with torch.no_grad():
            for key, parameter in tuned.named_parameters():
                if "lora_B" in key:
                    parameter.mul_(20)
            made = tuned.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6,
                                  pixel_values=reader.pixels([image])["pixel_values"])  # fmt: skip
        assert made[0, ids.shape[1] :].tolist() == answer.token_ids and answer.routing == {name: 1.0}


# ---------------------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_asked(hide: Model, llava: Path, tmp_path: Path) -> None:
    picture, text, row = stored(hide.at(2).run.folder.path, llava, 2, 0)[0]
    (tmp_path / "no.png").write_bytes(b"not a picture")
    refusals = [
        (picture, " \n", "the question is empty"), (tmp_path / "none.png", text, "none.png does not exist"),
        (tmp_path / "no.png", text, "no.png cannot be decoded"), (b"nothing", text, "cannot be decoded"),
        ([picture, picture], text, "takes one"), (None, "What is <image>?", "names no image"),
    ]  # fmt: skip
    for image, question, says in refusals:
        for ask in (hide.ask, lambda *given: list(hide.stream(*given))):
            with pytest.raises(UserError, match=says):
                ask(image, question)
    for stage in (0, 3):
        with pytest.raises(UserError, match="has stages 1 to 2"):
            hide.at(stage)
    assert_stored(hide.ask(picture, text), row)  # nothing of it left a trace


def test_a_stage_that_is_not_trained(llava: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        Run(tmp_path)
    called = call("train", *arguments(llava, "hide", tmp_path / "run", "train.epochs=1", "tasks=[task0]"))
    assert called.code == 0, called.err
    (stage,) = (tmp_path / "run" / "stages").iterdir()
    (stage / "method.json").unlink()
    run = Run(tmp_path / "run")
    assert run.trained == []
    with pytest.raises(UserError, match="no stage of this run is trained yet"):
        run.model()


def test_who_reads_no_further_ends_the_answer(hide: Model, llava: Path) -> None:
    picture, text, row = stored(hide.at(2).run.folder.path, llava, 2, 0)[0]
    pieces = hide.stream(picture, text, max_new_tokens=200)
    next(iter(pieces))
    assert not hasattr(pieces, "answer")
    assert_stored(hide.ask(picture, text), row)


def test_importing_the_package_is_light() -> None:
    code = "import sys, hide_llava; print(hide_llava.__version__, 'torch' in sys.modules); hide_llava.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split()[1] == "False" and "has no attribute 'nothing'" in done.stderr
