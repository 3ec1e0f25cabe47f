"""Checkpoints of other code become runs that answer as that code does; no tensor is passed over."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hide_llava.interop import proof
from hide_llava.training.run import Run
from hide_llava.training.session import Session
from tests.cli.call import Called, call, content, refused
from tests.golden_reference import GOLDEN
from tests.interop import foreign
from tests.interop.foreign import Written

MAKERS: dict[str, Callable[..., Written]] = {"lora": foreign.lora, "moelora": foreign.moelora, "smolora": foreign.smolora}


def imported(kind: str, folder: Path, world: Path, out: Path, *more: str | Path) -> Called:
    return call("import", kind, "--checkpoint", folder, "--base", world / "llava", "--clip", world / "clip", "--out", out, *more)


@torch.no_grad()
def logits(run: Path, stage: int, task: int | None) -> tuple[type, list, list[torch.Tensor]]:
    session = Session(Run.at(run))
    samples = proof.samples(session, "pad")
    session.restore(stage)
    with session:
        return type(session.backbone), samples, proof.of_run(session, samples, task)[0]


@pytest.mark.parametrize("kind", MAKERS)
def test_an_imported_checkpoint_answers_as_its_code(kind: str, world: Path, tmp_path: Path) -> None:
    """Against a plain model to whose linears the published formula was added by hand."""
    made = MAKERS[kind](world / "llava")
    folder = made.write(tmp_path / "Task1_llava_lora")
    called = imported(kind, folder, world, tmp_path / "run")
    assert called.code == 0, called.err
    assert "none left over" in called.out and f"imported into {tmp_path / 'run'}" in called.out
    task = 1 if kind == "smolora" else None
    family, samples, ours = logits(tmp_path / "run", 0, task)
    for own, theirs in zip(ours, proof.of_plain(made.model, family, samples)):
        torch.testing.assert_close(own, theirs[:, : own.shape[1]], atol=2e-4, rtol=2e-4)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["imported_from"] == ["Task1_llava_lora"] and manifest["method"] == kind


def test_a_check_writes_nothing(world: Path, tmp_path: Path) -> None:
    folder = foreign.moelora(world / "llava").write(tmp_path / "Task1")
    before = content(tmp_path)
    called = imported("moelora", folder, world, tmp_path / "run", "--check")
    assert called.code == 0 and content(tmp_path) == before
    assert "Task1: 112 tensors of 4 experts in 14 linears, rank 8, alpha 16; 14 of routers; 4 of the projector" in called.out
    assert f"fits {world / 'llava'}; nothing was written" in called.out


def test_a_round_trip_is_bit_identical(world: Path, tmp_path: Path) -> None:
    """A LLaVA LoRA in, predicted, out as a peft folder, and in again: the same tensors and answers; not in all linears."""
    made = foreign.lora(world / "llava", ("self_attn.q_proj", "self_attn.v_proj"))
    folder = made.write(tmp_path / "llava-lora")
    assert imported("lora", folder, world, tmp_path / "one").code == 0
    exported = call("export", tmp_path / "one", "--stage", "1", "--to", "peft", "--output", tmp_path / "out")
    assert exported.code == 0, exported.err
    assert imported("lora", tmp_path / "out", world, tmp_path / "two").code == 0
    files = ("adapter/adapter_model.safetensors", "projector.safetensors")
    for file in files:
        one, two = (load_file(tmp_path / run / "stages" / "01-task-1" / file) for run in ("one", "two"))
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    stored = load_file(tmp_path / "two" / "stages" / "01-task-1" / files[0])
    for key, tensor in made.adapter.items():
        assert torch.equal(stored[key.replace("model.model.layers", "model.model.language_model.layers")], tensor)
    lines = []
    for run in ("one", "two"):
        words = ("--questions", world / "data/task0/test.json", "--images", world / "data", "--output", tmp_path / f"{run}.jsonl")
        assert call("predict", tmp_path / run, "--stage", "1", "--max-new-tokens", "4", *words).code == 0
        lines.append((tmp_path / f"{run}.jsonl").read_text())
    assert lines[0] == lines[1]


def test_several_checkpoints_are_stages(world: Path, tmp_path: Path) -> None:
    """And an adapter in safetensors with the names of today's transformers and peft."""
    first, second = foreign.lora(world / "llava"), Written(world / "llava", 1)
    second.settings |= {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    for _, path, linear in second.linears(("self_attn.q_proj",)):
        second.adapter[f"base_model.model.{path}.lora_A.default.weight"] = second.random(4, linear.in_features)
        second.adapter[f"base_model.model.{path}.lora_B.default.weight"] = second.random(linear.out_features, 4)
    folders = [first.write(tmp_path / "a"), second.write(tmp_path / "b")]
    save_file(second.adapter, folders[1] / "adapter_model.safetensors")
    (folders[1] / "adapter_model.bin").unlink()
    called = imported("lora", folders[0], world, tmp_path / "run", "--checkpoint", folders[1])
    assert called.code == 0, called.err
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    called = imported("lora", folders[0], world, tmp_path / "run")  # into the same folder
    assert called.code == 2 and "holds a run with stages already; choose another --out" in called.err
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert sorted(p.name for p in (tmp_path / "run" / "stages").iterdir()) == ["01-task-1", "02-task-2"]
    assert len(load_file(tmp_path / "run" / "stages" / "02-task-2" / "adapter" / "adapter_model.safetensors")) == 4


def test_checkpoints_of_another_scale_are_no_stages_of_one_run(world: Path, tmp_path: Path) -> None:
    first, second = foreign.lora(world / "llava"), foreign.lora(world / "llava")
    second.settings["lora_alpha"] = 64
    folders = [first.write(tmp_path / "a"), second.write(tmp_path / "b")]
    called = imported("lora", folders[0], world, tmp_path / "run", "--checkpoint", folders[1])
    assert called.code == 2 and "a has rank 4 and alpha 8, b 4 and 64: they are not of one run" in called.err
    assert not (tmp_path / "run").exists()


VISION = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight"
HEAD = "base_model.model.lm_head.weight"
PROJECTOR = "base_model.model.model.mm_projector.2.lora_B.loraB.1.weight"
Q = "base_model.model.model.layers.0.self_attn.q_proj"
UP = "base_model.model.model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("lora", lambda m: m.adapter.update({"something.else": m.adapter[f"{Q}.lora_A.weight"]}), "unknown key something.else"),
        ("lora", lambda m: m.adapter.pop(f"{Q}.lora_A.weight"), "has a lora_B alone"),
        ("lora", lambda m: m.adapter.update({f"{Q}.lora_A.weight": torch.ones(3, 48)}), "needs (4, 48)"),
        ("lora", lambda m: m.adapter.update({Q.replace(".0.", ".9.") + ".lora_A.weight": torch.ones(4, 48)}), "another base"),
        ("lora", lambda m: m.adapter.update({VISION: torch.ones(4, 32)}), "outside of the decoder"),
        ("lora", lambda m: [t.zero_() for k, t in m.adapter.items() if "lora_B" in k], "all B are zero"),
        ("lora", lambda m: m.others.update({HEAD: torch.ones(2)}), "lm_head.weight is not the projector's"),
        ("lora", lambda m: m.others.pop("base_model.model.model.mm_projector.0.bias"), "the projector has 3 of 4"),
        ("lora", lambda m: m.settings.update(use_dora=True), "use_dora is True"),
        ("lora", lambda m: m.settings.update(init_lora_weights="pissa_niter_4"), "changes the base's weights before it trains"),
        ("lora", lambda m: m.settings.update(alora_invocation_tokens=[1]), "alora_invocation_tokens is [1]"),
        ("lora", lambda m: m.settings.update(peft_type="MOE_LORA_CoIN"), "import moelora"),
        ("lora", lambda m: m.adapter.update(x=print), "not a plain tensor file"),
        ("moelora", lambda m: m.adapter.pop(f"{UP}.lora_router.weight"), "1 tensors are missing"),
        ("moelora", lambda m: m.adapter.pop(f"{UP}.lora_A.loraA.3.weight"), "1 tensors are missing"),
        ("moelora", lambda m: m.adapter.update({f"{UP}.lora_A.loraA.0.mlp.weight": torch.ones(2, 48)}), "two names"),
        ("moelora", lambda m: m.settings.update(peft_type="MOE_LORA_HiDe"), "import hide-reference"),
        ("moelora", lambda m: m.settings.pop("expert_num"), "no 'expert_num'"),
        ("smolora", lambda m: m.settings.pop("ins_emb"), "no ins_emb"),
        ("smolora", lambda m: m.adapter.update({f"{UP}.lora_fc_B.weight": torch.ones(1, 7)}), "expected (1, 80)"),
        ("smolora", lambda m: m.adapter[PROJECTOR].fill_(1), "on the projector"),
    ],
)  # fmt: skip
def test_what_has_no_place_is_refused(kind: str, change: Callable, says: str, world: Path, tmp_path: Path) -> None:
    made = MAKERS[kind](world / "llava")
    change(made)
    folder = made.write(tmp_path / "Task1")
    words = ("--base", world / "llava", "--clip", world / "clip", "--out", tmp_path / "run")
    refused("import", kind, "--checkpoint", folder, *words, says=(says,))
    assert not (tmp_path / "run").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["Task1"]


