"""Methods that train prompts and leave the model as it is: what they share (no method by itself).

The prompts stand after BOS. Decoder, CLIP and, unless `projector: shared`, the projector stay frozen.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from hide_llava.adapters.anchors import similarities
from hide_llava.methods.base import Context, Features, Method, MethodConfig, Task
from hide_llava.methods.prompt_pool import query_of
from hide_llava.settings import LearningRate, Strength


class Prompted(Method):
    """Trains `prompt_parameters()` with a learning rate of their own."""

    needs = frozenset({"clip_image", "clip_text"})
    reads_parameters = True

    class Config(MethodConfig):
        length: int = Field(5, ge=1)  # tokens of a prompt
        lr: LearningRate[float | None] = Field(None, gt=0)  # of prompts and what belongs to them; None: train.learning_rate
        projector: Literal["frozen", "shared"] = "frozen"  # frozen | shared (trained, carried from task to task)

    def setup(self) -> None:
        self.learned = 0  # tasks begun

    @property
    def width(self) -> int:
        """d of the decoder's word embeddings."""
        return self.core.backbone.width

    @property
    def names(self) -> list[str]:
        """The tasks begun, as names of what each of them owns."""
        return [f"task-{i + 1:02d}" for i in range(self.learned)]

    def before_task(self, task: Task, context: Context) -> None:
        self.learned = task.index + 1

    def prompt_parameters(self) -> list[nn.Parameter]:
        """What the current task trains."""
        raise NotImplementedError

    def params(self) -> list[dict[str, Any]]:
        groups = [{"params": self.prompt_parameters(), "lr": self.config.lr or "adapter"}]
        if self.config.projector == "shared":
            groups.append({"params": list(self.core.projector.parameters()), "lr": "projector"})
        return groups


class Keyed(Prompted):
    """Prompts found by the cosine of a sample's frozen CLIP feature with a trained key.

    `query`: image, or image_text for the two features side by side. Keys start uniform in (−1, 1).
    """

    class Config(Prompted.Config):
        lr: LearningRate[float | None] = Field(7.5e-3, gt=0)  # .03 · batch / 256 at a batch of 64
        strength: Strength[float] = Field(0.1, ge=0)  # λ, weight of the pull between queries and keys
        query: Literal["image_text", "image"] = "image_text"  # what is compared with the keys: image_text | image

    def setup(self) -> None:
        super().setup()
        self.query_width = 0  # D, known from the first task on

    def before_task(self, task: Task, context: Context) -> None:
        super().before_task(task, context)
        image, text = context.widths["clip_image"], context.widths["clip_text"]
        self.query_width = image + (text if self.config.query == "image_text" else 0)
        self.build()

    def build(self) -> None:
        """Create what `self.learned` tasks need and is not there, remove what they do not."""
        raise NotImplementedError

    def cosines(self, features: Features, keys: list[Tensor]) -> Tensor:
        """[B, M] cosines of the batch's queries with M keys [D]."""
        return similarities(query_of(features, self.config.query), keys)

    def state(self) -> dict[str, Any]:
        return {"learned": self.learned, "query_width": self.query_width}

    def load_state(self, state: dict[str, Any]) -> None:
        self.learned, self.query_width = state["learned"], state["query_width"]
        self.build()
