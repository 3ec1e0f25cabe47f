"""`hide-llava plan`: its figures against arithmetic written out here, against torch's counter and against stored files."""

import copy
import json
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_args, get_origin

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import hide_llava.methods.all  # noqa: F401
from hide_llava.adapters.core import Core
from hide_llava.backbones.llava15 import Llava15
from hide_llava.backbones.shapes import ModelShape, Tower, published
from hide_llava.config import compose, names
from hide_llava.errors import UserError
from hide_llava.methods.base import REGISTRY, Context, Features, Method, Task
from hide_llava.methods.registry import method_class, method_config
from hide_llava.planning.cards import CARDS
from hide_llava.planning.estimate import TEXT, Work, in_flops
from hide_llava.planning.flops import Flops
from hide_llava.planning.plan import plan, stage_line, stage_work
from hide_llava.planning.sizes import Sizes, sizes, sizes_of_alike_layers
from hide_llava.training.run import Run
from hide_llava.training.session import Session

SHAPE = ModelShape(published("7b"), "")
TASKS = [Task(i, f"task-{i}", 6) for i in range(6)]
D, FF, LAYERS = 4096, 11008, 32
INPUTS = LAYERS * (6 * D + FF)  # Σ d_in of the seven linears
OUTPUTS = LAYERS * (5 * D + 2 * FF)
ATTENTION, FFN = LAYERS * 4 * (D + D), LAYERS * 3 * (D + FF)  # numbers per unit of rank
PROJECTOR = 1024 * D + D + D * D + D
TRAINED = sorted(name for name, cls in REGISTRY.items() if cls.trains and not name.startswith("test_"))


@cache
def at_7b(name: str, options: str = "") -> Sizes:
    """Of method `name` with `options` such as "rank=8 targets=ffn"."""
    words = [f"method.{word}" for word in options.split()]
    config = compose(["benchmark=ucit", "model=llava-1.5-7b", f"method={name}", *words])
    return sizes_of_alike_layers(method_class(config.method["name"]), method_config(config.method), SHAPE, TASKS)


# ------------------------------------------------------------------------------------------------ published arithmetic


@pytest.mark.parametrize("rank", [8, 128])
def test_lora_by_rank_and_target(rank: int) -> None:
    """1.049 M numbers per unit of rank in attention, 1.450 M in the FFN, 2.499 M in all seven linears."""
    assert (ATTENTION, FFN, ATTENTION + FFN) == (1_048_576, 1_449_984, 2_498_560)
    for targets, numbers in {"attention": ATTENTION, "ffn": FFN, "all": ATTENTION + FFN}.items():
        measured = at_7b("lora", f"rank={rank} targets={targets}")
        assert (measured.adapter, measured.projector) == (rank * numbers, PROJECTOR)
        assert measured.trained == rank * numbers + PROJECTOR and not measured.modules


def test_moelora_and_branchlora_as_their_papers_count() -> None:
    """BranchLoRA's paper: 319.8 + 9.1 + 21.0 = 349.9 M for MoELoRA (r = 128, E = 8); 222.4 M for BranchLoRA."""
    moe = at_7b("moelora")
    assert (moe.adapter, moe.modules, moe.projector) == (128 * (INPUTS + OUTPUTS), {"router": 8 * INPUTS}, PROJECTOR)
    assert [round(n / 1e6, 1) for n in (moe.adapter, 8 * INPUTS, PROJECTOR, moe.trained)] == [319.8, 9.1, 21.0, 349.9]
    assert at_7b("moelora", "rank=18 experts=6").modules["router"] == 6 * INPUTS == 6_832_128  # 6.8 M
    branch = at_7b("branchlora")
    assert branch.adapter == 16 * INPUTS + 8 * 16 * OUTPUTS  # one A, eight B
    assert branch.trained == branch.adapter + (8 * INPUTS + 768 + 768) + PROJECTOR
    assert round(branch.trained / 1e6, 1) == 222.4
    assert branch.stored_adapter == 8 * 16 * (INPUTS + OUTPUTS) and len(branch.files) == 8  # every file has its own A


