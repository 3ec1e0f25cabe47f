"""`check` finds each planted fault, names file and record, and is silent on clean data."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hide_llava.config import compose, names
from hide_llava.data.reader import Read, Reader, Size
from hide_llava.data.turns import Turn
from hide_llava.errors import BadRecord
from hide_llava.studies.audit import texts
from hide_llava.studies.audit.check import check
from hide_llava.studies.audit.pictures import Pictures, bit_count, look_alike, pictures, same_content
from hide_llava.studies.audit.show import readable
from hide_llava.studies.audit.texts import PromptLengths
from hide_llava.training.run import Run
from tests.audit.world import TEST, TRAIN, audit, draw, edit, words, write_world
from tests.benchmarks.synthetic import write_benchmark
from tests.cli.call import call


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    write_world(folder)
    return folder


@pytest.fixture
def world(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "world"))


def test_clean_data_shows_nothing(clean: Path) -> None:
    report = audit(clean, deep=True)
    assert report.findings == [] and report.sound
    assert [(f.task, f.split, f.records, f.expected, f.images, f.questions) for f in report.files] == [
        (task, split, n, n, n, n) for task in ("shapes", "signs") for split, n in (("train", TRAIN), ("test", TEST))
    ]
    assert all(f.answers == {"short": f.records} for f in report.files)


def test_validation_questions_are_compared_with_both(world: Path) -> None:
    """A validation file of six pictures: one is a training picture, one a copy of a test picture."""
    tree = json.loads((world / "bench.yaml").read_text())
    tree["benchmark"]["tasks"][1]["val"] = "signs/val.json"
    (world / "bench.yaml").write_text(json.dumps(tree))
    rows = [{"question_id": i, "image": f"signs/val{i}.png", "text": f"Which is {i}?", "answer": "a kite"} for i in range(6)]
    for i in range(6):
        draw(5000 + i).save(world / "data" / f"signs/val{i}.png")
    (world / "data/signs/val.json").write_text(json.dumps(rows))
    report = audit(world, deep=True)
    assert report.findings == []
    assert "No two splits of a task share a picture, or a question about the same picture, compared by path" in readable(report)
    shutil.copy(world / "data/signs/test2.png", world / "data/signs/val4.png")
    asked = {"image": "signs/train5.png", "text": "What is number 5 of signs train?"}
    edit(world / "data/signs/val.json", lambda rows: rows[3].update(asked))
    found = {f.kind: f for f in audit(world, deep=True).findings}
    assert set(found) == {"train/val image", "train/val pair", "val/test copy"}
    assert {f.level for f in found.values()} == {"warning"}
    assert (found["train/val image"].split, found["val/test copy"].split) == ("val", "test")
    assert found["train/val pair"].text == "1 val question also asked in training about the same image"
    assert found["val/test copy"].examples[0].startswith("record 2 (id 2, signs/test2.png) = val record 4 (id 4,")
    assert "share a picture" not in readable(audit(world, deep=True))


def set_turn(rows: list, k: int, turn: int, text: str) -> None:
    rows[k]["conversations"][turn]["value"] = text


def train_file(world: Path) -> Path:
    return world / "data" / "signs" / "train.json"


def test_file(world: Path) -> Path:
    return world / "data" / "signs" / "test.json"


test_file.__test__ = False


def missing_image(world: Path) -> None:
    (world / "data/signs/train3.png").unlink()


def missing_for_two_records(world: Path) -> None:
    edit(train_file(world), lambda rows: rows[4].update(image="signs/train3.png"))
    missing_image(world)


def missing_file(world: Path) -> None:
    test_file(world).unlink()


def broken_json(world: Path) -> None:
    file = test_file(world)
    file.write_text(file.read_text()[:-40])


def bad_record(world: Path) -> None:
    edit(train_file(world), lambda rows: rows[3].pop("conversations"))


def duplicate_test_id(world: Path) -> None:
    edit(test_file(world), lambda rows: rows[3].update(question_id=1, text=rows[1]["text"]))


def repeated_test_id(world: Path) -> None:
    edit(test_file(world), lambda rows: rows[3].update(question_id=1))


def ids_in_two_forms(world: Path) -> None:
    edit(test_file(world), lambda rows: rows[3].update(question_id="1"))


def number_as_answer(world: Path) -> None:
    edit(test_file(world), lambda rows: rows[3].update(answer=3.5))


def picture_under_another_key(world: Path) -> None:
    edit(test_file(world), lambda rows: rows[3].update(img=rows[3].pop("image")))


def picture_of_training_under_another_key(world: Path) -> None:
    edit(train_file(world), lambda rows: rows[3].update(image_path=rows[3].pop("image")))


def picture_in_the_text_alone(world: Path) -> None:
    edit(train_file(world), lambda rows: rows[3].pop("image"))


def stop_token_as_text(world: Path) -> None:
    edit(train_file(world), lambda rows: set_turn(rows, 3, 1, "a </s> tag"))


def exif(world: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    file = world / "data/signs/train3.png"
    Image.open(file).save(file, exif=tag)


def sixteen_bits(world: Path) -> None:
    deep = np.asarray(draw(77).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(world / "data/signs/train3.png")


def floats(world: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(world / "data/signs/train3.tif")
    edit(train_file(world), lambda rows: rows[3].update(image="signs/train3.tif"))


def lines_for_a_list(world: Path) -> None:
    """No fault: JSON lines in a .json, with a byte order mark."""
    rows = json.loads(train_file(world).read_text())
    train_file(world).write_text("\ufeff" + "\n".join(map(json.dumps, rows)))


def another_encoding(world: Path) -> None:
    edit(test_file(world), lambda rows: rows[3].update(answer="XX"))
    test_file(world).write_bytes(test_file(world).read_bytes().replace(b"XX", "é".encode("latin-1")))


def duplicate_train_id(world: Path) -> None:
    edit(train_file(world), lambda rows: rows[3].update(id="signs-1"))


def wrong_test_count(world: Path) -> None:
    edit(test_file(world), lambda rows: rows.pop())


def wrong_train_count(world: Path) -> None:
    edit(train_file(world), lambda rows: rows.pop())


def empty_train_answer(world: Path) -> None:
    edit(train_file(world), lambda rows: set_turn(rows, 3, 1, "  "))


def empty_test_answer(world: Path) -> None:
    edit(test_file(world), lambda rows: rows[3].update(answer=""))


def no_test_answer(world: Path) -> None:
    edit(test_file(world), lambda rows: rows[3].pop("answer"))


def unreadable(world: Path) -> None:
    file = world / "data/signs/train3.png"
    file.write_bytes(file.read_bytes()[:-200])


def same_path(world: Path) -> None:
    edit(test_file(world), lambda rows: rows[3].update(image="signs/../signs/train5.png"))


def copied(world: Path) -> None:
    shutil.copy(world / "data/signs/train5.png", world / "data/signs/test3.png")


def recompressed(world: Path) -> None:
    out = io.BytesIO()
    smaller = Image.open(world / "data/signs/train5.png").resize((70, 58), Image.Resampling.BICUBIC)
    smaller.save(out, "JPEG", quality=60)
    (world / "data/signs/test3.png").write_bytes(out.getvalue())


def same_question(rows: list) -> None:
    rows[3]["text"] = "What is number 5 of signs train?"


def same_pair(world: Path) -> None:
    same_path(world)
    edit(test_file(world), same_question)


def copied_pair(world: Path) -> None:
    copied(world)
    edit(test_file(world), same_question)


def no_training_records(world: Path) -> None:
    edit(train_file(world), lambda rows: rows.clear())


def no_questions(world: Path) -> None:
    edit(test_file(world), lambda rows: rows.clear())


def same_text(world: Path) -> None:
    edit(test_file(world), lambda rows: (rows[3].pop("image"), same_question(rows)))
    edit(train_file(world), lambda rows: (rows[5].pop("image"), set_turn(rows, 5, 0, "What is number 5 of signs train?")))


def constant_prompt(world: Path) -> None:
    edit(test_file(world), lambda rows: [row.update(text="What is it?") for row in rows])


def long_prompt(world: Path) -> None:
    edit(train_file(world), lambda rows: set_turn(rows, 3, 0, "<image>\n" + "How many red kites? " * 30))


def too_long(world: Path) -> None:
    """The question fills train.max_length (2,048), so nothing of its answer is left."""
    edit(train_file(world), lambda rows: set_turn(rows, 3, 0, "<image>\n" + "kites " * 2100))


def several_pictures(world: Path) -> None:
    edit(train_file(world), lambda rows: rows[3].update(image=["signs/train3.png", "signs/train4.png"]))


def several_pictures_of_a_question(world: Path) -> None:
    edit(test_file(world), lambda rows: rows[3].update(image=["signs/test3.png", "signs/test4.png"]))


# fault, needs --deep, kind, level, exit code, what the finding says about file and records
FAULTS: list[tuple[Callable[[Path], None], bool, str, str, list[str]]] = [
    (missing_image, False, "missing image", "error", ["record 3 (id 'signs-3', signs/train3.png)"]),
    (missing_for_two_records, False, "missing image", "error", ["1 image of 11", "record 3 (id 'signs-3'"]),
    (missing_file, False, "missing file", "error", ["signs/test.json is missing"]),
    (broken_json, False, "broken JSON", "error", ["signs/test.json", "after 5 records", "line 1 column"]),
    (bad_record, False, "bad record", "error", ["signs/train.json", "record 3 (id 'signs-3', signs/train3.png): has no conv"]),
    (repeated_test_id, False, "repeated id", "note", ["1 question of", "ID#2"]),
    (ids_in_two_forms, False, "cannot be scored", "error", ["record 3 (question_id '1')", "in another form"]),
    (number_as_answer, False, "cannot be scored", "error", ["question_id 3", "answer is 3.5"]),
    (picture_under_another_key, False, "bad record", "error", ["record 3 (question_id 3)", "has 'img', which is not read"]),
    (picture_of_training_under_another_key, False, "bad record", "error", ["record 3 (id 'signs-3')", "has 'image_path'"]),
    (several_pictures, True, "bad record", "error", ["record 3 (id 'signs-3', signs/train3.png, signs/train4.png): names 2 pict",
                                                     "this model takes one a record"]),
    (several_pictures_of_a_question, True, "bad record", "error", ["Question 3 names 2 pictures", "takes one a record"]),
    (picture_in_the_text_alone, False, "bad record", "error", ["record 3 (id 'signs-3')", "names no image file"]),
    (stop_token_as_text, False, "bad record", "error", ["record 3 (id 'signs-3', signs/train3.png)", "contains '</s>'"]),
    (another_encoding, False, "broken JSON", "error", ["signs/test.json is not UTF-8 text (byte ", "after "]),
    (exif, True, "turned image", "note", ["1 image that says (EXIF)", "shown as a viewer", "record 3 (id 'signs-3'"]),
    (sixteen_bits, True, "16-bit image", "note", ["1 image of 16 bits", "record 3 (id 'signs-3'"]),
    (floats, True, "unreadable image", "error", ["signs/train3.tif has floating point numbers", "(mode F)"]),
    (duplicate_test_id, False, "duplicate id", "error", ["signs/test.json", "record 3 (id 1, signs/test3.png) repeats",
                                                         "record 1 (id 1,"]),
    (duplicate_train_id, False, "duplicate train id", "warning", ["record 3 (id 'signs-1', signs/train3.png)"]),
    (wrong_test_count, False, "wrong count", "warning", ["5 records in", "signs/test.json, expected 6"]),
    (wrong_train_count, False, "wrong count", "warning", ["11 records in", "signs/train.json, expected 12"]),
    (no_training_records, False, "no records", "error", ["signs/train.json holds no records"]),
    (no_questions, False, "cannot be scored", "error", ["signs/test.json holds no questions"]),
    (empty_train_answer, False, "empty answer", "error", ["signs/train.json", "record 3 (id 'signs-3'"]),
    (empty_test_answer, False, "empty answer", "error", ["signs/test.json", "record 3 (id 3"]),
    (no_test_answer, False, "empty answer", "error", ["signs/test.json", "record 3 (id 3"]),
    (unreadable, True, "unreadable image", "error", ["record 3 (id 'signs-3'", "signs/train3.png cannot be decoded"]),
    (same_path, False, "train/test image", "warning", ["record 3 (id 3", "= train record 5 (id 'signs-5'"]),
    (copied, True, "train/test copy", "warning", ["record 3 (id 3", "= train record 5 (id 'signs-5'"]),
    (recompressed, True, "train/test near copy", "warning", ["record 3 (id 3", "= train record 5 (id 'signs-5'"]),
    (same_pair, False, "train/test pair", "error", ["record 3 (id 3", "= train record 5 (id 'signs-5'"]),
    (copied_pair, True, "train/test pair", "error", ["record 3 (id 3", "= train record 5 (id 'signs-5'"]),
    (same_text, False, "train/test text", "warning", ["record 3 (id 3)", "= train record 5 (id 'signs-5')"]),
    (constant_prompt, False, "constant prompt", "note", ["'What is it?'"]),
    (long_prompt, False, "long prompt", "note", ["1 prompt longer"]),
    (too_long, False, "bad record", "error", ["record 3 (id 'signs-3'", "no token of an answer", "train.max_length=2048"]),
]  # fmt: skip
# one fault, two true findings
BESIDE = {"no_questions": {"wrong count"}, "same_pair": {"train/test image"}, "copied_pair": {"train/test copy"},
          "too_long": {"long prompt"}}  # fmt: skip


@pytest.mark.parametrize(("plant", "deep", "kind", "level", "says"), FAULTS, ids=[f[0].__name__ for f in FAULTS])
def test_planted_fault(world: Path, plant, deep: bool, kind: str, level: str, says: list[str]) -> None:
    plant(world)
    report = audit(world, deep)
    kinds = {f.kind for f in report.findings}
    assert kinds == {kind} | BESIDE.get(plant.__name__, set())
    (found,) = [f for f in report.findings if f.kind == kind]
    assert (found.level, found.task, found.count) == (level, "signs", 1), found
    text = "\n".join([found.text, *found.examples])
    assert [fragment for fragment in says if fragment not in text] == [], text
    assert report.sound is (level != "error")
    assert text.splitlines()[0] in readable(report)


class Several(Reader):
    """A model that reads several pictures, each in as many positions as it is wide."""

    special, several, by_size, masks = (), True, True, "exact"

    def training(self, turns: Sequence[Turn], images: Sequence[Size], max_length: int) -> Read:
        if sum(width for width, _ in images) > max_length:
            raise BadRecord(f"its pictures {images} do not fit into {max_length}", "too long")
        return Read([], [], "")

    draft = question = answer_start = pixels = settings = piece = None


@pytest.fixture
def several(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world for such a model: record 3 of training and question 3 name two pictures."""
    monkeypatch.setattr(texts, "_reader", lambda *_: Several())
    several_pictures(world)
    edit(train_file(world), lambda rows: set_turn(rows, 3, 0, "<image> What is number 3 of signs train? <image>"))
    several_pictures_of_a_question(world)
    return world


