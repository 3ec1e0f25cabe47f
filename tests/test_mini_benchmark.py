"""The embedded benchmark and the small base that ships with the package."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

import hide_llava
from hide_llava.backbones.clip_pixels import ImageTransform
from hide_llava.backbones.counts import skeleton
from hide_llava.backbones.llama_tokenizer import load_tokenizer
from hide_llava.benchmarks.files import stored_tasks
from hide_llava.benchmarks.mini import SIZES, generate
from hide_llava.benchmarks.mini.domains import DOMAINS, FINANCE, MEDICINE
from hide_llava.benchmarks.mini.drawing import LABEL_SIZES, patch_labels, render
from hide_llava.benchmarks.mini.generate import SUITES
from hide_llava.benchmarks.mini.tasks import CAPTION, CLASSES, LETTER, NUMBER_WORDS, PHRASE, TASKS
from hide_llava.config import compose
from hide_llava.errors import UserError
from hide_llava.studies.audit.check import check
from hide_llava.training.run import Run
from hide_llava.training.session import Session
from scripts.calibration import majority
from scripts.mini_base import base_training
from scripts.mini_base.base_training import IGNORE, encode, pixels
from scripts.mini_base.pretrain import draw
from scripts.mini_base.vocabulary import SYSTEM, corpus, task_words

ASSETS = Path(hide_llava.__file__).parent / "assets" / "mini"
SMALL = {"train": 30, "val": 12, "test": 12}


def _hash(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return total.hexdigest()


def _load(root: Path, folder: str, name: str):
    return json.loads((root / "mini-ucit" / "instructions" / folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a small benchmark."""
    folder = tmp_path_factory.mktemp("data")
    generate(folder, seed=0, sizes=SMALL)
    return folder


@pytest.fixture(scope="module")
def llava() -> LlavaForConditionalGeneration:
    """The shipped base in plain transformers."""
    return LlavaForConditionalGeneration.from_pretrained(ASSETS / "llava", dtype=torch.float32).eval()


def test_same_seed_same_bytes_other_seed_other_bytes(root: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", seed=0, sizes=SMALL)
    generate(tmp_path / "other", seed=1, sizes=SMALL)
    assert _hash(tmp_path / "again") == _hash(root)
    assert _hash(tmp_path / "other") != _hash(root)


def test_finished_folder_is_left_alone_and_a_different_one_is_replaced(tmp_path: Path) -> None:
    generate(tmp_path, sizes={"train": 4, "val": 2, "test": 2})
    marker = tmp_path / "mini-ucit" / "marker"
    marker.touch()
    generate(tmp_path, sizes={"train": 4, "val": 2, "test": 2})
    assert marker.exists()
    generate(tmp_path, sizes={"train": 5, "val": 2, "test": 2})
    assert not marker.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mini-ucit"]


@pytest.mark.parametrize("before", [False, True], ids=["nothing there", "another version there"])
@pytest.mark.parametrize("moment", [(sys.modules[generate.__module__], "render"), (os, "replace")], ids=["drawing", "naming"])
def test_what_another_process_wrote_meanwhile_is_left_to_its_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: tuple, before: bool
) -> None:
    """Two runs that start together both write it; the slower one must not take it away under the quicker one's hands."""
    sizes, call, overtaken = {"train": 4, "val": 2, "test": 2}, getattr(*moment), []
    if before:
        generate(tmp_path, sizes=sizes, seed=1)

    def slow(*given) -> Any:
        if not overtaken:
            overtaken.append(True)
            generate(tmp_path, sizes=sizes)
            (tmp_path / "mini-ucit" / "marker").touch()
        return call(*given)

    monkeypatch.setattr(*moment, slow)
    remove, removed = shutil.rmtree, []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **given: removed.append(path) or remove(path, **given))
    generate(tmp_path, sizes=sizes)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["mini-ucit"] and tmp_path / "mini-ucit" not in removed
    generate(tmp_path, sizes=sizes)
    marked = (tmp_path / "mini-ucit" / "marker").exists()
    assert marked or (before and moment[1] == "replace")  # taken aside whole, and the same is in its place


