"""What the train and the test file of one task share: images, copies of images, questions about the same image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hide_llava.data.hashing import NONE, Hashes, as_hashes, combine
from hide_llava.studies.audit.findings import SHOWN, Finding, plural
from hide_llava.studies.audit.pictures import look_alike, same_content
from hide_llava.studies.audit.scan import Scan, name_records


def overlap(train: Scan, test: Scan) -> list[Finding]:
    """Findings of kind "train/test …": by path, and if the images were decoded by content and by look."""
    shared = np.intersect1d(as_hashes(train.shown), as_hashes(test.shown))
    result = _images(train, test, "train/test image", np.stack([shared, shared], axis=1), "also used in training")
    same = look_alike(test.pictures, train.pictures)[:0]
    if len(train.pictures) and len(test.pictures):
        same = _new(same_content(test.pictures, train.pictures), shared)
        result += _images(train, test, "train/test copy", same, "equal, byte for byte, to a train image")
        near = _new(look_alike(test.pictures, train.pictures), np.concatenate([shared, same[:, 0]]))
        result += _images(train, test, "train/test near copy", near, "nearly the same picture as a train image")
    return result + _questions(train, test, same)


def _new(pairs: Hashes, known: Hashes) -> Hashes:
    """Pairs (test image, train image) whose test image is not known yet."""
    return pairs[~np.isin(pairs[:, 0], known)]


def _images(train: Scan, test: Scan, kind: str, pairs: Hashes, what: str) -> list[Finding]:
    images, first = np.unique(pairs[:, 0], return_index=True)
    if not len(images):
        return []
    where = [(_record_of(test, key), _record_of(train, pairs[k, 1])) for key, k in zip(images[:SHOWN], first)]
    text = f"{plural(len(images), 'test image')} {what}"
    return [Finding(kind, test.place.task, "test", len(images), text, _examples(train, test, sorted(where)))]


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
    result = []
    for kind, chosen, what in (
        ("train/test pair", seen & (images != NONE), "also asked in training about the same image"),
        ("train/test text", seen & (images == NONE), "without an image also asked in training"),
    ):
        if chosen.any():
            where = [(int(test.owner[k]), _asking(train, asked, keys[k])) for k in np.flatnonzero(chosen)[:SHOWN]]
            text = f"{plural(int(chosen.sum()), 'test question')} {what}"
            result.append(
                Finding(kind, test.place.task, "test", int(chosen.sum()), text, _examples(train, test, where))
            )
    return result


def _asking(train: Scan, asked: NDArray, key: np.uint64) -> int:
    """The first train record with that pair of image and question."""
    return int(train.owner[int(np.flatnonzero(asked == key)[0])])


def _examples(train: Scan, test: Scan, where: list[tuple[int, int]]) -> list[str]:
    tests = name_records(test.place, {t for t, _ in where})
    trains = name_records(train.place, {r for _, r in where})
    return [f"{tests[t]} = train {trains[r]}" for t, r in where]
