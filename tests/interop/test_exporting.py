"""An exported stage, loaded by transformers and peft alone, answers as the run does: the same greedy ids, in fp32."""

import importlib.util
import json
import os
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from hide_llava.adapters import peft_folder
from hide_llava.adapters.route import Route
from hide_llava.errors import UserError
from hide_llava.interop import hub, proof
from hide_llava.interop.export import export
from hide_llava.interop.export_vllm import RANKS
from hide_llava.interop.exporting import called
from hide_llava.interop.model_card import licence_of
from hide_llava.training.run import Run
from hide_llava.training.session import Session
from tests.cli.call import call, content, refused
from tests.interop.worlds import KINDS, STAGE, about, answers, asked, exported, generated, trained
from tests.tiny import write_world, write_world_of

OTHERS_NIGHTLY = [pytest.param(kind, marks=[] if kind == "llava" else pytest.mark.nightly) for kind in KINDS]


def plain(folder: Path) -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


# ----------------------------------------------------------------------------------------------------------- whole folders


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_model_answers_as_the_run(kind: str, runs: dict, worlds: dict, shared: Callable) -> None:
    run, out = runs[f"lora-{kind}"], shared(f"lora-{kind}", "hf")
    family, samples = asked(run, worlds[kind])
    assert generated(plain(out), family, samples) == answers(run)
    assert set(content(out)) - {"export.json", "README.md"} == set(about(out)["files"])
    stage = json.loads((run / "stages" / STAGE / "stage.json").read_text())
    assert about(out)["weights_sha256"] == stage["chain"]
    assert generated(run_code(out, "hf").model, family, samples[:1]) == answers(run)[:1]


def run_code(out: Path, name: str) -> ModuleType:
    """What the Python of an export's README makes, run as it is printed."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (out / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    file, before = out.parent / f"{name}.py", Path.cwd()
    file.write_text(code)
    os.chdir(out.parent.parent)  # where the export was called
    try:
        return module_of(file)
    finally:
        os.chdir(before)


def module_of(file: Path) -> ModuleType:
    place = importlib.util.spec_from_file_location(f"written_{file.stem}", file)
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def test_the_plain_processor_reads_as_the_run(runs: dict, worlds: dict, shared: Callable) -> None:
    """The same ids and the same pixels from an image file and a question, by AutoProcessor and the chat template."""
    out = shared("lora-llava", "hf")
    processor, model = AutoProcessor.from_pretrained(out), plain(out)
    family, samples = asked(runs["lora-llava"], worlds["llava"])
    rows = json.loads((worlds["llava"] / "data" / "task1" / "test.json").read_text())
    for row, sample in zip(rows[:3], samples):
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["text"]}]}]
        picture = Image.open(worlds["llava"] / "data" / row["image"]).convert("RGB")
        made = processor(text=processor.apply_chat_template(chat, add_generation_prompt=True), images=picture,
                         return_tensors="pt")  # fmt: skip
        ours = family.plain(sample, model)
        assert torch.equal(made["input_ids"], ours["input_ids"]) and torch.equal(made["pixel_values"], ours["pixel_values"])


def test_a_variant_that_folds_all_layers(runs: dict, worlds: dict, tmp_path: Path) -> None:
    """What the refusal of a routed run says to do instead."""
    run = Path(shutil.copytree(runs["hide-llava"], tmp_path / "run"))
    says = refused("export", run, "--stage", "2", "--to", "hf", "--output", tmp_path / "out",
                   says=("for every sample", "--to peft", "method.expanded_layers=[]"))  # fmt: skip
    assert not (tmp_path / "out").exists() and f"{run}/variants/expanded_layers=[]" in says
    assert call("eval", run, "method.expanded_layers=[]").code == 0
    variant = run / "variants" / "expanded_layers=[]"
    exported(variant, "hf", tmp_path / "out")
    family, samples = asked(variant, worlds["llava"])
    assert generated(plain(tmp_path / "out"), family, samples) == answers(variant)


@pytest.mark.nightly
def test_an_image_budget_is_written(worlds: dict, tmp_path: Path) -> None:
    """A model that was trained on smaller pictures reads smaller pictures."""
    run = trained(worlds["qwen2_5_vl"], "lora", tmp_path / "run", "model.image.max_pixels=3200", "tasks=[task0]")
    assert call("export", run, "--stage", "1", "--to", "hf", "--output", tmp_path / "out").code == 0
    settings = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    source = json.loads((worlds["qwen2_5_vl"] / "qwen2_5_vl" / "preprocessor_config.json").read_text())
    assert settings["size"]["longest_edge"] < source["size"]["longest_edge"]
    assert settings["image_processor_type"] == source["image_processor_type"]


# ---------------------------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_answers_in_plain_peft(kind: str, runs: dict, worlds: dict, shared: Callable) -> None:
    """By the lines of its README; the file is the stage's own."""
    run, out = runs[f"lora-{kind}"], shared(f"lora-{kind}", "peft")
    stage = run / "stages" / STAGE / "adapter" / "adapter_model.safetensors"
    assert (out / "adapter_model.safetensors").read_bytes() == stage.read_bytes()
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == about(out)["base"]
    made = run_code(out, "peft")
    assert isinstance(made.model, PeftModel)
    family, samples = asked(run, worlds[kind])
    assert generated(made.base, family, samples, made.model) == answers(run)


