"""WiSE-FT answers between the base model and the trained one, and trains as sequential LoRA does."""

from __future__ import annotations

import pytest
import torch

from hide_llava.methods.base import Context
from hide_llava.methods.wise_ft import WiseFt
from tests.methods.host import assert_near, fill, layer_of, on_one_linear, run_linear, tasks


def trained(mix: float, **options: object) -> WiseFt:
    """After a task that moved A, B and the projector."""
    torch.manual_seed(0)
    method = on_one_linear(WiseFt, torch.randn(5, 6), rank=2, alpha=4.0, mix=mix, **options)
    method.before_task(tasks()[0], Context())
    fill(method, "sequential", torch.randn(2, 6), torch.randn(5, 2))
    with torch.no_grad():
        method.core.projector.weight += 3.0
    return method


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_weights_are_averaged(mix: float) -> None:
    method = trained(mix)
    layer = layer_of(method)
    w, a, b = (p.detach().double() for p in (layer.get_base_layer().weight, layer.lora_A["sequential"].weight,
                                             layer.lora_B["sequential"].weight))  # fmt: skip
    expected = w.clone()
    for i in range(5):
        for j in range(6):
            expected[i, j] = (1 - mix) * w[i, j] + mix * (w[i, j] + 2.0 * sum(b[i, k] * a[k, j] for k in range(2)))
    base = method.base["weight"].clone()
    for _ in range(2):  # asked twice: the average is not averaged again
        method.prepare_inference()
        y = run_linear(method, method.route({}, None, False), torch.eye(6)[None])[0].detach()
        assert_near(y.T.double(), expected)
        assert_near(method.core.projector.weight.detach(), base + 3.0 * mix)
        method.core.unfold()


def test_the_next_task_goes_on_from_what_was_trained() -> None:
    method = trained(0.5)
    weight = method.core.projector.weight.detach().clone()
    method.prepare_inference()
    assert not torch.equal(method.core.projector.weight, weight)
    method.core.unfold()
    method.before_task(tasks()[1], Context())
    assert torch.equal(method.core.projector.weight, weight)


def test_a_frozen_projector_is_left_alone() -> None:
    method = trained(0.5, projector="frozen")
    weight = method.core.projector.weight.detach().clone()
    method.prepare_inference()
    assert torch.equal(method.core.projector.weight, weight) and method.trained is None