def test_records_of_several_pictures_are_sound(several: Path) -> None:
    report = audit(several, True)
    assert report.findings == [] and report.sound
    assert [(f.records, f.images) for f in report.files if f.task == "signs"] == [(TRAIN, TRAIN), (TEST, TEST)]


SEVERAL = [  # fault of a record or question of two pictures, kinds, what the first of them says
    (lambda world: (world / "data/signs/train4.png").unlink(), ["missing image"], "1 image of 12 missing"),
    (lambda world: edit(train_file(world), lambda rows: set_turn(rows, 3, 0, "<image> What?")), ["bad record"],
     "record 3 (id 'signs-3', signs/train3.png, signs/train4.png): it names 2 pictures but its questions contain <image>"),
    (lambda world: edit(test_file(world), lambda rows: rows[3].update(text="<image> What?")), ["bad record"],
     "Question 3 names 2 pictures and contains <image> 1 times"),
    (lambda world: edit(test_file(world), lambda rows: rows[3].update(image=["signs/test3.png", "../../x.png"])), ["bad record"],
     "leaves the image root"),
    (lambda world: draw(7, (2048, 30)).save(world / "data/signs/train4.png"), ["bad record"],
     "its pictures [(96, 80), (2048, 30)] do not fit into 2048"),
    (lambda world: edit(test_file(world), lambda rows: rows[3].update(image=["signs/test3.png", "signs/train5.png"])),
     ["train/test image"], "record 3 (id 3, signs/test3.png, signs/train5.png) = train record 5"),
    (lambda world: shutil.copy(world / "data/signs/train4.png", world / "data/signs/test3.png"), ["train/test copy"],
     "record 3 (id 3, signs/test3.png, signs/test4.png) = train record 3 (id 'signs-3', signs/train3.png, signs/train4.png)"),
    (lambda world: edit(test_file(world), lambda rows: rows[3].update(
        image=["signs/train3.png", "signs/train4.png"], text="What is number 3 of signs train?")),
     ["train/test pair", "train/test image"], "record 3 (id 3, signs/train3.png, signs/train4.png) = train record 3"),
    (lambda world: edit(test_file(world), lambda rows: rows[3].update(
        image=["signs/train4.png", "signs/train3.png"], text="What is number 3 of signs train?")),
     ["train/test image"], "record 3 (id 3, signs/train4.png, signs/train3.png) = train record 3"),  # in another order
]  # fmt: skip


