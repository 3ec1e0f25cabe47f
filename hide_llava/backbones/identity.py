"""Which model it was: one hash over the contents of all files that a run's model is read from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hide_llava.backbones.loading import resolve, resolve_file
from hide_llava.data.records import cache_folder
from hide_llava.schema import ModelConfig
from hide_llava.storage import read_json, sha256, write_json

KINDS = (".safetensors", ".bin", ".json", ".model", ".txt")  # weights, settings, vocabularies


def model_sha256(model: ModelConfig, root: Path) -> str:
    """Over LLaVA's folder, its projector file, the CLIP and the sentence encoder's folder; where they lie does not matter.

    root: the folder that models lie under.
    A 7B takes half a minute to read, so that hashes are kept in the cache folder by path, size and time of change.

    Raises:
        UserError: a folder is not there.
    """
    parts, folder = [], resolve(model.path, root)
    for name in (model.path, model.clip, model.sentence):
        if name is not None and name != "clip":
            parts += _of_folder(resolve(name, root))
    if model.projector is not None:
        parts.append(_kept(resolve_file(model.projector, folder)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _of_folder(folder: Path) -> list[str]:
    config = folder / "config.json"  # a LLaVA-1.5 has a prompt of its own, whatever template lies beside it
    templated = config.is_file() and read_json(config).get("model_type") != "llava"
    kinds = (*KINDS, ".jinja") if templated else KINDS
    files = sorted(p for p in folder.rglob("*") if p.suffix in kinds and p.is_file())
    return [f"{file.relative_to(folder)} {_kept(file)}" for file in files]


def _kept(file: Path) -> str:
    """The file's SHA-256; of a large one from the cache, if the file has not changed since it was read."""
    stat = file.stat()
    if stat.st_size < 1 << 24:
        return sha256(file)
    place = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]
    entry, state = cache_folder() / f"sha256-{place}.json", [stat.st_size, stat.st_mtime_ns]
    if entry.is_file() and (known := read_json(entry))["state"] == state:
        return known["sha256"]
    digest = sha256(file)
    write_json(entry, {"file": str(file.resolve()), "state": state, "sha256": digest})
    return digest
