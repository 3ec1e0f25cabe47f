"""What two splits of one task share: images, copies of images, questions about the same image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hide_llava.data.hashing import NONE, Hashes, as_hashes, combine
from hide_llava.studies.audit.findings import SHOWN, Finding, plural
from hide_llava.studies.audit.pictures import look_alike, same_content
from hide_llava.studies.audit.scan import Scan, name_records

USED = {"train": "training", "val": "validation"}  # what the questions of a later split are compared with


def overlap(train: Scan, test: Scan) -> list[Finding]:
    """Findings of kind "train/test …": by path, and if the images were decoded by content and by look.

    train: the training file, or the validation questions that the test questions `test` are compared with; `test` may be the
    validation questions. The kinds have the names of the splits.
    """
    shared = np.intersect1d(as_hashes(train.shown), as_hashes(test.shown))
    where = train.place.split
    result = _images(train, test, "image", np.stack([shared, shared], axis=1), f"also used in {USED[where]}")
    same = look_alike(test.pictures, train.pictures)[:0]
    if len(train.pictures) and len(test.pictures):
        same = _new(same_content(test.pictures, train.pictures), shared)
        result += _images(train, test, "copy", same, f"equal, byte for byte, to a {where} image")
        near = _new(look_alike(test.pictures, train.pictures), np.concatenate([shared, same[:, 0]]))
        result += _images(train, test, "near copy", near, f"nearly the same picture as a {where} image")
    return result + _questions(train, test, same)


def _new(pairs: Hashes, known: Hashes) -> Hashes:
    """Pairs (test image, train image) whose test image is not known yet."""
    return pairs[~np.isin(pairs[:, 0], known)]


def _images(train: Scan, test: Scan, kind: str, pairs: Hashes, what: str) -> list[Finding]:
    images, first = np.unique(pairs[:, 0], return_index=True)
    if not len(images):
        return []
    where = [(_record_of(test, key), _record_of(train, pairs[k, 1])) for key, k in zip(images[:SHOWN], first)]
    split = test.place.split
    text = f"{plural(len(images), f'{split} image')} {what}"
    kind = f"{train.place.split}/{split} {kind}"
    return [Finding(kind, test.place.task, split, len(images), text, _examples(train, test, sorted(where)))]


def _record_of(scan: Scan, image: np.uint64) -> int:
    """The first record with that image."""
    return scan.holder[int(np.flatnonzero(as_hashes(scan.shown) == image)[0])]


def _questions(train: Scan, test: Scan, same: Hashes) -> list[Finding]:
    """Test questions asked in training about the same picture (path or content), or without any."""
    images, questions = test.asked()
    asked = combine(*train.asked())
    keys = combine(images, questions)
    seen = np.isin(keys, asked)
    if len(same):  # look a copy up under the name the picture has in training
        copies, first = np.unique(same[:, 0], return_index=True)
        at = np.minimum(np.searchsorted(copies, images), len(copies) - 1)
        renamed = combine(np.where(copies[at] == images, same[first[at], 1], images), questions)
        keys = np.where(seen, keys, renamed)
        seen = np.isin(keys, asked)
    result, used, split = [], USED[train.place.split], test.place.split
    for kind, chosen, what in (
        ("pair", seen & (images != NONE), f"also asked in {used} about the same image"),
        ("text", seen & (images == NONE), f"without an image also asked in {used}"),
    ):
        if chosen.any():
            where = [(int(test.owner[k]), _asking(train, asked, keys[k])) for k in np.flatnonzero(chosen)[:SHOWN]]
            text = f"{plural(int(chosen.sum()), f'{split} question')} {what}"
            kind, count = f"{train.place.split}/{split} {kind}", int(chosen.sum())
            result.append(Finding(kind, test.place.task, split, count, text, _examples(train, test, where)))
    return result


def _asking(train: Scan, asked: NDArray, key: np.uint64) -> int:
    """The first train record with that pair of image and question."""
    return int(train.owner[int(np.flatnonzero(asked == key)[0])])


def _examples(train: Scan, test: Scan, where: list[tuple[int, int]]) -> list[str]:
    tests = name_records(test.place, {t for t, _ in where})
    trains = name_records(train.place, {r for _, r in where})
    return [f"{tests[t]} = {train.place.split} {trains[r]}" for t, r in where]