@pytest.mark.parametrize(("plant", "kinds", "says"), SEVERAL)
def test_faults_of_several_pictures(several: Path, plant, kinds: list[str], says: str) -> None:
    plant(several)
    report = audit(several, True)
    assert [f.kind for f in report.findings] == kinds
    text = "\n".join([report.findings[0].text, *report.findings[0].examples])
    assert says in text, text


def test_lines_and_a_byte_order_mark_are_no_fault(world: Path) -> None:
    lines_for_a_list(world)
    assert audit(world).findings == []


def test_faults_that_need_the_pictures_need_deep(world: Path) -> None:
    copied(world)
    unreadable(world)
    assert audit(world).findings == []


def test_only_ten_are_named_and_all_are_counted(world: Path) -> None:
    for i in range(TRAIN):
        (world / f"data/signs/train{i}.png").unlink()
    (found,) = audit(world).findings
    assert found.count == TRAIN and len(found.examples) == 10
    assert "… and 2 more" in readable(audit(world))


def test_one_prompt_in_two_tasks(world: Path) -> None:
    constant_prompt(world)
    edit(world / "data/shapes/test.json", lambda rows: [row.update(text="<image>\nWhat is it?") for row in rows])
    kinds = {f.kind: f for f in audit(world).findings}
    assert set(kinds) == {"constant prompt", "shared prompt"}
    assert kinds["shared prompt"].task == "shapes" and "signs" in kinds["shared prompt"].text


