"""The caption score of UCIT's VizWiz and Flickr30k tasks (Guo et al. 2025, HiDe-LLaVA, arXiv 2503.12941).

    caption7 = 100 · (BLEU-1 + BLEU-2 + BLEU-3 + BLEU-4 + METEOR + ROUGE-L + CIDEr) / 7

CIDEr enters on its natural scale (0…10), so the score can exceed 100. Every part is written beside the mean. SPICE is
left out, as in the published evaluation; the option spice=true writes it beside the mean.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from hide_llava.errors import UserError
from hide_llava.metrics import ptb
from hide_llava.metrics.base import Job, Metric, register
from hide_llava.metrics.ptb import java_available
from hide_llava.metrics.rows import read_json, where
from hide_llava.metrics.spice import require_spice, spice

if TYPE_CHECKING:
    from pycocoevalcap.meteor.meteor import Meteor

__all__ = ["PYTHON_LABEL", "Caption7", "caption_scores", "java_available", "require"]

PYTHON_LABEL = "caption6-python, not comparable"
NAMELESS = re.compile(r"@\d+\.\d+")  # the place of a picture in a table (docs/DATA.md)
TOKENIZERS = ("ptb", "java", "python")  # "java" is the command line's word for "ptb"
Scores = tuple[dict[str, float], list[float]]
"""(parts and mean, percent; per image mean of the parts, fraction)"""


def coco_records(questions: list[dict], references: Path | None, options: dict) -> list[dict]:
    """One record per annotated image: question_id (None without a question file), image_id, captions, position.

    The published files tie question number i (1-based) to image id i. That mapping is checked here: image ids must be
    exactly 1…N for N questions, and where an image has a file name it must be the question's. A question record may
    name its `image_id` itself, which then decides. With allow_partial the questions may be the first n of N.
    """
    if references is None:
        raise UserError("A caption score needs the COCO-type reference file (images and annotations); name it.")
    captions, names = _read_coco(references)
    if not questions:
        ordered = sorted(captions.items(), key=lambda item: (isinstance(item[0], str), item[0]))
        return [{"question_id": None, "image_id": i, "captions": c} for i, c in ordered]
    records: list[dict] = []
    seen: dict[int | str, str] = {}
    for number, row in enumerate(questions, 1):
        image = row.get("image_id", number)
        if not _is_id(image):
            raise UserError(f"{where(row)}: image_id is {image!r}, expected a number or a text.")
        if image in seen:
            raise UserError(f"{where(row)}: belongs to image id {image}, as question_id {seen[image]} does.")
        seen[image] = row["question_id"]
        if image not in captions:
            raise UserError(
                f"question_id {row['question_id']} (number {number}) belongs to image id {image}, which has no caption "
                f"in {references}; questions and references do not fit together."
            )
        name, asked = names.get(image), row.get("image")
        own = os.path.basename(str(asked or ""))
        known = own and not NAMELESS.fullmatch(own)  # a picture in a table may have had no file, and so no name
        if name and known and os.path.basename(name) != own:
            raise UserError(
                f"question_id {row['question_id']} (number {number}) shows {asked}, but image id {image} in "
                f"{references} is {name}; the two files are not in the same order."
            )
        records.append({"question_id": row["question_id"], "image_id": image, "captions": captions[image]})
    if len(questions) < len(captions) and options.get("allow_partial"):
        return [{**record, "n_reference": len(captions)} for record in records]
    if len(questions) != len(captions):
        raise UserError(
            f"The question file has {len(questions)} records but {references} describes {len(captions)} images; "
            "use the reference file of this split."
        )
    return records


def _read_coco(path: Path) -> tuple[dict[int | str, list[str]], dict[int | str, str | None]]:
    """({image id: captions}, {image id: file name}); UserError when the file is not of that kind."""
    table = read_json(path, "caption reference file")
    if not isinstance(table, dict) or not isinstance(table.get("annotations"), list):
        raise UserError(f"{path}: expected a COCO-type file with images[] and annotations[].")
    if not isinstance(listed := table.get("images") or [], list):
        raise UserError(f"{path}: images is {listed!r}, expected a list of {{id, file_name}}.")
    images: dict[int | str, str | None] = {}
    for number, image in enumerate(listed, 1):
        if not isinstance(image, dict) or not _is_id(image.get("id")):
            raise UserError(f"{path}: image {number} has no id.")
        if image["id"] in images:
            raise UserError(f"{path}: image id {image['id']} occurs more than once; keep one record of each image.")
        if not isinstance(image.get("file_name"), str | None):
            raise UserError(f"{path}: image {number} has the file name {image['file_name']!r}, expected a text.")
        images[image["id"]] = image.get("file_name")
    captions: dict[int | str, list[str]] = {}
    for number, note in enumerate(table["annotations"], 1):
        if not isinstance(note, dict) or not isinstance(note.get("caption"), str) or not _is_id(note.get("image_id")):
            raise UserError(f"{path}: annotation {number} lacks image_id or caption.")
        if images and note["image_id"] not in images:
            raise UserError(f"{path}: annotation {number} is about image id {note['image_id']}, which images[] lacks.")
        captions.setdefault(note["image_id"], []).append(note["caption"])
    bare = [i for i in images if i not in captions]
    if bare:
        raise UserError(f"{path}: image id {bare[0]} has no caption ({len(bare)} such images); fetch the file again.")
    if not captions:
        raise UserError(f"{path}: holds no captions.")
    return captions, images


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def caption_scores(
    predicted: dict, references: dict[object, list[str]], tokenizer: str = "ptb", with_spice: bool = False
) -> Scores:
    """The seven parts (six without Java) of predicted {image id: caption} against references {image id: captions}.

    Raises UserError without Java, without pycocoevalcap, or when a Java process fails. tokenizer="python" uses
    `ptb.tokenize_python` and leaves METEOR out. with_spice adds SPICE, which the mean leaves out.
    """
    require(tokenizer, with_spice)
    tokenize = ptb.tokenize_python if tokenizer == "python" else ptb.tokenize_java
    flat = iter(tokenize([c for i, captions in references.items() for c in (predicted[i], *captions)]))
    res, gts = {}, {}
    for i, captions in references.items():
        res[i] = [next(flat)]
        gts[i] = [next(flat) for _ in captions]
    parts, per_image = _run_scorers(gts, res, with_meteor=tokenizer != "python")
    n = len(parts)
    scores = {name: 100.0 * value for name, value in parts.items()}
    mean = 100.0 * sum(parts.values()) / n
    if with_spice:
        scores["SPICE"] = 100.0 * spice(gts, res)
    return {"score": mean, "n": len(gts), **scores}, [sum(values) / n for values in zip(*per_image)]


def require(tokenizer: str = "ptb", with_spice: bool = False) -> None:
    """UserError when captions cannot be scored here with this tokenizer: to be asked before hours of generation."""
    if tokenizer not in TOKENIZERS:
        raise UserError(f'Caption option tokenizer is {tokenizer!r}; it may be "ptb" or "python".')
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise UserError("Caption scores need pycocoevalcap: pip install -e '.[caption]'.")
    if tokenizer != "python" and not java_available():
        raise UserError(
            "The caption score needs Java (Stanford tokenizer and METEOR) and no working `java` was found; install a "
            f'Java runtime, or set the option tokenizer=python for "{PYTHON_LABEL}".'
        )
    if with_spice:
        require_spice()


def _run_scorers(gts: dict, res: dict, with_meteor: bool) -> tuple[dict[str, float], list[list[float]]]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    parts: dict[str, float] = {}
    per_image: list[list[float]] = []
    # Silent by its own switch: standard output belongs to the whole process, which answers questions at the same time.
    bleu, bleu_images = Bleu(4).compute_score(gts, res, verbose=0)
    for n in range(4):
        parts[f"BLEU-{n + 1}"] = float(bleu[n])
        per_image.append([float(x) for x in bleu_images[n]])
    scorers = [("ROUGE-L", Rouge().compute_score), ("CIDEr", Cider().compute_score)]
    for name, compute in [("METEOR", _meteor), *scorers] if with_meteor else scorers:
        value, images = compute(gts, res)
        parts[name] = float(value)
        per_image.append([float(x) for x in images])
    return parts, per_image


@functools.cache
def _meteor_process() -> Meteor:
    """METEOR's Java process: its tables take seconds to load, so one serves every cell, and ends with Python."""
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    atexit.register(_end, scorer.meteor_p)
    return scorer


