"""The processor of every kind of model: for pictures only, from folders as they are published, within a budget."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, ProcessorMixin

from hide_llava.backbones.processors import load_processor, match_grids, stop_ids, template_options
from hide_llava.config import compose
from hide_llava.errors import UserError
from hide_llava.schema import ImageConfig
from tests.zoo import KINDS, write

Zoo = Callable[[str], Path]  # from a kind to its folder
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
SIZES = [(60, 40), (30, 70), (28, 28), (17, 90), (300, 280), (5, 9)]  # width, height
# What a processor returns beside ids: the kind of each token by its place in a picture, or in an answer.
TYPES = {**dict.fromkeys(QWEN, "mm_token_type_ids"), "gemma3": "token_type_ids", "paligemma": "token_type_ids"}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """The folder of a kind, written when it is first asked for."""
    root = tmp_path_factory.mktemp("zoo")
    return lambda kind: root / kind if (root / kind).is_dir() else write(kind, root / kind)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def processor(kind: str, zoo: Zoo) -> ProcessorMixin:
    return load_processor(zoo(kind))


@pytest.fixture
def spoiled(zoo: Zoo, tmp_path: Path) -> Zoo:
    """A copy of a kind's folder that a test may spoil."""
    return lambda kind: shutil.copytree(zoo(kind), tmp_path / kind)


def picture(width: int, height: int, seed: int | None = 0) -> Image.Image:
    """Noise, or a blank one without a seed."""
    if seed is None:
        return Image.new("RGB", (width, height), "white")
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def message(role: str, text: str, pictures: int = 0) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image"}] * pictures + [{"type": "text", "text": text}]}


def prompt(processor: Any, pictures: int) -> str:
    if processor.chat_template is None:
        return processor.image_token * pictures + "How many cells are there?"
    messages = [message("user", "How many cells are there?", pictures)]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def special(processor: Any, text: str) -> dict[str, bool]:
    """A text that begins with what its tokenizer would add must not get it twice."""
    bos = processor.tokenizer.bos_token
    return {"add_special_tokens": bos is None or not text.startswith(bos)}


def read(processor: Any, pictures: list[Image.Image], **more: Any) -> Any:
    text = prompt(processor, len(pictures))
    return processor(text=[text], images=[pictures] if pictures else None, **special(processor, text), **more)


def expansions(processor: Any, *pictures: Image.Image) -> list[str]:
    """What each placeholder becomes."""
    read_ = read(processor, list(pictures), return_text_replacement_offsets=True)
    return [one["replacement"] for one in read_["text_replacement_offsets"][0]]


def change(file: Path, **settings: Any) -> None:
    """Change settings of a JSON file; one that is None is taken out."""
    stored = {**(json.loads(file.read_text()) if file.is_file() else {}), **settings}
    file.write_text(json.dumps({name: value for name, value in stored.items() if value is not None}))


# ------------------------------------------------------------------------------------------------------------- every kind


def test_it_is_upstreams_and_prepares_pictures_by_pil(processor: Any, kind: str) -> None:
    home = "hide_llava" if kind == "mistral3" else "transformers"
    assert type(processor).__module__.startswith(f"{home}.")
    assert type(processor.image_processor).__name__.endswith("Pil")
    assert pickle.dumps(processor)  # a DataLoader's workers can be sent it


def test_one_picture_two_pictures_and_none(processor: Any, kind: str) -> None:
    ids = [read(processor, [picture(60, 40, seed) for seed in range(n)])["input_ids"][0] for n in (1, 2)]
    assert len(ids[0]) < len(ids[1]) or kind == "llava_onevision"  # which cuts a picture into tiles if there is but one
    if kind == "paligemma":
        with pytest.raises(ValueError, match="images"):
            read(processor, [])
    else:
        assert len(read(processor, [])["input_ids"][0]) < len(ids[0])


@pytest.mark.parametrize("size", SIZES)
def test_the_size_alone_says_how_many_tokens(processor: Any, size: tuple[int, int]) -> None:
    noise, blank = (expansions(processor, picture(*size, seed)) for seed in (1, None))
    assert noise == blank and len(noise) == 1