def test_what_hide_stores() -> None:
    """A rank-8 expert is 38.2 MiB in bf16, of which the paper counts 6 as 229.6 "M"."""
    hide = at_7b("hide")
    numbers = 8 * (INPUTS + OUTPUTS)
    assert hide.adapter == numbers == 19_988_480
    header = hide.file_bytes("BF16") - 2 * numbers
    assert 448 * 100 < header < 448 * 200  # a name, a shape and two offsets for A and B of 224 linears
    assert round(hide.file_bytes("BF16") / 2**20, 1) == 38.2 and hide.file_bytes("F32") - 4 * numbers < 448 * 200
    assert hide.cost.live == 6 * numbers // LAYERS and hide.cost.kept == 5 * numbers  # one layer of 32 is not folded
    assert at_7b("disco").cost.live == 6 * 16 * FFN


def test_what_prompt_methods_train_and_keep() -> None:
    """L2P: 0.21 M; ModalPrompt: 41 k and 19.9 M, of which only 768 numbers a task are kept."""
    l2p, modal = at_7b("l2p", "query=image"), at_7b("modalprompt")
    assert l2p.trained == 10 * 5 * D + 10 * 768 == 212_480
    assert modal.modules == {"prompts": 10 * D, "transform": D * D + D + D * 768 + 768}
    assert modal.stored_modules == 10 * D and list(modal.cost.state.values()) == [6 * 768 * 4]
    assert at_7b("l2p").cost.prompts == (25, 25) and modal.cost.prompts == (40, 30)


def test_what_smolora_trains() -> None:
    """SMoLoRA: visual gates 2.5 M, instruction gates 0.15 M, fusion heads 1.7 M on the FFN."""
    wanted = {
        "visual": 4 * LAYERS * (2 * D + FF),
        "instruction": 4 * 384 * LAYERS * 3,
        "fusion": 2 * LAYERS * (2 * FF + D),
    }
    assert at_7b("smolora").modules == wanted
    assert [round(wanted[k] / 1e6, 2) for k in wanted] == [2.46, 0.15, 1.67]


