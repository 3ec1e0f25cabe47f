"""Work that one process does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from hide_llava.adapters.anchors import is_main, ranks
from hide_llava.errors import UserError

T = TypeVar("T")


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