def test_sizes_differ(processor: Any, kind: str) -> None:
    found = {expansions(processor, picture(*size))[0] for size in SIZES}
    fixed = kind in ("llava", "paligemma", "gemma3")
    assert len(found) == 1 if fixed else len(found) > 1


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_ids_are_those_of_the_expanded_text(processor: Any, kind: str, pictures: int) -> None:
    if kind == "paligemma" and not pictures:
        pytest.skip("reads no text without a picture")
    text = prompt(processor, pictures)
    images = [[picture(*size) for size in SIZES[:pictures]]] if pictures else None
    found = processor(text=[text], images=images, **special(processor, text), return_text_replacement_offsets=True)
    laid_out, shift = processor.prepare_inputs_layout(text=[text], images=images)[1][0], 0
    expanded = laid_out
    for one in found.get("text_replacement_offsets", [[]])[0]:  # Idefics3 has none where there is no picture
        start, end = (place + shift for place in one["span"])
        expanded = expanded[:start] + one["replacement"] + expanded[end:]
        shift += len(one["replacement"]) - (end - start)
    ids = processor.tokenizer(expanded, **special(processor, text))["input_ids"]
    assert found["input_ids"][0] == ids
    assert {name for name in found if "type_ids" in name} == ({TYPES[kind]} if kind in TYPES else set())
    if kind == "paligemma":
        assert set(found["token_type_ids"][0]) == {0} and ids.count(processor.tokenizer.bos_token_id) == 1
    elif kind in TYPES:
        types = found[TYPES[kind]][0]
        assert types == processor.create_mm_token_type_ids([ids])[0] and bool(sum(types)) == bool(pictures)


def test_the_model_reads_it(processor: Any, kind: str, zoo: Zoo) -> None:
    """As many features as places in the text, of several pictures too; another picture gives other logits."""
    model = AutoModelForImageTextToText.from_pretrained(zoo(kind)).eval()
    assert len(model.get_decoder().layers) == 3
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    last = []
    for seed in (0, 1):
        inputs = read(processor, [picture(60, 40, seed), picture(30, 70, seed)], return_tensors="pt")
        inputs.pop("labels", None)
        with torch.no_grad():
            last.append(model(**inputs).logits[0, -1])
    assert (last[0] - last[1]).abs().max() > 1e-3


def test_a_letter_is_one_token(processor: Any, kind: str) -> None:
    """Twenty-six answers of the same length, that differ in one place; the prompt is how each of them begins."""
    tokenizer = processor.tokenizer
    for space in ("", " "):
        alone = [tokenizer(space + letter, add_special_tokens=False)["input_ids"] for letter in ascii_uppercase]
        assert {len(ids) for ids in alone} == {1} and len({ids[0] for ids in alone}) == 26
    if kind == "paligemma":
        return
    start = prompt(processor, 0)
    start = tokenizer(start, **special(processor, start))["input_ids"]
    answers = []
    for letter in ascii_uppercase:
        chat = [message("user", "How many cells are there?"), message("assistant", letter)]
        text = processor.apply_chat_template(chat, tokenize=False)
        answers.append(tokenizer(text, **special(processor, text))["input_ids"])
    assert all(answer[: len(start)] == start for answer in answers)
    assert [len(set(column)) for column in zip(*answers, strict=True)].count(26) == 1
    assert sum(len(set(column)) > 1 for column in zip(*answers, strict=True)) == 1


def test_a_chat_of_several_turns(processor: Any, kind: str, zoo: Zoo) -> None:
    if kind == "paligemma":
        assert processor.chat_template is None and template_options(processor) == {}
        return
    first = [message("system", "Be brief."), message("user", "What?", 2)]
    chat = [*first, message("assistant", "A"), message("user", "Why?")]
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    parts = ["Be brief.", processor.image_token, "What?", "A", "Why?"]
    places = [text.find(part) for part in parts]
    assert places == sorted(places) and min(places) >= 0 and text.count(processor.image_token) == 2
    ends = stop_ids(zoo(kind), processor.tokenizer)
    answer = processor.apply_chat_template([*chat, message("assistant", "B")], tokenize=False)
    ids = processor.tokenizer(answer[answer.rfind("B") :], add_special_tokens=False)["input_ids"]
    assert ends & set(ids), "the answer is ended by one of them"