def _end(process: subprocess.Popen) -> None:
    """End the Java process, which pycocoevalcap leaves running."""
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def _meteor(gts: dict, res: dict) -> tuple[float, list[float]]:
    """METEOR of the corpus and of each caption. Raises UserError when its Java process fails."""
    # "|||" separates fields in METEOR's line protocol; the package removes it from predictions only.
    gts = {i: [caption.replace("|||", "") for caption in captions] for i, captions in gts.items()}
    scorer = _meteor_process()
    try:
        return scorer.compute_score(gts, res)
    except (OSError, ValueError) as error:
        # Its own destructor waits for this lock, which a failed call leaves taken.
        if scorer.lock.locked():
            scorer.lock.release()
        _meteor_process.cache_clear()
        scorer.meteor_p.kill()
        said = scorer.meteor_p.stderr.read().decode(errors="replace").strip()[-300:]
        raise UserError(f"METEOR's Java process failed ({error}): {said or 'no message'}.") from None


def _score(job: Job, texts: list[str]) -> Scores:
    """Score texts[k] as the caption of job.gold[k], once per distinct list (legacy and clean usually agree)."""
    seen = job.options.setdefault("_caption_cache", {})
    key = tuple(texts)
    if key not in seen:
        predicted = {record["image_id"]: text for record, text in zip(job.gold, texts)}
        references = {record["image_id"]: record["captions"] for record in job.gold}
        tokenizer, with_spice = job.options.get("tokenizer", "ptb"), bool(job.options.get("spice"))
        seen[key] = caption_scores(predicted, references, tokenizer, with_spice)
    return seen[key]