def test_states_beside_the_adapters() -> None:
    """EWC 0.32 GB at rank 16 and 0.96 GB at 48, SEFE 0.81 GB of bits, SAME's directions once per input."""
    for rank, gigabytes in ((16, 0.32), (48, 0.96)):
        (state,) = at_7b("ewc", f"rank={rank} projector=frozen").cost.state.values()
        assert state == 2 * 4 * rank * (INPUTS + OUTPUTS) and round(state / 1e9, 2) == gigabytes
    entries = LAYERS * (4 * D * D + 3 * D * FF)
    sefe = at_7b("sefe", "rank=128").cost
    assert list(sefe.state.values()) == [entries // 8] and round(entries / 8e9, 2) == 0.81
    assert sefe.extra == 4 * (2 * 128 * entries) and round(2 * 128 * entries / 1e12, 2) == 1.66  # B A forward
    directions = at_7b("same").cost.state["principal directions of the inputs, fp32"]
    assert directions == LAYERS * (64 * (D + FF) + 2 * 64) * 4  # gate and up read the same input


def test_extra_passes_by_arithmetic() -> None:
    """LwF: a third more, as a forward is a third of a checkpointed step. EWC: every record again. MR-LoRA: its router."""
    base, lwf, ewc, mr = (Work(SHAPE, at_7b(name), 6) for name in ("lora", "lwf", "ewc", "mrlora"))
    assert lwf.record(0) == base.record(0)
    assert 0.32 < lwf.record(1) / base.record(1) - 1 < 0.35
    (fisher,) = ewc.sizes.cost.passes
    adapter, positions = 16 * (INPUTS + OUTPUTS), 576 + TEXT
    flops = Flops(SHAPE)
    once = (
        flops.forward(positions, adapter) + flops.backward(positions, adapter) + flops.vision() + flops.projector(False)
    )
    assert ewc.passing(fisher) == once and ewc.beside([100, 300]) == 300 * once
    assert [p.per for p in mr.sizes.cost.passes] == ["answer", "task"] and mr.sizes.cost.later == {
        "router": 128 * (INPUTS + OUTPUTS)
    }
    assert mr.sizes.cost.passes[1].records([1000, 7, 500]) == 40 * (20 + 7 + 20) and mr.beside([1000]) == 0
    replay = at_7b("replay").cost  # what is trained in steps is not beside them
    assert replay.added([500, 100, 500]) == 180 and replay.added([500, 50, 500]) == 90 + 50  # 90 of each
    assert replay.added([500]) == 0 and Work(SHAPE, at_7b("replay"), 6).beside([500, 100, 500]) == 0


def test_steps_of_what_a_method_adds_to_a_task() -> None:
    """Octopus trains 9,600 of 24,000 records a second time: 33,600 / 64 steps, but no more than are asked for."""
    words = ["benchmark=ucit", "model=llava-1.5-7b", "method=octopus-ucit"]
    run, work = Run(compose(words)), Work(SHAPE, at_7b("octopus-ucit"), 6)
    line = stage_line(run, run.stages[1], [500, 24000], False, work.sizes.cost, None)
    assert "24000 records and 9600 that the method adds × 1 epoch(s)" in line and ": 525 steps;" in line
    assert ": ? steps;" in stage_line(run, run.stages[1], [None, 24000], False, work.sizes.cost, None)
    other = stage_line(run, run.stages[1], [None, 24000], False, at_7b("lora").cost, None)  # adds nothing to a task
    assert "  24000 records × 1 epoch(s)" in other and ": 375 steps;" in other
    flops, seen = stage_work(run, work, [500, 24000], 1)
    look = work.sizes.cost.passes[1]
    assert seen == 33_600 and look.records([500, 24000, 300]) == 2 * 256
    extra = work.sizes.cost.extra / run.batches(run.stages[1])[0].per_device
    assert flops == 33_600 * (work.record(1) + extra) + 256 * work.passing(look)
    assert stage_work(Run(compose([*words, "train.max_steps=10"])), work, [500, 24000], 1)[1] == 640


@pytest.mark.parametrize("preset", names("method"))
def test_every_preset_has_a_plan_at_7b(preset: str) -> None:
    if preset == "zero_shot":
        return
    work = Work(SHAPE, at_7b(preset), 6)
    assert work.sizes.trained > 0 and work.sizes.stored_adapter + work.sizes.stored_modules > 0
    assert work.base_record() * 0.99 < work.record(5) < 2 * work.base_record()
    assert work.base_answer() <= work.answer() < 3 * work.base_answer()


# --------------------------------------------------------------------------------------------------- a small real model


@pytest.fixture(scope="module")
def small() -> ModelShape:
    text = LlamaConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
                       num_key_value_heads=4, vocab_size=96, eos_token_id=None)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                              image_size=28, patch_size=14)  # fmt: skip
    llava = LlavaConfig(text_config=text, vision_config=vision, image_token_id=95)
    return ModelShape(llava, "", 24, Tower("text", 24, 1, 48, 9), Tower("sentence", 16, 1, 24, 9))


@pytest.fixture(scope="module")
def weights(small: ModelShape) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    return LlavaForConditionalGeneration._from_config(copy.deepcopy(small.config), attn_implementation="eager").eval()


OPTIONS = {
    "moelora": {"rank": 8},
    "clmoe": {"rank": 8},
    "same": {"rank": 8},
    "smolora": {"rank": 8},
    "branchlora": {"rank": 2},
}


def options_of(name: str) -> object:
    return method_config({"name": name, **OPTIONS.get(name, {})})


