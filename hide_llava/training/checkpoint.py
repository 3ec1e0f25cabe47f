"""What a method trains, inside a task: parameters by name and the method's state, the same for every engine."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from hide_llava.adapters.anchors import is_main
from hide_llava.errors import UserError
from hide_llava.methods.routed import RoutedLlava
from hide_llava.storage import load_state, load_tensors, save_state
from hide_llava.training.engines import whole

COMPLETE = "complete"  # written last into a checkpoint folder, with the engine's name: without it it is not used


def trainable(routed: RoutedLlava) -> dict[str, nn.Parameter]:
    """The parameters of `method.params()` under their names in the module."""
    wanted = {id(p) for group in routed.method.params() for p in group["params"]}
    return {n: p for n, p in routed.named_parameters() if id(p) in wanted}


def save_trained(routed: RoutedLlava, folder: Path) -> None:
    """Write `trainable.safetensors` and the method's state; call on every rank, rank 0 writes."""
    state, parameters = routed.method.state(), trainable(routed)
    with whole(list(parameters.values())):
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {n: p.detach().cpu().contiguous() for n, p in parameters.items()}
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


def latest_checkpoint(folder: Path, engine: str) -> Path | None:
    """The newest checkpoint that was written to its end.

    Raises:
        UserError: it was written by another engine, whose optimizer state cannot be read.
    """
    done = [p.parent for p in folder.glob(f"checkpoint-*/{COMPLETE}")]
    newest = max(done, key=lambda p: int(p.name.rsplit("-", 1)[1]), default=None)
    if newest is not None:
        wrote = (newest / COMPLETE).read_text()
        if wrote != engine:
            raise UserError(f"{newest}: was written with train.engine={wrote}; go on with that, or delete {folder} to "
                            "start this task again.")  # fmt: skip
    return newest