# ---------------------------------------------------------------------------------------------------------------- budgets


def tiles(found: Any, kind: str) -> int:
    """How many pieces the one picture is cut into, the small picture of the whole not counted."""
    count = np.shape(found["pixel_values"])[0 if kind in ("internvl", "gemma3") else 1]
    return max(count - 1, 1)


@pytest.mark.parametrize("kind, most", [
    *(("llava_next", n) for n in (2, 3)), *(("llava_onevision", n) for n in (1, 2, 3)),
    *(("internvl", n) for n in (1, 2, 3)), *((kind, n) for kind in ("smolvlm", "idefics3") for n in (1, 4, 8)),
])  # fmt: skip
def test_max_tiles(zoo: Zoo, kind: str, most: int) -> None:
    plain, limited = load_processor(zoo(kind)), load_processor(zoo(kind), ImageConfig(max_tiles=most))
    whole = picture(300, 280)
    assert len(expansions(limited, whole)[0]) < len(expansions(plain, whole)[0])
    for size in SIZES:
        found = tiles(read(limited, [picture(*size)]), kind)
        assert found <= most < tiles(read(plain, [whole]), kind)


def test_gemma_cuts_when_it_may(zoo: Zoo) -> None:
    plain, wide = load_processor(zoo("gemma3")), picture(1300, 270)
    assert expansions(plain, wide) == expansions(plain, picture(9, 9))
    for most in (1, 2, 4):
        limited = load_processor(zoo("gemma3"), ImageConfig(max_tiles=most))
        assert tiles(read(limited, [wide]), "gemma3") == most
        assert expansions(limited, wide)[0].count("<start_of_image>") == (1 if most == 1 else 1 + most)


@pytest.mark.parametrize("kind", [*QWEN, "mistral3"])
def test_max_pixels(zoo: Zoo, kind: str) -> None:
    most = 64 * 64 if kind in QWEN else 30 * 30  # Mistral3's sides are multiples of 14
    plain, limited = load_processor(zoo(kind)), load_processor(zoo(kind), ImageConfig(max_pixels=most))
    whole = picture(300, 280)
    assert len(expansions(limited, whole)[0]) < len(expansions(plain, whole)[0])
    for size in SIZES:
        found = read(limited, [picture(*size)])
        area = np.prod(found["image_grid_thw"]) * limited.image_processor.patch_size**2 if kind in QWEN else 0
        assert max(area, np.prod(found.get("image_sizes", 0))) <= most


@pytest.mark.parametrize("kind", ["llava_next", "internvl", "smolvlm", "qwen3_vl", "mistral3"])
def test_a_budget_never_raises_the_limit(zoo: Zoo, kind: str) -> None:
    field = "max_pixels" if kind in ("qwen3_vl", "mistral3") else "max_tiles"
    plain, limited = load_processor(zoo(kind)), load_processor(zoo(kind), ImageConfig(**{field: 10**8}))
    assert expansions(plain, picture(300, 280)) == expansions(limited, picture(300, 280))


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_the_model_must_know_the_grids(zoo: Zoo, kind: str) -> None:
    limited = load_processor(zoo(kind), ImageConfig(max_tiles=2))
    model = AutoModelForImageTextToText.from_pretrained(zoo(kind)).eval()
    inputs = read(limited, [picture(300, 280)], return_tensors="pt")
    with pytest.raises((ValueError, RuntimeError)):
        model(**inputs)
    match_grids(model.config, limited)
    assert model(**inputs).logits.isfinite().all()
    other = AutoModelForImageTextToText.from_pretrained(zoo("llava")).config
    match_grids(other, limited)
    assert not hasattr(other, "image_grid_pinpoints")


