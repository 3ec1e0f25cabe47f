"""What the data sets ask of a model: how it reads a conversation, a question and pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hide_llava.data.turns import IGNORE, Turn

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]  # width and height of an upright picture, in pixels
ROUTING_PIXELS = "routing"  # among a record's pixels: what a routing encoder with pixels of its own takes
ANY_SIZE: Size = (0, 0)  # of a picture that nobody measured, for a reader that does not ask (`by_size`)


@dataclass(frozen=True)
class Read:
    """One sample in tokens, its pictures expanded.

    labels: IGNORE where there is no loss; None for a question. routed_by: the text that the sample is routed by. spans:
    [start, stop) of each picture among the ids. types: token types by the names that the model's forward gives them, as many
    as ids; most models have none.
    """

    ids: list[int]
    labels: list[int] | None
    routed_by: str
    spans: tuple[tuple[int, int], ...] = ()
    types: Mapping[str, list[int]] = field(default_factory=dict)


def collapse(read: Read, image_id: int) -> tuple[list[int], list[int], int]:
    """Ids and labels with each picture as one id, and the positions that the pictures take."""
    ids, labels = list(read.ids), list(read.labels)
    for start, stop in reversed(read.spans):
        ids[start:stop], labels[start:stop] = [image_id], [IGNORE]
    return ids, labels, sum(stop - start for start, stop in read.spans)


class Reader(ABC):
    """How one model reads, without its weights: a worker process can have it, and `check` and `preview` need no more.

    A backbone gives one (`Backbone.reader`). image_id: the id that stands for a picture where it is shown as one token.
    special: texts that an answer may not contain, because the tokenizer takes them for special tokens; None where that is
    judged otherwise. several: whether a record may have several pictures. by_size: whether the size of a picture decides how
    many positions it takes; if not, sizes are not looked at. `images` are the sizes of a record's pictures, none without.
    """

    image_id: int
    special: Sequence[str] | None
    several: bool = False
    by_size: bool = False

    @abstractmethod
    def training(self, turns: Sequence[Turn], images: Sequence[Size], max_length: int) -> Read:
        """A training record of at most `max_length` positions; loss on each answer and the token that ends it, nowhere else.

        Raises:
            BadRecord: nothing of an answer, or not every picture as a whole, is left within `max_length`.
        """

    @abstractmethod
    def draft(self, turns: Sequence[Turn], images: Sequence[Size], max_length: int) -> tuple[list[int], list[int], int]:
        """Ids and labels of a record that `training` refuses, a picture as one id, and the positions that the pictures take."""

    @abstractmethod
    def question(self, text: str, images: Sequence[Size], before: Sequence[Turn] = ()) -> Read:
        """A prompt that the model answers next.

        before: questions and answers of the same conversation, in front of it. Pictures that no question has a place for
        stand in the first, by which, as in training, the conversation is routed.
        """

    @abstractmethod
    def answer_start(self, text: str) -> list[int]:
        """The ids that an answer beginning with `text` begins with, behind the ids of `question`."""

    @abstractmethod
    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the towers take of a record's RGB pictures, at least one. Tensors of several records are joined along their
        first dimension."""

    @abstractmethod
    def settings(self) -> list[Any]:
        """Plain values that decide what `training` makes of a record: what is kept of it is kept by them."""

    @abstractmethod
    def piece(self, token: int) -> str:
        """One token as a person reads it."""
