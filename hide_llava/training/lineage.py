"""What a finished stage came from, and the proof that it is still that: `stage.json` in its folder.

A stage was trained on top of all stages before it, and most methods also answer with their adapters. So a stage is known by
a chain: the hash of its own files together with the chain of the stage before it. An answer that names the chain cannot be
mistaken for one of other weights, and a stage whose past was replaced is refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hide_llava.errors import UserError
from hide_llava.storage import check_stage, read_json, sha256, stage_hash, write_json

FILE = "stage.json"
NOT_LEARNED = (FILE, "trainer_log.jsonl", "README.md")  # files of a stage folder that no answer depends on


def write_stage(folder: Path, previous: str | None, training: dict[str, Any], data: dict[str, str]) -> None:
    """Write `stage.json` into a stage folder whose other files are complete.

    previous: chain of the stage before, None for the first. training: of `Run.training_part`. data: task → SHA-256 of the
    file it was trained on.
    """
    files = _hashes(folder)
    write_json(folder / FILE, {
        "previous": previous, "chain": _chain(previous, files), "files": files, "data": data,
        "training": training,
    })  # fmt: skip


def _hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file that says what was learned, by its name in the folder."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name[0] != "." and p.name not in NOT_LEARNED]
    return {str(p.relative_to(folder)): _of_adapter(p) if p.name == "adapter_config.json" else sha256(p) for p in files}


def _of_adapter(file: Path) -> str:
    """Of peft's settings without what they say of the machine and the versions."""
    settings = {k: v for k, v in read_json(file).items() if k not in ("base_model_name_or_path", "peft_version", "revision")}
    plain = {k: sorted(v) if isinstance(v, list) and all(isinstance(x, str) for x in v) else v for k, v in settings.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _chain(previous: str | None, files: dict[str, str]) -> str:
    lines = [previous or "", *(f"{digest} {name}" for name, digest in sorted(files.items()))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def chain_of(folder: Path) -> str:
    """The chain that a stage says it has; its own hash where it was written by a version without chains, or imported."""
    return read_json(folder / FILE)["chain"] if (folder / FILE).is_file() else stage_hash(folder)


def check_origin(folder: Path, training: dict[str, Any]) -> None:
    """Raises UserError if the stage was trained with another configuration than this run's; the values are named.

    training: of `Run.training_part`. Keys that only one of the two knows are passed over: they came or went with a version
    of this package.
    """
    if not (folder / FILE).is_file():
        return  # of a version that did not write it, or imported
    there, here = read_json(folder / FILE)["training"], training
    differing = [k for k in there if k in here and there[k] != here[k]]
    if differing:
        words = {"model_sha256": "the files of the base model are others"}
        listed = "; ".join(words.get(k, f"{k}: {there[k]!r} there, {here[k]!r} in this run") for k in differing[:6])
        raise UserError(
            f"{folder}: was trained with another configuration ({listed}), so it is not this run's. Delete the folder to "
            "train the stage, or choose another output=."
        )


def chains(folders: list[Path], training: dict[str, Any]) -> list[str]:
    """The chain of every stage of a run, in order; see `checked_chain`."""
    found: list[str] = []
    for i in range(len(folders)):
        found.append(checked_chain(folders, i, found[-1] if found else None, training))
    return found


def checked_chain(folders: list[Path], i: int, previous: str | None, training: dict[str, Any]) -> str:
    """The chain of stage `i`, after its files were read and compared with what was written.

    folders: of all stages that are there, in order. previous: the chain of the stage before. training: of
    `Run.training_part`.

    Raises:
        UserError: the stage is of another configuration, a file of it is damaged or was replaced, or it was trained on
            another stage than the one before it.
    """
    folder = folders[i]
    if not (folder / FILE).is_file():
        check_stage(folder)
        return chain_of(folder)
    check_origin(folder, training)
    said = read_json(folder / FILE)
    files = _hashes(folder)
    changed = sorted(k for k in said["files"].keys() | files.keys() if said["files"].get(k) != files.get(k))
    remedy = (f"or delete the folders of {', '.join(f.name for f in folders[i:])} and run again: what they learned is then "
              "learned again.")  # fmt: skip
    if changed:
        check_stage(folder)
        state = "is missing" if changed[0] not in files else "is not the file that was written when the task was trained"
        raise UserError(f"{folder / changed[0]}: {state}. Put it back, {remedy}")
    if said["previous"] != previous:
        raise UserError(
            f"{folder}: was trained on top of another {folders[i - 1].name} than the one that is there now. Put that one "
            f"back, {remedy}"
        )
    return said["chain"]
