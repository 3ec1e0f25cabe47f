"""What a method trains, inside a task: parameters by name and the method's state, the same for every engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from hide_llava.distributed import is_main
from hide_llava.errors import UserError
from hide_llava.methods.routed import RoutedLlava
from hide_llava.storage import load_state, load_tensors, save_state, write_text, writing
from hide_llava.training.engines import whole

COMPLETE = "complete"  # written last into a checkpoint folder: the engine's name, then the size of every file


def trainable(routed: RoutedLlava) -> dict[str, nn.Parameter]:
    """The parameters of `method.params()` under their names in the module."""
    wanted = {id(p) for group in routed.method.params() for p in group["params"]}
    return {n: p for n, p in routed.named_parameters() if id(p) in wanted}


def save_trained(routed: RoutedLlava, folder: Path) -> None:
    """Write `trainable.safetensors` and the method's state; call on every rank, rank 0 writes."""
    state, parameters = routed.method.state(), trainable(routed)
    with whole(list(parameters.values())):
        if is_main():
            tensors = {n: p.detach().cpu().contiguous() for n, p in parameters.items()}
            with writing(folder / "trainable.safetensors"):
                folder.mkdir(parents=True, exist_ok=True)
                save_file(tensors, folder / "trainable.safetensors")
            save_state(folder, "method", state)


def load_trained(routed: RoutedLlava, folder: Path) -> None:
    """Inverse of `save_trained`, before any engine cuts the parameters into pieces.

    Raises:
        UserError: the folder holds other parameters than the method trains.
    """
    stored, parameters = load_tensors(folder / "trainable.safetensors"), trainable(routed)
    if stored.keys() != parameters.keys():
        raise UserError(f"{folder}: holds other parameters than this method trains; delete it to start the task again.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])
    routed.method.load_state(load_state(folder, "method"))


def mark_complete(folder: Path, engine: str) -> None:
    """Say that a checkpoint is whole, and what a whole one is: after a power loss files may be shorter than written."""
    sizes = sorted(f"{p.stat().st_size} {p.relative_to(folder)}" for p in folder.rglob("*") if p.is_file())
    write_text(folder / COMPLETE, "\n".join([engine, *sizes]))


def rotate(folder: Path, step: int) -> None:
    """Keep the checkpoint of `step` and the whole one before it.

    By number: transformers goes by file times, and after a clock was set back that deletes the newest one.
    """
    found = {_step(p): p for p in folder.glob("checkpoint-*")}
    before = max((n for n, p in found.items() if n < step and (p / COMPLETE).is_file()), default=None)
    for number, path in found.items():
        if number not in (step, before):
            shutil.rmtree(path, ignore_errors=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def latest_checkpoint(folder: Path, engine: str, world: int) -> Path | None:
    """The newest checkpoint that is whole; one with a file cut short is passed over, and a line says so.

    `world`: the processes that go on from it. Under ddp they may be more or fewer than before: a global batch holds the
    same records in every layout, and only dropout draws other masks.

    Raises:
        UserError: it was written by another engine, or by ZeRO in another number of processes; its optimizer state
            cannot be read.
    """
    for found in sorted((p.parent for p in folder.glob(f"checkpoint-*/{COMPLETE}")), key=_step, reverse=True):
        wrote, *sizes = (found / COMPLETE).read_text().splitlines()
        files = [(int(size), found / name) for size, name in (line.split(" ", 1) for line in sizes)]
        cut = next((file for size, file in files if not file.is_file() or file.stat().st_size != size), None)
        if cut is not None:
            if is_main():
                print(f"warning: {cut} is not as long as it was written; going on from before it.", flush=True)
            continue
        if wrote != engine:
            raise UserError(f"{found}: was written with train.engine={wrote}; go on with that, or delete {folder} to "
                            "start this task again.")  # fmt: skip
        before = max(1, len(list(found.glob("rng_state_*.pth"))))
        if before != world and engine != "ddp":
            raise UserError(f"{found}: was written by {before} process(es) with train.engine={engine}, which cuts the optimizer "
                            f"into as many pieces, and here are {world}; go on with {before}, or delete {folder} to start this "
                            "task again.")  # fmt: skip
        if before != world and is_main():
            print(f"{found}: written by {before} process(es), going on with {world}: the same records in every step, but other "
                  "dropout masks than in an undisturbed run.", flush=True)  # fmt: skip
        return found
    return None
