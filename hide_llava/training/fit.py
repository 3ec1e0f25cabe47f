"""Train a few parameters on a small set, outside the Trainer: a part of a method that has its own data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hide_llava.distributed import all_reduce, ranks


def fit(
    loss: Callable[[list[int]], Tensor], count: int, parameters: list[nn.Parameter],
    learning_rate: float, epochs: int, batch_size: int, seed: int,
) -> None:  # fmt: skip
    """Minimise `loss(places)`, a mean over samples of `count`, with AdamW and a cosine schedule to 0.

    Every process takes its share of each batch. The parameters end frozen, as they began.
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
            mine = places[rank::world].tolist()
            if mine:
                gradients = torch.autograd.grad(loss(mine) * (len(mine) / len(places)), parameters)
            else:
                gradients = [torch.zeros_like(p) for p in parameters]
            all_reduce(*gradients)
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
    optimizer.zero_grad(set_to_none=True)
    for parameter in parameters:
        parameter.requires_grad_(False)
