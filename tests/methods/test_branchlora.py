"""BranchLoRA against loops in fp64: shared A, one choice per answer, keys, frozen branches, size."""

import math

import pytest
import torch
from torch import Tensor

from hide_llava.errors import UserError
from hide_llava.methods.base import Context, Features
from hide_llava.methods.branchlora import BranchLora, SharedDropout
from hide_llava.methods.registry import method_config
from tests.methods.host import LAYER, assert_near, fill, layer_of, on_one_linear, run_linear, tasks, trainable_at_7b

SHAPE = {"rank": 2, "alpha": 6.0, "branches": 4}
WIDTH = 3
CONTEXT = Context(widths={"clip_image": WIDTH, "clip_text": WIDTH})


def built(d_in: int = 5, d_out: int = 6, learned: int = 1, **options: object) -> BranchLora:
    torch.manual_seed(7)
    method = on_one_linear(BranchLora, torch.randn(d_out, d_in), **SHAPE, **options)
    a = torch.randn(2, d_in)
    for name in method.branches:
        layer_of(method).lora_B[name].weight.data = torch.randn(d_out, 2)
    fill(method, "branch-01", a, torch.randn(d_out, 2))
    for task in tasks()[:learned]:
        method.before_task(task, CONTEXT)
        torch.nn.init.normal_(method.router(task.index).routers.weight(LAYER))
        for key in (method.router(task.index).image_key, method.router(task.index).text_key):
            torch.nn.init.normal_(key)
    return method


def features(rows: int, *has_image: bool) -> Features:
    shown = torch.tensor(has_image or (True,) * rows)
    image = torch.randn(rows, WIDTH) * shown[:, None]
    return Features(image, torch.randn(rows, WIDTH), shown)


def naive(method: BranchLora, x: Tensor, read: Tensor, routers: list[Tensor]) -> Tensor:
    """The equation row by row, branch by branch and token by token, in fp64; `routers[b]` is W of row b's task."""
    layer = layer_of(method)
    w, a = layer.get_base_layer().weight.double(), layer.lora_A["branch-01"].weight.double()
    branches = [layer.lora_B[name].weight.double() for name in method.branches]
    out = []
    for row in range(len(x)):
        score = [float(s.detach()) for s in routers[row] @ read[row]]
        top = sorted(range(len(score)), key=lambda i: -score[i])[: method.config.top_k]
        total = sum(torch.exp(routers[row][i] @ read[row]) for i in top)
        tokens = []
        for token in x[row].double():
            y = w @ token
            for i in top:
                y = y + 3.0 * torch.exp(routers[row][i] @ read[row]) / total * (branches[i] @ (a @ token))
            tokens.append(y)
        out.append(torch.stack(tokens))
    return torch.stack(out)


def test_one_dropout_mask_for_all_branches() -> None:
    """One copy of the input, let go when the last branch has it; another input, or the same again, has another mask."""
    method = on_one_linear(BranchLora, torch.randn(6, 40), **SHAPE)
    assert all(isinstance(layer_of(method).lora_dropout[name], torch.nn.Identity) for name in method.branches)
    dropout = SharedDropout(0.5, 4)
    x = torch.randn(3, 5, 40)
    seen = [dropout(x) for _ in range(4)]
    assert all(one is seen[0] for one in seen) and dropout.shared.x is dropout.shared.made is None
    assert torch.equal(seen[0], torch.where(seen[0] == 0, 0, 2 * x)) and 0.3 < (seen[0] == 0).float().mean() < 0.7
    assert not torch.equal(dropout(x), seen[0])
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        half = SharedDropout(0.5, 1)(x)
    torch.manual_seed(0)
    assert half.dtype == torch.bfloat16 and torch.equal(half, torch.nn.functional.dropout(x, 0.5).bfloat16())
    assert torch.equal(dropout.eval()(x[:1]), x[:1])


@pytest.mark.parametrize("reads", ["first", "prompt"])
def test_formula_in_training(reads: str) -> None:
    method = built(reads=reads)
    x, cotangent = torch.randn(2, 4, 5), torch.randn(2, 4, 6)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    labels = torch.tensor([[-100, -100, 5, 6], [-100, -100, 7, -100]])
    route = method.route({"attention_mask": mask, "labels": labels}, features(2), True)
    assert route.active == method.branches and route.weights == {}
    y = run_linear(method, route, x)
    layer, router = layer_of(method), method.router(0).routers.weight(LAYER)
    w64 = router.detach().double().requires_grad_(True)
    read = x[:, 0].double() if reads == "first" else x[:, :2].double().mean(1)
    expected = naive(method, x, read, [w64, w64])
    assert_near(y.detach(), expected.detach())
    leaves = [layer.lora_A["branch-01"].weight, *(layer.lora_B[n].weight for n in method.branches)]
    for leaf in leaves:
        leaf.requires_grad_(True)
    y = run_linear(method, route, x)
    expected = naive(method, x, read, [w64, w64])
    ours = torch.autograd.grad((y * cotangent).sum(), [*leaves, router], allow_unused=True)
    theirs = torch.autograd.grad((expected * cotangent).sum(), [*leaves, w64], allow_unused=True)
    for one, two, leaf in zip(ours, theirs, [*leaves, router]):
        assert_near(one, torch.zeros_like(leaf) if two is None else two.float())


