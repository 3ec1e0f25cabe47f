"""CIDEr-D three ways: CVIT's oracle rule, whitespace tokens, Penn-Treebank tokens (Vedantam et al. 2015, arXiv 1411.5726).

All are mean × 100 of CIDEr-D, which itself ends at 10, so a perfect answer scores up to 1000, and less when it has
fewer than four words or when its words occur in every image. A corpus of one image scores 0 (idf = log 1).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.metrics import ptb
from hide_llava.metrics.base import Job, Metric, register
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


def _can_tokenize(options: dict) -> bool:
    return options.get("tokenizer") == "python" or ptb.java_available()


class CiderMetric(Metric):
    """legacy: the images that have an answer. clean: all images. Both on whitespace tokens unless a subclass says otherwise."""

    records = staticmethod(caption_records)

    def legacy(self, job: Job) -> dict | None:
        return self._result(self.legacy_scores(_answered(job), job.options), job) if job.joinable else None

    def clean(self, job: Job) -> tuple[dict, dict[str, float]] | None:
        if not job.joinable:
            return None
        scored = self.clean_scores(_asked(job), job.options)
        return self._result(scored, job), scored[1]

    def legacy_scores(self, corpus: Corpus, options: dict) -> Scored:
        return self.clean_scores(corpus, options)

    def clean_scores(self, corpus: Corpus, options: dict) -> Scored:
        return whitespace(corpus)

    def _result(self, scored: Scored, job: Job) -> dict:
        return {"score": 100 * scored[0], "n": len(scored[1])}

    def check(self, options: dict) -> None:
        if importlib.util.find_spec("pycocoevalcap") is None:
            raise UserError("CIDEr needs pycocoevalcap: pip install -e '.[caption]'.")


@register
class CvitCiderOracle(CiderMetric):
    """Never stands alone: the standard CIDEr-D of all questions beside it, where Java allows it."""

    name = "cvit_cider_oracle"
    summary = "CIDEr-D of the best single reference, roles swapped, whitespace tokens; clean: cider_d_ws"
    source = "Minato-Zackie/SMoLoRA eval_flickr30k_cider.py (CVIT Flickr30k)"
    averages = ("clean",)  # the verdicts are of cider_d_ws

    def legacy_scores(self, corpus: Corpus, options: dict) -> Scored:
        return oracle(corpus)

    def _result(self, scored: Scored, job: Job) -> dict:
        result = super()._result(scored, job)
        if _can_tokenize(job.options):
            key = "_ptb"  # legacy and clean show the same number: compute it once
            if key not in job.options:
                job.options[key] = 100 * treebank(_asked(job), job.options.get("tokenizer", "ptb"))[0]
            result[PTB_PART] = job.options[key]
        return result

    def labels(self, options: dict) -> list[str]:
        return [] if _can_tokenize(options) else [f"{PTB_PART} left out: no Java"]


@register
class CiderDWs(CiderMetric):
    name = "cider_d_ws"
    summary = "CIDEr-D of all references on whitespace tokens"
    source = "Minato-Zackie/SMoLoRA eval_textcaps_cider.py (CVIT TextCaps)"


@register
class CiderDPtb(CiderMetric):
    name = "cider_d_ptb"
    summary = "the standard CIDEr-D: Penn-Treebank tokens, all references"
    source = "Vedantam et al. 2015 (arXiv 1411.5726), pycocoevalcap"
    headline = "clean"  # pycocoevalcap scores every image of the reference file

    def clean_scores(self, corpus: Corpus, options: dict) -> Scored:
        tokenizer = options.get("tokenizer", "ptb")
        require(tokenizer)
        return treebank(corpus, tokenizer)

    def labels(self, options: dict) -> list[str]:
        return ["python tokenizer, not comparable"] if options.get("tokenizer") == "python" else []

    def check(self, options: dict) -> None:
        require(options.get("tokenizer", "ptb"))
