"""`analyze leakage` finds the planted overlaps of each kind, and no others, in 10,000 records.

3,000 records of the mix and 7,000 of the benchmark name 8,000 images; only about 300 of them exist as files, since files
are opened only for images that their path does not find, and an image without a file is compared by path alone.
"""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from hide_llava.config import compose
from hide_llava.errors import UserError
from hide_llava.results.drawing import DARK
from hide_llava.results.run_reader import read_run
from hide_llava.studies.leakage.identity import identity
from hide_llava.studies.leakage.report import figure, gaps, write_leakage
from hide_llava.studies.leakage.shares import Leakage, leakage
from hide_llava.training.run import Run
from tests.audit.world import draw
from tests.cli.call import call
from tests.results.synthetic import RERUN, TASKS, joint_run, sequential_run

COLLECTIONS = {  # task -> (path in the mix, path in the task) of image number i
    "vqa": (lambda i: f"coco/train2017/{i:012d}.jpg", lambda i: f"COCO2014/val2014/COCO_val2014_{i:012d}.jpg"),
    "gqa": (lambda i: f"vg/VG_100K_2/{i}.jpg", lambda i: f"GQA/images/{i}.jpg"),
    "ocr": (lambda i: f"ocr_vqa/images/{i:010d}.jpg", lambda i: f"OCR-VQA/images/{i:010d}.png"),
    "text": (lambda i: f"textvqa/train_images/{i:016x}.jpg", lambda i: f"TextVQA/test_images/{i:016x}.jpg"),
    "own": (lambda i: f"misc/{i}.jpg", lambda i: f"Own/images/{i}.jpg"),
}
PER_TASK, TESTS = 1000, 400  # training and test records of each task; the mix has 600 records of each collection
LEAKED = {("vqa", "train"): 30, ("vqa", "test"): 7, ("gqa", "train"): 20, ("ocr", "test"): 5, ("text", "train"): 9}
FILES = 120  # images of "own" that exist, in the mix and in the training file
COPIES, LOOKALIKES = 6, 5  # of them, images of the mix that are in the training file under another name


def record(identity: str, image: str, question: str) -> dict:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": "a kite"}]
    return {"id": identity, "image": image, "conversations": turns}


