"""SAME's formulas against fp64 algebra, and what its published code records."""

from functools import partial

import pytest
import torch
from torch import Tensor

from hide_llava.adapters.fused import source
from hide_llava.adapters.route import Route
from hide_llava.adapters.spectrum import Spectrum, add_all, leading
from hide_llava.adapters.token_gates import product_of_sums
from hide_llava.errors import UserError
from hide_llava.methods.base import Context
from hide_llava.methods.registry import method_config
from hide_llava.methods.same import Same, rescale, router_factors
from tests.methods.host import (
    LAYER,
    assert_experts,
    assert_near,
    fill,
    layer_of,
    on_one_linear,
    recorded,
    run_linear,
    stacked,
    tasks,
    trainable_at_7b,
)
from tests.methods.recorded import under

SHAPE = {"rank": 8, "alpha": 16.0, "experts": 4}
CASES = ("task0_first", "task0_late", "nofreeze_task0_late", "nofreeze_task1")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return recorded("prism_same")


def loaded(tensors: dict[str, Tensor], **options: object) -> Same:
    method = on_one_linear(Same, tensors["params/param.W"], **SHAPE, **options)
    fill(method, "experts", *stacked(tensors, "params/param."))
    method.modules["router"].weight(LAYER).data.copy_(tensors["params/param.router"])
    return method


def spectrum(basis: Tensor, values: Tensor, count: int = 1) -> Spectrum:
    made = Spectrum(len(values))
    made.basis, made.values, made.count = basis, values, count
    return made


# ---------------------------------------------------------------------------------------------------------- recordings


def batch_routing(method: Same, tensors: dict[str, Tensor], case: str, x: Tensor) -> Tensor:
    """What Prism routes by: the mean over every token of every sample, masked. Not offered: it is one value per batch."""
    mean = method.expert_weights(LAYER, x).flatten(0, 1).mean(0)
    masked = mean * tensors[f"{case}/state_before.expert_masks"]
    return masked / masked.sum()


def routed_by(omega: Tensor) -> Route:
    """Our product of sums with one ω [E] for everything."""
    return Route(["experts"], {"experts": lambda *_: partial(product_of_sums, omega)})


@pytest.mark.parametrize("case", CASES)
def test_recorded_layer(tensors: dict[str, Tensor], case: str) -> None:
    """Given its batch-wide ω, our product of sums gives its output and its gradients, those of parameters before its
    hooks."""
    method = loaded(tensors, reference="prism")
    x = tensors[f"{case}/in.x"].clone().requires_grad_(True)
    omega = batch_routing(method, tensors, case, x)
    assert_near(omega, tensors[f"{case}/aux.routing"])
    y = run_linear(method, routed_by(omega), x)
    assert_near(y.detach(), tensors[f"{case}/out.train"])
    layer, router = layer_of(method), method.modules["router"].weight(LAYER)
    parts = [x, layer.lora_A["experts"].weight, layer.lora_B["experts"].weight, router]
    by_x, a, b, w = torch.autograd.grad((y * tensors[f"{case}/in.G"]).sum(), parts)
    theirs = under(tensors, f"{case}/grad.train.") | under(tensors, f"{case}/grad_raw.")
    assert_near(by_x, theirs["x"])
    assert_experts(a, b, theirs, "")
    if case != "task0_late":  # one expert is left there: the router's gradient is 0 up to rounding
        assert_near(w, theirs["router"])


