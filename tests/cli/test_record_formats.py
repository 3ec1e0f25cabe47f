"""Every shape of records trains, answers, scores, and is previewed, checked and audited, as its twin in LLaVA's JSON."""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from hide_llava.storage import sha256
from tests.cli.call import call
from tests.tiny import arguments, write_world_of

PICTURES = ((0,), (1,), ())  # of each record, by their numbers
SEVERAL = ((0,), (1, 2), ())
ANSWERS = ("circle", "square", "star")
SCORED = ("score", "legacy", "clean", "verdicts", "error_profile", "metric", "n_scored", "predictions_sha256")
SYSTEM = "Answer in one word."

Picture = Callable[[str], Any]


@dataclass(frozen=True)
class Records:
    """Three training records or questions in every shape. pictures: numbers of each one's pictures."""

    asked: bool
    pictures: tuple[tuple[int, ...], ...]

    def names(self, i: int) -> list[str]:
        return [f"task0/{'test' if self.asked else 'train'}{k}.png" for k in self.pictures[i]]

    def text(self, i: int) -> str:
        return f"What is {'thing' if self.asked else 'object'} {i}?"

    def id(self, i: int) -> int | str:
        return i if self.asked else f"r{i}"

    def llava(self, i: int) -> dict[str, Any]:
        """A record of LLaVA's, with the text of a system turn where the others have one."""
        names, whole = self.names(i), f"{SYSTEM}\n\n{self.text(i)}"
        named = {"image": names if len(names) > 1 else names[0]} if names else {}
        if self.asked:
            return {"question_id": i, **named, "text": whole, "answer": ANSWERS[i]}
        asked = {"from": "human", "value": "<image>\n" * len(names) + whole}
        return {"id": f"r{i}", **named, "conversations": [asked, {"from": "gpt", "value": ANSWERS[i]}]}

    def messages(self, i: int, picture: Picture) -> dict[str, Any]:
        """OpenAI's shape. picture: what stands for a picture's file."""
        parts = [{"type": "image_url", "image_url": {"url": picture(name)}} for name in self.names(i)]
        asked = {"role": "user", "content": [*parts, {"type": "text", "text": self.text(i)}]}
        turns = [{"role": "system", "content": SYSTEM}, asked, {"role": "assistant", "content": ANSWERS[i]}]
        return {"id": self.id(i), "messages": turns}

    def sharegpt(self, i: int) -> dict[str, Any]:
        value = ("" if self.asked else "<image>\n" * len(self.names(i))) + self.text(i)
        turns = [{"from": "system", "value": SYSTEM}, {"from": "human", "value": value}, {"from": "gpt", "value": ANSWERS[i]}]
        return {"id": self.id(i), "images": self.names(i), "conversations": turns}

    def problem(self, i: int) -> dict[str, Any]:
        named = {"images": self.names(i)} if self.names(i) else {}
        return {"id": self.id(i), **named, "problem": f"{SYSTEM}\n\n{self.text(i)}", "solution": ANSWERS[i]}

    def row(self, i: int, picture: Picture) -> dict[str, Any]:
        """A row of a table that holds its pictures."""
        kept = {key: value for key, value in self.llava(i).items() if key != "image"}
        return kept | {"images": [picture(name) for name in self.names(i)]}


def write_lines(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file.name


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> str:
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=2)
    return file.name


def write_shards(folder: Path, rows: list[dict[str, Any]]) -> str:
    folder.mkdir()
    for i, part in enumerate((rows[:2], rows[2:])):
        parquet.write_table(pyarrow.Table.from_pylist(part, pyarrow.Table.from_pylist(rows).schema),
                            folder / f"train-0000{i}-of-00002.parquet")  # fmt: skip
    return folder.name


def write_saved(folder: Path, rows: list[dict[str, Any]]) -> str:
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    return folder.name


def write_converted(file: Path, rows: list[dict[str, Any]], images: Path) -> str:
    source = file.with_suffix(".json")
    source.write_text(json.dumps(rows))
    called = call("convert", source, file, "--images", images)
    assert called.code == 0 and "3 records; 2 pictures in it" in called.out, called.err
    return file.name


SHAPES = ("messages", "messages-inline", "sharegpt", "problem", "parquet", "shards", "saved", "converted")


