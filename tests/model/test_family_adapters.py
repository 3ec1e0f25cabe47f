"""Experts on every family: plain peft folders on the decoder's linears alone, folded and fused without a change."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from hide_llava.adapters.core import Core
from hide_llava.adapters.route import Route
from hide_llava.errors import UserError
from tests.families import FAMILIES, Family, Zoo, asked, experts, furthest, logits, picture, prompt, ready

QUESTIONS = [("What is it?", ((90, 60),)), ("How many?", ()), ("What is the object?", ((40, 80),))]
MOE = "qwen3_vl_moe"


def rows_of(core: Core) -> list[dict]:
    return [asked(core.backbone, question, [picture(*size) for size in sizes]) for question, sizes in QUESTIONS]


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_an_expert_is_a_plain_peft_folder(family: Family, tmp_path: Path) -> None:
    """What peft alone makes of it is what we make of it, with a picture and without."""
    core = experts(family.load(), "e0")
    core.save("e0", tmp_path / "e0")
    plain = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(family.folder), tmp_path / "e0"
    ).eval()
    for row, (question, sizes) in zip(rows_of(core), QUESTIONS[:2]):
        given = family.expanded(prompt(family.kind, question, len(sizes)), [picture(*size) for size in sizes])
        with torch.no_grad(), core.routed(Route(active=["e0"])):
            theirs, ours = plain(**given).logits[0], logits(core.backbone, [row])[0]
            assert furthest([ours], [theirs]) <= 1e-5
        assert furthest([ours], family.logits([row])) > 0.1
        assert furthest(logits(core.backbone, [row]), family.logits([row])) == 0  # no expert is active
    again = Core(family.load())
    again.load("e0", tmp_path / "e0")
    assert all(map(torch.equal, again.parameters_of("e0"), core.parameters_of("e0")))


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_only_linears_of_the_decoder_are_adapted(family: Family) -> None:
    """All seven of each layer; of one with experts, which are no linears, the four of its attention."""
    core = experts(family.load(), "e0")
    home, depth = core.backbone.path, core.num_layers
    paths = {path for path, _, _ in core.layers("e0")}
    there = {path for path, module in family.backbone.model.named_modules() if isinstance(module, nn.Linear)}
    within = {path for path in there if path.startswith(f"{home}.layers.")}
    assert len(paths) == depth * (4 if family.kind == MOE else 7) and all(f"{home}.layers." in path for path in paths)
    assert {path.removeprefix("base_model.model.") for path in paths} == within
    assert len(there) > len(within)
    for path, module in core.llava.named_modules():
        assert "lora" not in path or f"{home}.layers." in path
        assert not any(name in path for name in ("vision", "visual", "projector", "connector")) or not hasattr(
            module, "lora_A"
        )
    attention = experts(family.load(), "e0", targets="attention")
    assert len(list(attention.layers("e0"))) == 4 * depth


def test_a_layer_of_experts_has_no_linears_of_its_own(zoo: Zoo) -> None:
    """Its experts are one parameter each: `all` are those of attention, and there is nothing that `ffn` could mean."""
    backbone = zoo(MOE).backbone
    assert isinstance(backbone.layers[0].mlp.experts.gate_up_proj, nn.Parameter)
    with pytest.raises(UserError, match="no linears of targets=ffn; use attention"):
        backbone.linears("ffn")
    assert len(list(experts(zoo("qwen3_vl").load(), "e0", targets="ffn").layers("e0"))) == 9


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_folded_and_fused_experts_are_the_live_ones(family: Family) -> None:
    """Lower layers by constant weights, the last by weights of each row: folded, concatenated and without peft's wrapper."""
    core = experts(family.load(), "e0", "e1")
    names, weights, rows, last = ["e0", "e1"], [0.7, 0.4], rows_of(core), core.num_layers - 1
    share = torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.5, 0.3]])
    before = {name: value.clone() for name, value in core.llava.state_dict().items()}

    def gate(number: int) -> Callable[[str, nn.Module, Tensor], Tensor]:
        def of(path: str, _: nn.Module, __: Tensor) -> Tensor:
            row = share[:, number, None].expand(-1, 2)
            return row if f"layers.{last}." in path else torch.full((2,), weights[number])

        return of

    with core.routed(Route(active=names, gates={name: gate(i) for i, name in enumerate(names)})):
        live = logits(core.backbone, rows)
        exact = live
        if family.kind != MOE:  # upstream's product of groups is not there in fp64
            core.llava.double()
            exact = logits(core.backbone, rows)
            core.llava.float()  # all values are fp32's, so that nothing is lost
    core.fold(names, weights, "delta_sum", [last])
    rank = core.concatenate("routed", names, [last])
    assert rank == 4 and set(core.kept.values()) == {1.0}
    core.follow(Route(active=["routed"], gates={"routed": share.repeat_interleave(2, 1)}))
    folded = logits(core.backbone, rows)
    said = core.backbone.answer(ready(core.backbone, rows), 3)
    rounding = furthest(live, exact) or 2.5e-6 * max(float(row.abs().max()) for row in live)  # of fp32, as this CPU sums
    assert furthest(folded, exact) <= 2 * rounding and furthest(folded, family.logits(rows)) > 0.1
    core.fuse()
    assert furthest(logits(core.backbone, rows), folded) <= 1e-5
    assert core.backbone.answer(ready(core.backbone, rows), 3) == said
    core.unfold()
    after = core.llava.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    with core.routed(Route(active=names, gates={name: gate(i) for i, name in enumerate(names)})):
        assert furthest(logits(core.backbone, rows), live) == 0
