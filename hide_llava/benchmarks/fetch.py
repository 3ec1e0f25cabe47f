"""`hide-llava fetch`: what of a benchmark's data is on the Hugging Face hub is downloaded, the rest is said.

huggingface_hub downloads, and goes on where it stopped. Each file is then compared with the hash that the hub states for it.
Nothing else is asked than the hub that huggingface_hub knows ($HF_ENDPOINT, else its own), and only for the repositories that
the benchmark's YAML names.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from hide_llava.data.cache import sha256_kept
from hide_llava.errors import UserError
from hide_llava.progress import Bar
from hide_llava.schema import BenchmarkConfig, SourceConfig

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo, RepoSibling

NOT_STATED = "not stated"
SHOWN = 5  # files of a repository that are listed


class Unreachable(Exception):
    """The hub does not answer, or is not to be asked."""


def fetch(benchmark: BenchmarkConfig, data: Path, only_list: bool = False, called: str | None = None) -> Iterator[str]:
    """Download the benchmark's sources under `data`, the data folder; lines of what is done and of what is left to do by hand.

    only_list: say what would be downloaded. called: the name, or the file, by which the benchmark was asked for.

    Raises:
        UserError: the benchmark names no source, the hub refuses, the disk is too small, or a file is another than it states.
        Unreachable: after all has been said, the hub could not be asked about some source.
    """
    if benchmark.generated:
        yield f"{benchmark.name} is made from a seed when it is first used; there is nothing to fetch."
        return
    if not benchmark.sources:
        raise UserError(f"benchmark '{benchmark.name}' names no sources; its YAML may list them (docs/ADD_A_BENCHMARK.md).")
    missing = None
    for source in benchmark.sources:
        if source.hub is None:
            yield _by_hand(source, data)
            continue
        try:
            info = _asked(source)
        except Unreachable as error:
            missing = missing or str(error)
            yield f"{_headline(source, data)}\n  would be fetched: {_patterns(source)}; the hub was not reached ({error})"
            continue
        yield from _from_hub(source, info, data / source.folder, data, only_list)
    if benchmark.general:
        named = ", ".join(task.id for task in benchmark.general)
        yield f"general ability ({named}) → {data / 'general'}\n  by hand: docs/GENERAL_ABILITY.md says from where"
    if missing is not None:
        raise Unreachable(missing)
    yield f"then: hide-llava check benchmark={called or benchmark.name} data_root={data}"


def _headline(source: SourceConfig, data: Path, licence: str | None = None) -> str:
    where = f"hub data set {source.hub}" if source.hub else (source.page or "its address is not known to us")
    return f"{source.what}: {where} → {data / source.folder} (licence: {licence or source.licence or NOT_STATED})"


def _patterns(source: SourceConfig) -> str:
    return ", ".join(source.files) or "all of its files"


def _by_hand(source: SourceConfig, data: Path) -> str:
    return f"{_headline(source, data)}\n  by hand: {source.then or 'download it there'}"


# ---------------------------------------------------------------------------------------------------------------- the hub


def _asked(source: SourceConfig) -> DatasetInfo:
    """What the hub says of the repository.

    Raises:
        Unreachable, UserError
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return HfApi().dataset_info(source.hub, files_metadata=True)
    except GatedRepoError:
        raise UserError(f"hub data set {source.hub} asks for an agreement; accept it on its page, run `hf auth login`, and run "
                        "the same command again.") from None  # fmt: skip
    except RepositoryNotFoundError:
        raise UserError(f"the hub has no public data set {source.hub} now; if it is private, run `hf auth login`.") from None
    except HfHubHTTPError as error:
        raise UserError(f"hub data set {source.hub}: {_short(error)}") from None
    except Exception as error:  # of whatever carries requests: no network, a name that is not found, a time that is up
        raise Unreachable(_short(error)) from None


def _from_hub(source: SourceConfig, info: DatasetInfo, folder: Path, data: Path, only_list: bool) -> Iterator[str]:
    licence = getattr(info.card_data, "license", None) if info.card_data else None
    licence = ", ".join(licence) if isinstance(licence, list) else licence
    wanted = [f for f in info.siblings or [] if _is_wanted(f.rfilename, source.files)]
    size = sum(file.size or 0 for file in wanted)
    yield _headline(source, data, licence)
    yield f"  {len(wanted)} files, {_size(size)}, at commit {info.sha[:12]}"
    if not wanted:
        raise UserError(f"hub data set {source.hub} has no file {_patterns(source)} now; look at its page.")
    if only_list:
        yield from (f"    {file.rfilename}  {_size(file.size or 0)}" for file in wanted[:SHOWN])
        yield from [f"    … and {len(wanted) - SHOWN} more"] * (len(wanted) > SHOWN)
    else:
        _check_space(folder, sum(f.size or 0 for f in wanted if not (folder / f.rfilename).is_file()))
        fresh = _download(source, info, wanted, folder)
        yield f"  {fresh} downloaded, {len(wanted) - fresh} there already; all {len(wanted)} are as the hub states them"
    if source.then:
        yield f"  by hand: {source.then}"


def _is_wanted(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns) if patterns else True


def _check_space(folder: Path, size: int) -> None:
    """Raises UserError for a disk without room for so many bytes."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    if size > (free := shutil.disk_usage(there).free):
        raise UserError(f"{folder}: {_size(size)} are to be downloaded, and {_size(free)} are free there; make space.")


def _download(source: SourceConfig, info: DatasetInfo, wanted: list[RepoSibling], folder: Path) -> int:
    """Download and compare; how many files were not there before.

    Raises:
        UserError: the hub stopped answering, or a file is another than it states.
    """
    from huggingface_hub import hf_hub_download

    fresh = 0
    with Bar(f"fetching {source.hub}", len(wanted), "file") as bar:
        for number, file in enumerate(wanted, 1):
            before = (folder / file.rfilename).is_file()
            try:
                path = Path(hf_hub_download(source.hub, file.rfilename, repo_type="dataset", revision=info.sha, local_dir=folder))
            except Exception as error:
                raise UserError(f"hub data set {source.hub}, {file.rfilename}: {_short(error)}; run the same command again to go "
                                "on.") from None  # fmt: skip
            if not _is_as_stated(path, file):
                path.unlink()
                raise UserError(f"{path}: is not what the hub states it to be, and was removed; run the same command again.")
            fresh += not before
            bar.at(number)
    return fresh


def _is_as_stated(path: Path, file: RepoSibling) -> bool:
    """Whether a file has the SHA-256 of its entry in Git LFS, else the SHA-1 by which git knows a file."""
    if file.lfs is not None:
        return sha256_kept(path) == file.lfs.sha256
    if file.blob_id is None:
        return file.size is None or path.stat().st_size == file.size
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == file.blob_id


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count / 2**20:.1f} MiB"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())[:160].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
