"""Individual: each task by its own expert and projector, told which (MR-LoRA's experts, without a router)."""

import pytest
import torch

from hide_llava.methods.individual import Individual
from tests.methods.host import assert_near, recorded
from tests.methods.recorded import case, on_tiny_llama, put
from tests.methods.refused import assert_refused


@pytest.fixture
def parameters() -> dict[str, torch.Tensor]:
    return {k: v for k, v in case(recorded("olora_mcitlib"), "tiny_llama").items() if k.startswith("param.")}


def test_every_task_answers_with_its_expert_alone(parameters: dict[str, torch.Tensor]) -> None:
    routed = on_tiny_llama(Individual, parameters, 3, rank=2, alpha=4.0)
    method, core = routed.method, routed.core
    name = "model.layers.0.mlp.up_proj"
    factors = [(parameters[f"param.{name}.A.{i}"], parameters[f"param.{name}.B.{i}"]) for i in range(3)]
    for i, pair in enumerate(factors):
        put(routed, method.expert(i), {name: pair})
    layer = next(layer for path, _, layer in core.layers("expert-01") if path.endswith("layers.0.mlp.up_proj"))
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    routed.eval()
    for task, (a, b) in enumerate(factors):
        route = method.route({"task": task, "has_image": torch.ones(2, dtype=torch.bool)}, None, False)
        core.follow(route)
        expected = x.double() @ (layer.get_base_layer().weight.double() + 2.0 * b.double() @ a.double()).T
        assert_near(layer(x), expected.float())
        assert {k: v.tolist() for k, v in route.weights.items()} == {method.expert(task): [1.0, 1.0]}
    core.follow(method.route({"task": 7, "has_image": torch.ones(2, dtype=torch.bool)}, None, False))
    assert_near(layer(x), (x.double() @ layer.get_base_layer().weight.double().T).float())


def test_the_expert_of_the_task_that_is_asked_is_folded(parameters: dict[str, torch.Tensor]) -> None:
    """One fold for all batches of a cell; every task as its expert answers, and the base model's weights afterwards."""
    routed = on_tiny_llama(Individual, parameters, 3, rank=2, alpha=4.0)
    method, core = routed.method, routed.core
    name = "model.layers.0.mlp.up_proj"
    for i in range(3):
        put(routed, method.expert(i), {name: (parameters[f"param.{name}.A.{i}"], parameters[f"param.{name}.B.{i}"])})
    routed.eval()
    ids = torch.tensor([[1, 5, 9, 4]])
    before = {k: v.clone() for k, v in core.llava.state_dict().items()}
    batches = [{"task": task, "has_image": torch.zeros(1, dtype=torch.bool)} for task in (0, 2, 2, 7, 1)]

    def logits(batch: dict) -> torch.Tensor:
        with torch.no_grad(), core.routed(method.route(batch, None, False)):
            return core.llava(input_ids=ids).logits

    wrapped = [logits(batch) for batch in batches]
    folds, fold = [], core.fold
    core.fold = lambda *args: folds.append(args[0]) or fold(*args)
    for _ in range(2):
        method.prepare_inference()
        core.fuse()
        for batch, expected in zip(batches, wrapped):
            assert_near(logits(batch), expected, 1e-6)
            assert not method.route(batch, None, False).active
        core.unfold()
    assert folds == [["expert-01"], ["expert-03"], ["expert-02"]] * 2
    assert all(torch.equal(v, before[k]) for k, v in core.llava.state_dict().items())
    assert_near(logits(batches[0]), wrapped[0], 1e-7)


def test_projectors_start_from_the_base_models_and_are_kept() -> None:
    parameters = {k: v for k, v in case(recorded("olora_mcitlib"), "tiny_llama").items() if k.startswith("param.")}
    method = on_tiny_llama(Individual, parameters, 1, rank=2).method
    method.config.projector = "per_task"
    start = method.core.projector_state()
    for task in method.tasks[:2]:
        if task.index:
            method.before_task(task, None)
        assert all(torch.equal(v, start[k]) for k, v in method.core.projector_state().items())
        with torch.no_grad():
            for parameter in method.core.projector.parameters():
                parameter.add_(task.index + 1.0)
        method.after_task(task, None)
    for index in range(2):
        kept = method.core.projectors[method.expert(index)]
        assert all(torch.equal(v, start[k] + (index + 1.0)) for k, v in kept.items())
    state = method.state()
    method.core.projectors = {}
    method.load_state(state)
    assert set(method.core.projectors) == {"expert-01", "expert-02"} and method.learned == [0, 1]
    method.prepare_inference()
    assert all(torch.equal(v, start[k]) for k, v in method.core.projector_state().items())


def test_settings_that_are_refused() -> None:
    assert_refused("individual", "projector", "none", "per_task, shared, frozen")
    assert_refused("individual", "rank", -2, "at least 1")