def test_each_sample_takes_the_router_of_its_task() -> None:
    """Three learned tasks; keys decide per row, text alone without an image; the choice holds while decoding."""
    method = built(learned=3, reads="first")
    seen = features(4, True, True, False, True)
    keys = [method.router(t) for t in range(3)]

    def cosine(a: Tensor, b: Tensor) -> float:
        a, b = a.detach(), b.detach()
        return float(a.double() @ b.double()) / math.sqrt(
            float(a.double() @ a.double()) * float(b.double() @ b.double())
        )

    chosen = []
    for row in range(4):
        fit = []
        for key in keys:
            image = cosine(seen.image[row], key.image_key) if seen.has_image[row] else 0.0
            fit.append(image + cosine(seen.text[row], key.text_key))
        chosen.append(fit.index(max(fit)))
    assert len(set(chosen)) > 1
    method.core.concatenate("routed", method.branches, [0])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 1, 1]])
    route = method.route({"attention_mask": mask}, seen, False)
    assert [[float(route.weights[f"task-0{t + 1}"][b]) for t in range(3)].index(1.0) for b in range(4)] == chosen
    x, step = torch.randn(4, 3, 5), torch.randn(4, 1, 5)
    first = torch.stack([x[b, int(mask[b].argmax())] for b in range(4)]).double()
    routers = [keys[t].routers.weight(LAYER).double() for t in chosen]
    for part in (x, step):
        assert_near(run_linear(method, route, part).detach(), naive(method, part, first, routers).detach().float())


def test_training_uses_the_current_router_whatever_the_keys_say() -> None:
    method = built(learned=2, reads="first")
    x, mask = torch.randn(2, 3, 5), torch.ones(2, 3, dtype=torch.long)
    y = run_linear(method, method.route({"attention_mask": mask}, features(2), True), x)
    current = method.router(1).routers.weight(LAYER).double()
    assert_near(y.detach(), naive(method, x, x[:, 0].double(), [current, current]).detach().float())
    trained = {id(p) for group in method.params() for p in group["params"]}
    assert not trained & {id(p) for p in method.router(0).parameters()}
    assert {id(p) for p in method.router(1).parameters()} <= trained


@pytest.mark.parametrize("reads", ["first", "prompt"])
def test_why_the_first_token_is_not_the_default(reads: str) -> None:
    """Every row begins with BOS: two fresh branches that are chosen together then stay equal under Adam."""
    method = built(reads=reads)
    layer, mask = layer_of(method), torch.ones(4, 5, dtype=torch.long)
    parts = [layer.lora_B[name].weight for name in method.branches]
    for b in parts:
        b.data.zero_()
        b.requires_grad_(True)
    optimizer = torch.optim.Adam(parts, lr=0.01)
    bos = torch.randn(5)
    for seed in range(6):
        torch.manual_seed(seed)
        x, target = torch.randn(4, 5, 5), torch.randn(4, 5, 6)
        x[:, 0] = bos
        optimizer.zero_grad()
        route = method.route({"attention_mask": mask}, features(4), True)
        (run_linear(method, route, x) - target).square().mean().backward()
        optimizer.step()
    moved = [b.detach() for b in parts if b.abs().max() > 0]
    differ = (moved[0] - moved[1]).abs().max() > 1e-3
    assert differ == (reads == "prompt") and (reads == "prompt" or len(moved) == 2)


def test_key_loss() -> None:
    """λ mean_b [1 − cos(f_v, k_v)] over rows with an image (others count 0) + λ mean_b [1 − cos(f_i, k_i)]."""
    method, seen = built(key_weight=0.5), features(3, True, False, True)
    router = method.router(0)
    image, text = (k.detach().double().requires_grad_(True) for k in (router.image_key, router.text_key))
    total = 0.0
    for row in range(3):
        for feature, key, counts in ((seen.image[row].double(), image, bool(seen.has_image[row])),
                                     (seen.text[row].double(), text, True)):  # fmt: skip
            if counts:
                total = total + 0.5 / 3 * (1 - feature @ key / (feature @ feature).sqrt() / (key @ key).sqrt())
    ours = method.loss(None, {}, seen)["keys"]
    assert_near(ours, total.float())
    gradients = torch.autograd.grad(ours, [router.image_key, router.text_key])
    for one, two in zip(gradients, torch.autograd.grad(total, [image, text])):
        assert_near(one, two.float())