def built(name: str, weights: LlavaForConditionalGeneration, shape: ModelShape, count: int) -> Method:
    """Method `name` in its first task."""
    tasks = [Task(i, f"task-{i}", count) for i in range(count)]
    method = REGISTRY[name](options_of(name), Core(Llava15(copy.deepcopy(weights))), tasks)
    method.setup()
    method.before_task(tasks[0], Context(widths=shape.widths))
    return method


@pytest.mark.parametrize("name", TRAINED)
def test_files_are_as_planned(
    name: str, small: ModelShape, weights: LlavaForConditionalGeneration, tmp_path: Path
) -> None:
    """The stage folder of the first task, written by the code that a run writes it with."""
    method = built(name, weights, small, 3)
    planned = sizes(type(method), options_of(name), small, method.tasks)
    trained = {id(p): p.numel() for group in method.params() for p in group["params"]}
    assert sum(trained.values()) == planned.trained
    if name == "modalprompt":
        del method.modules["transform"]  # as the end of a task does
    Session.save_stage(SimpleNamespace(method=method, core=method.core), tmp_path, [])
    files = sorted(tmp_path.glob("adapter/**/*.safetensors"))
    assert sum(f.stat().st_size for f in files) == planned.file_bytes() and len(files) == len(planned.files)
    projector = tmp_path / "projector.safetensors"
    assert (sum(t.numel() for t in load_file(projector).values()) if projector.exists() else 0) == planned.projector
    state = load_file(tmp_path / "method.safetensors") if (tmp_path / "method.safetensors").exists() else {}
    assert sum(t.numel() for k, t in state.items() if k.startswith("modules.")) == planned.stored_modules


class ReadsWeights(REGISTRY["lora"]):
    """What a method does that starts from the singular vectors of the weights."""

    def before_task(self, task: Task, context: Context) -> None:
        super().before_task(task, context)
        self.size = sum(float(layer.get_base_layer().weight.sum()) for _, _, layer in self.core.layers(self.adapter))


def test_a_method_that_reads_weights_is_told_where(small: ModelShape) -> None:
    with pytest.raises(UserError, match=r"test_plan\.py:\d+: method 'lora' reads the value of a weight"):
        sizes(ReadsWeights, options_of("lora"), small, TASKS)


@pytest.mark.parametrize("name", ["hide", "disco", "individual", "mrlora", "modalprompt", "sefe", "ewc"])
def test_states_are_as_planned(name: str, small: ModelShape, weights: LlavaForConditionalGeneration) -> None:
    """Bytes of `state()` when all tasks were learned."""
    method = built(name, weights, small, 3)
    planned = sum(method.cost().state.values())
    for task in method.tasks:
        if task.index:
            method.before_task(task, Context(widths=small.widths))
        if name == "ewc":
            method.consolidate([torch.ones_like(p) for p in method.trained()], [p.clone() for p in method.trained()])
        elif name == "mrlora":
            super(type(method), method).after_task(task, Context())
        else:
            method.after_task(task, Context())
    tensors = [v for k, v in method.state().items() if isinstance(v, torch.Tensor) and v.dim() + ("count" in k)]
    assert sum(t.nbytes for t in tensors) == planned > 0


@pytest.mark.parametrize("name", ["lora", "hide", "disco", "individual", "merge", "olora", "sefe", "llavac", "mrlora", "moelora",
                                  "branchlora"])  # fmt: skip
def test_adapters_that_run_are_as_planned(name: str, small: ModelShape, weights: LlavaForConditionalGeneration) -> None:
    """`past` by the adapters of the training route, `live` by what is on the model for an answer."""
    method = built(name, weights, small, 3)
    cost, own = method.cost(), method.adapters()
    for task in method.tasks[1:]:
        method.before_task(task, Context(widths=small.widths))
    core, one = method.core, Features(has_image=torch.ones(1, dtype=torch.bool))
    if name != "branchlora":
        active = method.route({}, one, True).active
        assert sum(core.size(n) for n in active) == cost.past + sum(core.size(n) for n in own)
    method.prepare_inference()
    core.fuse()  # as `with session:` does; individual folds its expert only then
    if name == "individual":
        active = method.route({"task": 2, "has_image": one.has_image}, one, False).active
    else:
        active = [n for n in core.names() if n == "routed"] or (["experts"] if name == "moelora" else [])
    assert sum(core.size(n) for n in active) == cost.live


