"""The model as training and generation see it: features → route → splice → decoder, in one forward.

One module, so that every parameter is used inside one `forward` (what DDP and ZeRO need) and so that training and
generation cannot route differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hide_llava.adapters.core import Core
from hide_llava.adapters.route import Route
from hide_llava.backbones.base import Ready, Vision
from hide_llava.backbones.decode import Seen
from hide_llava.data.turns import last_line
from hide_llava.errors import UserError
from hide_llava.methods.base import Features, Method
from hide_llava.precision import full_precision


@dataclass
class RoutedOutput(ModelOutput):
    """loss: scalar, None without labels. logits: [B, N, V], None where only the loss was asked for. features, route: what
    the batch was routed by and how."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    features: Features | None = None
    route: Route | None = None


class RoutedLlava(nn.Module):
    """LLaVA with a method's adapters. Batches are the collator's dictionaries, on the model's device."""

    def __init__(
        self, core: Core, method: Method, encoder: nn.Module | None, sentence_encoder: nn.Module | None = None
    ):
        super().__init__()
        self.llava: PreTrainedModel = core.llava
        # In a tuple: not part of the module that engines wrap. A text that was met before is not encoded again, so processes
        # call the text towers differently often, and a tower that ZeRO-3 had divided among them would wait for the others.
        self._encoders = (encoder, sentence_encoder)
        self.core, self.method = core, method
        self.trained: list[nn.Parameter] | None = None  # while a Trainer is at work: all that can have a gradient
        self.config = core.llava.config  # DeepSpeed's "auto" values read hidden_size from here

    @property
    def encoder(self) -> nn.Module | None:
        """The routing encoder (CLIP)."""
        return self._encoders[0]

    @property
    def sentence_encoder(self) -> nn.Module | None:
        return self._encoders[1]

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As usual, but frozen weights may be absent: a checkpoint within a task does not hold them."""
        trained = {n for n, p in self.named_parameters() if p.requires_grad}
        rest = {k: v for k, v in self.state_dict().items() if k not in trained}
        return super().load_state_dict({**rest, **state_dict}, strict, assign)

    def train(self, mode: bool = True) -> RoutedLlava:
        """As usual, but nothing is walked over when the mode stays. The Trainer calls this and `zero_grad` in every step,
        and a walk over the modules of all experts makes it slower with every task. Added modules begin in training mode."""
        return self if mode and self.training and self.llava.training else super().train(mode)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As usual; see `train`."""
        if self.trained is None:
            return super().zero_grad(set_to_none)
        for parameter in self.trained:
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.zero_()

    def see(self, batch: dict[str, Any]) -> Vision | None:
        """The batch's images through the vision tower, once."""
        return self.core.backbone.see(batch)

    @torch.no_grad()
    def features(self, batch: dict[str, Any], vision: Vision | None) -> Features:
        """What `method.needs` of the routing features [B, d], fp32; image rows of text-only records are zero."""
        with torch.autocast(batch["input_ids"].device.type, enabled=False), full_precision():  # anchors too stay fp32
            return self._features(batch, vision)

    def _features(self, batch: dict[str, Any], vision: Vision | None) -> Features:
        needs, has_image = self.method.needs, batch["has_image"]
        features = Features(has_image=has_image)
        if "clip_text" in needs:
            features.text = self.encoder.text(batch["texts"])
        if "sentence" in needs:
            last = "last_line" in needs
            texts = [last_line(text) for text in batch["texts"]] if last else batch["texts"]
            features.sentence = self.sentence_encoder.text(texts)
        if "clip_image" in needs:
            features.image = torch.zeros(len(has_image), self.encoder.width, device=has_image.device)
            if vision is not None:
                pixels = [row for row in batch["pixels"] if row is not None]
                features.image[has_image] = self.encoder.image(vision, pixels)
            if "zero_image" in needs and not bool(has_image.all()):
                features.image[~has_image] = self._feature_of_zeros()
        return features

    def _feature_of_zeros(self) -> Tensor:
        zeros = [self.core.backbone.blank()]
        return self.encoder.image(self.see({"pixels": zeros}), zeros)[0]

    @torch.no_grad()
    def route_of(self, batch: dict[str, Any]) -> Route:
        """The route that a batch takes when it is answered, without reading its prompts."""
        vision = self.see(batch) if "clip_image" in self.method.needs else None
        return self.method.route(batch, self.features(batch, vision), False)

    def prepare(
        self, batch: dict[str, Any], train: bool, route: Route | None = None
    ) -> tuple[Ready, Features, Route]:
        """A batch as the decoder takes it, its features and its route, which becomes the current one.

        route: instead of the one that the method finds; then nothing is looked at that it would find one by.
        """
        vision = self.see(batch)
        features = Features(has_image=batch["has_image"]) if route is not None else self.features(batch, vision)
        route = self.method.route(batch, features, train) if route is None else route
        if not isinstance(route, Route):
            raise UserError(f"method '{self.method.name}': route() must return a Route, got {route!r:.80}.")
        self.core.follow(route)
        ready = self.core.backbone.ready(batch, vision, self.core.projectors, route.projectors, route.prompts, train)
        return ready, features, route

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        has_image: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        targets: Tensor | None = None,
        loss_only: bool = False,
        **rest: Any,
    ) -> RoutedOutput:
        """The decoder on one collated batch; `labels` may be None.

        loss_only: nobody reads the logits, so they are formed only where a row of the batch has a label, at the positions
        before `targets` [K] (the collator's, made on the host, so that nothing waits for the device), and not returned.
        An answer is a few percent of a record; logits of all positions are the largest tensors of a step (upstream forms
        them in fp32 as well), and of a small decoder a third of its arithmetic.
        """
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "has_image": has_image, "labels": labels}
        ready, features, route = self.prepare({**batch, **rest}, self.training)
        kwargs = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        kwargs["labels"] = ready.labels
        if loss_only and labels is not None and targets is not None:
            kwargs["labels"] = kwargs["shift_labels"] = labels.index_select(1, targets)
            kwargs["logits_to_keep"] = targets + (ready.inserted - 1)
        output = self.core.backbone.run(ready, **kwargs)
        logits = None if loss_only else output.logits
        return RoutedOutput(output.loss, logits, features, route)

    @torch.no_grad()
    def generate(
        self, batch: dict[str, Any], max_new_tokens: int, shrink: bool = False, static: bool = False,
        seen: Seen | None = None, route: Route | None = None,
    ) -> tuple[Tensor, Route]:  # fmt: skip
        """Greedy answers [B, ≤ max_new_tokens] long of a left-padded batch, 0 after their end, and the route they took.

        The answers lie in host memory: decoding reads every token anyway. shrink, static: of `greedy`, rows that have ended
        leave, if the route is one that can be cut into rows; a buffer of fixed size for keys and values. seen: of
        `Backbone.answer`. route: of `prepare`.
        """
        ready, _, route = self.prepare({**batch, "labels": None}, False, route)

        def leave(kept: Tensor) -> None:
            self.core.follow(self.core.route.rows(kept))

        cut = leave if shrink and route.divisible else None
        answers = self.core.backbone.answer(ready, max_new_tokens, cut, static, seen)
        return pad_sequence([torch.tensor(tokens) for tokens in answers], batch_first=True), route
