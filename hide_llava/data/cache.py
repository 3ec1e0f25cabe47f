"""The cache folder, and the hashes of large files that are kept in it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hide_llava.storage import read_json, sha256, write_json

LARGE = 1 << 24  # bytes of a file from which on its hash is kept


def cache_folder(cache_dir: Path | None = None) -> Path:
    """Where tables and what is known of pictures are kept."""
    return Path(cache_dir or os.environ.get("HIDE_CACHE") or Path.home() / ".cache" / "hide-llava").expanduser()


def sha256_kept(file: Path) -> str:
    """The file's SHA-256; of a large one from the cache, if the file has not changed since it was read."""
    stat = file.stat()
    if stat.st_size < LARGE:
        return sha256(file)
    place = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]
    entry, state = cache_folder() / f"sha256-{place}.json", [stat.st_size, stat.st_mtime_ns]
    if entry.is_file() and (known := read_json(entry))["state"] == state:
        return known["sha256"]
    digest = sha256(file)
    write_json(entry, {"file": str(file.resolve()), "state": state, "sha256": digest})
    return digest