def test_the_formula_of_an_answer_is_what_torch_counts(
    small: ModelShape, weights: LlavaForConditionalGeneration
) -> None:
    """A step of training is counted in tests/test_perf_smoke.py."""
    model = copy.deepcopy(weights)
    ids = torch.tensor([[1, *[95] * 4, *range(3, 12)]])
    pixels = torch.zeros(1, 3, 28, 28)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=5,
                       do_sample=False, pad_token_id=0)  # fmt: skip
    assert counter.get_total_flops() == Flops(small).answer(ids.shape[1], 5)


# -------------------------------------------------------------------------------------------------------------- the text


def test_extrapolated_layers_are_the_model() -> None:
    options = method_config({"name": "hide"})
    whole, quick = (count(REGISTRY["hide"], options, SHAPE, TASKS) for count in (sizes, sizes_of_alike_layers))
    assert whole == quick


def test_text_without_a_model_folder(tmp_path: Path) -> None:
    words = ["benchmark=ucit", "model=llava-1.5-7b", f"model_root={tmp_path}", "method=l2p"]
    text = plan(Run(compose(words)), tflops=50)
    assert "published LLaVA-1.5-7B (there is no folder" in text
    assert "CLIP's text tower on the question" in text and "prompts: 25 more tokens per record" in text
    (line,) = (line for line in text.splitlines() if line.startswith("all training: "))
    petaflops, hours = (
        float(n.replace(",", "")) for n in re.search(r": ([\d,.]+) PFLOP, ([\d.]+) h at 50 ", line).groups()
    )
    assert abs(petaflops * 1e15 / 50e12 / 3600 / hours - 1) < 0.1  # both have two digits
    assert 213_857 * 26e12 < petaflops * 1e15 < 213_857 * 29e12  # UCIT's records, 26 to 29 TFLOP each
    (line,) = (line for line in text.splitlines() if line.startswith("all evaluation: "))
    assert line.startswith("all evaluation: 63,000 answers in 21 cells, ")  # 3,000 questions × (1 + … + 6)
    petaflops, hours = (float(n) for n in re.search(r" ([\d.]+) PFLOP, at least ([\d.]+) h at 50 ", line).groups())
    assert (
        63_000 * 8.9e12 < petaflops * 1e15 < 63_000 * 9.9e12 and abs(petaflops * 1e15 / 50e12 / 3600 / hours - 1) < 0.1
    )
    other = plan(Run(compose(["benchmark=ucit", "model=llava-1.5-13b", f"model_root={tmp_path}", "method=l2p"])))
    assert "base model: 13,3" in other


def seconds_at_7b(card: str, recompute: bool) -> tuple[float, float]:
    """Of UCIT's records and answers with LoRA of rank 8 on one card."""
    work = Work(SHAPE, at_7b("lora", "rank=8"), 6, recompute)
    flops = 213_857 * work.record(0)
    return CARDS[card].training_seconds(work, flops, 213_857), CARDS[card].answering_seconds(
        work, 63_000, 14_126_000_000
    )


def test_hours_on_a_card() -> None:
    """One H100, by hand at 697 tokens a record: 19,900 s with checkpointing and 13,300 s without; a record of a plan has 646
    tokens, so 7 % less. Questions: 1,166 s of reading, 351 s of decoding, 55 s in the vision tower."""
    again, kept, answers = seconds_at_7b("h100", True)[0], *seconds_at_7b("h100", False)
    assert abs(again / (19_900 * 646 / 697) - 1) < 0.05 and abs(kept / (13_300 * 646 / 697) - 1) < 0.05
    assert abs(answers / (1_166 + 351 + 55) - 1) < 0.15
    for card, times in (("a100", 3.2), ("4090", 4.5)):  # between the ratios of their products and of their memories
        assert 1.6 < seconds_at_7b(card, True)[0] / again < 6 and seconds_at_7b(card, False)[1] > answers
        assert abs(seconds_at_7b(card, True)[0] / again / times - 1) < 0.35


