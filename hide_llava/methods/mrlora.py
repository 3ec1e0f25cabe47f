"""MR-LoRA: independent experts, and a router that is asked in words (Zhao et al., MLLM-CL, arXiv 2506.05453).

y = W x + s B_e A_e x,  e = argmax over the tasks' letters of p(letter | image, question, list of task descriptions)

Expert e trains on task e alone, from the base model. After each task from the second on, a router LoRA is trained from
scratch to answer with a task's letter, on `router_samples` records of every task so far (kept: list it with the replay
methods), on top of the base model plus `router_merge` times every expert. The letter is the likeliest of those allowed,
so there is no illegal answer (published code then picks an expert at random), and one forward decides, per sample.

`router` with another value than `words` asks nobody: e is chosen by CLIP features or told (methods/routers.py), for comparison
with the same experts. Choosing by features needs `router_statistics`, which training collects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Subset

from hide_llava.adapters.core import LoraSpec
from hide_llava.adapters.observe import sample
from hide_llava.adapters.probe import logits, without_dropout
from hide_llava.data.collator import Collator, moved
from hide_llava.data.dataset import item
from hide_llava.data.records import features, pictures
from hide_llava.data.turns import IMAGE_TEXT, routing_text
from hide_llava.distributed import all_reduce, ranks
from hide_llava.errors import UserError
from hide_llava.methods.base import Context, Features, Route, Task, register
from hide_llava.methods.chosen import ChosenExperts
from hide_llava.methods.cost import Cost, Pass
from hide_llava.settings import Inference, PerTask

if TYPE_CHECKING:
    from datasets import Dataset

Router = Literal["words", "anchors", "nearest_mean", "ranpac", "oracle"]
MENU = "{question}\nWhich kind of task is this?\n{options}\nAnswer with the option's letter from the given choices directly."


@register
class MrLora(ChosenExperts):
    name = "mrlora"
    router = "router"

    class Config(ChosenExperts.Config):
        rank: int = Field(32, ge=1)
        alpha: float = Field(64.0, gt=0)
        router: Inference[Router] = "words"  # words (it is asked, above) | anchors | nearest_mean | ranpac | oracle
        descriptions: PerTask[str] = {}  # task id → what the router reads; default: the id
        router_samples: int = Field(20, ge=1)  # records kept of each task, for the router
        router_rank: int = Field(128, ge=1)  # of the router's LoRA; its alpha is twice that
        router_lr: float = Field(5e-6, gt=0)  # learning rate of the router
        router_epochs: int = Field(40, ge=1)  # over its samples
        router_batch: int = Field(4, ge=1)  # samples per step of the router
        router_merge: float = Field(0.2, ge=0)  # weight of every expert under the router
        router_seed: int = Field(0, ge=0)  # of its samples, weights and order

    def setup(self) -> None:
        super().setup()
        self.fitting = False  # the router is being trained

    def adapters(self) -> list[str]:
        return [self.adapter, *([self.router] if len(self.learned) > 1 else [])]

    def cost(self) -> Cost:
        config, size, tasks = self.config, self.core.size(self.adapter), len(self.tasks)
        router = size // config.rank * config.router_rank
        under = tasks * size + router  # the router reads with every expert below it
        ask = Pass("the router, asked for the task", "answer", later=True, adapters=under)
        learn = Pass(f"{config.router_samples} records of every task × {config.router_epochs} epochs, for the router", "task",
                     1, 1, lambda n: config.router_epochs * sum(min(config.router_samples, k) for k in n), later=True,
                     adapters=under)  # fmt: skip
        passes = (ask, learn) if config.router == "words" else (learn,)
        return replace(super().cost(), passes=passes, later={"router": router}, live=tasks * size)

    # ---- the router's question -----------------------------------------------------------------------------------
    def ask(self, question: str) -> str:
        """The question as the router is asked it: with the list of learned tasks."""
        ids = [self.tasks[task].id for task in self.learned]
        texts = [f"{self.letter(i)}. {self.config.descriptions.get(name, name)}" for i, name in enumerate(ids)]
        return MENU.format(question=question, options="\n".join(texts))

    @cached_property
    def letters(self) -> tuple[list[int], dict[str, int]]:
        """Token ids that every answer begins with, and the letters that differ in the one token after them.

        LLaMA's vocabulary has every letter with its space as one token; a smaller one has some, and spells the rest as
        space and letter. The larger of such groups is used, so that one position of one forward decides.
        """
        reader = self.core.backbone.reader()
        groups: dict[tuple[int, ...], dict[str, int]] = {}
        for letter in ascii_uppercase:
            *before, token = reader.answer_start(letter)
            groups.setdefault(tuple(before), {})[letter] = token
        before, letters = max(groups.items(), key=lambda group: len(group[1]))
        if len(letters) < len(self.tasks):
            raise UserError(
                f"mrlora: the tokenizer tells {len(letters)} letters apart, too few for {len(self.tasks)} tasks."
            )
        return list(before), letters

    def letter(self, place: int) -> str:
        """What the router calls the `place`-th learned task."""
        return list(self.letters[1])[place]

    def choose(self, batch: dict[str, Any]) -> Tensor:
        """[B] place in `learned` of each sample's expert."""
        if len(self.learned) == 1:
            return torch.zeros_like(batch["has_image"], dtype=torch.long)
        before, tokens = self.letters[0], list(self.letters[1].values())[: len(self.learned)]
        reader, rows = self.core.backbone.reader(), []
        for text, sizes in zip(batch["texts"], batch["sizes"]):
            read = reader.question(self.ask(text), sizes)
            more = {name: [*values, *[0] * len(before)] for name, values in read.types.items()}
            rows.append({**item(replace(read, ids=read.ids + before, types=more), None, sizes), "id": None})
        device = batch["has_image"].device
        asked = moved(Collator(side="left")(rows), device)
        asked |= {"has_image": batch["has_image"], "pixels": batch["pixels"]}
        gate = torch.full((len(self.learned) * self.config.rank,), self.config.router_merge, device=device)
        route = Route(["routed", self.router], {"routed": gate})
        return logits(self.core, asked, route, last=1)[:, -1, tokens].argmax(1)

    # ---- routes --------------------------------------------------------------------------------------------------
    def route(self, batch: dict, features: Features, train: bool) -> Route:
        if self.fitting:
            gate = torch.full((self.config.rank,), self.config.router_merge, device=batch["has_image"].device)
            ones = torch.ones_like(batch["has_image"], dtype=torch.float32)
            projectors = self.chosen_projectors({"base": ones})
            return Route([*self.experts, self.router], dict.fromkeys(self.experts, gate), projectors=projectors)
        if train:
            return Route([self.adapter])
        if self.by_features:
            return self.hard_route(self.choose_by_features(features))
        if self.oracle:
            return self.hard_route(torch.full_like(batch["has_image"], self.learned.index(batch["task"]), dtype=torch.long))
        return self.hard_route(self.choose(batch))

    def prepare_inference(self) -> None:
        super().prepare_inference()
        if not self.by_features:  # else they are held already
            self.hold()

    # ---- training the router -------------------------------------------------------------------------------------
    def after_task(self, task: Task, context: Context) -> None:
        super().after_task(task, context)
        if len(self.learned) == 1:
            return
        dataset = context.dataset(self.router_records(context))
        items = [dataset[i] for i in range(len(dataset))]  # few, and seen in every epoch
        if self.router in self.core.names():
            self.core.delete(self.router)
        rank = self.config.router_rank
        with torch.random.fork_rng():
            torch.manual_seed(self.config.router_seed)
            self.core.add(self.router, LoraSpec(rank=rank, alpha=2.0 * rank, dropout=0.0, targets=self.config.targets))

        def loss(places: list[int]) -> Tensor:
            return context.forward(next(iter(context.loader(Subset(items, places), len(places))))).loss

        self.fitting, self.core.projectors["base"] = True, self.initial_projector
        with without_dropout(self.core):
            fit(loss, len(items), self.core.parameters_of(self.router), self.config.router_lr,
                self.config.router_epochs, self.config.router_batch, self.config.router_seed)  # fmt: skip
        del self.core.projectors["base"]
        self.fitting = False

    def router_records(self, context: Context) -> Dataset:
        """Records of all learned tasks, asked for the letter of their task."""
        from datasets import Dataset, concatenate_datasets

        tables = []
        for i, task in enumerate(self.learned):
            records = context.records(task)
            records = records.select(sample(len(records), self.config.router_samples, self.config.router_seed + task))
            rows = []
            for record in records:
                image = f"{IMAGE_TEXT}\n" * len(pictures(record))
                question = image + self.ask(routing_text(record["conversations"]))
                turns = [{"from": "human", "value": question}, {"from": "gpt", "value": self.letter(i)}]
                rows.append({**record, "conversations": turns})
            tables.append(Dataset.from_list(rows, features=features()))
        return concatenate_datasets(tables)


def fit(
    loss: Callable[[list[int]], Tensor], count: int, parameters: list[nn.Parameter],
    learning_rate: float, epochs: int, batch_size: int, seed: int,
) -> None:  # fmt: skip
    """Train a few parameters on a small set, outside the Trainer: minimise `loss(places)`, a mean over samples of `count`,
    with AdamW and a cosine schedule to 0.

    Every process takes its share of each batch, one sample after another, so that the activations of one are kept. The
    parameters end frozen, as they began.
    """
    rank, world = ranks()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0)
    steps = epochs * -(-count // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for parameter in parameters:
        parameter.requires_grad_(True)
    for _ in range(epochs):
        for places in torch.randperm(count, generator=generator).split(batch_size):
            gradients = [torch.zeros_like(p) for p in parameters]
            for place in places[rank::world].tolist():
                for total, gradient in zip(gradients, torch.autograd.grad(loss([place]) / len(places), parameters)):
                    total += gradient
            all_reduce(*gradients)
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
    optimizer.zero_grad(set_to_none=True)
    for parameter in parameters:
        parameter.requires_grad_(False)
