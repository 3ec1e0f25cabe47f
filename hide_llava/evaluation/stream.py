"""An answer in pieces, while it is being made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from hide_llava.backbones.decode import Seen

if TYPE_CHECKING:
    from hide_llava.evaluation.model import Answer


class _Stopped(Exception):
    """Nobody reads on."""


class Stream:
    """Iterate over it once for the pieces of an answer's text, which together are `answer.text`; `answer` is there at the end.

    work: makes the answer to one question and tells its tokens; it runs in a thread of its own, and what it raises is raised
    where the pieces are read. Whoever leaves the loop ends the work with the next token.
    """

    answer: Answer

    def __init__(self, work: Callable[[Seen], Answer], tokenizer: PreTrainedTokenizerBase, ends: set[int]):
        self.work, self.tokenizer, self.ends = work, tokenizer, ends

    def __iter__(self) -> Iterator[str]:
        tokens: SimpleQueue[int | None] = SimpleQueue()
        left = threading.Event()
        outcome: list[Any] = []

        def seen(row: int, token: int) -> None:
            if left.is_set():
                raise _Stopped
            tokens.put(token)

        def run() -> None:
            try:
                outcome.append(self.work(seen))
            except BaseException as error:
                outcome.append(error)
            finally:
                tokens.put(None)

        thread = threading.Thread(target=run, name="answer", daemon=True)
        thread.start()
        try:
            said = yield from self._pieces(iter(tokens.get, None))
        finally:
            left.set()
            thread.join()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        self.answer = outcome[0]
        if self.answer.text.startswith(said) and self.answer.text != said:
            yield self.answer.text[len(said) :]

    def _pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        """What each token adds to the text; the whole is returned.

        Blanks and halves of a character wait for what follows, and so does a byte (LLaMA's `<0x41>`), which a tokenizer may
        read otherwise together with the next.
        """
        known: list[int] = []
        said = ""
        for token in tokens:
            if token in self.ends:
                continue
            known.append(token)
            if str(self.tokenizer.convert_ids_to_tokens(token)).startswith("<0x"):
                continue
            text = self.tokenizer.decode(known, skip_special_tokens=True).strip()
            if text != said and text.startswith(said) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(said) :]
                said = text
        return said