def save(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draw(seed).save(file, quality=92)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mix.json and its images, bench.yaml and its data. Image numbers: the mix 1…600, a task from 100,000 on."""
    root = tmp_path_factory.mktemp("leakage")
    mix, tasks = [], []
    for task, (mix_path, task_path) in COLLECTIONS.items():
        for i in range(1, 601):
            asked = f"What is mixed {task} {i}?\nAnswer the question using a single word or phrase."
            mix.append(record(f"{task}{i}", mix_path(i), asked))
        home = root / "data" / task
        home.mkdir(parents=True)
        for split, count in (("train", PER_TASK), ("test", TESTS)):
            rows = []
            for k in range(count):
                leaked = k < LEAKED.get((task, split), 0)
                number = k + 1 if leaked else (100_000 if split == "train" else 200_000) + k
                # of the leaked images, every third is asked about in the same words, but for case and format line
                asked = f"what is mixed {task}  {number}?" if leaked and k % 3 == 0 else f"Own {split} {k} of {task}?"
                rows.append(record(f"{k}", task_path(number), asked) if split == "train" else
                            {"question_id": k, "image": task_path(number), "text": asked, "answer": "a kite"})  # fmt: skip
            (home / f"{split}.json").write_text(json.dumps(rows))
        tasks.append({"id": task, "title": task.upper(), "train": f"{task}/train.json", "test": f"{task}/test.json",
                      "metric": "exact_upper"})  # fmt: skip
    tree = {"benchmark": {"name": "leaky", "instructions": "data", "images": "images", "tasks": tasks}}
    (root / "bench.yaml").write_text(json.dumps(tree))
    (root / "mix.json").write_text(
        json.dumps([*mix, {"id": "text", "conversations": record("", "", "Hello?")["conversations"]}])
    )
    mix_path, task_path = COLLECTIONS["own"]
    for k in range(FILES):
        save(root / "mix" / mix_path(k + 1), k)
        save(root / "images" / task_path(100_000 + k), 5000 + k)
    for k in range(COPIES + LOOKALIKES):
        original, target = root / "mix" / mix_path(k + 1), root / "images" / task_path(100_000 + k)
        if k < COPIES:
            shutil.copy(original, target)
        else:
            draw(k).resize((80, 66)).save(target, quality=60)

    def ask(rows: list) -> None:  # one copy and one look-alike are asked about in the mix's words, one stranger too
        for k in (0, COPIES, 50):
            rows[k]["conversations"][0]["value"] = f"<image>\nWhat is mixed own {k + 1}?"
        rows[1]["conversations"][0]["value"] = "<image>\nWhat is mixed own 600?"  # a copy, asked what another one is

    file = root / "data" / "own" / "train.json"
    rows = json.loads(file.read_text())
    ask(rows)
    file.write_text(json.dumps(rows))
    return root


def audit(world: Path, images: bool) -> Leakage:
    config = compose([f"benchmark={world}/bench.yaml", f"data_root={world}", "method=zero_shot", "model=mini"])
    return leakage(Run(config), world / "mix.json", world / "mix" if images else None)


@pytest.fixture(scope="module")
def found(world: Path) -> Leakage:
    return audit(world, True)


def third(count: int) -> int:
    return -(-count // 3)


def test_planted_paths_and_no_others(found: Leakage) -> None:
    assert (found.mix_records, found.mix_images, len(found.rows)) == (3001, 3000, 10)
    for row in found.rows:
        planted = LEAKED.get((row.task, row.split), 0)
        assert (row.images, row.by_path) == (PER_TASK if row.split == "train" else TESTS, planted), row
        if row.task != "own":
            assert (row.by_content, row.by_look) == (0, 0), row
            assert (row.questions_in_mix, row.pairs_in_mix) == (third(planted), third(planted)), row


def test_planted_copies_and_no_others(found: Leakage) -> None:
    train, test = (next(r for r in found.rows if (r.task, r.split) == ("own", s)) for s in ("train", "test"))
    assert (train.by_path, train.by_content, train.by_look) == (0, COPIES, LOOKALIKES)
    assert (test.by_path, test.by_content, test.by_look, test.questions_in_mix) == (0, 0, 0, 0)
    assert train.questions_in_mix == 4  # two of them are in the mix about another image
    assert train.pairs_in_mix == 2
    assert train.image_share == pytest.approx(100 * (COPIES + LOOKALIKES) / PER_TASK)


def test_totals_and_notes(found: Leakage) -> None:
    train, test, both = found.total("train"), found.total("test"), found.total()
    assert (train.images, test.images, both.images) == (5 * PER_TASK, 5 * TESTS, 5 * (PER_TASK + TESTS))
    assert train.by_path == 59 and test.by_path == 12 and both.images_in_mix == 71 + COPIES + LOOKALIKES
    absent = 3000 - FILES
    assert f"{absent:,} of the mix's images" in found.notes[0]


def test_records_of_several_pictures(tmp_path: Path) -> None:
    """Each picture is compared for itself, questions about the same pictures in their order by path alone."""
    coco, task = COLLECTIONS["vqa"]
    mix = [{**record("0", "", "What differs?"), "image": [coco(1), coco(2)]}, record("1", coco(3), "What?"),
           {**record("2", "", "And now?"), "image": [coco(5), "misc/1.jpg"]}]  # fmt: skip
    rows = [{**record("0", "", "what differs?"), "image": [task(1), task(2)]},
            {**record("1", "", "What differs?"), "image": [task(2), task(1)]},
            {**record("2", "", "What?"), "image": [task(3), "own/1.jpg"]},
            record("3", task(3), "What?"), record("4", task(4), "And now?")]  # fmt: skip
    tests = [{"question_id": 0, "image": ["own/1.jpg", "own/2.jpg"], "text": "And now?", "answer": "a"}]
    (tmp_path / "data").mkdir()
    for name, content in (("mix", mix), ("data/train", rows), ("data/test", tests)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    entry = {"id": "vqa", "title": "VQA", "train": "train.json", "test": "test.json", "metric": "exact_upper"}
    tree = {"benchmark": {"name": "leaky", "instructions": "data", "images": "images", "tasks": [entry]}}
    (tmp_path / "bench.yaml").write_text(json.dumps(tree))
    save(tmp_path / "mix/misc/1.jpg", 1)
    save(tmp_path / "images/own/1.jpg", 2)
    save(tmp_path / "images/own/2.jpg", 1)
    found = audit(tmp_path, True)
    assert (found.mix_records, found.mix_images) == (3, 5)
    train, test = found.rows
    assert (train.images, train.by_path, train.by_content, train.by_look) == (5, 3, 0, 0)
    assert (train.questions, train.questions_in_mix, train.image_questions, train.pairs_in_mix) == (5, 5, 5, 2)
    assert (test.images, test.by_path, test.by_content, test.by_look) == (2, 0, 1, 0)
    assert (test.questions_in_mix, test.image_questions, test.pairs_in_mix) == (1, 1, 0)


def test_without_images_only_paths_are_compared(world: Path) -> None:
    result = audit(world, False)
    assert result.total().images_in_mix == 71 and result.total().by_content == 0
    assert result.notes == ["Images were compared by path only; --pretraining-images compares contents, too."]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("coco/train2017/000000033471.jpg", "coco:33471"),
        ("COCO2014/train2014/COCO_train2014_000000033471.jpg", "coco:33471"),
        ("anything/COCO_val2014_000000033471.jpg", "coco:33471"),
        ("cl_dataset/test2015/COCO_test2015_000000000001.jpg", "coco:1"),
        ("VizWiz/train/VizWiz_train_00033471.jpg", None),
        ("Flickr30k/train/000000033471.jpg", None),  # twelve digits, but not in a folder of COCO's
        ("gqa/images/2354786.jpg", "vg:2354786"),
        ("vg/VG_100K_2/2354786.jpg", "vg:2354786"),
        ("GQA/images/n161313.jpg", "gqa:n161313"),
        ("CLEVR/images/2354786.jpg", None),
        ("ocr_vqa/images/0761183272.jpg", "ocrvqa:0761183272"),
        ("OCR-VQA/images/B00005N5PF.png", "ocrvqa:b00005n5pf"),
        ("books/0761183272.jpg", None),
        ("textvqa/train_images/a7ed2bc0cd0f0a28.jpg", "openimages:a7ed2bc0cd0f0a28"),
        ("TextCaps/A7ED2BC0CD0F0A28.jpg", "openimages:a7ed2bc0cd0f0a28"),
        ("photos/a7ed2bc0cd0f0a28.jpg", None),
        ("x.png", None),
    ],
)
def test_path_rules(path: str, names: str | None) -> None:
    assert identity(path) == names


@pytest.fixture(scope="module")
def scored(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A zero-shot and a multi-task run whose tasks have the world's ids."""
    root = tmp_path_factory.mktemp("scored")
    values = {"zero_shot": [30.0, 41.0, 60.5, 20.0, 10.0], "multitask": [62.0, 55.0, 64.0, 71.0, 80.5]}
    runs = tuple(joint_run(root, name, name, scores) for name, scores in values.items())
    for run in runs:
        for (old, *_), new in zip(TASKS, COLLECTIONS):
            for file in run.rglob("*.json"):
                file.write_text(file.read_text().replace(f'"{old}"', f'"{new}"'))
            (run / "eval" / "01-joint" / old).rename(run / "eval" / "01-joint" / new)
    return runs


def test_verb_writes_tables_and_figures(world: Path, scored: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = [word for run in scored for word in ("--run", run)]
    called = call("analyze", "leakage", f"benchmark={world}/bench.yaml", f"data_root={world}", "--pretraining",
                  world / "mix.json", "--pretraining-images", world / "mix", *runs, "--output", out)  # fmt: skip
    assert called.code == 0, called.err
    assert {p.name for p in out.iterdir()} == {"leakage.md", "leakage.csv", "leakage.json", "leakage-light.png",
                                               "leakage-dark.png"}  # fmt: skip
    text = (out / "leakage.md").read_text()
    assert text in called.out and "| VQA | train | 1,000 | 30 | 0 | 0 | 3.0 |" in text
    assert "| OWN | train | 1,000 | 0 | 6 | 5 | 1.1 |" in text and "| VQA | 30.00 | 62.00 | 32.00 | 1.8 |" in text
    data = json.loads((out / "leakage.json").read_text())
    assert data["total"]["both"]["images_in_mix"] == 82 and data["scores"]["own"] == {
        "zero_shot": 10.0,
        "multitask": 80.5,
    }
    rows = {(r["task"], r["split"]): r for r in csv.DictReader(io.StringIO((out / "leakage.csv").read_text()))}
    assert rows["gqa", "train"]["by_path"] == "20" and rows["gqa", "test"]["zero_shot"] == "41.00"
    assert (out / "leakage-light.png").read_bytes() != (out / "leakage-dark.png").read_bytes()


def test_the_figure_shows_what_was_found(found: Leakage) -> None:
    tasks = list(COLLECTIONS)
    scores = gaps({"zero_shot": {"vqa": [30.0, 32.0]}, "multitask": {"vqa": [62.0], "own": [80.0]}}, tasks)
    assert scores == {"vqa": (31.0, 62.0), "own": (None, 80.0)}
    left, right = figure(found, scores, DARK).axes
    bars = {round(bar.get_width(), 4) for bar in left.patches}
    assert bars == {0.0, 3.0, 2.0, 0.9, 1.1, 1.75, 1.25}
    assert "+31.0" in [text.get_text() for text in right.texts] and len(right.texts) == 1


def test_other_runs_are_refused(found: Leakage, tmp_path: Path) -> None:
    run = read_run(sequential_run(tmp_path))
    assert len(RERUN) == len(run.matrix.stages)
    with pytest.raises(UserError, match="is a run of 'hide'; --run takes zero_shot and multitask runs"):
        write_leakage(found, [run], tmp_path / "out")
    with pytest.raises(UserError, match="is a run of 'ucit' and has none of the audited tasks"):
        write_leakage(found, [read_run(joint_run(tmp_path))], tmp_path / "out")


def test_bad_usage_exits_2(world: Path, tmp_path: Path) -> None:
    words = ("analyze", "leakage", f"benchmark={world}/bench.yaml", f"data_root={world}", "--output", tmp_path / "out")
    assert call(*words).code == 2
    for more in (("--pretraining", tmp_path / "gone.json"), ("--pretraining", world / "bench.yaml"),
                 ("--pretraining", world / "mix.json", "--pretraining-images", tmp_path / "gone")):  # fmt: skip
        called = call(*words, *more)
        assert called.code == 2 and called.err.startswith("error: "), called.err
    assert not (tmp_path / "out").exists()
