"""Question files of general ability, made from the published files of MMBench, SEED-Bench, MMStar and MMMU.

    python scripts/prepare_general.py mmbench    MMBench_DEV_EN.tsv     data/general/MMBench
    python scripts/prepare_general.py seed-bench SEED-Bench.json        data/general/SEED-Bench
    python scripts/prepare_general.py mmstar     MMStar.tsv             data/general/MMStar
    python scripts/prepare_general.py mmmu       MMMU                   data/general/MMMU

Each writes OUT/questions.json and, where the published file holds the pictures, OUT/images/. docs/GENERAL_ABILITY.md says where
the files come from, and what each format is.
"""

from __future__ import annotations

import argparse
import ast
import base64
import binascii
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hide_llava.errors import UserError
from hide_llava.metrics.letters import ALPHABET
from hide_llava.metrics.rows import read_json
from hide_llava.storage import write_bytes, write_json

Rows = list[dict[str, Any]]
LETTER = "Answer with the option's letter from the given choices directly."  # LLaVA-1.5's, for all four
SHORT = "Answer the question using a single word or phrase."
TURN = 1_000_000  # rotation k of MMBench's question i has the index i + k · TURN
UNSAFE = re.compile(r"[^\w-]")  # in a file's name
POINTER = 64  # a shorter text in the column of pictures is the index of the row that has the picture


# ------------------------------------------------------------------------------------------------------------- pictures


def save_picture(data: bytes, folder: Path, name: str, where: str) -> str:
    """Write a picture as it is under `folder/images/`, its ending by its format; returns its path below `folder`.

    Raises:
        UserError: it is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind = picture.format.lower()
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{where}: its picture cannot be read ({error}).") from None
    path = f"images/{UNSAFE.sub('_', name)}.{'jpg' if kind == 'jpeg' else kind}"
    write_bytes(folder / path, data)
    return path


def read_tsv(file: Path, columns: tuple[str, ...]) -> Rows:
    """The rows of a table as VLMEvalKit publishes them, texts as they stand, an empty cell as None.

    Raises:
        UserError: no table, or one without a column that is needed.
    """
    import pandas

    try:
        table = pandas.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{file}: is not a table with tabs ({' '.join(str(error).split())}).") from None
    lacking = [name for name in columns if name not in table]
    if lacking:
        raise UserError(f"{file}: has no column {', '.join(lacking)}; it has {', '.join(table)}.")
    rows = [{key: value if value not in ("", "nan") else None for key, value in row.items()} for row in table.to_dict("records")]
    for number, row in enumerate(rows, 2):
        if any(row[name] is None for name in ("index", "question", "answer", "image") if name in columns):
            raise UserError(f"{file}: line {number} has no {next(n for n in columns if row[n] is None)}.")
    return rows


def picture_of(row: dict, rows: dict[str, dict], folder: Path, file: Path, saved: dict[str, str]) -> str:
    """The path of a row's picture, which may stand in another row; a picture is written once."""
    name = row["index"]
    while len(rows[name]["image"]) <= POINTER and rows[name]["image"] in rows and rows[name]["image"] != name:
        name = rows[name]["image"]
    if name not in saved:
        where = f"{file}: index {name}"
        try:
            data = base64.b64decode(rows[name]["image"], validate=True)
        except (binascii.Error, ValueError):
            raise UserError(f"{where}: its picture is not in base64.") from None
        saved[name] = save_picture(data, folder, name, where)
    return saved[name]


# --------------------------------------------------------------------------------------------------- one question a row


def asked(question: str, choices: list[str], hint: str | None = None) -> str:
    """A question of multiple choice in LLaVA-1.5's form: hint, question, options, answer instruction, one to a line."""
    options = [f"{letter}. {choice}" for letter, choice in zip(ALPHABET, choices)]
    return "\n".join([*filter(None, [hint]), question, *options, LETTER])


def choices_of(row: dict) -> list[str]:
    """The options of the columns A, B, C …, as far as they are filled."""
    found = []
    for letter in ALPHABET:
        if row.get(letter) is None:
            break
        found.append(row[letter])
    return found


def from_tsv(file: Path, out: Path, split: str | None = None) -> Rows:
    """Questions of a table of VLMEvalKit, with every other column that a score by group may need."""
    rows = read_tsv(file, ("index", "question", "A", "answer", "image"))
    by_index, saved = {row["index"]: row for row in rows}, {}
    return [
        {
            "question_id": int(row["index"]) if row["index"].isdecimal() else row["index"],
            "image": picture_of(row, by_index, out, file, saved),
            "text": asked(row["question"], choices_of(row), row.get("hint")),
            "choices": choices_of(row), "answer": row["answer"].strip(),
            **{key: row[name] for name, key in (("category", "category"), ("l2-category", "l2_category"),
                                                ("l2_category", "l2_category")) if row.get(name) is not None},
            "question": row["question"], "hint": row.get("hint"),
        }
        for row in rows
        if split is None or row.get("split") in (None, split)
    ]  # fmt: skip


def without_parts(rows: Rows) -> Rows:
    """The questions without the parts of their text, which only the rotation needs."""
    return [{key: value for key, value in row.items() if key not in ("question", "hint")} for row in rows]


def mmbench(file: Path, out: Path, pictures: str) -> Rows:
    """The dev questions, one of each rotation of their options: the file's own, else made here."""
    rows = from_tsv(file, out, "dev")
    if any(not isinstance(row["question_id"], int) for row in rows):
        raise UserError(f"{file}: an index is no whole number; MMBench numbers its rotations by it.")
    if all(row["question_id"] < TURN for row in rows):
        rows = [turned(row, k) for row in rows for k in range(len(row["choices"]))]
    circles: dict[int, Rows] = {}
    for row in rows:
        circles.setdefault(row["question_id"] % TURN, []).append(row)
    if odd := [number for number, circle in circles.items() if len(circle) != len(circle[0]["choices"])]:
        print(f"{file}: {len(odd)} questions have not one rotation for each option, first {odd[0]}; they are asked as they are")
    return without_parts([{**row, "circle": row["question_id"] % TURN} for row in rows])