def test_hide_of_mcitlib(tmp_path: Path) -> None:
    """The authors' layout with as many routing slots as experts, and MCITlib's evaluation; `--check` says what is there."""
    words = ("import", "hide-mcitlib", "--checkpoint", GOLDEN / "ckpt_e3" / "Task1_llava_lora_ours", "--base", GOLDEN / "base")
    refused(*words, "--out", tmp_path / "run", says=("--clip",))
    words = (*words, "--clip", GOLDEN / "clip", "--out", tmp_path / "run")
    called = call(*words, "--check")
    assert called.code == 0 and "task 1 of 3, 1 learned experts of rank" in called.out and not (tmp_path / "run").exists()
    assert call(*words).code == 0
    run = Run.at(tmp_path / "run")
    assert (run.preset, run.options.slots, run.eval.image_transform) == ("hide-mcitlib", 3, "crop")


def test_what_a_kind_needs(world: Path, tmp_path: Path) -> None:
    folder = foreign.smolora(world / "llava").write(tmp_path / "Task1")
    words = ("--checkpoint", folder, "--base", world / "llava", "--out", tmp_path / "run")
    refused("import", "smolora", *words, says=("--clip",))
    refused("import", "lora", *words, "--slots", "3", says=("--slots is of HiDe",))
    refused("import", "lora", "--checkpoint", tmp_path, *words[2:], says=("no adapter_config.json",))
    refused("import", "lora", *words[:2], "--base", GOLDEN / "base", *words[4:], says=("--clip",))
    refused("import", "lora", *words[:2], "--base", world / "clip", *words[4:], says=("of type 'clip", "no backbone is for"))


def test_a_mixture_that_is_told_the_task_has_no_export(world: Path, tmp_path: Path) -> None:
    assert imported("smolora", foreign.smolora(world / "llava").write(tmp_path / "Task1"), world, tmp_path / "run").code == 0
    for to in ("hf", "peft", "vllm"):
        refused("export", tmp_path / "run", "--stage", "1", "--to", to, "--output", tmp_path / "out",
                says=("is told the task of each question and weighs its adapters by it", "hide-llava predict"))  # fmt: skip
    assert not (tmp_path / "out").exists()
