"""Loading a LLaVA: where it may lie, how it is held, and what is refused before any work starts."""

import json
import shutil
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, LlavaForConditionalGeneration

from hide_llava.backbones import auto
from hide_llava.backbones import loading as module
from hide_llava.backbones.auto import bare, class_of, families, family_in, family_of, load, reader_of
from hide_llava.backbones.base import Backbone
from hide_llava.backbones.llava15 import Llava15
from hide_llava.backbones.loading import resolve
from hide_llava.errors import UserError
from hide_llava.schema import ModelConfig
from tests.golden_reference import GOLDEN
from tests.tiny import configuration


def config(world: Path, *more: str) -> tuple[ModelConfig, Path]:
    """The section `model` and the folder that models lie under."""
    whole = configuration(world, "lora", world / "run", *more)
    return whole.model, whole.model_folder()


@pytest.fixture(scope="module")
def loaded(world: Path) -> Backbone:
    return load(*config(world))


@pytest.fixture
def spoiled(world: Path, tmp_path: Path) -> Path:
    """A copy of the model folder that a test may spoil."""
    return shutil.copytree(world / "llava", tmp_path / "llava")


# ------------------------------------------------------------------------------------------------------------- what


def test_hugging_face_folder(loaded: Backbone, world: Path) -> None:
    stored = load_file(world / "llava" / "model.safetensors")
    state = loaded.model.state_dict()
    for key in state:
        if "embed_tokens" not in key and "lm_head" not in key:
            short = [k for k in stored if k.endswith(key.split("language_model.")[-1].removeprefix("model."))]
            assert any(torch.equal(stored[k], state[key]) for k in short), key
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.image_positions == 4 and loaded.clip == world / "clip" and loaded.preprocessor == world / "llava"
    assert loaded.model.dtype == torch.float32 and loaded.model.device.type == "cpu"


def test_image_and_padding_rows_are_dropped(loaded: Backbone, world: Path, spoiled: Path) -> None:
    """No answer can contain them and no loss is spread over them; what is kept is unchanged."""
    whole = LlavaForConditionalGeneration.from_pretrained(world / "llava").eval()
    size = len(loaded.tokenizer)
    whole.resize_token_embeddings(size + 64)  # as llava-hf has it: <image>, <pad> and filling
    whole.save_pretrained(spoiled)
    ours = load(*config(world, f"model.path={spoiled}")).model
    for get in ("get_input_embeddings", "get_output_embeddings"):
        kept, stored = (getattr(m, get)().weight for m in (ours, whole))
        assert kept.shape[0] == size and stored.shape[0] == size + 64 and torch.equal(kept, stored[:size])
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        few, many = ours(input_ids=ids).logits, whole(input_ids=ids).logits
    assert few.shape[-1] == size and many.shape[-1] == size + 64
    torch.testing.assert_close(few, many[..., :size], atol=1e-5, rtol=1e-5)
    assert ours.generation_config.eos_token_id == loaded.tokenizer.eos_token_id == 2