# ------------------------------------------------------------------------------------------------------------ freezing


def test_freezing_by_hand() -> None:
    method = built(freeze=1)
    for used, frozen in (
        ([0.1, 0.6, 0.2, 0.1], [1]),
        ([0.1, 0.7, 0.0, 0.2], [1, 3]),  # 1 is frozen already: the next most used
        ([0.4, 0.4, 0.1, 0.1], [0, 1, 3]),
        ([0.0, 0.0, 1.0, 0.0], [0, 1, 3]),  # the last free branch stays free
    ):
        method.freeze(torch.tensor([used], dtype=torch.float64))
        assert method.frozen[0].nonzero().flatten().tolist() == frozen
    layer = layer_of(method)
    trained = {id(p) for group in method.params() for p in group["params"]}
    assert [id(layer.lora_B[n].weight) in trained for n in method.branches] == [False, False, True, False]
    assert id(layer.lora_A["branch-01"].weight) in trained


def test_two_are_frozen_where_one_stays_free() -> None:
    method = built(freeze=2)
    for used, frozen in (
        ([0.1, 0.4, 0.3, 0.2], [1, 2]),
        ([0.3, 0.1, 0.1, 0.5], [1, 2, 3]),
        ([1.0, 0, 0, 0], [1, 2, 3]),
    ):
        method.freeze(torch.tensor([used], dtype=torch.float64))
        assert method.frozen[0].nonzero().flatten().tolist() == frozen


def test_usage_is_the_sum_of_the_gates() -> None:
    method, x = built(reads="prompt"), torch.randn(3, 4, 5)
    labels = torch.tensor([[-100, -100, 1, 2]])

    def forward(batch: dict) -> None:
        run_linear(method, method.route(batch, features(1), True), batch["x"])

    context = Context(
        train_data=range(3), forward=forward,
        loader=lambda data, size: [
            {"x": x[i : i + 1], "attention_mask": torch.ones(1, 4, dtype=torch.long), "labels": labels} for i in data
        ],
    )  # fmt: skip
    expected = [0.0] * 4
    for row in x:
        score = (method.router(0).routers.weight(LAYER) @ row[:2].mean(0)).tolist()
        top = sorted(range(4), key=lambda i: -score[i])[:2]
        for i in top:
            expected[i] += math.exp(score[i]) / sum(math.exp(score[j]) for j in top)
    assert method.usage(tasks()[0], context)[0].tolist() == pytest.approx(expected, abs=1e-5)


# -------------------------------------------------------------------------------------------------- state, size, values


def test_branches_share_a_also_after_loading(tmp_path) -> None:
    method, other = built(learned=2), on_one_linear(BranchLora, torch.zeros(6, 5), **SHAPE)
    method.freeze(torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
    for name in method.adapters():
        method.core.save(name, tmp_path / name)
        other.core.load(name, tmp_path / name)
    layer = layer_of(other)
    assert len({id(layer.lora_A[name].weight) for name in other.branches}) == 1
    assert torch.equal(layer.lora_A["branch-03"].weight, layer_of(method).lora_A["branch-01"].weight)
    other.load_state(method.state())
    other.modules.load_state_dict(method.modules.state_dict())
    assert other.learned == [0, 1] and torch.equal(other.frozen, method.frozen)
    assert torch.equal(other.router(1).text_key, method.router(1).text_key)
    other.load_state({**method.state(), "learned": [0]})  # back to an earlier stage
    assert list(other.modules) == ["task-01"]


def test_size_at_7b() -> None:
    """16 Σ d_in + 8 · 16 Σ d_out + 8 Σ d_in + projector = 222.4 M, the paper's 222 M; and 1536 of keys."""
    d_in, d_out = 32 * (6 * 4096 + 11008), 32 * (5 * 4096 + 2 * 11008)
    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    total = trainable_at_7b(BranchLora)
    assert total == 16 * d_in + 8 * 16 * d_out + 8 * d_in + projector + 2 * 768
    assert round(total / 1e6, 1) == 222.4


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rank": -1}, "rank=-1: must be at least 1"),
        ({"top_k": 9}, "top_k=9: must be at most branches=8"),
        ({"freeze": 9}, "freeze=9: must be below branches=8"),
        ({"branches": 1}, "branches=1: must be at least 2"),
        ({"reads": "last"}, "reads=last: expected one of prompt, first"),
        ({"key_lr": 0.0}, "key_lr=0.0: must be greater than 0"),
        ({"key_weight": -1.0}, "key_weight=-1.0: must be at least 0"),
    ],
)
def test_impossible_values(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method_config({"name": "branchlora", **values})
