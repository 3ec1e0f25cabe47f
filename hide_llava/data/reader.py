"""What the data sets ask of a model: how it reads a conversation, a question and a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from hide_llava.data.turns import Turn

if TYPE_CHECKING:
    from PIL import Image


class Read(NamedTuple):
    """One sample in tokens, its image expanded. labels: IGNORE where there is no loss; None for a question. routed_by: the
    text that the sample is routed by."""

    ids: list[int]
    labels: list[int] | None
    routed_by: str


class Reader(ABC):
    """How one model reads, without its weights: a worker process can have it, and `check` and `preview` need no more.

    A backbone gives one (`Backbone.reader`). image_id: the id that stands for each position of the image. image_positions:
    the most positions that one image takes. special: texts that an answer may not contain, because the tokenizer takes them
    for special tokens; None where that is judged otherwise.
    """

    image_id: int
    image_positions: int
    special: Sequence[str] | None

    @abstractmethod
    def training(self, turns: Sequence[Turn], has_image: bool, max_length: int) -> Read:
        """A training record of at most `max_length` positions; loss on each answer and the token that ends it, nowhere else.

        Raises:
            BadRecord: nothing of an answer, or not the whole image, is left within `max_length`.
        """

    @abstractmethod
    def draft(self, turns: Sequence[Turn], has_image: bool, max_length: int) -> tuple[list[int], list[int], int]:
        """Ids and labels of a record that `training` refuses, the image as one id, and the positions that the image takes."""

    @abstractmethod
    def question(self, text: str, has_image: bool) -> Read:
        """A prompt that the model answers next."""

    @abstractmethod
    def answer_start(self, text: str) -> list[int]:
        """The ids that an answer beginning with `text` begins with, behind the ids of `question`."""

    @abstractmethod
    def pixels(self, image: Image.Image) -> Tensor:
        """An RGB image as the vision tower takes it."""

    @abstractmethod
    def settings(self) -> list[Any]:
        """Plain values that decide what `training` makes of a record: what is kept of it is kept by them."""

    @abstractmethod
    def piece(self, token: int) -> str:
        """One token as a person reads it."""