def test_pixels_are_the_towers(loaded: Backbone) -> None:
    from PIL import Image

    pixels = loaded.reader().pixels([Image.new("RGB", (40, 20))])
    assert list(pixels) == ["pixel_values"] and pixels["pixel_values"].shape == (1, 3, 28, 28)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, world: Path) -> None:
    model = load(*config(world, f"model.dtype={dtype}")).model
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("name, expected", [("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")])
def test_attention(name: str, expected: str, world: Path, loaded: Backbone) -> None:
    model = load(*config(world, f"model.attention={name}")).model
    language = model.model.language_model.config._attn_implementation
    assert language == expected
    ids = torch.tensor([[1, 5, 9, 30]])
    with torch.no_grad():
        ours, theirs = model(input_ids=ids).logits, loaded.model(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_flash_attention_where_it_is_missing(world: Path) -> None:
    if module.is_flash_attn_2_available():
        pytest.skip("flash attention is installed here")
    with pytest.raises(UserError, match=r"^model\.attention=flash: "):
        load(*config(world, "model.attention=flash"))


def test_auto_attention_takes_flash_where_it_fits(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_flash_attn_2_available", lambda: True)
    assert module.attention_of(config(world, "model.dtype=bfloat16")[0]) == "sdpa"  # installed, but on a CPU
    monkeypatch.setattr(module, "_runs_flash", lambda device: True)
    assert module.attention_of(config(world, "model.dtype=bfloat16")[0]) == "flash_attention_2"
    assert module.attention_of(config(world, "model.dtype=float32")[0]) == "sdpa"  # flash has no fp32 kernels


# ------------------------------------------------------------------------------------------------------------- where


def test_names_resolve_to_folders(world: Path) -> None:
    assert resolve(None, world) is None
    assert resolve("llava", world) == world / "llava"  # below model_root
    assert resolve(str(world / "clip"), Path("elsewhere")) == world / "clip"
    inside = resolve("package:assets/mini/llava", world)
    assert inside == Path(module.__file__).parent.parent / "assets" / "mini" / "llava"
    with pytest.raises(UserError, match=r"model 'nothing': no such folder.*HIDE_MODELS"):
        resolve("nothing", world)


def test_the_packages_own_model(world: Path) -> None:
    if not (resolve("package:assets/mini/llava", world) / "config.json").is_file():
        pytest.skip("the mini model has not been built in this checkout")
    mini = load(*config(world, "model.path=package:assets/mini/llava", "model.clip=package:assets/mini/clip"))
    assert mini.image_positions == 16 and len(mini.tokenizer) == mini.model.get_input_embeddings().num_embeddings


def test_a_hub_id_without_a_hub(world: Path) -> None:
    """Offline (as the tests run): one sentence, at once, that names the other ways."""
    start = time.monotonic()
    with pytest.raises(UserError, match=r"some-user/some-model.*hub does not answer.*model_root / HIDE_MODELS"):
        load(*config(world, "model.path=some-user/some-model"))
    assert time.monotonic() - start < 10


# ------------------------------------------------------------------------------------------------------------- refused


def test_not_a_model_folder(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load(*config(world, f"model.path={tmp_path}"))


def test_another_architecture(world: Path, spoiled: Path) -> None:
    with pytest.raises(UserError, match=r"clip: holds a model of type 'clip', which no backbone is for\. Known: .*llava"):
        load(*config(world, f"model.path={world}/clip"))
    described = json.loads((spoiled / "config.json").read_text())
    (spoiled / "config.json").write_text(json.dumps({**described, "architectures": ["CLIPModel"]}))
    with pytest.raises(UserError, match="holds CLIPModel, expected LlavaForConditionalGeneration"):
        load(*config(world, f"model.path={spoiled}"))
    (spoiled / "config.json").write_text(json.dumps({k: v for k, v in described.items() if k != "architectures"}))
    with pytest.raises(UserError, match="a model of unknown kind"):
        load(*config(world, f"model.path={spoiled}"))


def test_the_family_is_told_by_the_type(world: Path, tmp_path: Path) -> None:
    """Before anything is loaded, in both formats; a model that is not on this machine has none, and nothing is downloaded."""
    assert family_in(world / "llava") is family_in(GOLDEN / "base") is Llava15
    assert family_of(config(world)[0], world) is Llava15
    assert family_of(config(world, "model.path=some-user/some-model")[0], world) is None
    for content in ({}, {"model_type": "llava_nothing"}, {"model_type": "llamas"}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"of type '{content.get('model_type', '')}', which no backbone"):
            family_in(tmp_path)
    assert class_of("nothing") is None and "llava" in families()


def test_a_package_may_bring_a_family(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Llava15):
        pass

    entry = EntryPoint("own", f"{__name__}:Own", auto.GROUP)
    monkeypatch.setattr(auto, "announced", lambda group: [entry] if group == auto.GROUP else [])
    monkeypatch.setattr(sys.modules[__name__], "Own", Own, raising=False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own"}))
    assert family_in(tmp_path) is class_of("own") is Own and families() == sorted({"own", *auto.FAMILIES})


def test_a_bare_model_has_a_backbone(loaded: Backbone, world: Path) -> None:
    made = bare(loaded.model)
    assert type(made) is Llava15 and made.model is loaded.model and made.tokenizer is None and made.clip is None
    with pytest.raises(UserError, match="a model of type 'clip': no backbone is for it"):
        bare(CLIPModel.from_pretrained(world / "clip"))


def test_a_reader_without_weights_reads_alike(loaded: Backbone, world: Path) -> None:
    without = reader_of(world / "llava", None)
    assert without.settings() == loaded.reader().settings() and not without.several and not without.by_size
    for images in ((), [(40, 20)]):
        assert without.question("What is it?", images) == loaded.reader().question("What is it?", images)
    read = without.question("What is it?", [(40, 20)])
    (start, stop) = read.spans[0]
    assert read.ids[start:stop] == [without.image_id] * 4 and read.ids.count(without.image_id) == 4 and read.types == {}


def test_missing_weights_are_not_drawn_at_random(world: Path, spoiled: Path) -> None:
    file = spoiled / "model.safetensors"
    state = load_file(file)
    key = next(k for k in state if k.endswith("layers.0.self_attn.q_proj.weight") and "vision" not in k)
    save_file({k: v for k, v in state.items() if k != key}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"weights are missing, first: .*q_proj"):
        load(*config(world, f"model.path={spoiled}"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot be loaded as LLaVA-1\.5"):
        load(*config(world, f"model.path={spoiled}"))


def test_original_format_needs_its_clip(world: Path) -> None:
    with pytest.raises(UserError, match=r"needs model\.clip"):
        load(*config(world, f"model.path={GOLDEN}/base", "model.clip=null"))
    with pytest.raises(UserError, match=r"model\.projector=nothing\.bin: no such file"):
        load(*config(world, f"model.path={GOLDEN}/base", f"model.clip={GOLDEN}/clip", "model.projector=nothing.bin"))


def test_unknown_device(world: Path) -> None:
    with pytest.raises(UserError, match=r"model\.device=toaster"):
        load(*config(world, "model.device=toaster"))


def test_greedy_whatever_the_folder_says(world: Path, spoiled: Path) -> None:
    """A published folder's generation_config.json may penalise repetitions, forbid words or end after a time."""
    (spoiled / "generation_config.json").write_text(json.dumps({
        "repetition_penalty": 1.5, "bad_words_ids": [[5]], "suppress_tokens": [7], "max_time": 1e-6, "do_sample": True,
        "temperature": 0.2, "num_beams": 3, "stop_strings": ["a"], "prompt_lookup_num_tokens": 2}))  # fmt: skip
    ours, plain = load(*config(world, f"model.path={spoiled}")).model, load(*config(world)).model
    assert ours.generation_config.to_diff_dict() == plain.generation_config.to_diff_dict()
    embeds = plain.get_input_embeddings()(torch.tensor([[1, 5, 9, 30, 7]]))
    one, two = (m.generate(inputs_embeds=embeds, max_new_tokens=8, do_sample=False, num_beams=1) for m in (ours, plain))
    assert torch.equal(one, two)
