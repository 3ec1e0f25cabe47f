"""Which model it was: one hash over the contents of all files that a run's model is read from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hide_llava.backbones.loading import resolve, resolve_file
from hide_llava.data.cache import sha256_kept
from hide_llava.schema import ModelConfig
from hide_llava.storage import read_json

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
        parts.append(sha256_kept(resolve_file(model.projector, folder)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _of_folder(folder: Path) -> list[str]:
    config = folder / "config.json"  # a LLaVA-1.5 has a prompt of its own, whatever template lies beside it
    templated = config.is_file() and read_json(config).get("model_type") != "llava"
    kinds = (*KINDS, ".jinja") if templated else KINDS
    files = sorted(p for p in folder.rglob("*") if p.suffix in kinds and p.is_file())
    return [f"{file.relative_to(folder)} {sha256_kept(file)}" for file in files]
