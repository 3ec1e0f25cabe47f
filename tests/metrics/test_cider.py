"""CVIT's caption rules (docs/METRICS.md) against a float64 CIDEr-D written here from the formula."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hide_llava.errors import UserError
from hide_llava.metrics import caption, cider, java_available, score

pytest.importorskip("pycocoevalcap")
QUESTIONS = [
    {"question_id": "a", "answer": ["A man rides a brown horse .", "a person on a horse", "the man is riding",
                                    "someone rides a horse in a field .", "a rider and his horse"]},
    {"question_id": "b", "answer": ["Two dogs play in the grass .", "dogs run on grass", "a pair of dogs plays",
                                    "two brown dogs play", "the dogs are in a field ."]},
    {"question_id": "c", "answer": ["A red bus drives down the road .", "a bus on a street", "the bus is red",
                                    "a city bus on the road .", "red bus"]},
]  # fmt: skip
ROWS = [
    {"question_id": "a", "text": "A man rides a horse in a field ."},
    {"question_id": "b", "text": "Two dogs play in the field ."},
    {"question_id": "c", "text": "A red bus on the road ."},
]


def grams(text: str, n: int) -> Counter:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def naive_cider_d(references: list[list[str]], said: list[str]) -> list[float]:
    """CIDEr-D of each image: mean over n and references of clipped tf-idf cosine × length penalty, × 10."""
    scores = []
    for refs, text in zip(references, said):
        total = 0.0
        for n in range(1, 5):
            df = Counter(g for r in references for g in set().union(*(grams(x, n) for x in r)))
            idf = {g: np.log(len(references)) - np.log(max(1, df[g])) for x in [*refs, text] for g in grams(x, n)}
            p = {g: c * idf[g] for g, c in grams(text, n).items()}
            for reference in refs:
                r = {g: c * idf[g] for g, c in grams(reference, n).items()}
                dot = sum(min(p[g], r.get(g, 0.0)) * r.get(g, 0.0) for g in p)
                norm = np.sqrt(sum(v * v for v in p.values())) * np.sqrt(sum(v * v for v in r.values()))
                gap = grams(text, 2).total() - grams(reference, 2).total()
                total += (dot / norm if norm else 0.0) * np.exp(-(gap**2) / 72) / 4 / len(refs)
        scores.append(10 * total)
    return scores


def naive_oracle(references: list[list[str]], said: list[str]) -> list[float]:
    best = []
    for refs, text in zip(references, said):
        scores = naive_cider_d([[r] for r in refs], [text] * len(refs))
        best.append(refs[int(np.argmax(scores))])
    return naive_cider_d([[text] for text in said], best)


REFERENCES, SAID = [q["answer"] for q in QUESTIONS], [row["text"] for row in ROWS]


def test_both_whitespace_rules_against_the_formula() -> None:
    options = {"tokenizer": "python"}
    textcaps = score("cider_d_ws", ROWS, QUESTIONS)
    flickr = score("cvit_cider_oracle", ROWS, QUESTIONS, options=options)
    assert textcaps["score"] == pytest.approx(100 * np.mean(naive_cider_d(REFERENCES, SAID)), abs=1e-9)
    assert flickr["score"] == pytest.approx(100 * np.mean(naive_oracle(REFERENCES, SAID)), abs=1e-9)
    assert flickr["score"] > 2 * textcaps["score"] > 0  # the oracle's number is of another kind
    assert flickr["clean"]["score"] == textcaps["clean"]["score"]
    assert flickr["legacy"]["CIDEr-D-PTB"] == score("cider_d_ptb", ROWS, QUESTIONS, options=options)["score"]
    assert [textcaps["verdicts"][q["question_id"]] for q in QUESTIONS] == pytest.approx(naive_cider_d(REFERENCES, SAID))


def test_case_and_glued_periods_cost_points_only_on_whitespace_tokens() -> None:
    full = {m: score(m, ROWS, QUESTIONS, options={"tokenizer": "python"})["score"] for m in (
        "cvit_cider_oracle", "cider_d_ws", "cider_d_ptb")}  # fmt: skip
    for change in (str.lower, lambda t: t.replace(" .", ".")):
        rows = [{**row, "text": change(row["text"])} for row in ROWS]
        got = {m: score(m, rows, QUESTIONS, options={"tokenizer": "python"})["score"] for m in full}
        assert got["cvit_cider_oracle"] < full["cvit_cider_oracle"] and got["cider_d_ws"] < full["cider_d_ws"]
        assert got["cider_d_ptb"] == pytest.approx(full["cider_d_ptb"])


def test_ceiling_single_image_and_empty_answers() -> None:
    perfect = [{**row, "text": q["answer"][0]} for row, q in zip(ROWS, QUESTIONS)]
    assert score("cvit_cider_oracle", perfect, QUESTIONS, options={"tokenizer": "python"})["score"] == pytest.approx(
        1000
    )
    assert score("cider_d_ws", perfect[:1], QUESTIONS[:1])["score"] == 0
    empty = [{**row, "text": " "} for row in ROWS]
    assert score("cvit_cider_oracle", empty, QUESTIONS, options={"tokenizer": "python"})["score"] == 0


def test_legacy_scores_only_what_is_answered_clean_everything() -> None:
    options = {"allow_partial": True, "tokenizer": "python"}
    result = score("cider_d_ws", ROWS[:2], QUESTIONS, options=options)
    assert (result["legacy"]["n"], result["clean"]["n"]) == (2, 3) and result["verdicts"]["c"] == 0
    assert result["legacy"]["score"] == pytest.approx(100 * np.mean(naive_cider_d(REFERENCES[:2], SAID[:2])))
    assert result["clean"]["score"] == pytest.approx(100 * np.mean(naive_cider_d(REFERENCES, [*SAID[:2], ""])))


def test_string_answers_and_coco_files(tmp_path: Path) -> None:
    single = [{**q, "answer": q["answer"][0]} for q in QUESTIONS]
    assert score("cider_d_ws", ROWS, single)["score"] == pytest.approx(
        100 * np.mean(naive_cider_d([[q["answer"]] for q in single], SAID))
    )
    coco = {"images": [{"id": i} for i in (1, 2, 3)], "annotations": [
        {"image_id": i, "caption": c} for i, q in enumerate(QUESTIONS, 1) for c in q["answer"]]}  # fmt: skip
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco))
    bare = [{"question_id": q["question_id"]} for q in QUESTIONS]
    assert score("cider_d_ws", ROWS, bare, path)["score"] == score("cider_d_ws", ROWS, QUESTIONS)["score"]
    with pytest.raises(UserError, match="image_id"):
        score("cider_d_ws", ROWS[:2], bare[:2], path, {"allow_partial": True})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["images"].append({"id": 1}), "image id 1 occurs more than once"),
        (lambda c: c["annotations"].append({"image_id": 9, "caption": "x"}), "image id 9"),
        (lambda c: c["annotations"].pop(), "image id 3 has no caption"),
        (lambda c: c["annotations"][0].pop("caption"), "annotation 1 lacks"),
        (lambda c: c["images"][0].pop("id"), "image 1 has no id"),
    ],
)
def test_a_broken_reference_file_is_named(tmp_path: Path, change, message) -> None:
    coco = {
        "images": [{"id": i} for i in (1, 2, 3)],
        "annotations": [{"image_id": i, "caption": "x"} for i in (1, 2, 3)],
    }
    change(coco)
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco))
    with pytest.raises(UserError, match=message):
        score("caption7", ROWS, [{"question_id": q["question_id"]} for q in QUESTIONS], path, {"tokenizer": "python"})


def test_without_java_the_standard_rule_refuses_and_the_oracle_says_so(monkeypatch) -> None:
    monkeypatch.setattr("hide_llava.metrics.ptb.java_available", lambda: False)
    monkeypatch.setattr("hide_llava.metrics.caption.java_available", lambda: False)
    with pytest.raises(UserError, match="needs Java"):
        score("cider_d_ptb", ROWS, QUESTIONS)
    result = score("cvit_cider_oracle", ROWS, QUESTIONS)
    assert "CIDEr-D-PTB" not in result["legacy"] and result["labels"] == ["CIDEr-D-PTB left out: no Java"]
    assert "python tokenizer, not comparable" in score(
        "cider_d_ptb", ROWS, QUESTIONS, options={"tokenizer": "python"})["labels"]  # fmt: skip


# ------------------------------------------------------------------------------------------- parity with the package


@pytest.fixture(scope="session")
def package_scores() -> tuple[dict, dict, dict]:
    """pycocoevalcap used as its own documentation says, on 200 images: (predictions, references, its seven numbers)."""
    if not java_available():
        pytest.skip("no Java runtime")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    draw = np.random.default_rng(0)
    things = [
        "man",
        "woman",
        "dog's",
        "horse",
        "(red)",
        "car,",
        "bus-stop",
        "U.S.",
        "flag",
        "3.5m",
        "table",
        "don't",
        "sign;",
        "river",
        '"cafe"',
        "street",
    ]

    def sentence() -> str:
        return " ".join(draw.choice(things, size=draw.integers(4, 11))).capitalize() + draw.choice([".", " .", "", "!"])

    references = {i: [sentence() for _ in range(5)] for i in range(200)}
    predicted = {i: references[i][0] if i % 3 else sentence() for i in references}
    gts = {i: [{"caption": c} for c in captions] for i, captions in references.items()}
    gts, res = (PTBTokenizer().tokenize(x) for x in (gts, {i: [{"caption": t}] for i, t in predicted.items()}))
    numbers = {f"BLEU-{n + 1}": value for n, value in enumerate(Bleu(4).compute_score(gts, res, verbose=0)[0])}
    numbers |= {"ROUGE-L": Rouge().compute_score(gts, res)[0], "CIDEr": Cider().compute_score(gts, res)[0]}
    numbers["METEOR"] = caption._meteor_process().compute_score(gts, res)[0]
    return predicted, references, numbers


def test_caption_path_equals_pycocoevalcap(package_scores) -> None:
    predicted, references, numbers = package_scores
    ours, per_image = caption.caption_scores(predicted, references)
    assert set(numbers) == set(ours) - {"score", "n"}
    for name, value in numbers.items():
        assert ours[name] / 100 == pytest.approx(float(value), abs=1e-6), name
    assert ours["score"] == pytest.approx(100 * sum(map(float, numbers.values())) / 7, abs=1e-6)
    assert len(per_image) == 200
    mean, _ = cider.treebank((references, predicted))
    assert mean == pytest.approx(float(numbers["CIDEr"]), abs=1e-6)


def test_spice_is_refused_without_its_models_and_never_averaged(tmp_path: Path, monkeypatch) -> None:
    from hide_llava.metrics import spice

    coco = {"images": [{"id": i} for i in (1, 2, 3)], "annotations": [{"image_id": i, "caption": t} for i, t in
                                                                       enumerate(SAID, 1)]}  # fmt: skip
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco))
    bare = [{"question_id": q["question_id"]} for q in QUESTIONS]
    options = {"tokenizer": "python", "spice": True}
    monkeypatch.setattr("hide_llava.metrics.spice.MODELS", ("no-such-model.jar",))
    with pytest.raises(UserError, match="SPICE needs"):
        score("caption7", ROWS, bare, path, options)
    monkeypatch.setattr("hide_llava.metrics.spice.java_available", lambda: False)
    with pytest.raises(UserError, match="SPICE needs Java"):
        spice.require_spice()
    monkeypatch.setattr("hide_llava.metrics.caption.require_spice", lambda: None)
    monkeypatch.setattr("hide_llava.metrics.caption.spice", lambda gts, res: 0.25)
    with_spice = score("caption7", ROWS, bare, path, options)
    without = score("caption7", ROWS, bare, path, {"tokenizer": "python"})
    assert with_spice["legacy"]["SPICE"] == 25 and with_spice["score"] == without["score"]