def test_unknown_counts_are_nothing_to_compare_with(world: Path) -> None:
    tree = json.loads((world / "bench.yaml").read_text())
    for task in tree["benchmark"]["tasks"]:
        task.update(n_train=None, n_test=None)
    (world / "bench.yaml").write_text(json.dumps(tree))
    wrong_test_count(world)
    report = audit(world)
    assert report.findings == [] and [f.expected for f in report.files] == [None] * 4


def test_chosen_tasks_only(world: Path) -> None:
    missing_file(world)
    report = audit(world, False, "tasks=[shapes]")
    assert report.sound and {f.task for f in report.files} == {"shapes"}


def test_answer_formats(world: Path) -> None:
    answers = ["B", "yes", "1,024", "[0.1, 0.2]", ["a", "b"], "the quick brown fox jumps over it"]
    edit(test_file(world), lambda rows: [row.update(answer=answer) for row, answer in zip(rows, answers)])
    (summary,) = [f for f in audit(world).files if (f.task, f.split) == ("signs", "test")]
    assert summary.answers == {"letter": 1, "yes/no": 1, "number": 1, "list": 2, "sentence": 1}


def test_verb_prints_problems_first_and_exits_1(world: Path) -> None:
    missing_image(world)
    called = call("check", *words(world)[:2])  # no model, no method
    lines = called.out.splitlines()
    assert called.code == 1 and "NOT sound" in lines[0] and lines[2].startswith("[bad]  signs train: 1 image of 12")
    assert any(line.split()[:4] == ["signs", "train", "12", "12"] for line in lines)