@register
class Caption7(Metric):
    """The mean of the seven parts, by line as published and by question id."""

    name = "caption7"
    summary = "mean of BLEU-1…4, METEOR, ROUGE-L and CIDEr, times 100"
    source = "Ghy0501/HiDe-LLaVA eval_caption.py (UCIT VizWiz, Flickr30k)"
    needs = "coco"
    positional = True
    averages = ()  # BLEU is one number of all captions
    options = ("spice",)
    records = staticmethod(coco_records)

    def legacy(self, job: Job) -> dict | None:
        """Line i of the answers is the caption of image id i; question ids are ignored.

        None for an incomplete file (the published script stops). UserError when there are more answers than images.
        """
        if len(job.rows) > len(job.gold):
            raise UserError(f"{len(job.rows)} captions for {len(job.gold)} images; remove the surplus lines.")
        by_image = {i: row["text"] for i, row in enumerate(job.rows, 1)}
        ids = [record["image_id"] for record in job.gold]
        if len(job.rows) < len(job.gold) or set(ids) != set(by_image):
            return None
        return _score(job, [by_image[i] for i in ids])[0]

    def clean(self, job: Job) -> tuple[dict, dict[str, float]] | None:
        """Captions joined by question id; a missing caption is an empty one. None without a question file.

        The verdict of a question is the mean of its image's parts, as a fraction (CIDEr makes it exceed 1).
        """
        if not job.joinable:
            return None
        answers = [job.answers.get(record["question_id"]) for record in job.gold]
        scores, per_image = _score(job, [answer["text"] if answer else "" for answer in answers])
        return dict(scores), dict(zip((record["question_id"] for record in job.gold), per_image))

    def labels(self, options: dict) -> list[str]:
        return [PYTHON_LABEL] if options.get("tokenizer") == "python" else []

    def check(self, options: dict) -> None:
        require(options.get("tokenizer", "ptb"), bool(options.get("spice")))
