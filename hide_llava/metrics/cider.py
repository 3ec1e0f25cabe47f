"""CIDEr-D three ways: CVIT's oracle rule, whitespace tokens, Penn-Treebank tokens (spec benchmarks.md §1.6).

All are mean × 100 of CIDEr-D, which itself ends at 10, so a perfect answer scores up to 1000, and less when it has
fewer than four words or when its words occur in every image. A corpus of one image scores 0 (idf = log 1).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics import ptb
from hide_llava.metrics.base import Job, Metric
from hide_llava.metrics.caption import coco_records, require
from hide_llava.metrics.rows import annotation_rows, read_table, text_list

Corpus = tuple[dict[str, list[str]], dict[str, str]]
"""({id: reference captions}, {id: predicted caption}), the same ids in the same order"""
Scored = tuple[float, dict[str, float]]
"""(mean CIDEr-D, {id: CIDEr-D}), 0…10"""
PTB_PART = "CIDEr-D-PTB"


def caption_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """Records with "captions": from the records' own answer list, or from a COCO-type reference file."""
    if references is not None and isinstance(read_table(references, "caption reference file"), dict):
        records = coco_records(questions, references, options)
        if not questions:
            raise UserError(f"{references} knows images, and answers are joined by question id; give the question file too.")
        if "n_reference" in records[0] and any("image_id" not in row for row in questions):
            raise UserError(
                f"{references} describes more images than are asked about; give each question its image_id."
            )
        return records
    return [{**row, "captions": text_list(row)} for row in annotation_rows(questions, references, options)]


def cider_d(references: dict[str, list[str]], predicted: dict[str, str]) -> Scored:
    """CIDEr-D of pycocoevalcap on strings as they are: tokens are what whitespace separates; idf from `references`."""
    from pycocoevalcap.cider.cider import Cider

    if not any(caption.split() for captions in references.values() for caption in captions):
        return 0.0, dict.fromkeys(references, 0.0)  # no n-gram anywhere: the package stops there
    mean, scores = Cider().compute_score(references, {i: [predicted[i]] for i in references})
    return float(mean), dict(zip(references, map(float, scores)))


def best_reference(captions: list[str], predicted: str) -> str:
    """The one caption closest to the prediction: each is scored as a document of its own, the first wins a tie."""
    _, scores = cider_d(
        {str(i): [c] for i, c in enumerate(captions)}, {str(i): predicted for i in range(len(captions))}
    )
    return captions[max(range(len(captions)), key=lambda i: scores[str(i)])]


def oracle(corpus: Corpus) -> Scored:
    """CVIT's Flickr30k rule: best reference chosen WITH the prediction, then scored with the two roles swapped."""
    references, predicted = corpus
    chosen = {i: best_reference(captions, predicted[i]) for i, captions in references.items()}
    return cider_d({i: [text] for i, text in predicted.items()}, chosen)


def whitespace(corpus: Corpus) -> Scored:
    """CVIT's TextCaps rule: all references, normal roles, case and punctuation count."""
    return cider_d(*corpus)


def treebank(corpus: Corpus, tokenizer: str = "ptb") -> Scored:
    """The standard: lower case, Penn-Treebank tokens without punctuation, all references."""
    references, predicted = corpus
    tokenize = ptb.tokenize_python if tokenizer == "python" else ptb.tokenize_java
    flat = iter(tokenize([c for i in references for c in (predicted[i], *references[i])]))
    said, known = {}, {}
    for i, captions in references.items():
        said[i] = next(flat)
        known[i] = [next(flat) for _ in captions]
    return cider_d(known, said)


def _answered(job: Job) -> Corpus:
    """The legacy corpus: images that have an answer, in answer order; of two answers the last one counts."""
    texts = {row["question_id"]: row["text"] for row in job.rows}
    return {i: job.by_id[i]["captions"] for i in texts}, texts


def _asked(job: Job) -> Corpus:
    """The clean corpus: every image asked about; a missing caption is an empty one."""
    texts = {i: job.answers[i]["text"] if i in job.answers else "" for i in job.by_id}
    return {i: record["captions"] for i, record in job.by_id.items()}, texts


def _result(scored: Scored) -> dict:
    return {"score": 100 * scored[0], "n": len(scored[1])}


def _metric(name: str, summary: str, used: str, legacy_rule: Callable, clean_rule: Callable, **more) -> Metric:
    """legacy_rule, clean_rule: (corpus, options) -> Scored."""

    def legacy(job: Job) -> dict | None:
        return _with_standard(_result(legacy_rule(_answered(job), job.options)), job, name) if job.joinable else None

    def clean(job: Job) -> tuple[dict, dict[str, float]] | None:
        if not job.joinable:
            return None
        scored = clean_rule(_asked(job), job.options)
        return _with_standard(_result(scored), job, name), scored[1]

    source = f"spec benchmarks.md §1.6: {used}"
    return Metric(name=name, summary=summary, source=source, records=caption_records, legacy=legacy, clean=clean, **more)


def _with_standard(result: dict, job: Job, name: str) -> dict:
    """The oracle score never stands alone: the standard CIDEr-D of all questions beside it, where Java allows it."""
    if name == "cvit_cider_oracle" and _can_tokenize(job.options):
        key = "_ptb"  # legacy and clean show the same number: compute it once
        if key not in job.options:
            job.options[key] = 100 * treebank(_asked(job), job.options.get("tokenizer", "ptb"))[0]
        result[PTB_PART] = job.options[key]
    return result


def _can_tokenize(options: dict) -> bool:
    return options.get("tokenizer") == "python" or ptb.java_available()


def _oracle_labels(options: dict) -> list[str]:
    return [] if _can_tokenize(options) else [f"{PTB_PART} left out: no Java"]


def _check_package(options: dict) -> None:
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise UserError("CIDEr needs pycocoevalcap: pip install -e '.[caption]'.")


def _treebank(corpus: Corpus, options: dict) -> Scored:
    tokenizer = options.get("tokenizer", "ptb")
    require(tokenizer)
    return treebank(corpus, tokenizer)


CVIT_CIDER_ORACLE = _metric(
    "cvit_cider_oracle",
    "CIDEr-D of the best single reference, roles swapped, whitespace tokens; clean: cider_d_ws",
    "CVIT Flickr30k (eval_flickr30k_cider)",
    lambda corpus, options: oracle(corpus),
    lambda corpus, options: whitespace(corpus),
    averages=("clean",),  # the verdicts are of cider_d_ws
    labels=_oracle_labels,
    check=_check_package,
)

CIDER_D_WS = _metric(
    "cider_d_ws",
    "CIDEr-D of all references on whitespace tokens",
    "CVIT TextCaps (eval_textcaps_cider)",
    lambda corpus, options: whitespace(corpus),
    lambda corpus, options: whitespace(corpus),
    check=_check_package,
)

CIDER_D_PTB = _metric(
    "cider_d_ptb",
    "the standard CIDEr-D: Penn-Treebank tokens, all references",
    "the standard beside CVIT's two rules",
    _treebank,
    _treebank,
    headline="clean",  # pycocoevalcap scores every image of the reference file
    labels=lambda options: ["python tokenizer, not comparable"] if options.get("tokenizer") == "python" else [],
    check=lambda options: require(options.get("tokenizer", "ptb")),
)
