"""LLaVA-c (reconstruction): SAC against a full SVD in fp64, UIR against loops, labels."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hide_llava.adapters.consolidation import by_energy, constant, rescaled, soft
from hide_llava.data.reader import Read
from hide_llava.errors import UserError
from hide_llava.listing import listing
from hide_llava.methods.base import Context, Route
from hide_llava.methods.llavac import LlavaC, distance
from hide_llava.methods.registry import method_config
from hide_llava.methods.routed import RoutedLlava
from hide_llava.training.run import Run
from tests.methods.host import assert_near, fill, layer_of, on_one_linear, recorded, run_linear, tasks
from tests.methods.recorded import case, on_tiny_llama, put, trainable
from tests.methods.refused import assert_refused

# ----------------------------------------------------------------------------------------------------------------- SAC


def update(seed: int = 0, rank: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, 9, generator=generator), torch.randn(7, rank, generator=generator)


def naive(a: Tensor, b: Tensor, kind: str, mix: float, energy: float, softness: float) -> Tensor:
    """U g(Σ) Vᵀ from the SVD of the whole matrix, direction by direction, fp64."""
    left, values, right = torch.linalg.svd(b.double() @ a.double(), full_matrices=False)
    values = [float(v) for v in values][: len(a)]
    total, mean = sum(v * v for v in values), sum(values) / len(values)
    mixed, before = torch.zeros(len(b), a.shape[1], dtype=torch.float64), 0.0
    for j, v in enumerate(values):
        g = {"constant": mix * v, "soft": v * v / (v + softness * mean),
             "energy": v if before <= energy * total else mix * v}[kind]  # fmt: skip
        before += v * v
        for row in range(len(b)):
            for column in range(a.shape[1]):
                mixed[row, column] += g * left[row, j] * right[j, column]
    return mixed


@pytest.mark.parametrize("kind", ["constant", "energy", "soft"])
def test_sac_against_a_full_svd(kind: str) -> None:
    """Also through the method: what the linear adds after the task is s U g(Σ) Vᵀ x; A does not change."""
    a, b = update()
    expected = naive(a, b, kind, 0.3, 0.6, 2.0)
    options = {"spectrum": kind, "mix": 0.3, "energy": 0.6, "softness": 2.0}
    method = on_one_linear(LlavaC, torch.randn(7, 9), rank=4, alpha=6.0, **options)
    method.before_task(tasks()[0], Context())
    fill(method, method.adapter, a, b)
    x = torch.randn(2, 3, 9)
    plain = run_linear(method, Route(), x)
    method.after_task(tasks()[0], Context())
    added = run_linear(method, method.route({}, None, True), x) - plain
    assert_near(added.detach().double(), 6.0 / 4 * x.double() @ expected.T)
    assert torch.equal(layer_of(method).lora_A[method.adapter].weight, a)
    assert not torch.allclose(expected, naive(a, b, kind, 1.0, 1.0, 0.0))


def test_a_constant_is_plain_mixing() -> None:
    a, b = update(1)
    assert_near(rescaled(a, b, partial(constant, mix=0.3)), 0.3 * b, 1e-6)
    for one in (partial(constant, mix=1.0), partial(by_energy, mix=0.3, energy=1.0), partial(soft, softness=0.0)):
        assert_near(rescaled(a, b, one), b, 1e-6)


def test_sac_of_flat_and_empty_updates() -> None:
    """Equal singular values have no directions of their own, a rank that is not used has none at all."""
    a, b = torch.eye(3, 9), 2 * torch.eye(7, 3)
    assert_near(rescaled(a, b, partial(soft, softness=1.0)), b / 2, 1e-6)
    b[:, 2] = 0
    gone = rescaled(a, b, partial(soft, softness=1.0))
    assert_near(gone, b * 2 / (2 + 4 / 3), 1e-6)
    assert torch.equal(rescaled(a, torch.zeros(7, 3), partial(soft, softness=1.0)), torch.zeros(7, 3))


def test_past_updates_are_not_touched_again() -> None:
    method = on_one_linear(LlavaC, torch.randn(7, 9), rank=4)
    for seed, task in enumerate(tasks(2)):
        method.before_task(task, Context())
        fill(method, method.adapter, *update(seed))
        first = layer_of(method).lora_B["expert-01"].weight.clone()
        method.after_task(task, Context())
    assert torch.equal(layer_of(method).lora_B["expert-01"].weight, first)
    assert method.route({}, None, True).active == ["expert-01", "expert-02"]
    x = torch.randn(2, 3, 9)
    together = run_linear(method, method.route({}, None, True), x).detach()
    method.prepare_inference()
    assert_near(run_linear(method, method.route({}, None, False), x).detach(), together)
    method.core.unfold()


# ----------------------------------------------------------------------------------------------------------------- UIR


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_distance_against_loops(kind: str) -> None:
    generator = torch.Generator().manual_seed(2)
    now, then = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    theirs, expected = now.double().requires_grad_(True), torch.zeros((), dtype=torch.float64)
    for row, length in enumerate((3, 2)):
        for token in range(length):
            if kind == "mse":
                term = sum((theirs[row, token, i] - then[row, token, i].double()) ** 2 for i in range(4)) / 4
            else:
                p, q = (z - z.exp().sum().log() for z in (then[row, token].double(), theirs[row, token]))
                term = sum(p[v].exp() * (p[v] - q[v]) for v in range(4))
            expected = expected + term / length / 2
    mine = now.clone().requires_grad_(True)
    value = distance(kind, mine, then, mask)
    assert_near(value.detach().double(), expected.detach())
    value.backward()
    expected.backward()
    assert_near(mine.grad.double(), theirs.grad)
    assert not mine.grad[1, 2].any()  # padding


def letters(text: str) -> list[int]:
    return [1, *(2 + ord(c) % 30 for c in text)]


def in_second_task(monkeypatch: pytest.MonkeyPatch, **options: object) -> RoutedLlava:
    """On the recorded tiny Llama, whose task experts stand for two tasks; a letter is a token."""
    parameters = {k: v for k, v in case(recorded("olora_mcitlib"), "tiny_llama").items() if k.startswith("param.")}
    routed = on_tiny_llama(LlavaC, parameters, 2, rank=2, alpha=4.0, **options)
    names = {k.removeprefix("param.").removesuffix(".A.0") for k in parameters if k.endswith(".A.0")}
    for i, name in enumerate(("expert-01", "expert-02")):
        put(routed, name, {n: (parameters[f"param.{n}.A.{i}"], parameters[f"param.{n}.B.{i}"]) for n in names})
    reader = SimpleNamespace(question=lambda text, image: Read(letters(text), None, text))
    monkeypatch.setattr(routed.core.backbone, "reader", lambda: reader)
    trainable(routed)
    return routed


BATCH = {"texts": ["what colour", "how many of them"], "ids": [7, "b"]}


def hidden(routed: RoutedLlava, question: str, active: list[str], layer: int) -> Tensor:
    ids = torch.tensor([letters(question)])
    routed.core.follow(Route(active))
    out = routed.core.llava.model.language_model(ids, output_hidden_states=True)
    return (out.last_hidden_state if layer == -1 else out.hidden_states[layer])[0]


@pytest.mark.parametrize(("anchor", "layer"), [("base", -1), ("previous", 1)])
def test_inquiries_one_by_one(monkeypatch: pytest.MonkeyPatch, anchor: str, layer: int) -> None:
    """The term is the mean over inquiries, each alone and unpadded; its gradient reaches the current expert only."""
    routed = in_second_task(monkeypatch, anchor=anchor, layer=layer, strength=0.5)
    term = routed.method.loss(None, BATCH, None)["inquiry"]
    assert routed.core.llava.training and term > 1e-4
    mine = routed.core.parameters_of("expert-02")
    gradients = torch.autograd.grad(term, mine, materialize_grads=True)  # none above `layer`
    assert all(not p.requires_grad for p in routed.core.parameters_of("expert-01"))
    routed.eval()
    past = ["expert-01"] if anchor == "previous" else []
    expected = sum(
        0.5 * (hidden(routed, q, ["expert-01", "expert-02"], layer) - hidden(routed, q, past, layer).detach())
        .square().mean() / 2 for q in BATCH["texts"]
    )  # fmt: skip
    assert_near(term.detach(), expected.detach())
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, mine, materialize_grads=True)):
        assert_near(ours, theirs, 1e-4)


def test_nothing_to_hold_at_the_start_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("mse", "kl"):
        routed = in_second_task(monkeypatch, anchor="previous", distance=kind)
        with torch.no_grad():
            for parameter in routed.core.parameters_of("expert-02")[1::2]:
                parameter.zero_()
        assert abs(float(routed.method.loss(None, BATCH, None)["inquiry"].detach())) < 1e-10
    moved = in_second_task(monkeypatch, anchor="previous", distance="kl")
    assert float(moved.method.loss(None, BATCH, None)["inquiry"].detach()) > 1e-4


def test_inquiries_of_a_file_belong_to_records(tmp_path: Path) -> None:
    file = tmp_path / "inquiries.json"
    file.write_text(json.dumps([f"question {i}" for i in range(50)]))
    method = on_one_linear(LlavaC, torch.randn(7, 9), rank=2, inquiries=str(file))
    asked = method.asked(BATCH)
    assert asked == [method.asked({k: [v[i]] for k, v in BATCH.items()})[0] for i in range(2)]
    assert asked != method.asked({**BATCH, "ids": [8, "c"]}) and set(asked) <= set(method.inquiries)
    for bad in ("[]", '["a", 1]', '{"a": 1}', '[""]'):
        file.write_text(bad)
        with pytest.raises(UserError, match="must be a JSON list of questions"):
            on_one_linear(LlavaC, torch.randn(7, 9), rank=2, inquiries=str(file))
    with pytest.raises(UserError, match="no such file"):
        on_one_linear(LlavaC, torch.randn(7, 9), rank=2, inquiries=str(tmp_path / "absent.json"))


# ------------------------------------------------------------------------------------------------------ labels, settings


def test_it_says_that_it_is_a_reconstruction(tmp_path: Path) -> None:
    from tests.tiny import configuration, write_benchmark

    write_benchmark(tmp_path)
    (tmp_path / "model.yaml").write_text(json.dumps({"model": {"name": "tiny", "path": "nowhere"}}))
    labels = {m: Run(configuration(tmp_path, m, tmp_path / "run")).new_manifest()["labels"] for m in ("llavac", "lora")}
    assert labels == {"llavac": ["reconstruction"], "lora": []}
    lines = {line.split()[0]: line for line in listing("methods").splitlines()}
    assert "[reconstruction]" in lines["llavac"] and "[" not in lines["l2p"]


def test_settings_that_are_refused() -> None:
    assert_refused("llavac", "spectrum", "hard", "soft, energy, constant")
    assert_refused("llavac", "distance", "l1", "mse, kl")
    assert_refused("llavac", "anchor", "first", "base, previous")
    assert_refused("llavac", "mix", 1.5, "(0, 1]")
    assert_refused("llavac", "energy", 0.0, "(0, 1]")
    assert_refused("llavac", "softness", -1.0, "at least 0")
    assert_refused("llavac", "strength", -1.0, "at least 0")
    for layer in (2, -2):
        with pytest.raises(UserError, match=f"method.layer={layer}: the model has decoder layers 1 to 1"):
            on_one_linear(LlavaC, torch.randn(7, 9), rank=2, layer=layer)
    assert method_config({"name": "llavac"}).projector == "frozen"
