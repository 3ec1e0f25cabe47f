"""Published files become question files that the metrics take, with their pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from hide_llava.data.records import load_questions
from hide_llava.metrics import get
from hide_llava.metrics.rows import question_rows
from scripts.prepare_general import main
from tests.benchmarks import published_files as published

LETTER = "Answer with the option's letter from the given choices directly."


def prepared(kind: str, file: Path, out: Path, *more: str) -> list[dict]:
    """The questions that the script writes, which the metric of that name takes and whose pictures open."""
    main([kind, str(file), str(out), *more])
    questions = json.loads((out / "questions.json").read_text())
    load_questions(out / "questions.json", out)
    get(kind.replace("-", "_")).gold(question_rows(questions), None, {})
    for question in questions:
        given = question.get("image", [])
        for image in given if isinstance(given, list) else [given]:
            with Image.open(out / image) as opened:
                opened.load()
    return questions


def test_mmbench_keeps_its_rotations(tmp_path: Path) -> None:
    file = published.write_tsv(tmp_path / "MMBench_DEV_EN.tsv", published.mmbench_rows())
    found = {q["question_id"]: q for q in prepared("mmbench", file, tmp_path / "out")}
    assert [*found] == [7, 8, 1_000_007, 2_000_007, 1_000_008]  # none of the test split
    first = found[7]
    assert first["text"] == f"Look.\nWhich colour?\nA. red\nB. None\nC. blue\n{LETTER}"  # "None" is an option
    assert first == {"question_id": 7, "image": "images/7.jpg", "text": first["text"], "choices": ["red", "None", "blue"],
                     "answer": "C", "category": "color", "l2_category": "attribute", "circle": 7}  # fmt: skip
    assert found[2_000_007]["image"] == "images/7.jpg" and found[2_000_007]["circle"] == 7 and found[8]["image"] == "images/8.png"
    assert sorted(p.name for p in (tmp_path / "out" / "images").iterdir()) == ["7.jpg", "8.png"]


def test_mmbench_without_rotations_gets_the_same_ones(tmp_path: Path, capsys) -> None:
    """A file of single questions, such as LLaVA's, is turned here as the published one is."""
    whole = published.write_tsv(tmp_path / "whole.tsv", published.mmbench_rows())
    single = published.write_tsv(tmp_path / "single.tsv", published.mmbench_rows(rotated=False))
    theirs, ours = (
        sorted(prepared("mmbench", f, tmp_path / f.stem), key=lambda q: q["question_id"]) for f in (whole, single)
    )
    assert theirs == ours and "have not one rotation" not in capsys.readouterr().out
    cut = published.write_tsv(tmp_path / "cut.tsv", published.mmbench_rows()[:-1])
    prepared("mmbench", cut, tmp_path / "cut")
    assert "1 questions have not one rotation for each option, first 8" in capsys.readouterr().out


def test_mmstar_and_seed_bench(tmp_path: Path) -> None:
    file = published.write_tsv(tmp_path / "MMStar.tsv", published.mmstar_rows(), published.MMSTAR_COLUMNS)
    found = prepared("mmstar", file, tmp_path / "mmstar")
    assert len(found) == 4 and found[1]["l2_category"] == "part 1" and found[1]["category"] == "math"
    found = prepared("seed-bench", published.write_seed(tmp_path / "seed" / "SEED-Bench.json"), tmp_path / "seed")
    assert [(q["question_id"], q["image"], q["category"]) for q in found] == [
        ("101669", "SEED-Bench-image/14_25", "Instances Counting"), ("101670", "SEED-Bench-image/15_26", "Scene Understanding"),
    ]  # fmt: skip
    assert found[0]["text"] == f"How many?\nA. one\nB. two\nC. three\nD. four\n{LETTER}"


def test_mmmu_with_all_pictures_and_with_the_first(tmp_path: Path) -> None:
    folder = published.write_mmmu(tmp_path / "MMMU")
    found = {q["question_id"]: q for q in prepared("mmmu", folder, tmp_path / "all")}
    assert [*found] == ["validation_Art_Theory_1", "validation_Art_Theory_2", "validation_Math_1"]
    one, several, short = found.values()
    assert one["text"] == f"<image> Who painted it?\n(A) Monet\n(B) D'Este\n\n{LETTER}" and one["choices"] == ["Monet", "D'Este"]
    assert several["text"].startswith("Which is like <image>?\n(A) <image>\n(B) <image>\n") and len(several["image"]) == 3
    assert several["category"] == "Art_Theory" and several["choices"] == ["<image 2>", "<image 3>"]
    assert short["answer"] == ["24/7", "3.429"] and short["question_type"] == "open" and "choices" not in short
    assert short["text"] == "What is <image>?\nAnswer the question using a single word or phrase."
    first = {q["question_id"]: q for q in prepared("mmmu", folder, tmp_path / "first", "--pictures", "first")}
    assert first["validation_Art_Theory_2"]["image"] == "images/validation_Art_Theory_2_1.png"
    assert first["validation_Art_Theory_2"]["text"].startswith("Which is like <image 1>?\n(A) <image 2>\n")


@pytest.mark.parametrize(
    "kind, name, content, says",
    [
        ("mmstar", "a.tsv", "index\tquestion\n1\tx\n", "has no column A, answer, image"),
        ("mmstar", "a.tsv", "index\tquestion\tA\tanswer\timage\n1\tx\ty\tA\t***\n", "index 1: its picture is not in base64"),
        ("mmstar", "a.tsv", "index\tquestion\tA\tanswer\timage\n1\tx\ty\tA\tAAAA\n", "index 1: its picture cannot be read"),
        ("mmstar", "a.tsv", "index\tquestion\tA\tanswer\timage\n1\tx\ty\t\tAAAA\n", "line 2 has no answer"),
        ("seed-bench", "a.json", "[]", "expected SEED-Bench's own JSON"),
        ("mmmu", "a.parquet", "no", "is no parquet file"),
        ("mmbench", "a.tsv", "", "is not a table with tabs"),
    ],
)
def test_what_is_no_published_file_is_refused(tmp_path: Path, kind: str, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit, match="error: .*" + says):
        main([kind, str(tmp_path / name), str(tmp_path / "out")])
    assert not (tmp_path / "out" / "questions.json").exists()