@pytest.mark.parametrize("kind, budget, said", [
    ("llava", {"max_tiles": 2}, ["model.image.max_tiles=2", "all pictures at one size"]),
    ("paligemma", {"max_pixels": 900}, ["model.image.max_pixels=900", "all pictures at one size"]),
    ("qwen3_vl", {"max_tiles": 2}, ["model.image.max_tiles=2", "takes model.image.max_pixels instead"]),
    ("internvl", {"max_pixels": 9}, ["model.image.max_pixels=9", "takes model.image.max_tiles instead"]),
    ("qwen3_vl", {"max_pixels": 900}, ["model.image.max_pixels=900", "at least 4096"]),
    ("mistral3", {"max_pixels": 100}, ["model.image.max_pixels=100", "at least 196"]),
    ("llava_next", {"max_tiles": 1}, ["model.image.max_tiles=1", "at least 2"]),
])  # fmt: skip
def test_a_budget_that_does_not_fit(zoo: Zoo, kind: str, budget: dict[str, int], said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_processor(zoo(kind), ImageConfig(**budget))
    assert all(words in str(caught.value) for words in [*said, str(zoo(kind)), kind])


@pytest.mark.parametrize("field", ["max_pixels", "max_tiles"])
def test_a_budget_of_nothing(field: str) -> None:
    with pytest.raises(UserError, match=f"model.image.{field}"):
        compose(["benchmark=ucit", "model=llava-1.5-7b", "method=lora", f"model.image.{field}=0"])


# ---------------------------------------------------------------------------------------------- folders as they are published


@pytest.mark.parametrize(
    "name", ["Qwen2VLImageProcessorFast", "Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor", None]
)
def test_names_of_image_processors(spoiled: Zoo, zoo: Zoo, name: str | None) -> None:
    folder, whole = spoiled("qwen2_5_vl"), picture(300, 280)
    change(folder / "preprocessor_config.json", image_processor_type=name)
    assert expansions(load_processor(folder), whole) == expansions(load_processor(zoo("qwen2_5_vl")), whole)


def test_settings_within_those_of_the_processor(spoiled: Zoo, processor: Any, kind: str) -> None:
    """As transformers 5 saves them: one file, with names of classes that need torchvision, and a video processor."""
    folder = spoiled(kind)
    image = json.loads((folder / "preprocessor_config.json").read_text())
    image["image_processor_type"] = image["image_processor_type"].removesuffix("Pil") + "Fast"
    video = {"video_processor_type": "AnyVideoProcessor"}
    change(
        folder / "processor_config.json",
        image_processor=image,
        video_processor=video,
        processor_class="Any",
        auto_map={},
    )
    (folder / "preprocessor_config.json").unlink()
    assert expansions(load_processor(folder), picture(300, 280)) == expansions(processor, picture(300, 280))


@pytest.mark.parametrize("place", ["chat_template.json", "tokenizer_config.json", "processor_config.json"])
def test_places_of_a_chat_template(spoiled: Zoo, processor: Any, kind: str, place: str) -> None:
    if kind == "paligemma":
        return
    folder = spoiled(kind)
    template = folder / "chat_template.jinja"
    change(folder / place, chat_template=template.read_text())
    template.unlink()
    assert load_processor(folder).chat_template == processor.chat_template


@pytest.mark.parametrize("inside", [True, False])
def test_limits_of_older_qwen_folders(spoiled: Zoo, inside: bool) -> None:
    folder, bounds = spoiled("qwen2_vl"), {"min_pixels": 784, "max_pixels": 1568}
    change(folder / "preprocessor_config.json", **({"size": bounds} if inside else {"size": None, **bounds}))
    assert expansions(load_processor(folder), picture(300, 280)) == ["<|image_pad|>"]


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision", "mistral3", "paligemma"])
def test_folders_without_settings_of_the_text(spoiled: Zoo, zoo: Zoo, kind: str) -> None:
    """The number of image tokens is the model's."""
    folder = spoiled(kind)
    (folder / "processor_config.json").unlink(missing_ok=True)
    change(folder / "preprocessor_config.json", image_seq_length=None)
    for size in SIZES[:2]:
        assert expansions(load_processor(folder), picture(*size)) == expansions(
            load_processor(zoo(kind)), picture(*size)
        )


def test_pixtral_within_llava(spoiled: Zoo) -> None:
    folder = spoiled("mistral3")
    change(folder / "config.json", model_type="llava")
    change(folder / "processor_config.json", spatial_merge_size=1)
    row = "[IMG]" * 4
    assert expansions(load_processor(folder), picture(28, 14)) == [f"{row}[IMG_BREAK]{row}[IMG_END]"]
    assert load_processor(folder, ImageConfig(max_pixels=200)).image_processor.size.longest_edge == 14


# --------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind, lost, said", [
    ("internvl", ["config.json"], "model.path"), ("internvl", ["tokenizer.json", "tokenizer_config.json"], "no tokenizer"),
    ("internvl", ["preprocessor_config.json"], "preprocessor_config.json"),
    ("mistral3", ["preprocessor_config.json"], "preprocessor_config.json"), ("mistral3", ["tokenizer.json"], "no tokenizer"),
])  # fmt: skip
def test_a_part_is_missing(spoiled: Zoo, kind: str, lost: list[str], said: str) -> None:
    folder = spoiled(kind)
    for name in lost:
        (folder / name).unlink()
    with pytest.raises(UserError, match=said) as caught:
        load_processor(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json"])
def test_a_damaged_file(spoiled: Zoo, name: str) -> None:
    folder = spoiled("internvl")
    (folder / name).write_text("{")
    with pytest.raises(UserError, match=str(folder)):
        load_processor(folder)


def test_an_unknown_type(spoiled: Zoo) -> None:
    folder = spoiled("internvl")
    change(folder / "config.json", model_type="internvl_chat")
    with pytest.raises(UserError, match=r"'internvl_chat'.*known are.*internvl.*-hf"):
        load_processor(folder)


def test_a_tokenizer_of_another_model(spoiled: Zoo, zoo: Zoo) -> None:
    folder = spoiled("internvl")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(zoo("qwen3_vl") / name, folder)
    with pytest.raises(UserError, match="start_image_token"):
        load_processor(folder)


def test_stop_ids(spoiled: Zoo) -> None:
    folder = spoiled("qwen3_vl")
    tokenizer = load_processor(folder).tokenizer
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert stop_ids(folder, tokenizer) == {end}
    change(folder / "generation_config.json", eos_token_id=[end, pad])
    assert stop_ids(folder, tokenizer) == {end, pad}
    (folder / "generation_config.json").unlink()
    change(
        folder / "config.json", eos_token_id=[pad, 300], text_config={"eos_token_id": 301}
    )  # words of its vocabulary
    assert stop_ids(folder, tokenizer) == {end, pad}
    tokenizer.eos_token = None
    change(folder / "config.json", eos_token_id=None)
    with pytest.raises(UserError, match=r"eos_token_id in its generation_config"):
        stop_ids(folder, tokenizer)


THINKS = "{% if add_generation_prompt %}<think>\n{% endif %}"
SWITCH = "{% if add_generation_prompt %}<think>\n{% if enable_thinking is false %}\n</think>\n{% endif %}{% endif %}"
KNOWS = "{% if add_generation_prompt and enable_thinking is false %}<think>\n\n</think>\n{% endif %}"


@pytest.mark.parametrize("kind", ["qwen3_vl", "smolvlm", "mistral3"])
def test_thinking_templates(zoo: Zoo, kind: str) -> None:
    processor = load_processor(zoo(kind))
    plain = processor.chat_template
    for more in (SWITCH, KNOWS):
        processor.chat_template = plain + more
        assert template_options(processor) == {"enable_thinking": False}
    processor.chat_template = plain + THINKS
    with pytest.raises(UserError, match="has no variable enable_thinking"):
        template_options(processor)
    processor.chat_template = plain + THINKS + "{# enable_thinking #}"
    with pytest.raises(UserError, match="even with enable_thinking=False"):
        template_options(processor)