def turned(row: dict, k: int) -> dict:
    """A question whose option k stands first, then k + 1, …, and the first ones last."""
    choices = row["choices"][k:] + row["choices"][:k]
    letter = ALPHABET[(ALPHABET.index(row["answer"]) - k) % len(choices)]
    return {**row, "question_id": row["question_id"] + k * TURN, "choices": choices, "answer": letter,
            "text": asked(row["question"], choices, row["hint"])}  # fmt: skip


def mmstar(file: Path, out: Path, pictures: str) -> Rows:
    """All questions of the table."""
    return without_parts(from_tsv(file, out))


def seed_bench(file: Path, out: Path, pictures: str) -> Rows:
    """The questions on pictures: of SEED-Bench's own JSON, whose pictures lie beside it, or of VLMEvalKit's table."""
    if file.suffix == ".tsv":
        return without_parts(from_tsv(file, out))
    tree = read_json(file, "SEED-Bench file")
    if not isinstance(tree, dict) or not {"questions", "question_type"} <= tree.keys():
        raise UserError(f"{file}: expected SEED-Bench's own JSON with question_type and questions.")
    names, found = {number: name for name, number in tree["question_type"].items()}, []
    for row in tree["questions"]:
        if row["data_type"] != "image":
            continue
        choices = [row[f"choice_{letter}"] for letter in "abcd"]
        found.append({
            "question_id": row["question_id"], "image": f"SEED-Bench-image/{row['data_id']}",
            "text": asked(row["question"], choices), "choices": choices, "answer": row["answer"],
            "category": names.get(row["question_type_id"], str(row["question_type_id"])),
        })  # fmt: skip
    return found


# ----------------------------------------------------------------------------------------------------------------- MMMU


def mmmu(file: Path, out: Path, pictures: str) -> Rows:
    """The validation questions of the published parquet files, in the order of subjects; `file` may be their folder."""
    import pyarrow.parquet

    files = sorted(file.rglob("validation*.parquet")) if file.is_dir() else [file]
    rows: Rows = []
    for one in files:
        try:
            rows += pyarrow.parquet.read_table(one).to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise UserError(f"{one}: is no parquet file ({' '.join(str(error).split())}).") from None
    if not rows:
        raise UserError(f"{file}: holds no validation*.parquet of MMMU.")
    rows.sort(key=subject)  # stable: each subject's in its own order
    return [mmmu_question(row, out, pictures) for row in rows]


def subject(row: dict) -> str:
    """`validation_Art_Theory_3` → `Art_Theory`."""
    return "_".join(row["id"].split("_")[1:-1])


def mmmu_question(row: dict, out: Path, pictures: str) -> dict:
    """One question in the form of the published prompt for LLaVA-1.5, its pictures where the text names them.

    pictures: `all`, those that no text names in front; or `first`, as MMMU's script for LLaVA-1.5 asks: the first one in front,
    the marks of all in the text as they are.
    """
    options = [str(option) for option in ast.literal_eval(row["options"] or "[]")]
    listed = "".join(f"({letter}) {option}\n" for letter, option in zip(ALPHABET, options))
    choice = row["question_type"] == "multiple-choice"
    text = f"{row['question']}\n{listed}\n{LETTER}" if choice else f"{row['question']}\n{SHORT}"
    there = {
        k: save_picture(row[f"image_{k}"]["bytes"], out, f"{row['id']}_{k}", f"{row['id']}, image_{k}")
        for k in range(1, 8)
        if row.get(f"image_{k}")
    }
    if pictures == "first":
        images = [there[1]] if 1 in there else []
    else:
        named = [int(k) for k in re.findall(r"<image (\d)>", text)]
        if any(k not in there for k in named):
            raise UserError(f"{row['id']}: its text names a picture that it does not have.")
        silent = [k for k in there if k not in named]
        images = [there[k] for k in [*silent, *named]]
        text = "<image>\n" * len(silent) + re.sub(r"<image \d>", "<image>", text)
    answer = row["answer"]
    return {
        "question_id": row["id"], **({"image": images[0] if len(images) == 1 else images} if images else {}), "text": text,
        "question_type": row["question_type"], "category": subject(row), **({"choices": options} if choice else {}),
        "answer": ast.literal_eval(answer) if answer.startswith("[") and answer.endswith("]") else answer,
    }  # fmt: skip


KINDS: dict[str, Callable[[Path, Path, str], Rows]] = {
    "mmbench": mmbench, "seed-bench": seed_bench, "mmstar": mmstar, "mmmu": mmmu,
}  # fmt: skip


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("file", type=Path, help="the published file, or MMMU's folder")
    parser.add_argument("out", type=Path, help="folder for questions.json and images/")
    parser.add_argument("--pictures", choices=("all", "first"), default="all", help="MMMU: of a question that has several")
    given = parser.parse_args(words)
    try:
        if not given.file.exists():
            raise UserError(f"{given.file} does not exist.")
        questions = KINDS[given.kind](given.file, given.out, given.pictures)
        if not questions:
            raise UserError(f"{given.file}: holds no question of {given.kind}.")
    except UserError as error:
        sys.exit(f"error: {error}")
    write_json(given.out / "questions.json", questions)
    print(f"{given.out / 'questions.json'}: {len(questions)} questions")


if __name__ == "__main__":
    main()