def test_json_output(world: Path) -> None:
    recompressed(world)
    called = call("check", *words(world), "--deep", "--json")
    data = json.loads(called.out)
    assert called.code == 0 and data["sound"] is True and data["benchmark"] == "audited"
    assert [(f["kind"], f["level"], f["task"]) for f in data["findings"]] == [
        ("train/test near copy", "warning", "signs")
    ]
    assert [f["records"] for f in data["files"]] == [TRAIN, TEST] * 2


def test_bad_usage_exits_2(world: Path) -> None:
    assert call("check", "benchmark=nothing").code == 2
    assert call("check", *words(world), "tasks=[sings]").code == 2
    assert "signs" in call("check", *words(world), "tasks=[sings]").err


@pytest.mark.parametrize("name", names("benchmark"))
def test_a_benchmark_written_from_its_yaml_is_sound(name: str, tmp_path: Path) -> None:
    config = compose([f"benchmark={name}", f"data_root={tmp_path}", "method=zero_shot", "model=mini"])
    if config.benchmark.generated:
        config.benchmark.generated = False  # its own test generates it
    for task in [*config.benchmark.tasks, *config.benchmark.general]:
        task.n_train, task.n_test = 8 if task.train else None, 4
    write_benchmark(config, tmp_path)
    report = check(Run(config))
    # The writer gives Sci the same pictures and questions in both splits, and that is found.
    planted = {("train/test pair", "sci")} if name in ("mllm-dcl", "mini-dcl") else set()
    assert {(f.kind, f.task) for f in report.findings if f.level == "error"} == planted
    assert len(report.files) == sum((t.train is not None) + (t.val is not None) + 1
                                    for t in [*config.benchmark.tasks, *config.benchmark.general])  # fmt: skip
    victim = next(path for path in sorted(tmp_path.rglob("*.png")))
    victim.unlink()
    missing = [f for f in check(Run(config)).findings if f.kind == "missing image"]
    assert len(missing) >= 1 and victim.name in "".join(missing[0].examples)


