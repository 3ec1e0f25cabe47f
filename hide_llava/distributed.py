"""Several processes: who one is, sums over all, values of the main one, and work that it does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from hide_llava.errors import UserError

T = TypeVar("T")


def ranks() -> tuple[int, int]:
    """(this process, number of processes)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def is_main() -> bool:
    """True in the one process that writes files."""
    return ranks()[0] == 0


def all_reduce(*tensors: Tensor) -> None:
    """Sum tensors over all processes in place; nothing to do for one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def least(number: int, device: torch.device | str) -> int:
    """The smallest of the numbers that the processes have. device: the model's."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        nccl = torch.distributed.get_backend() == "nccl"
        found = torch.tensor([number], device=device if nccl else "cpu")
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
        return int(found)
    return number


def from_main(*tensors: Tensor) -> None:
    """Give every process the main one's values, in place."""
    for tensor in tensors:
        if not is_main():
            tensor.zero_()
        all_reduce(tensor)


def on_main(work: Callable[[], T]) -> T:
    """`work()` of the main process, in every process: what it returned, or the UserError that it raised.

    For reading and hashing files: the others wait, and cannot see a file that the main process has changed meanwhile.
    """
    if ranks()[1] == 1:
        return work()
    outcome: list = [None, None]
    if is_main():
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[1] = str(error)
    torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]