def write(shape: str, home: Path, data: Path, of: Records) -> str:
    """A file or folder of three records in that shape; its name. data: where the pictures are."""
    target = home / ("test" if of.asked else "train")

    def inline(name: str) -> str:
        return f"data:image/png;base64,{base64.b64encode((data / name).read_bytes()).decode()}"

    def held(name: str) -> dict[str, Any]:
        return {"bytes": (data / name).read_bytes(), "path": Path(name).name}

    if shape == "converted":
        return write_converted(target.with_suffix(".parquet"), [of.llava(i) for i in range(3)], data)
    lines = {"messages": lambda i: of.messages(i, str), "messages-inline": lambda i: of.messages(i, inline),
             "sharegpt": of.sharegpt, "problem": of.problem}  # fmt: skip
    if shape in lines:
        return write_lines(target.with_suffix(".jsonl"), [lines[shape](i) for i in range(3)])
    rows = [of.row(i, held) for i in range(3)]
    if shape == "parquet":
        return write_parquet(target.with_suffix(".parquet"), rows)
    return (write_shards if shape == "shards" else write_saved)(target, rows)


def words(world: Path, home: Path, files: dict[str, str]) -> list[str]:
    """Words of a run of one task with these files."""
    task = {"id": "task", "title": "Task", "train": files["train"], "test": files["test"], "metric": "anls_prism"}
    tree = {"name": "shape", "instructions": "annotations", "images": "data", "max_new_tokens": 4, "tasks": [task]}
    (home / "bench.yaml").write_text(json.dumps({"benchmark": tree}))
    given = arguments(world, "hide", home / "run", "train.epochs=1", "train.global_batch_size=2")
    return [f"benchmark={home}/bench.yaml", *given[1:3], f"data_root={home}", *given[4:]]


def made(world: Path, home: Path, shape: str | None, pictures: tuple[tuple[int, ...], ...] = PICTURES) -> list[str]:
    """The data of a run in that shape, or of its twin; words of the run. The pictures' folder holds only what names need."""
    (home / "annotations").mkdir(parents=True)
    if shape in (None, "messages", "sharegpt", "problem"):
        shutil.copytree(world / "data", home / "data")
    files = {}
    for split in ("train", "test"):
        of = Records(split == "test", pictures)
        if shape is None:
            (home / "annotations" / f"{split}.json").write_text(json.dumps([of.llava(i) for i in range(3)]))
        files[split] = f"{split}.json" if shape is None else write(shape, home / "annotations", world / "data", of)
    return words(world, home, files)


def outcome(home: Path) -> dict[str, Any]:
    """What a run has learned and answered: tensors by their bytes, answers, scores and skipped records."""
    run = home / "run"
    cell = run / "eval" / "01-task" / "task"
    score = json.loads((cell / "score.json").read_text())
    stage = json.loads((run / "manifest.json").read_text())["stages"][0]
    return {
        "weights": {str(f.relative_to(run)): sha256(f) for f in sorted(run.glob("stages/**/*.safetensors"))},
        "answers": [json.loads(line) for line in (cell / "predictions.jsonl").read_text().splitlines()],
        "score": {key: score[key] for key in SCORED},
        "records": stage["records"],
    }


def looked_at(world: Path, given: list[str]) -> list[Any]:
    """What `preview` and `check` say of the data."""
    short = [word for word in given if word.startswith(("benchmark=", "data_root=", "model="))]
    shown = call("preview", short[0], short[2], "--model", world / "llava", "--clip", world / "clip", "--json")
    checked = call("check", *short, "--deep", "--json")
    assert shown.code == checked.code == 0, shown.err + checked.err
    report = json.loads(checked.out)
    files = [{key: value for key, value in file.items() if key != "file"} for file in report["files"]]
    return [[json.loads(line) for line in shown.out.splitlines()], files, [f["kind"] for f in report["findings"]]]


@pytest.fixture(scope="module")
def twin(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Any]]:
    home = tmp_path_factory.mktemp("twin")
    given = made(world, home, None)
    called = call("run", *given)
    assert called.code == 0, called.err
    found = outcome(home)
    assert found["records"] == len(found["answers"]) == 3 and len(found["weights"]) > 1 and found["score"]["score"] > 0
    return found, looked_at(world, given)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_its_twin_to_the_last_bit(
    world: Path, tmp_path: Path, twin: tuple[dict[str, Any], list[Any]], shape: str
) -> None:
    given = made(world, tmp_path, shape)
    called = call("run", *given)
    assert called.code == 0, called.err
    assert outcome(tmp_path) == twin[0]
    assert looked_at(world, given) == twin[1]


@pytest.fixture(scope="module")
def reads_several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world with a model that takes several pictures of a record."""
    return write_world_of("qwen2_vl", tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def twin_of_several(reads_several: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("twin-of-several")
    called = call("run", *made(reads_several, home, None, SEVERAL))
    assert called.code == 0, called.err
    return outcome(home)


@pytest.mark.parametrize("shape", ["messages", "sharegpt", "parquet"])
def test_several_pictures_too(reads_several: Path, tmp_path: Path, twin_of_several: dict[str, Any], shape: str) -> None:
    called = call("run", *made(reads_several, tmp_path, shape, SEVERAL))
    assert called.code == 0, called.err
    assert outcome(tmp_path) == twin_of_several and twin_of_several["records"] == 3