def test_recorded_hooks(tensors: dict[str, Tensor]) -> None:
    """Its gradients after its hooks, from those before and its basis (of a random projection: given, not reproduced)."""
    case, method = "nofreeze_task1", loaded(tensors, reference="prism")
    basis, deviations = tensors[f"{case}/state_before.cov_U"], tensors[f"{case}/state_before.cov_S"]
    assert torch.equal(basis, tensors[f"{case}/state_before.cov_U_prev"])
    method.spectra[LAYER] = spectrum(basis, deviations**2)
    assert leading(deviations**2, 0.9) == int(tensors["hook_formulas/aux.k"][0])
    assert_near(router_factors(deviations, 3, 0.8, 1.2), tensors["hook_formulas/aux.router_factors"])
    before = torch.cat([tensors[f"{case}/grad_raw.A.{i}"] for i in range(4)])
    router, a = method.shaped(LAYER, tensors[f"{case}/grad_raw.router"], before)
    for key in (f"{case}/grad.train.router", "hook_formulas/aux.router"):
        assert_near(router, tensors[key])
    assert_near(a, torch.cat([tensors[f"{case}/grad.train.A.{i}"] for i in range(4)]))
    assert_near(a[:2], tensors["hook_formulas/aux.A.0"])
    late = "nofreeze_task0_late"
    assert_near(
        method.shaped(LAYER, tensors[f"{late}/grad_raw.router"], before)[0], tensors[f"{late}/grad.train.router"]
    )
    for first in ("task0_first", "task0_late", late):  # as in ours, A is not shaped in the first task
        for i in range(4):
            assert torch.equal(tensors[f"{first}/grad.train.A.{i}"], tensors[f"{first}/grad_raw.A.{i}"])


def test_recorded_evaluation_is_not_offered(tensors: dict[str, Tensor]) -> None:
    """One ω for the whole batch: the mean of softmax(logits / E), scaled by a gate that is not in the method, its two
    largest renormalised. Then a sample alone gets another answer than in a batch. Given that ω our function gives the
    recorded output; our method divides nothing by E, keeps every expert and answers rows as if alone."""
    method, x = loaded(tensors, reference="prism"), tensors["eval/in.x"]

    def mean(x: Tensor) -> Tensor:
        return (method.modules["router"](LAYER, x) / 4).softmax(-1).flatten(0, 1).mean(0)

    def final(x: Tensor, gate: Tensor) -> Tensor:
        values, places = (mean(x) * gate).topk(2)
        return torch.zeros(4).scatter(0, places, values / values.sum())

    gate = tensors["eval/in.gate"]
    assert_near(mean(x), tensors["eval/aux.mean_probs"])
    assert_near(final(x, gate), tensors["eval/aux.final_routing.gate"])
    for name, rows, by in (("gate", x, gate), ("ones", x, torch.ones(4)), ("gate.sample0_alone", x[:1], gate)):
        y = run_linear(method, routed_by(final(rows, by)), rows)
        assert_near(y.detach(), tensors[f"eval/out.eval.{name}"])
        assert (run_linear(method, method.route({}, None, False), rows) - y).abs().max() > 0.1
    assert (method.expert_weights(LAYER, x).flatten(0, 1).mean(0) - mean(x)).abs().max() > 0.04
    assert (tensors["eval/out.eval.gate"][:1] - tensors["eval/out.eval.gate.sample0_alone"]).abs().max() > 0.1
    for reference in ("none", "prism"):
        method = loaded(tensors, reference=reference)
        route = method.route({}, None, False)
        assert_near(run_linear(method, route, x)[:1], run_linear(method, route, x[:1]))


def test_recorded_masks_are_not_offered(tensors: dict[str, Tensor]) -> None:
    """After 13 calls with its default threshold a running mean has masked every expert but one. Ours decides once."""
    assert tensors["task0_late/state_after.expert_masks"].sum() == 1
    method = loaded(tensors)
    method.before_task(tasks()[0], Context())
    assert bool(method.training.all())


# ------------------------------------------------------------------------------------------------------------ spectrum


def test_spectrum_is_the_covariance() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(n, 6) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.1]) for n in (4, 9, 1, 30)]
    ours = Spectrum(6)
    for part in parts:
        ours.add(part)
    x = torch.cat(parts).double()
    c = sum(torch.outer(row, row) for row in x) / len(x)
    assert ours.count == 44
    assert_near((ours.basis * ours.values) @ ours.basis.T, c.float())
    assert_near(ours.basis.T @ ours.basis, torch.eye(6))
    assert torch.all(ours.values[:-1] >= ours.values[1:])


