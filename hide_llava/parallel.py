"""Pieces of work that do not depend on each other, shared by processes of a machine without a GPU.

A model of a few million parameters keeps one core busy, whatever number of threads torch has.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from hide_llava.errors import UserError
from hide_llava.quiet import quiet

T = TypeVar("T")
Work = Callable[[list[T], Callable[[str], None]], None]  # (pieces, tells what is done) does them one after the other
EACH = 2 << 30  # bytes that a process takes beside its model: torch, transformers and a batch


def processes(device: torch.device, model: int, pieces: int) -> int:
    """How many processes may share the pieces: one for each core, as memory allows, with at least two pieces each.

    model: bytes of the model's files. On a GPU, and in a launch of several processes, one.
    """
    if device.type != "cpu" or torch.distributed.is_initialized():
        return 1
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), free // (EACH + 3 * model), pieces // 2))


def share(work: Work, pieces: list[T], count: int, told: Callable[[str], None]) -> None:
    """Do all pieces in `count` processes, of which this is one. work: can be pickled. told: gets what is done elsewhere.

    Raises:
        UserError: what a piece raised, or a process that ended without a word.
    """
    context, threads, children = multiprocessing.get_context("spawn"), torch.get_num_threads(), []
    own = max(1, min(threads, len(os.sched_getaffinity(0)) // count))
    for k in range(1, count):
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(there, work, pieces[k::count], own), daemon=True)
        child.start()
        there.close()
        children.append((child, here))
    try:
        torch.set_num_threads(own)
        work(pieces[::count], lambda _: [_hear(end, told, False) for _, end in children])
        for _, end in children:
            _hear(end, told, True)
    finally:
        torch.set_num_threads(threads)
        for child, _ in children:
            child.terminate()
            child.join()


def _hear(end: Connection, told: Callable[[str], None], wait: bool) -> None:
    """Pass on what a process has said so far; wait: until it has said that all is done."""
    while not end.closed and (wait or end.poll()):
        try:
            kind, text = end.recv()
        except EOFError:
            raise UserError("a process that shared the work was killed, for want of memory as a rule; give the same command "
                            "again to go on.") from None  # fmt: skip
        if kind == "error":
            raise UserError(text)
        if kind == "end":
            end.close()
        else:
            told(text)


def _child(end: Connection, work: Work, pieces: list[Any], threads: int) -> None:
    """The other processes: they are silent, and end with the one that started them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, it also goes to the one that started this
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    quiet()
    torch.set_num_threads(threads)
    try:
        work(pieces, lambda text: end.send(("done", text)))
        end.send(("end", ""))
    except UserError as error:
        end.send(("error", str(error)))
    except BrokenPipeError:
        return
