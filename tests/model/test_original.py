"""Original-format LLaVA folders: read, accounted for, written as a transformers folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from hide_llava.backbones.clip_pixels import ImageTransform
from hide_llava.backbones.llama_tokenizer import load_tokenizer
from hide_llava.backbones.llava15_reader import Llava15Reader
from hide_llava.backbones.original import is_original, load_original, original_config, write_hf
from hide_llava.backbones.vicuna import IMAGE_TOKEN, tokenize_with_image
from hide_llava.data.collator import Collator
from hide_llava.data.dataset import QuestionDataset, TrainingDataset
from hide_llava.data.records import load_questions, load_records
from hide_llava.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden"
BASE, CLIP = GOLDEN / "base", GOLDEN / "clip"


@pytest.fixture(scope="module")
def model():
    return load_original(BASE, CLIP, torch.float32, BASE / "mm_projector.bin")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BASE)


@pytest.fixture(scope="module")
def transform():
    return ImageTransform(CLIP)


@pytest.fixture
def folder(tmp_path):
    """A copy of the base folder that tests may spoil."""
    return shutil.copytree(BASE, tmp_path / "base")


def pixels_of(batch):
    return torch.cat([row["pixel_values"] for row in batch["pixels"] if row is not None])


def forward(model, batch):
    """Logits with the image spliced in by hand: embeddings, tower, projector."""
    ids = batch["input_ids"]
    places = ids == IMAGE_TOKEN
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids.masked_fill(places, 0))
        tower = model.model.vision_tower(pixels_of(batch), output_hidden_states=True)
        patches = model.model.multi_modal_projector(tower.hidden_states[-2][:, 1:])
        embeds = embeds.masked_scatter(places.unsqueeze(-1), patches)
        return model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits


@pytest.fixture(scope="module")
def batch(tokenizer, transform):
    rows, reader = load_questions(GOLDEN / "data/test.json"), Llava15Reader(tokenizer, 576, transform)
    questions = QuestionDataset(rows, GOLDEN / "data", reader)
    return Collator()([questions[0], questions[1]])


def edit(folder, change, name="config.json"):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_is_original(tmp_path):
    assert is_original(BASE) and not is_original(CLIP) and not is_original(tmp_path)


def test_vocabulary_is_the_text_vocabulary(model):
    assert model.get_input_embeddings().num_embeddings == 512 == model.lm_head.out_features
    assert model.config.image_token_id == 512
    assert model.config.vision_feature_layer == -2
    assert model.config.text_config.rope_parameters["rope_theta"] == 10000.0
    assert not model.training


def test_first_loss_of_the_reference(model, tokenizer, transform, tmp_path):
    """The reference's loss before its first update: train_e3/task0, step 0, where LoRA's B is still zero."""
    records = load_records(GOLDEN / "data/task0.json", GOLDEN / "data", tmp_path)
    dataset = TrainingDataset(records, GOLDEN / "data", Llava15Reader(tokenizer, 576, transform))
    samples = {sample["id"]: sample for sample in dataset}
    batch = Collator()([samples["t0_0"], samples["t0_4"]])
    logits = forward(model, batch)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert loss.item() == pytest.approx(7.528906345367432, abs=1e-5)


def test_projector_file_overrides(model):
    inside = load_original(BASE, CLIP, torch.float32)
    want = load_file(BASE / "model.safetensors")["model.mm_projector.0.weight"]
    assert torch.equal(inside.model.multi_modal_projector.linear_1.weight, want)
    assert not torch.equal(model.model.multi_modal_projector.linear_1.weight, want)


def test_weights_land_where_they_belong(model):
    base, clip = load_file(BASE / "model.safetensors"), load_file(CLIP / "model.safetensors")
    loaded = model.state_dict()
    name = "layers.3.mlp.down_proj.weight"
    assert torch.equal(loaded[f"model.language_model.{name}"], base[f"model.{name}"])
    assert torch.equal(loaded["lm_head.weight"], base["lm_head.weight"])
    name = "encoder.layers.1.self_attn.q_proj.bias"
    assert torch.equal(loaded[f"model.vision_tower.{name}"], clip[f"vision_model.{name}"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype(dtype):
    assert {p.dtype for p in load_original(BASE, CLIP, dtype).parameters()} == {dtype}


def test_config_of_run_e3_differs_in_one_field(folder):
    shutil.copy(GOLDEN / "base_e3/config.json", folder)
    assert load_original(folder, CLIP, torch.float32).config.text_config.vocab_size == 512


def test_rope_settings_are_kept(folder):
    edit(folder, lambda c: c.update(rope_theta=500000.0, rope_scaling={"type": "linear", "factor": 2.0}))
    rope = original_config(folder, CLIP).text_config.rope_parameters
    assert rope["rope_theta"] == 500000.0 and rope["rope_type"] == "linear" and rope["factor"] == 2.0


def test_pickled_shards(folder, model, batch):
    """Weights as pytorch_model-*.bin with an index, and the vision tower inside, as fine-tuned checkpoints have it."""
    weights = load_file(folder / "model.safetensors")
    weights |= torch.load(folder / "mm_projector.bin", weights_only=True)
    for name, tensor in load_file(CLIP / "model.safetensors").items():
        if name.startswith("vision_model."):
            tensor = tensor + 1 if name.endswith("post_layernorm.bias") else tensor
            weights[f"model.vision_tower.vision_tower.{name}"] = tensor
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    files = {"pytorch_model-00001-of-00002.bin": names[:50], "pytorch_model-00002-of-00002.bin": names[50:]}
    for file, part in files.items():
        torch.save({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    loaded = load_original(folder, CLIP, torch.float32)
    assert torch.equal(forward(loaded, batch), forward(model, batch))
    inside, outside = (m.model.vision_tower.post_layernorm.bias for m in (loaded, model))
    assert torch.equal(inside, outside + 1)  # the tower of the checkpoint wins over the one of the CLIP folder

    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"names pytorch_model-00002-of-00002\.bin, which is not there"):
        load_original(folder, CLIP, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), r"missing: lm_head\.weight"),
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), r"missing: .*language_model\.layers\.1\.mlp\.up_proj"),
        (lambda w: w.update({"model.layers.0.extra": torch.ones(1)}), r"unexpected: .*layers\.0\.extra"),
        (lambda w: w.update({"image_anchors.0": torch.ones(1)}), r"unexpected: image_anchors\.0"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(3)}),
            r"wrong shape: .*norm\.weight \(3,\) instead of \(64",
        ),
    ],
)
def test_key_accounting(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(UserError, match=message):
        load_original(folder, CLIP, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(mm_projector_type="linear"), "mm_projector_type is 'linear'"),
        (lambda c: c.update(mm_use_im_start_end=True), "mm_use_im_start_end"),
        (lambda c: c.update(mm_vision_select_feature="slice"), "mm_vision_select_feature"),
        (lambda c: c.update(tie_word_embeddings=True), "tie_word_embeddings"),
        (lambda c: c.update(mm_hidden_size=1024), "width 1024"),
        (lambda c: c.pop("vocab_size"), "vocab_size"),
    ],
)
def test_other_variants_are_refused(folder, change, message):
    edit(folder, change)
    with pytest.raises(UserError, match=message):
        load_original(folder, CLIP, torch.float32)


class Payload:
    def __reduce__(self):
        return print, ("code ran",)


def test_bad_files(folder, tmp_path, capsys):
    with pytest.raises(UserError, match="expected a CLIP model"):
        load_original(folder, BASE, torch.float32)
    with pytest.raises(UserError, match="does not exist"):
        load_original(folder, CLIP, torch.float32, tmp_path / "gone.bin")
    torch.save({"model.mm_projector.0.weight": torch.ones(1), "other": torch.ones(1)}, tmp_path / "other.bin")
    with pytest.raises(UserError, match=r"not a LLaVA-1\.5 projector; it holds other"):
        load_original(folder, CLIP, torch.float32, tmp_path / "other.bin")
    torch.save({"model.mm_projector.0.weight": Payload()}, tmp_path / "evil.bin")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        load_original(folder, CLIP, torch.float32, tmp_path / "evil.bin")
    assert "code ran" not in capsys.readouterr().out
    (folder / "model.safetensors").write_bytes(b"12345678 not weights")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        load_original(folder, CLIP, torch.float32)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        load_original(folder, CLIP, torch.float32)


def test_written_folder(model, tokenizer, batch, tmp_path):
    """Plain upstream classes give the same logits on the text vocabulary, and our loader the same tokenizer."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_hf(model, tokenizer, tmp_path / "hf", CLIP)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.config.text_config.vocab_size == 512

    loaded, info = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    rows = loaded.get_input_embeddings().weight
    assert rows.shape[0] == loaded.lm_head.out_features == 576
    torch.testing.assert_close(rows[512:], rows[:512].mean(0).expand(64, -1))
    assert (loaded.config.image_token_id, loaded.generation_config.pad_token_id) == (512, 513)
    ids = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE_TOKEN, 512)
    with torch.no_grad():
        logits = loaded(ids, pixel_values=pixels_of(batch), attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(logits[..., :512], forward(model, batch), atol=1e-5, rtol=0)

    again = load_tokenizer(tmp_path / "hf")
    assert len(again) == 512
    with pytest.raises(UserError, match="not empty"):
        write_hf(model, tokenizer, tmp_path / "hf", CLIP)


def test_written_processor(model, tokenizer, tmp_path):
    write_hf(model, tokenizer, tmp_path / "hf")
    assert not is_original(tmp_path / "hf")
    assert ImageTransform(tmp_path / "hf").size == (336, 336)
    upstream = AutoProcessor.from_pretrained(tmp_path / "hf").tokenizer
    ids = upstream("USER: <image>\nWhat is it?").input_ids
    want = tokenize_with_image("USER: <image>\nWhat is it?", tokenizer)
    assert [IMAGE_TOKEN if token == 512 else token for token in ids] == want


def test_failed_write_leaves_nothing(model, tokenizer, tmp_path, monkeypatch):
    from hide_llava.backbones import write_hf as module

    monkeypatch.setattr(module, "_image_processor", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_hf(model, tokenizer, tmp_path / "hf")
    assert not list(tmp_path.iterdir())
