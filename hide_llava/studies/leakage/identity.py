"""Which image of a public collection a path names, whatever split or folder it was copied to.

Data sets reuse the images of a few collections: LLaVA-1.5's instruction mix and the benchmarks both take COCO, Visual
Genome (GQA's images), OCR-VQA and OpenImages (TextVQA, TextCaps), under names that keep the collection's own id. Folder
names are compared in lower case and without punctuation, so OCR-VQA, ocr_vqa and OCRVQA are one.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

COCO_NAME = re.compile(r"coco_(?:train|val|test)20\d\d_0*(\d+)$")
COCO_FOLDER = re.compile(r"(?:ms)?coco\w*|(?:train|val|test|unlabeled)20\d\d")
GENOME_FOLDERS = {"gqa", "vg", "vg100k", "vg100k2", "visualgenome"}
OCR_FOLDERS = {"ocrvqa", "ocrvqa200k"}
OPEN_IMAGES_FOLDERS = {"textvqa", "textcaps", "openimages", "openimagesv3", "openimagesv4", "openimagesv6"}


def identity(path: str) -> str | None:
    """`collection:id`, or None for a path that no rule knows. The rules look at the file's name AND its folders."""
    *folders, name = PurePosixPath(path.lower()).parts or ("",)
    stem = name.rpartition(".")[0] or name
    places = {re.sub(r"[^a-z0-9]", "", folder) for folder in folders}
    for rule in (coco, genome, ocr_vqa, open_images):
        found = rule(stem, places)
        if found is not None:
            return found
    return None


def coco(stem: str, folders: set[str]) -> str | None:
    """COCO: `COCO_train2014_000000033471` anywhere, or twelve digits in a folder such as coco or train2017.

    An image has one number in all releases: train2014 and val2014 were divided anew into train2017 and val2017. VQAv2,
    RefCOCO and A-OKVQA use these files.
    """
    named = COCO_NAME.fullmatch(stem)
    if named:
        return f"coco:{int(named[1])}"
    bare = re.fullmatch(r"\d{12}", stem) and any(COCO_FOLDER.fullmatch(folder) for folder in folders)
    return f"coco:{int(stem)}" if bare else None


def genome(stem: str, folders: set[str]) -> str | None:
    """Visual Genome: a number in gqa, vg, VG_100K or VG_100K_2; GQA's images are Visual Genome's, with their numbers.

    GQA's own extra images are `n` and a number. About half of Visual Genome's images come from COCO under another
    number; that needs the collection's table and is found by content or look, not here.
    """
    if not folders & GENOME_FOLDERS:
        return None
    if stem.isdecimal():
        return f"vg:{int(stem)}"
    return f"gqa:{stem}" if re.fullmatch(r"n\d+", stem) else None


def ocr_vqa(stem: str, folders: set[str]) -> str | None:
    """OCR-VQA: the book's ISBN or ASIN (ten letters or digits) is the name."""
    return f"ocrvqa:{stem}" if folders & OCR_FOLDERS and re.fullmatch(r"[0-9a-z]{10}", stem) else None


def open_images(stem: str, folders: set[str]) -> str | None:
    """OpenImages, which TextVQA and TextCaps are made of: sixteen hexadecimal digits."""
    known = folders & OPEN_IMAGES_FOLDERS and re.fullmatch(r"[0-9a-f]{16}", stem)
    return f"openimages:{stem}" if known else None