def test_spectrum_of_few_directions_is_exact_and_cut() -> None:
    torch.manual_seed(1)
    plane = torch.randn(2, 9)
    ours = Spectrum(4)
    for n in (3, 1, 5):
        ours.add(torch.randn(n, 2) @ plane)
    assert ours.basis.shape == (9, 4) and (ours.values[2:] == 0).all() and (ours.basis[:, 2:] == 0).all()
    assert leading(ours.values, 1.0, ours.energy) == 2
    row = plane[0] / plane[0].norm()
    assert float((ours.basis.T @ row).norm()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("energy, k", [(0.4, 1), (0.5, 2), (0.79, 2), (0.81, 3), (1.0, 4)])
def test_leading_directions(energy: float, k: int) -> None:
    assert leading(torch.tensor([5.0, 3.0, 1.5, 0.5]), energy) == k  # shares .5 .8 .95 1


def test_the_share_is_of_all_energy_also_of_what_was_cut() -> None:
    torch.manual_seed(0)
    x, ours = torch.randn(400, 64), Spectrum(8)
    for part in x.split(40):
        ours.add(part)
    assert ours.energy == pytest.approx(float(x.double().square().sum()) / 400)
    held = ours.values.sum() / ours.energy
    assert held < 0.3 and leading(ours.values, 0.9, ours.energy) == 8  # of 64 alike directions
    assert leading(ours.values, 0.05, ours.energy) < 8


def test_a_weight_is_a_repetition() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(5, 7), torch.randn(4, 7)
    weighed, repeated = Spectrum(7), Spectrum(7)
    for rows, times in ((x, 3), (y, 1)):
        weighed.add(rows, times)
        repeated.add(torch.cat([rows] * times))
    assert (weighed.count, weighed.energy) == (repeated.count, pytest.approx(repeated.energy)) == (19, weighed.energy)
    c = [(s.basis * s.values) @ s.basis.T for s in (weighed, repeated)]
    assert_near(c[0], c[1])


# ------------------------------------------------------------------------------------------------------- naive formulas


def trained_step(method: Same, x: Tensor, decay: float = 0.1) -> dict[str, tuple[Tensor, Tensor]]:
    """One AdamW step with the method's hooks around it: name → (before, after)."""
    layer = layer_of(method)
    leaves = {"A": layer.lora_A["experts"].weight, "B": layer.lora_B["experts"].weight,
              "router": method.modules["router"].weight(LAYER)}  # fmt: skip
    before = {name: p.detach().clone() for name, p in leaves.items()}
    optimizer = torch.optim.AdamW(leaves.values(), lr=0.1, weight_decay=decay)
    run_linear(method, method.route({}, None, True), x).square().mean().backward()
    method.on_gradients(0)
    optimizer.step()
    method.after_step(0)
    return {name: (before[name], p.detach().clone()) for name, p in leaves.items()}


def random_method(**options: object) -> Same:
    torch.manual_seed(2)
    method = on_one_linear(Same, torch.randn(5, 6), **SHAPE, **options)
    fill(method, "experts", torch.randn(8, 6), torch.randn(5, 8))
    torch.nn.init.normal_(method.modules["router"].weight(LAYER))
    return method


def test_many_spectra_at_once_are_each_its_own() -> None:
    """One batch of eigenproblems, also of different sizes: the same bits as one after the other."""
    generator = torch.Generator().manual_seed(0)
    alone, together = [Spectrum(4) for _ in range(5)], [Spectrum(4) for _ in range(5)]
    for _ in range(3):
        rows = [torch.randn(n, d, generator=generator) for n, d in ((3, 7), (3, 7), (3, 9), (5, 7), (2, 9))]
        add_all(together, rows, 2.5)
        for one, x in zip(alone, rows):
            one.add(x, 2.5)
    for one, other in zip(alone, together):
        assert torch.equal(one.basis, other.basis) and torch.equal(one.values, other.values)
        assert (one.count, one.energy) == (other.count, other.energy)


def test_what_a_task_does_not_change_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method, asked = random_method(), []
    monkeypatch.setattr("hide_llava.methods.same.leading", lambda *args: asked.append(1) or leading(*args))
    method.spectra[LAYER] = Spectrum(6)
    method.spectra[LAYER].add(torch.randn(10, 6))
    change = torch.randn(4, 6), torch.randn(8, 6)
    first, second = method.shaped(LAYER, *change), method.shaped(LAYER, *change)
    assert len(asked) == 1 and all(torch.equal(a, b) for a, b in zip(first, second))
    method.spectra[LAYER].add(torch.randn(10, 6))
    third = method.shaped(LAYER, *change)
    assert len(asked) == 2 and not torch.equal(first[0], third[0])


def test_updates_follow_the_formulas() -> None:
    """AdamW's change times V g V^T + I − V V^T and times (V Σ V^T + μ I)^{-1}, both as whole matrices in fp64."""
    x = torch.randn(2, 3, 6)
    plain = trained_step(random_method(), x)
    method = random_method(energy=1.0, mu=0.7, window=2)
    past = Spectrum(6)
    past.add(torch.randn(40, 6) * torch.tensor([3.0, 2.0, 1.0, 0.7, 0.0, 0.0]))
    method.spectra[LAYER] = past
    ours = trained_step(method, x)
    assert torch.equal(ours["B"][1], plain["B"][1])
    v, sigma = past.basis[:, :4].double(), past.values[:4].double()
    smooth = [sigma[0], (sigma[0] + sigma[1]) / 2, (sigma[1] + sigma[2]) / 2, (sigma[2] + sigma[3]) / 2]
    g = torch.diag(min(smooth) / torch.stack(smooth))
    eye = torch.eye(6, dtype=torch.float64)
    matrices = {"router": v @ g @ v.T + eye - v @ v.T, "A": torch.linalg.inv(v @ torch.diag(sigma) @ v.T + 0.7 * eye)}
    for name, matrix in matrices.items():
        before, after = plain[name]
        expected = before.double() + (after - before).double() @ matrix
        assert_near(ours[name][1], expected.float())
        assert (ours[name][1] - after).abs().max() > 1e-3


def test_gradients_instead_of_updates() -> None:
    x = torch.randn(2, 3, 6)
    method = random_method(applies_to="gradient")
    run_linear(method, method.route({}, None, True), x).square().mean().backward()
    raw = [method.modules["router"].weight(LAYER).grad.clone(), layer_of(method).lora_A["experts"].weight.grad.clone()]
    method = random_method(applies_to="gradient")
    method.spectra[LAYER] = Spectrum(6)
    method.spectra[LAYER].add(torch.randn(10, 6))
    wanted = method.shaped(LAYER, *raw)
    changed = trained_step(method, x, decay=0.0)
    assert_near(method.modules["router"].weight(LAYER).grad, wanted[0])
    assert_near(layer_of(method).lora_A["experts"].weight.grad, wanted[1])
    for name, gradient in zip(("router", "A"), wanted):  # the first Adam step is −lr · sign
        assert_near(changed[name][1] - changed[name][0], -0.1 * gradient.sign(), 1e-3)


def test_first_task_is_plain() -> None:
    x = torch.randn(2, 3, 6)
    one, two = trained_step(random_method(mu=0.1), x), trained_step(random_method(applies_to="gradient"), x)
    assert all(torch.equal(one[name][1], two[name][1]) for name in one)


def test_the_router_moves_less_where_past_inputs_were() -> None:
    """The point of it: along the strongest past direction logits drift less than in free directions."""
    past = Spectrum(4)
    past.add(torch.randn(50, 6) @ torch.diag(torch.tensor([9.0, 1.0, 1.0, 0.0, 0.0, 0.0])))
    change = rescale(torch.ones(1, 6), past.basis[:, :3], router_factors(past.values[:3], 1, 0.0, 1.0), 1.0)[0]
    assert change[0].abs() < 0.2 and change[3:].tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    clamped = router_factors(past.values[:3].sqrt(), 1, 0.8, 1.2)  # the published code: at most 20 % less
    assert float(clamped.min()) == pytest.approx(0.8)


# ------------------------------------------------------------------------------------------------------------ freezing


def test_freezing_by_hand() -> None:
    method = random_method(tau=0.3)
    method.importance = torch.tensor([[4.0, 0.0, 1.0, 2.0]], dtype=torch.float64)  # m̃ = 1, 0, .25, .5
    used = torch.tensor([[0.4, 0.2, 0.3, 0.1]], dtype=torch.float64)  # ũ = 1, 1/3, 2/3, 0
    assert method.unfrozen(used).tolist() == [[False, True, True, False]]  # 0, 1/3, 5/12, −1/2
    method.config.tau = 0.9
    assert method.unfrozen(used).tolist() == [[False, False, True, False]]  # one always trains


def test_frozen_experts_keep_every_bit() -> None:
    method = random_method()
    method.training = torch.tensor([[True, False, False, True]])
    method.spectra[LAYER] = Spectrum(6)
    method.spectra[LAYER].add(torch.randn(10, 6))
    steps = trained_step(method, torch.randn(2, 3, 6), decay=0.5)
    (a0, a1), (b0, b1) = steps["A"], steps["B"]
    assert torch.equal(a0[2:6], a1[2:6]) and torch.equal(b0[:, 2:6], b1[:, 2:6])
    assert (a0[:2] != a1[:2]).all() and (b0[:, 6:] != b1[:, 6:]).all()


def test_measured_on_the_data() -> None:
    method, x = random_method(tokens=100), torch.randn(3, 4, 6)
    context = Context(
        train_data=range(3),
        loader=lambda data, size: [x[i : i + 1] for i in data],
        forward=lambda rows: run_linear(method, method.route({}, None, True), rows),
    )
    method.after_task(tasks()[0], context)
    router, used, energy = method.modules["router"].weight(LAYER).detach().double(), [0.0] * 4, [0.0] * 4
    for token in x.reshape(-1, 6).double():
        e = [torch.exp(torch.dot(row, token)).item() for row in router]
        for i in range(4):
            used[i] += e[i] / sum(e) / 12
            energy[i] += e[i] / sum(e) * float(token @ token) / 12
    assert method.importance[0].tolist() == pytest.approx(energy, rel=1e-5)
    rows = x.reshape(-1, 6)
    learned = method.spectra[LAYER]
    assert learned.count == 12
    assert_near((learned.basis * learned.values) @ learned.basis.T, rows.T @ rows / 12)
    method.before_task(tasks()[1], context)
    assert torch.equal(method.training, method.unfrozen(torch.tensor([used], dtype=torch.float64)))
    assert learned.count == 12  # looking at the next task's inputs teaches nothing yet
    other = random_method()
    other.load_state(method.state())
    assert torch.equal(other.importance, method.importance) and other.spectra[LAYER].count == 12
    assert torch.equal(other.spectra[LAYER].basis, learned.basis) and torch.equal(other.training, method.training)


def test_linears_with_one_input_share_a_basis() -> None:
    home = "model.language_model.layers.3"
    assert source(f"{home}.mlp.up_proj") == f"{home}.mlp.gate_proj" == source(f"{home}.mlp.gate_proj")
    assert source(f"{home}.self_attn.v_proj") == f"{home}.self_attn.q_proj"
    assert source(f"{home}.mlp.down_proj") == f"{home}.mlp.down_proj"


# ------------------------------------------------------------------------------------------------- size, configuration


def test_size_at_7b() -> None:
    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert trainable_at_7b(Same) == 64 * 32 * 3 * (4096 + 11008) + 8 * 32 * (2 * 4096 + 11008) + projector


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rank": -8}, "rank=-8: must be at least 1"),
        ({"experts": 7}, "rank=64: must be a multiple of experts=7"),
        ({"energy": 1.5}, "energy=1.5: must be in"),
        ({"mu": 0.0}, "mu=0.0: must be greater than 0"),
        ({"window": 0}, "window=0: must be at least 1"),
        ({"components": 0}, "components=0: must be at least 1"),
        ({"applies_to": "weights"}, "applies_to=weights: expected one of update, gradient"),
        ({"reference": "coin"}, "reference=coin: expected one of none, prism"),
        ({"reference": "prism", "applies_to": "update"}, "applies_to=update: reference=prism changes the gradient"),
    ],
)
def test_impossible_values(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method_config({"name": "same", **values})