@pytest.mark.parametrize("sizes", [{"train": 0}, {"dev": 3}, {"val": "many"}])
def test_bad_sizes_are_refused(tmp_path: Path, sizes: dict) -> None:
    with pytest.raises(UserError):
        generate(tmp_path, sizes=sizes)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_records_are_valid(root: Path, task) -> None:
    images = root / "mini-ucit" / "datasets"
    train = _load(root, task.folder, "train.json")
    assert len(train) == SMALL["train"]
    for record in train:
        human, gpt = record["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        assert human["value"].startswith("<image>\n")
        assert gpt["value"]
        assert (images / record["image"]).is_file()
    for split in ("val", "test"):
        records = _load(root, task.folder, f"{split}.json")
        assert len(records) == SMALL[split]
        assert len({record["question_id"] for record in records}) == len(records)
        for record in records:
            assert set(record) == {"question_id", "image", "text", "answer"}
            assert "<image>" not in record["text"]
            assert record["answer"]
            with Image.open(images / record["image"]) as picture:
                assert max(picture.size) == 48


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_prompts_are_those_of_ucit(root: Path, task) -> None:
    texts = [record["text"] for record in _load(root, task.folder, "test.json")]
    if task.caption:
        assert set(texts) == {CAPTION}
    elif task.folder == "ImageNet-R":
        assert set(texts) == {f"What is the object in the image?\n{PHRASE}"}
    else:
        assert {text.split("\n")[-1] for text in texts} <= {PHRASE, LETTER}


def test_splits_share_no_picture(root: Path) -> None:
    seen: dict[bytes, Path] = {}
    for file in sorted((root / "mini-ucit" / "datasets").rglob("*.png")):
        with Image.open(file) as picture:
            content = picture.tobytes()
        assert content not in seen, f"{file} repeats {seen.get(content)}"
        seen[content] = file


@pytest.mark.parametrize("folder", [task.folder for task in TASKS.values() if task.caption])
def test_coco_references_follow_the_question_order(root: Path, folder: str) -> None:
    for split in ("val", "test"):
        coco, records = _load(root, folder, f"{split}_coco_type.json"), _load(root, folder, f"{split}.json")
        assert [image["id"] for image in coco["images"]] == list(range(1, len(records) + 1))
        for image, record in zip(coco["images"], records):
            captions = [a["caption"] for a in coco["annotations"] if a["image_id"] == image["id"]]
            assert image["file_name"] == record["image"]
            assert len(captions) == 5
            assert record["answer"] in captions


@pytest.mark.parametrize("name", SUITES)
def test_no_two_splits_share_a_picture(name: str, tmp_path: Path) -> None:
    """Nor one that looks the same; of few pictures of which some would."""
    generate(tmp_path, name=name, sizes={"train": 150, "val": 60, "test": 60})
    report = check(Run(compose([f"benchmark={name}", "method=zero_shot", "model=mini", f"data_root={tmp_path}"])), deep=True)
    assert report.sound and report.apart


@pytest.mark.parametrize("task", ["imagenet-r", "iconqa", "clevr-math"])
def test_the_commonest_answer_is_scored_as_an_answer_to_every_question(root: Path, task: str) -> None:
    tree = compose(["benchmark=mini-ucit", "method=lora", "model=mini", f"data_root={root}"]).model_dump()
    entry = stored_tasks(tree)[task]
    taught = [record["conversations"][1]["value"] for record in json.loads(entry.train_file.read_text())]
    [text], asked = [t for t in sorted({*taught}) if taught.count(t) == max(map(taught.count, taught))][:1], entry.questions()[0]
    assert majority(entry) == pytest.approx(100 * sum(question["answer"] == text for question in asked) / len(asked))


def test_default_sizes_leave_a_hundred_to_score() -> None:
    assert SIZES["test"] == SIZES["val"] == 100


def test_patch_labels_stay_in_range() -> None:
    rng, words = np.random.default_rng(0), task_words()
    for _ in range(200):
        if (sample := draw(rng, words, 1)).scene is not None:
            labels = patch_labels(sample.scene)
            assert labels.shape == (16, 4)
            assert (labels >= 0).all()
            assert (labels.max(0) < LABEL_SIZES).all()
            assert labels[:, :3].any()


def test_the_mixture_is_near_the_tasks_and_holds_none_of_them() -> None:
    """What a task asks comes there in another format or on other pictures: a small turn is left to learn."""
    rng, words = np.random.default_rng(0), task_words()
    formats, numbered = set(), []
    for _ in range(4000):
        sample = draw(rng, words, 2)
        for question, answer, family in sample.turns:
            if family == "repeat" or sample.scene is None:
                continue
            formats |= {mark for mark in (PHRASE, LETTER, CAPTION, "There are _") if mark in question}
            lettered = question.endswith(LETTER)
            assert not (lettered and sample.scene.bars)  # ArxivQA
            assert not (family == "subtract" and sample.scene.background == "studio")  # CLEVR-Math
            if sample.scene.things and sample.scene.things[0].fill in ("outlined", "dotted"):
                assert answer not in CLASSES.values()  # ImageNet-R
            if "\n0. " in question and sample.scene.things:
                kinds = {(thing.shape, thing.color, thing.fill) for thing in sample.scene.things}
                numbered.append(len(kinds) == 1 < len(sample.scene.things))
            if PHRASE in question:
                assert not answer.isdigit()  # IconQA's blanks, CLEVR-Math
            if CAPTION in question:
                assert "background" in answer  # VizWiz, Flickr30k
    assert formats == {PHRASE, LETTER, CAPTION, "There are _"}
    assert len(numbered) > 500 and 0 < sum(numbered) / len(numbered) < 0.1  # IconQA: rows of one icon, as often as chance has it


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generate(folder, sizes=SMALL, name="mini-dcl")
    return folder / "mini-dcl" / "domain"


@pytest.mark.parametrize("task", DOMAINS.values(), ids=DOMAINS)
def test_domains_are_written_as_mllm_dcl(domains: Path, task) -> None:
    """Records beside their pictures, one line of text, and the suffixes of the published evaluation in the question."""
    suffix = {"Med": MEDICINE, "Fin": FINANCE}.get(task.folder, "?")
    for split, count in SMALL.items():
        records = json.loads((domains / task.folder / f"{split}.json").read_text(encoding="utf-8"))
        assert len(records) == count
        for record in records:
            assert (domains / task.folder / record["image"]).is_file()
            assert Path(record["image"]).name.startswith(f"{task.source}_{split}_")
            text = record["text"] if split != "train" else record["conversations"][0]["value"].removeprefix("<image>\n")
            assert "\n" not in text and text.endswith(suffix)


@pytest.mark.parametrize("task", {**TASKS, **DOMAINS}.values(), ids=[*TASKS, *DOMAINS])
def test_no_answer_is_right_for_most_questions(task) -> None:
    rng = np.random.default_rng(0)
    said = [task.make(rng).answers[0] for _ in range(400)]
    assert max(said.count(answer) for answer in set(said)) / len(said) < 0.6


def test_answers_of_domains_are_right() -> None:
    """Told again from the scene."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        example = DOMAINS["fin"].make(rng)
        colors, answer = [color for color, _ in example.scene.bars], example.answers[0]
        if answer in ("yes", "no"):
            assert (answer == "yes") == any(f"show {color}?" in example.question for color in colors)
        else:
            said = re.search(rf"{answer}\. (\w+)", example.question)[1]
            ends = {"first": colors[0], "last": colors[-1]}
            which = next((word for word in ends if word in example.question), None)
            assert said == (ends[which] if which else NUMBER_WORDS[len(colors)])
        example = DOMAINS["ad"].make(rng)
        lamps = [thing for thing in example.scene.things if thing.shape == "circle"]
        assert len(lamps) == 1 and len({thing.cell for thing in example.scene.things}) == len(example.scene.things)
        if "status" in example.question:
            assert example.answers == (lamps[0].color,)
        example = DOMAINS["med"].make(rng)
        thing = example.scene.things[0]
        assert example.answers == (thing.color if "stain" in example.question else thing.fill,)


def test_assets_are_small() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) <= 8_000_000


def test_a_model_can_be_made_of_its_configuration() -> None:
    """Rows of <image> and padding are dropped, and what names such a row with them: how much fits is measured on such a model."""
    run = Run(compose(["benchmark=mini-ucit", "model=mini", "method=zero_shot"]))
    config = Session(run).core.llava.config
    assert skeleton(config).get_input_embeddings().num_embeddings == config.get_text_config().vocab_size


def test_base_states_its_held_out_accuracy() -> None:
    """The page's number is that of the shipped weights' file."""
    facts = json.loads((ASSETS / "base.json").read_text(encoding="utf-8"))
    page = (Path(__file__).parents[1] / "docs" / "MINI_UCIT.md").read_text(encoding="utf-8")
    assert f"it answers {100 * facts['accuracy']['all']:.1f} % exactly" in " ".join(page.split())


def test_tokenizer_round_trips_and_words_are_single_tokens() -> None:
    tokenizer = load_tokenizer(ASSETS / "llava")
    for text in [SYSTEM, *corpus()[:3000:7], "naïve Ünïcödé 漢字 😀 12/34\tx\r\n  y"]:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert len(tokenizer(SYSTEM).input_ids) <= 32
    assert all(len(tokenizer.tokenize(word)) == 1 for word in task_words() if word.isalpha() and len(word) > 1)


def test_training_labels_are_answers_and_their_end() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ASSETS / "llava")
    rng, words = np.random.default_rng(0), task_words()
    for _ in range(50):
        sample = draw(rng, words, 3)
        ids, labels = encode(sample, tokenizer)
        learned = tokenizer.decode([label for label in labels if label != IGNORE])
        assert [text.strip() for text in learned.split("</s>")[:-1]] == [answer for _, answer, _ in sample.turns]
        assert all(label in (IGNORE, token) for token, label in zip(ids, labels))


def test_training_pixels_equal_the_shipped_preprocessor() -> None:
    rng, words = np.random.default_rng(0), task_words()
    transform = ImageTransform(ASSETS / "llava", "pad")
    for _ in range(20):
        if (sample := draw(rng, words, 1)).scene is not None:
            picture = render(sample.scene, rng)
            torch.testing.assert_close(transform(picture), pixels(picture), atol=1e-5, rtol=0)


def test_base_answers_in_plain_transformers(llava: LlavaForConditionalGeneration) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ASSETS / "llava")
    assert llava.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    rng, words = np.random.default_rng(5), task_words()
    while (sample := draw(rng, words, 1)).scene is None or sample.turns[0][2] != "color":
        pass
    ids, labels = encode(sample, tokenizer)
    picture = pixels(render(sample.scene, rng))[None]
    with torch.no_grad():
        logits = llava(input_ids=torch.tensor([ids]), pixel_values=picture).logits
    assert logits.isfinite().all()
    spots = [i for i, label in enumerate(labels) if label != IGNORE]
    assert tokenizer.decode(logits[0, [i - 1 for i in spots]].argmax(-1)) == sample.turns[0][1] + "</s>"


def test_clip_folder_gives_routing_features(llava: LlavaForConditionalGeneration) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "clip")
    tower, info = CLIPTextModel.from_pretrained(ASSETS / "clip", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    coded = tokenizer([CAPTION, f"Which?\n{PHRASE}", "x " * 200], padding=True, truncation=True, return_tensors="pt")
    assert coded["input_ids"].shape[1] == 77
    features = tower(**coded).pooler_output
    assert features.isfinite().all()
    assert not torch.allclose(features[0], features[1], atol=1e-3)
    pooled = llava.model.vision_tower(torch.zeros(1, 3, 48, 48)).pooler_output
    assert pooled.isfinite().all()


@pytest.mark.slow
def test_a_base_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its second phase, it ends with the weights of one that was not."""
    monkeypatch.setattr(base_training, "KEEP", 1)
    monkeypatch.setattr(base_training, "draw", drawn := Stops(base_training.draw))

    def train(folder: Path) -> dict[str, torch.Tensor]:
        trainer = base_training.BaseTrainer(folder, log=lambda _: None)
        trainer.sight(2, batch=4)
        trainer.language(2, batch=4)
        return trainer.model.state_dict()

    whole = train(tmp_path / "whole")
    drawn.left = drawn.calls - 1  # the last of the second step
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped")
    drawn.left = None
    again = train(tmp_path / "stopped")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


class Stops:
    """A function that is interrupted when it was called `left` times more; calls: how often it was."""

    def __init__(self, of: Callable):
        self.of, self.calls, self.left = of, 0, None

    def __call__(self, *args: object) -> object:
        self.calls += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return self.of(*args)