def test_plan_on_a_card(tmp_path: Path) -> None:
    """Both hours and the memory are of that card; `auto` is decided by what fits on it; what a run took stands beside."""
    words = ["benchmark=ucit", "model=llava-1.5-7b", f"model_root={tmp_path}", "method=hide", f"output={tmp_path}/run"]

    def lines(*more: str, **how: object) -> dict[str, str]:
        text = plan(Run(compose([*words, *more])), **how)
        return {kind: next(line for line in text.splitlines() if line.startswith(kind))
                for kind in ("all training", "all evaluation", "memory", "measured training") if kind in text}  # fmt: skip

    stages = [
        {"name": f"{i + 1:02d}-{t.id}", "train_seconds": 3600.0}
        for i, t in enumerate(compose(words).benchmark.tasks[:2])
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"stages": stages, "device": "a card"}))
    four = "train.per_device_batch_size=4"
    one, two = lines(four, gpu="h100"), lines(four, gpu="H100", gpus=2)
    assert "4 record(s), kept" in one["memory"] and one["memory"].endswith(" of 80")
    hours = [float(re.search(r"([\d.]+) h estimated for", x["all training"]).group(1)) for x in (one, two)]
    assert abs(hours[0] / hours[1] - 2) < 0.1
    assert "2 × H100 SXM" in two["all evaluation"] and "nothing of it measured" in two["all evaluation"]
    assert one["measured training"].startswith(
        "measured training of 2 of 6 stage(s) on a card: 2.0 h; the estimate for them"
    )
    assert "1 record(s), kept" in lines("train.per_device_batch_size=auto", gpu="4090")["memory"]
    assert "--gpu NAME" in lines()["memory"]
    for how, message in (({"gpu": "v100"}, "known are h100"), ({"gpu": "h100", "tflops": 3.0}, "give one of them")):
        with pytest.raises(UserError, match=message):
            lines(**how)


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A data root that stays empty: nothing is written or read for a plan."""
    monkeypatch.setattr(Run, "prepare", lambda self: None)
    return f"data_root={tmp_path}"


@pytest.mark.parametrize("method", ["branchlora", "smolora", "zero_shot"])
def test_text_of_the_small_model(method: str, no_data: str) -> None:
    text = plan(Run(compose(["benchmark=mini-ucit", "model=mini", "train=mini", f"method={method}", no_data])))
    assert "base model: 3.6 M parameters" in text and "an answer: " in text
    assert "hide_llava/assets/mini/llava" in text


@pytest.mark.parametrize("method", TRAINED)
def test_every_choice_can_be_planned(method: str, no_data: str) -> None:
    """Each value of each option that takes one of several, without data and without weights."""
    kind = REGISTRY[method].Config
    choices = {name: get_args(field.annotation) for name, field in kind.model_fields.items()
               if get_origin(field.annotation) is Literal}  # fmt: skip
    for name, values in choices.items():
        for value in values:
            if value != getattr(kind(), name):
                words = [no_data, *(["method.buffer=10"] if method in ("replay", "dgg") else [])]  # also a percentage
                words += ["method.router_statistics=ranpac"] if name == "router" else []  # what every router needs
                text = plan(Run(compose(["benchmark=mini-ucit", f"method={method}", f"method.{name}={value}", *words])))
                assert "trained in one task: " in text and "an answer: " in text, (name, value)


def test_two_digits_and_no_more() -> None:
    assert [in_flops(v) for v in (5.7467e18, 2.66e13, 8.98e12, 3.14e8)] == [
        "5,700 PFLOP",
        "27 TFLOP",
        "9.0 TFLOP",
        "0.31 GFLOP",
    ]