@pytest.mark.nightly
def test_experts_that_are_summed_become_one_adapter(worlds: dict, tmp_path: Path) -> None:
    run = trained(worlds["llava"], "olora", tmp_path / "run", "method.rank=4", "method.alpha=8")
    exported(run, "peft", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 8 == config["lora_alpha"]


@pytest.mark.nightly
def test_an_expert_for_each_task(worlds: dict, tmp_path: Path) -> None:
    """`individual`, whose experts have projectors of their own: each answers its own task."""
    run = trained(worlds["llava"], "individual", tmp_path / "run")
    exported(run, "peft", tmp_path / "out")
    assert list(about(tmp_path / "out")["prompts"]) == ["expert-01", "expert-02"]
    base = plain(tmp_path / "out" / "base")
    folder = tmp_path / "out" / "experts" / "expert-02"
    base.load_state_dict(load_file(folder / "projector.safetensors"), strict=False)
    model = PeftModel.from_pretrained(base, str(folder))
    family, samples = asked(run, worlds["llava"])
    assert generated(base, family, samples, model) == answers(run)
    refused("export", run, "--stage", "2", "--to", "vllm", "--output", tmp_path / "v", says=("a projector of its own",))
    refused("export", run, "--stage", "2", "--to", "hf", "--output", tmp_path / "h", says=("told the task",))


@pytest.mark.parametrize("kind", OTHERS_NIGHTLY)
def test_the_loader_routes_as_hide(kind: str, runs: dict, worlds: dict, shared: Callable) -> None:
    """Weights, greedy ids and, of LLaVA-1.5, the text from a file; an expert alone is plain peft's too."""
    run, world, out = runs[f"hide-{kind}"], worlds[kind], shared(f"hide-{kind}", "peft")
    assert "hide_llava" not in (out / "load.py").read_text()
    model = module_of(out / "load.py").load(out)
    family, samples = asked(run, world)
    rows = [json.loads(row) for row in (run / "eval" / STAGE / "task1" / "predictions.jsonl").read_text().splitlines()]
    questions = json.loads((world / "data" / "task1" / "test.json").read_text())
    for sample, row, question in zip(samples, rows, questions):
        pictures = [Image.open(world / "data" / question["image"]).convert("RGB")] if "image" in question else []
        inputs = family.plain(sample, model.base)
        model.w = model.route([question["text"]], inputs.get("pixel_values"), pictures)
        assert model.w[0].tolist() == pytest.approx(list(row["routing"].values()), abs=2e-5)
        assert generated(model.base, family, [sample], model.model) == [row["token_ids"]]
    if kind == "llava":
        assert model.answer(world / "data" / questions[0]["image"], questions[0]["text"], 6) == rows[0]["text"]
    session = Session(Run.at(run))
    session.restore(1)
    session.routed.eval()
    sample = proof.samples(session, "pad")[0]
    with session.core.routed(Route(["expert-01"])), torch.no_grad():
        batch = proof.batch_of(session, sample)
        vision = session.backbone.see(batch)
        ours = session.backbone.run(session.backbone.ready(batch, vision, {}, None, None, False)).logits[0]
    base = plain(out / "base" if (out / "base").is_dir() else world / kind)
    base.load_state_dict(load_file(out / "projector.safetensors"), strict=False)
    expert = PeftModel.from_pretrained(base, str(out / "experts" / "expert-01"))
    theirs = proof.of_plain(base, family, [sample], expert)[0][:, : ours.shape[1]]
    torch.testing.assert_close(theirs, ours.float(), atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------------------------------------------------------- vLLM


def written_as(out: Path) -> str:
    """The folder as its README calls it: as it was given on the command line."""
    return f"exports/{out.name}" if out.parent.name == "exports" else str(out)


def in_vllm(key: str) -> str:
    """The name that vLLM gives the module of a tensor: the prefix off, then as it names the base's weights."""
    return key.removeprefix("base_model.model.").split(".lora_")[0].replace("model.language_model.", "language_model.model.", 1)


@pytest.mark.parametrize("kind", OTHERS_NIGHTLY)
def test_what_vllm_takes(kind: str, shared: Callable) -> None:
    """A base with projector and fused layers, an adapter of the last layer for each expert, names and ranks that it knows."""
    out = shared(f"hide-{kind}", "vllm")
    assert about(out)["modules"] == {"expert-01": 7, "expert-02": 7}
    depth = 2 if kind == "llava" else 3
    for name in ("expert-01", "expert-02"):
        keys = load_file(out / "adapters" / name / "adapter_model.safetensors")
        modules = {in_vllm(key) for key in keys}
        assert {m.rpartition(".")[0] for m in modules} == {
            f"language_model.model.layers.{depth - 1}.{b}" for b in ("self_attn", "mlp")}  # fmt: skip
        config = json.loads((out / "adapters" / name / "adapter_config.json").read_text())
        assert config["bias"] == "none" and not config["use_dora"] and config["modules_to_save"] is None
    text = (out / "README.md").read_text()
    assert f"vllm serve {written_as(out)}/base --enable-lora --max-lora-rank 8 --max-loras 2 --lora-modules expert-01=" in text
    assert "vLLM itself was not run" in text and 8 in RANKS


@pytest.mark.nightly
def test_one_adapter_for_vllm(runs: dict, worlds: dict, tmp_path: Path) -> None:
    exported(runs["lora-llava"], "vllm", tmp_path / "out")
    base = plain(tmp_path / "out" / "base")
    model = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapters" / "lora"))
    family, samples = asked(runs["lora-llava"], worlds["llava"])
    assert generated(base, family, samples, model) == answers(runs["lora-llava"])


# ---------------------------------------------------------------------------------------------------------------- refusals


def test_another_number_format(runs: dict, tmp_path: Path) -> None:
    """In bf16 the tiny run's large updates are held by the weights, or its refusal says what to do."""
    words = ("export", runs["lora-llava"], "--stage", "2", "--to", "hf", "--output", tmp_path / "out", "--dtype", "bfloat16")
    called = call(*words)
    assert called.code == 0, called.err
    assert about(tmp_path / "out")["dtype"] == "bfloat16" == json.loads((tmp_path / "out" / "config.json").read_text())["dtype"]
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_what_cannot_be_exported(worlds: dict, runs: dict, tmp_path: Path) -> None:
    run = trained(worlds["llava"], "moelora", tmp_path / "run", "method.rank=8", "method.experts=2", "tasks=[task0]")
    words = ("--stage", "1", "--output", tmp_path / "out")
    for to in ("hf", "peft", "vllm"):
        refused("export", run, "--to", to, *words, says=("moelora", "hide-llava predict"))
    lora = Path(shutil.copytree(runs["lora-llava"], tmp_path / "lora"))
    refused("export", lora, "--to", "hf", "--stage", "7", "--output", tmp_path / "out", says=("stages 1 to 2",))
    config = lora / "config.yaml"
    config.write_text(config.read_text().replace("quantization: none", "quantization: 4bit"))
    refused("export", lora, "--to", "hf", *words, says=("4bit", "no plain folder holds"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    refused("export", lora, "--to", "hf", "--stage", "1", "--output", tmp_path / "full", says=("not an empty folder",))
    under = tmp_path / "full" / "mine.txt" / "out"
    words = ("export", runs["lora-llava"], "--to", "hf", "--stage", "1", "--output", under)
    refused(*words, says=("what it would lie in is no folder",))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "lora", "run"]


def test_into_the_folder_where_one_stands(runs: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    called = call("export", runs["lora-llava"], "--to", "peft", "--stage", "2", "--output", ".")
    assert called.code == 0, called.err
    assert (tmp_path / "here" / "export.json").is_file() and [p.name for p in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize(
    "method, to",
    [("lora", "peft"), *(pytest.param(*one, marks=pytest.mark.nightly) for one in
     (("lora", "hf"), ("lora", "vllm"), ("hide", "peft"), ("hide", "vllm")))],
)  # fmt: skip
def test_one_model_at_a_time_in_full_precision(
    method: str, to: str, runs: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written is loaded when the run's model is gone, and compared without TF32, which rounds the two differently."""
    alive: list[weakref.ref] = []
    precisions, load, begin = set(), AutoModelForImageTextToText.from_pretrained, Session.__init__

    def begun(self: Session, *args: object, **named: object) -> None:
        begin(self, *args, **named)
        alive.append(weakref.ref(self.core.llava))

    def loads(*args: object, **named: object) -> torch.nn.Module:
        assert [found for found in alive if found() is not None] == []
        precisions.add(torch.get_float32_matmul_precision())
        made = load(*args, **named)
        alive.append(weakref.ref(made[0] if isinstance(made, tuple) else made))
        return made

    run = runs[f"{method}-llava"]
    monkeypatch.setattr(Session, "__init__", begun)
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", loads)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        export(run, 2, to, tmp_path / "out")
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(alive) > 1 and precisions == {"highest"}


@pytest.mark.nightly
def test_fewer_slots_than_experts_and_pictures_described_elsewhere(tmp_path: Path) -> None:
    """Experts beyond the slots have no weight; the picture's settings are where transformers saves them today."""
    world = write_world(tmp_path / "world", 4)
    folder = world / "llava"
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    stored = json.loads(file.read_text()) if (file := folder / "processor_config.json").is_file() else {}
    file.write_text(json.dumps({**stored, "image_processor": settings}))
    (folder / "preprocessor_config.json").unlink()
    run = trained(world, "hide", tmp_path / "run", "method.routing=softmax_all", "method.slots=1")
    exported(run, "peft", tmp_path / "out")
    assert about(tmp_path / "out")["prompts"]["load.py"]


@pytest.mark.nightly
def test_a_model_in_tiles_with_a_budget(tmp_path: Path) -> None:
    """As adapters: its base is given the grids that the budget left, and the loader asks with the run's own ids."""
    world = write_world_of("llava_next", tmp_path / "world", 4)
    file = world / "llava_next" / "processor_config.json"  # which says of published models what an adapter's folder is read by
    stored = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**stored, "processor_class": "LlavaNextProcessor"}))
    run = trained(world, "hide", tmp_path / "run", "model.image.max_tiles=2", "tasks=[task0]")
    assert call("export", run, "--stage", "1", "--to", "peft", "--output", tmp_path / "out").code == 0
    model = module_of(tmp_path / "out" / "load.py").load(tmp_path / "out")
    rows = [json.loads(row) for row in (run / "eval/01-task0/task0/predictions.jsonl").read_text().splitlines()]
    questions = json.loads((world / "data" / "task0" / "test.json").read_text())
    seen = [(q, row) for q, row in zip(questions, rows) if "image" in q]
    assert [model.answer(world / "data" / q["image"], q["text"], 6) for q, _ in seen] == [row["text"] for _, row in seen]
    lora = trained(world, "lora", tmp_path / "lora", "model.image.max_tiles=2", "tasks=[task0]")
    assert call("export", lora, "--stage", "1", "--to", "peft", "--output", tmp_path / "adapter").code == 0
    assert "base.config.image_grid_pinpoints = [[" in (tmp_path / "adapter" / "README.md").read_text()
    paligemma = write_world_of("paligemma", tmp_path / "paligemma", 4)
    without = trained(paligemma, "hide", tmp_path / "without", "tasks=[task0]")
    refused("export", without, "--stage", "1", "--to", "peft", "--output", tmp_path / "none", says=("no chat template",))


def test_an_export_that_does_nothing_is_refused() -> None:
    """And one whose logits are others, or no numbers."""
    ours, other = torch.randn(5, 8), torch.randn(5, 8)
    twice = lambda t: [t, t]  # noqa: E731
    assert len(proof.compared(twice(ours), twice(ours + 1e-6), twice(other), torch.float32, "it")) == 2
    with pytest.raises(UserError, match="base model's"):
        proof.compared(twice(ours), twice(ours), twice(ours), torch.float32, "it")
    with pytest.raises(UserError, match="base model's"):
        proof.compared(twice(ours), twice(ours + 1e-5), twice(ours + 1e-5), torch.float32, "it")
    with pytest.raises(UserError, match="away from the run's"):
        proof.compared(twice(ours), twice(other), twice(other), torch.float32, "it")
    with pytest.raises(UserError, match="away from the run's"):
        proof.compared(twice(ours), twice(ours * torch.nan), twice(other), torch.float32, "it")


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_a_failed_proof_leaves_nothing(runs: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another program would load in silence: an adapter whose names belong to nothing."""

    def misnamed(peft: PeftModel, name: str, folder: Path) -> None:
        write(peft, name, folder)
        file = folder / "adapter_model.safetensors"
        save_file({k.replace("language_model", "text_model"): v for k, v in load_file(file).items()}, file)

    trained, write = runs["lora-qwen2_5_vl"], peft_folder.write  # trained before anything is misnamed
    monkeypatch.setattr(peft_folder, "write", misnamed)
    with pytest.raises(UserError, match="belong to no linear"):
        export(trained, 2, "peft", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------------------- hub


class Hub:
    """Records what it is asked, as `HfApi`."""

    calls: list[tuple] = []

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repo, private, exist_ok))

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> str:
        self.calls.append(("upload", repo_id, sorted(p.name for p in folder_path.iterdir())))
        return f"https://huggingface.co/{repo_id}/commit/1"


def test_push_and_card(runs: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only with a token, to a private repository, everything that was written; without one nothing is begun.

    The card has results, provenance and the base's licence, where that states one.
    """
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    words = ("export", runs["lora-qwen2_5_vl"], "--stage", "2", "--to", "peft", "--output", tmp_path / "out", "--push")
    refused(*words, "me/mine", says=("no token", "hf auth login"))
    refused(*words, "mine", says=("OWNER/NAME",))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "stub")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    called = call(*words, "me/mine", "--base", "Qwen/Qwen2.5-VL-3B-Instruct")
    assert called.code == 0 and "pushed: https://huggingface.co/me/mine/commit/1" in called.out
    (create, upload) = Hub.calls
    assert create == ("create", "me/mine", True, True) and "README.md" in upload[2] and "adapter_model.safetensors" in upload[2]
    monkeypatch.setattr(Hub, "create_repo", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match="finished in"):
        hub.push(tmp_path / "out", "me/mine")
    text, config = ((tmp_path / "out" / name).read_text() for name in ("README.md", "adapter_config.json"))
    assert text.startswith("---\nbase_model: Qwen/Qwen2.5-VL-3B-Instruct\n") and "2. Task 1" in text
    assert "states no licence" in text and about(tmp_path / "out")["weights_sha256"] in text
    assert json.loads(config)["base_model_name_or_path"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    (tmp_path / "README.md").write_text("---\nlicense: llama2\ntags: []\n---\n# A model\n")
    assert licence_of(tmp_path) == "llama2" and licence_of(tmp_path / "nowhere") is None


def test_what_others_load_a_model_by(tmp_path: Path) -> None:
    """A name on the hub stays one; a model of the package, and one below model_root, is a folder that others find."""
    (tmp_path / "models" / "clip").mkdir(parents=True)
    run = SimpleNamespace(model_root=tmp_path / "models")
    assert called(run, "openai/clip-vit-large-patch14-336") == "openai/clip-vit-large-patch14-336"
    assert called(run, "clip") == str(tmp_path / "models" / "clip")
    assert (Path(called(run, "package:assets/mini/clip")) / "config.json").is_file()
