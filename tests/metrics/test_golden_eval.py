"""Every recorded input of the published evaluation scripts gives the recorded score (tests/golden/eval)."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from hide_llava.errors import UserError
from hide_llava.metrics import caption, java_available, score_files
from hide_llava.metrics.ptb import tokenize_java, tokenize_python
from hide_llava.metrics.vqa import normalise

EVAL = Path(__file__).parent.parent / "golden" / "eval"
EXPECTED = json.loads((EVAL / "expected.json").read_text())
needs_java = pytest.mark.skipif(not java_available(), reason="no Java runtime")
LOOSE = {"allow_partial": True, "allow_duplicates": True}


def accuracy(text: str) -> str:
    return re.search(r"Accuracy: ([\d.]+)%", text).group(1)


@pytest.mark.parametrize(
    "case, metric, references, answers",
    [
        ("deepseek_r1", "exact_upper", "annotation.json", "merge.jsonl"),
        ("vizwiz", "exact_upper", "annotation.json", "merge.jsonl"),
        ("vqav2", "exact_upper", "annotation.json", "merge.jsonl"),
        ("ocrvqa", "exact_lower_unanswerable", "annotation.json", "merge.jsonl"),
        ("imagenet", "substring_bidir", "test.json", "merge.jsonl"),
        ("imagenet.shuffled", "substring_bidir", "test.json", "shuffled.jsonl"),
        ("grounding", "iou50", "test.json", "merge.jsonl"),
        ("textvqa", "vqa_soft10", "annotation.json", "merge.jsonl"),
        ("gqa", "gqa_exact", "testdev_balanced_questions.json", "merge.jsonl"),
        ("deepseek_r1.subset", "exact_upper", "annotation.json", "subset.jsonl"),
        ("deepseek_r1.duplicate_results", "exact_upper", "annotation.json", "duplicate_results.jsonl"),
        (
            "deepseek_r1.duplicate_annotation_last_wins",
            "exact_upper",
            "annotation.json",
            "duplicate_annotation_last_wins.jsonl",
        ),
    ],
)
def test_accuracy_as_recorded(case: str, metric: str, references: str, answers: str) -> None:
    folder = EVAL / (case.split(".")[0] + ("_shapes" if case.startswith("deepseek_r1.") else ""))
    recorded = EXPECTED[case]
    result = score_files(metric, folder / answers, folder / references, options=LOOSE)
    assert result["headline"] == "legacy"
    assert f"{result['score']:.2f}" == accuracy(recorded["stdout"])
    samples = re.search(r"Samples: (\d+)", recorded["stdout"])
    if samples:
        assert result["legacy"]["n"] == int(samples.group(1))


@pytest.mark.parametrize(
    "case, metric",
    [
        ("deepseek_r1", "exact_upper"),
        ("ocrvqa", "exact_lower_unanswerable"),
        ("grounding", "iou50"),
        ("textvqa", "vqa_soft10"),
    ],
)
def test_each_item_as_recorded(case: str, metric: str, tmp_path: Path) -> None:
    """One file per recorded item, so that two errors cannot cancel out."""
    folder = EVAL / case
    references = folder / ("test.json" if case == "grounding" else "annotation.json")
    lines = (folder / "merge.jsonl").read_text().splitlines()
    for line, item in zip(lines, EXPECTED[case]["per_item"], strict=True):
        one = tmp_path / "one.jsonl"
        one.write_text(line + "\n")
        assert json.loads(line)["text"] == item["pred"]
        got = score_files(metric, one, references, options=LOOSE)["legacy"]["score"] / 100
        assert got == pytest.approx(item.get("right", item.get("score")), abs=1e-12), item


@pytest.mark.parametrize("case", ["empty", "unknown_id"])
def test_inputs_the_published_script_died_on_are_explained(case: str) -> None:
    folder = EVAL / "deepseek_r1_shapes"
    assert EXPECTED[f"deepseek_r1.{case}"]["rc"] == 1
    with pytest.raises(UserError):
        score_files("exact_upper", folder / f"{case}.jsonl", folder / "annotation.json", options=LOOSE)


def test_gqa_tables_as_recorded() -> None:
    folder = EVAL / "gqa"
    legacy = score_files("gqa_exact", folder / "merge.jsonl", folder / "testdev_balanced_questions.json")["legacy"]
    recorded = EXPECTED["gqa"]["stdout"]
    names = {"Binary": "answer:binary", "Open": "answer:open", "Distribution": "distribution"}
    names |= {k: f"structural:{k}" for k in ("choose", "compare", "logical", "query", "verify")}
    names |= {k: f"semantic:{k}" for k in ("attr", "cat", "obj", "rel")}
    for shown, key in names.items():
        assert f"{legacy[key]:.2f}" == re.search(rf"{shown}: ([\d.]+)", recorded).group(1), shown


def test_scienceqa_as_recorded(tmp_path: Path) -> None:
    folder = EVAL / "scienceqa"
    options = {**LOOSE, "allow_unanswerable": True}  # the answer of recorded problem 9 is none of its choices
    result = score_files("option_letter_hide", folder / "merge.jsonl", folder, options=options)
    assert f"{result['score']:.2f}" == accuracy(EXPECTED["scienceqa"]["stdout"])
    assert f"{result['legacy']['image_accuracy']:.2f}" == "60.00"
    assert result["legacy"]["n"] == 17 and result["n_expected"] == 19
    recorded = json.loads((folder / "output_result.jsonl").read_text())
    assert result["legacy"]["score"] == recorded["acc"]
    right = json.loads((folder / "output.jsonl").read_text())["correct"]
    found = set()
    for line in (folder / "merge.jsonl").read_text().splitlines():
        (tmp_path / "one.jsonl").write_text(line)
        if score_files("option_letter_hide", tmp_path / "one.jsonl", folder, options=options)["legacy"]["score"]:
            found.add(json.loads(line)["question_id"])
    assert found == {row["question_id"] for row in right}


def test_evalai_normaliser_as_recorded() -> None:
    wrong = {a: normalise(a) for a, n in EXPECTED["evalai_answer_processor"].items() if normalise(a) != n}
    assert not wrong


@needs_java
def test_one_meteor_process_serves_all_ends_and_prints_nothing(capfd) -> None:
    gts, res = {1: ["a man on a horse"]}, {1: ["a man on a horse"]}
    caption._meteor_process.cache_clear()
    started = []
    popen = subprocess.Popen
    patch = pytest.MonkeyPatch()
    patch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    scores = [caption._meteor(gts, res)[0] for _ in range(2)]
    patch.undo()
    assert scores == pytest.approx([1.0, 1.0])
    assert len(started) == 1 and started[0].poll() is None
    caption._end(started[0])
    assert started[0].poll() is not None
    caption._meteor_process.cache_clear()
    assert capfd.readouterr() == ("", "")


@needs_java
@pytest.mark.parametrize(
    "case",
    [
        "caption",
        "caption_perfect",
        "caption_imgorder",
        "caption_empty_pred",
        "caption_single",
        "caption_multiline_pred",
    ],
)
def test_caption_as_recorded(case: str) -> None:
    folder = EVAL / case
    result = score_files("caption7", folder / "merge.jsonl", folder / "val_coco.json")
    names = {"Bleu_1": "BLEU-1", "Bleu_2": "BLEU-2", "Bleu_3": "BLEU-3", "Bleu_4": "BLEU-4", "METEOR": "METEOR"}
    names |= {"ROUGE_L": "ROUGE-L", "CIDEr": "CIDEr", "Average": "score"}
    for shown, key in names.items():
        recorded = re.search(rf"{shown}: ([\d.]+)", EXPECTED[case]["Result.text"]).group(1)
        assert f"{result['legacy'][key]:.2f}" == recorded, shown


def test_caption_with_fewer_answers_is_refused() -> None:
    folder = EVAL / "caption_fewer_preds"
    assert EXPECTED["caption_fewer_preds"]["rc"] == 1
    with pytest.raises(UserError, match="Only 3 of 5"):
        score_files("caption7", folder / "merge.jsonl", folder / "val_coco.json")
    with pytest.raises(UserError, match="no question file"):
        score_files("caption7", folder / "merge.jsonl", folder / "val_coco.json", options={"allow_partial": True})


PTB = json.loads((EVAL / "ptb_tokenizer.json").read_text())


@needs_java
def test_java_tokenizer_as_recorded() -> None:
    assert tokenize_java(list(PTB)) == [tokens[0] for tokens in PTB.values()]


def test_python_tokenizer_agrees_with_the_record() -> None:
    assert tokenize_python(list(PTB)) == [tokens[0] for tokens in PTB.values()]


def test_python_caption_parts_match_java_on_the_recorded_set() -> None:
    """Both tokenizers agree on these captions, so the six common parts must be the recorded ones."""
    folder = EVAL / "caption"
    options = {"tokenizer": "python"}
    result = score_files("caption7", folder / "merge.jsonl", folder / "val_coco.json", options=options)
    overall = json.loads((folder / "detail.json").read_text())["overall"]
    names = {"BLEU-1": "Bleu_1", "BLEU-4": "Bleu_4", "ROUGE-L": "ROUGE_L", "CIDEr": "CIDEr"}
    for ours, theirs in names.items():
        assert result["legacy"][ours] / 100 == pytest.approx(overall[theirs], abs=1e-9)
    assert "METEOR" not in result["legacy"]
    assert "caption6-python, not comparable" in result["labels"]
