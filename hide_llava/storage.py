"""Files: atomic writes, safetensors + JSON state. Nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hide_llava.errors import UserError

REMEDIES = {
    errno.ENOSPC: "make space there",
    errno.EDQUOT: "make space there",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "make it writable or choose another folder",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
}


def disk_error(error: Exception, path: Path | None = None) -> UserError | None:
    """The sentence for what a full, read-only or forbidden disk raises; None for every other error.

    `path`: what was written, for errors that do not name a file. safetensors and torch.save tell the cause only in their
    text, and torch.save often not even there.
    """
    text = " ".join(str(error).split())
    number = getattr(error, "errno", None) or next((n for n in REMEDIES if os.strerror(n) in text), None)
    where = getattr(error, "filename", None) or path or "a file"
    if number is None and isinstance(error, RuntimeError) and ("inline_container" in text or "iostream" in text):
        if path is None or shutil.disk_usage(path.parent).free >= 1 << 20:
            return UserError(f"{where}: cannot be written; look for space, rights and limits there ({text[:200]}).")
        number = errno.ENOSPC
    if number not in REMEDIES:
        return None
    return UserError(f"{where}: {os.strerror(number)}; {REMEDIES[number]} and run the same command again.")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around everything that writes `path`.

    Raises:
        UserError: the disk is full, read-only or forbidden.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        sentence = disk_error(error, path)
        if sentence is None:
            raise
        raise sentence from None


@contextlib.contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A name to write to; the file gets its own when the block has ended well, and else is removed. Raises as `writing`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never half of it."""
    with complete(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


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
    """Tensors of `state` to `<name>.safetensors`, the rest to `<name>.json`.

    Raises:
        UserError: a value that is neither a tensor nor of JSON, e.g. a tensor inside a dictionary.
    """
    for key, value in state.items():
        if not isinstance(value, Tensor):
            try:
                json.dumps(value)
            except TypeError as error:
                raise UserError(
                    f"state() has '{key}', which is neither a tensor nor a JSON value ({error}); give each tensor a key "
                    "of its own, e.g. 'past.0'."
                ) from None
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items() if isinstance(v, Tensor)}
    with writing(folder / f"{name}.safetensors"):
        folder.mkdir(parents=True, exist_ok=True)
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


def check_stage(folder: Path) -> None:
    """Raises UserError naming the first safetensors file of a stage folder that is cut or damaged."""
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            safe_open(file, "pt").keys()
        except SafetensorError as error:
            raise UserError(
                f"{file}: not a complete safetensors file ({error}); delete {folder} and run again: that task is trained "
                "again."
            ) from None


def stage_hash(folder: Path) -> str:
    """One hash over names and contents of the safetensors files of a stage folder."""
    parts = [f"{p.relative_to(folder)} {sha256(p)}" for p in sorted(folder.rglob("*.safetensors"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
