"""Files: atomic writes, safetensors + JSON state. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hide_llava.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError naming the file when it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from None


def save_state(folder: Path, name: str, state: dict[str, Any]) -> None:
    """Tensors of `state` to `<name>.safetensors`, the rest to `<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items() if isinstance(v, Tensor)}
    save_file(tensors, folder / f"{name}.safetensors")
    write_json(folder / f"{name}.json", {k: v for k, v in state.items() if not isinstance(v, Tensor)})


def load_state(folder: Path, name: str) -> dict[str, Any]:
    """Inverse of `save_state`.

    Raises:
        UserError: a file is missing or damaged.
    """
    return {**load_tensors(folder / f"{name}.safetensors"), **read_json(folder / f"{name}.json")}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Raises UserError naming the file when it is missing, cut or not safetensors."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a complete safetensors file ({error}); delete its folder and run again."
        ) from None


def publish(temporary: Path, final: Path) -> None:
    """Give a finished folder its name in one step."""
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def stage_hash(folder: Path) -> str:
    """One hash over names and contents of the safetensors files of a stage folder."""
    parts = [f"{p.relative_to(folder)} {sha256(p)}" for p in sorted(folder.rglob("*.safetensors"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