def test_prompt_lengths_are_the_tokenizers(clean: Path) -> None:
    """Part by part as for the whole text; the bound without a tokenizer is never above it."""
    run = Run(compose([*words(clean), "method=zero_shot"]))
    exact = PromptLengths(run.model, run.model_root)
    bound = PromptLengths(run.model.model_copy(update={"clip": "openai/not-here"}), run.model_root)
    assert exact.tokenizer is not None and bound.tokenizer is None and "lower bound" in bound.how
    rng = np.random.default_rng(0)
    parts = ["kites", "don't", "2024", "(_)", "A.", "naïve", "x²", "…", "over-the-top", "\n", "什么", "river's"]
    verdicts = []
    for _ in range(300):
        text = " ".join(rng.choice(parts, int(rng.integers(5, 60))))
        count = len(exact.tokenizer(text)["input_ids"])
        assert exact.count(text) + 2 == count, text
        assert bound.count(text) + 2 <= count, text
        assert exact.is_long(text) is (count > exact.limit)
        verdicts.append(exact.is_long(text))
    assert 30 < sum(verdicts) < 270


def test_pictures_look_like_their_copies_and_like_no_other(tmp_path: Path) -> None:
    """The rule of studies/audit/pictures.py on 300 pictures, each beside a recompressed copy."""
    originals, copies = Pictures(), Pictures()
    for store, quality in ((originals, 95), (copies, 50)):
        files = [tmp_path / f"{quality}-{seed}.jpg" for seed in range(300)]
        for seed, file in enumerate(files):
            draw(seed, (160, 120)).save(file, quality=quality)
        for seed, shown in enumerate(pictures(files)):
            store.add(seed, shown)
    pairs = look_alike(originals, copies)
    assert np.array_equal(pairs[:, 0], pairs[:, 1]) and len(pairs) >= 297
    assert len(same_content(originals, copies)) == 0


def test_the_same_shape_in_another_colour_is_another_picture(tmp_path: Path) -> None:
    """The perceptual hash alone, which is grey, would call these equal."""
    shape = np.asarray(draw(0))[:, :, 1]
    stores = []
    for name, red, blue in (("red", 200, 0), ("blue", 0, 200)):
        colour = np.stack([np.full_like(shape, red), shape, np.full_like(shape, blue)], axis=2)
        Image.fromarray(colour).save(tmp_path / f"{name}.png")
        stores.append(Pictures())
        stores[-1].add(1, next(pictures([tmp_path / f"{name}.png"])))
    assert bit_count(stores[0].looks ^ stores[1].looks)[0] <= 4
    assert len(look_alike(*stores)) == 0 and len(look_alike(stores[0], stores[0])) == 1
