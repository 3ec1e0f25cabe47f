"""Tiny random vision-language models of the kinds that transformers has, each in a folder that loads like a published one.

`write(kind, folder)` makes configuration, weights, a tokenizer that is trained here, image processor settings and chat
template. Three decoder layers of width 48, weights from N(0, 0.2²): what a test compares does differ.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedTokenizerFast

TEXT = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.2,
        "tie_word_embeddings": False}  # fmt: skip
# Towers whose last pooling layer no model here reads, for pictures of 28×28 in 16 patches.
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
         "patch_size": 7}  # fmt: skip
SIGLIP = {**TOWER, "model_type": "siglip_vision_model", "vision_use_head": False}
CLIP = {**TOWER, "model_type": "clip_vision_model", "num_hidden_layers": 3, "projection_dim": 24}
SQUARE = {"height": 28, "width": 28}

# --------------------------------------------------------------------------------------------------------- chat templates

# The text of a message, that is a string or a list of pieces; PICTURE is what a template has for a picture.
CONTENT = ("{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for piece in message['content'] %}"
           "{% if piece['type'] == 'image' %}PICTURE{% else %}{{ piece['text'] }}{% endif %}{% endfor %}{% endif %}")  # fmt: skip
DEFAULT_SYSTEM = ("{% if loop.first and message['role'] != 'system' %}"
                  "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}")  # fmt: skip


def chatml(picture: str, first: str = "") -> str:
    """first: what stands before the first message."""
    return ("{% for message in messages %}" + first + "<|im_start|>{{ message['role'] }}\n"
            + CONTENT.replace("PICTURE", picture) + "<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")  # fmt: skip


VISION = "<|vision_start|><|image_pad|><|vision_end|>"
# Like the published ones of these families: a word for the role, the pictures of a message before its text.
SORTED = ("{% for piece in message['content'] if piece['type'] == 'image' %}<image>\n{% endfor %}"
          "{% for piece in message['content'] if piece['type'] == 'text' %}{{ piece['text'] }}{% endfor %}")  # fmt: skip
VICUNA = ("{% for message in messages %}{% if message['role'] == 'system' %}" + SORTED + " "
          "{% elif message['role'] == 'user' %}USER: " + SORTED + " {% else %}ASSISTANT: " + SORTED + "</s>{% endif %}"
          "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}")  # fmt: skip
NEXT = ("{% for message in messages %}{% if message['role'] == 'system' %}<<SYS>>\n" + SORTED + "{{ '\n<</SYS>>\n\n' }}"
        "{% elif message['role'] == 'user' %}[INST] " + SORTED + " [/INST]{% else %} " + SORTED + "</s>{% endif %}"
        "{% endfor %}")  # fmt: skip
MISTRAL = ("{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}[SYSTEM_PROMPT]"
           + CONTENT.replace("PICTURE", "") + "[/SYSTEM_PROMPT]{% elif message['role'] == 'user' %}[INST]"
           + CONTENT.replace("PICTURE", "[IMG]") + "[/INST]{% else %}" + CONTENT.replace("PICTURE", "")
           + "{{ eos_token }}{% endif %}{% endfor %}")  # fmt: skip
SMOL = ("<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
        "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}" + CONTENT.replace("PICTURE", "<image>")
        + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}")  # fmt: skip
# A system message is the beginning of the first question.
GEMMA = ("{{ bos_token }}{% set told = namespace(text='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
         "{% set told.text = message['content'] if message['content'] is string else message['content'][0]['text'] %}"
         "{% set told.text = told.text + '\n\n' %}{% else %}"
         "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n{{ told.text }}"
         "{% set told.text = '' %}" + CONTENT.replace("PICTURE", "<start_of_image>") + "<end_of_turn>\n{% endif %}"
         "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}")  # fmt: skip

# -------------------------------------------------------------------------------------------------------------- tokenizer

CORPUS = [
    "What is the object in the image? How many cells are there? Describe the picture in one sentence.",
    "Answer in a word. Answer the question using a single word or phrase. You are a helpful assistant.",
    "circle square star one two three a red line a blue circle a star user assistant system model human",
    "Which kind of task is this? Answer with the option's letter from the given choices directly.",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers.",
    *[f" {letter}" for letter in ascii_uppercase] * 3,  # each with its space is one token, as it is without
] * 4


def tokenizer(
    special: list[str], template: str | None, bos: str | None = None, eos: str = "<eos>", pad: str = "<pad>",
    adds_bos: bool = True, names: dict[str, str] | None = None,
) -> PreTrainedTokenizerFast:  # fmt: skip
    """A byte-level BPE of 450 tokens. names: attributes that a processor looks for, like image_token, and their tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    words = [word for word in (pad, bos, eos, *special, *(names or {}).values()) if word]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=list(dict.fromkeys(words)), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos and adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad, padding_side="left",
        clean_up_tokenization_spaces=False, extra_special_tokens=names or {},
    )  # fmt: skip
    made.chat_template = template
    return made


# ------------------------------------------------------------------------------------------------------------------ kinds


class Parts(NamedTuple):
    """config, tokenizer and image processor of a model, and what else its processor_config.json says."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast
    image: Any
    settings: dict[str, Any]


def ids(made: PreTrainedTokenizerFast, **tokens: str) -> dict[str, int]:
    return {name: made.convert_tokens_to_ids(token) for name, token in tokens.items()}


def text(made: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """The configuration of a decoder for that tokenizer."""
    ends = {"bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id, "pad_token_id": made.pad_token_id}
    return {**TEXT, "vocab_size": len(made), **ends, **more}


def qwen(kind: str) -> Parts:
    """Qwen2-VL, 2.5-VL, 3-VL and 3-VL-MoE: one image processor and one set of tokens."""
    old, template = kind.startswith("qwen2"), chatml(VISION)
    special = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    made = tokenizer(
        special, chatml(VISION, DEFAULT_SYSTEM) if old else template, eos="<|im_end|>", pad="<|endoftext|>"
    )
    patch = 14 if old else 16
    image = hf.Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, size={"shortest_edge": (2 * patch) ** 2, "longest_edge": (6 * patch) ** 2}
    )
    tokens = ids(made, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>",
                 vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>")  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
    decoder = text(made, rope_parameters=rope, **({} if old else {"head_dim": 12}))
    tower = {"num_heads": 2, "patch_size": patch, "spatial_merge_size": 2}
    wide = {**tower, "hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 48}
    if kind == "qwen2_vl":
        vision = {**tower, "depth": 2, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
        config = hf.Qwen2VLConfig
    elif kind == "qwen2_5_vl":
        vision = {**wide, "depth": 2, "window_size": 56, "fullatt_block_indexes": [1]}
        config = hf.Qwen2_5_VLConfig
    else:  # features of two layers of the tower go to the first two decoder layers
        vision = {**wide, "depth": 3, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
        config = hf.Qwen3VLConfig
        if kind == "qwen3_vl_moe":
            decoder |= {
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "decoder_sparse_step": 1,
            }
            config = hf.Qwen3VLMoeConfig
    made_config = config(text_config=decoder, vision_config=vision, tie_word_embeddings=False, **tokens)
    return Parts(made_config, made, image, {})


def internvl() -> Parts:
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    template = chatml("<IMG_CONTEXT>\n")
    made = tokenizer(["<|im_start|>"], template, eos="<|im_end|>", pad="<|endoftext|>", names=names)
    image = hf.GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    vision = {**TOWER, "image_size": [28, 28], "patch_size": [7, 7]}
    config = hf.InternVLConfig(
        text_config=text(made, model_type="qwen2"), vision_config=vision, image_seq_length=4, downsample_ratio=0.5,
        tie_word_embeddings=False, **ids(made, image_token_id="<IMG_CONTEXT>"),
    )  # fmt: skip
    return Parts(config, made, image, {"image_seq_length": 4})


def llava() -> Parts:
    made = tokenizer(["<unk>", "<image>"], VICUNA, bos="<s>", eos="</s>")
    image = hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE)
    config = hf.LlavaConfig(
        text_config=text(made, model_type="llama"), vision_config=CLIP, vision_feature_layer=-2,
        tie_word_embeddings=False, **ids(made, image_token_index="<image>"),
    )  # fmt: skip
    settings = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return Parts(config, made, image, settings)


def llava_next() -> Parts:
    made = tokenizer(["<unk>", "<image>"], NEXT, bos="<s>", eos="</s>")
    grids = [[28, 56], [56, 28], [56, 56]]
    image = hf.LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE, image_grid_pinpoints=grids)
    config = hf.LlavaNextConfig(
        text_config=text(made, model_type="mistral", sliding_window=None), vision_config=CLIP, vision_feature_layer=-2,
        image_grid_pinpoints=grids, tie_word_embeddings=False, **ids(made, image_token_index="<image>"),
    )  # fmt: skip
    settings = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return Parts(config, made, image, settings)


def llava_onevision() -> Parts:
    template = chatml("<image>\n")
    made = tokenizer(["<|im_start|>", "<image>", "<video>"], template, eos="<|im_end|>", pad="<|endoftext|>")
    grids = [[28, 28], [28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    image = hf.LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=grids)
    config = hf.LlavaOnevisionConfig(
        text_config=text(made, model_type="qwen2"), vision_config=SIGLIP, image_grid_pinpoints=grids,
        tie_word_embeddings=False, **ids(made, image_token_index="<image>", video_token_index="<video>"),
    )  # fmt: skip
    return Parts(config, made, image, {"num_image_tokens": 16, "vision_feature_select_strategy": "full"})


def idefics(kind: str) -> Parts:
    """Idefics3 and SmolVLM, whose template begins with what its tokenizer calls the beginning of a text."""
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
    special = [*tiles, "<fake_token_around_image>", "<image>", "<global-img>", "<video>"]
    made = tokenizer(special, SMOL, bos="<|im_start|>", eos="<end_of_utterance>", pad="<|endoftext|>", adds_bos=False)
    smol = kind == "smolvlm"
    cls = hf.SmolVLMImageProcessorPil if smol else hf.Idefics3ImageProcessorPil
    image = cls(size={"longest_edge": 84}, max_image_size={"longest_edge": 28}, do_image_splitting=True)
    config = (hf.SmolVLMConfig if smol else hf.Idefics3Config)(
        text_config=text(made, model_type="llama"), vision_config=TOWER, scale_factor=2, tie_word_embeddings=False,
        **ids(made, image_token_id="<image>"),
    )  # fmt: skip
    return Parts(config, made, image, {"image_seq_len": 4})


def gemma3() -> Parts:
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    made = tokenizer(["<start_of_turn>", "<end_of_turn>"], GEMMA, bos="<bos>", names=names)
    image = hf.Gemma3ImageProcessorPil(size=SQUARE)
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = hf.Gemma3Config(
        text_config=text(made, head_dim=12, sliding_window=16, layer_types=layers, query_pre_attn_scalar=12),
        vision_config=SIGLIP, mm_tokens_per_image=4, tie_word_embeddings=False,
        eos_token_id=[made.eos_token_id, made.convert_tokens_to_ids("<end_of_turn>")],
        **ids(made, image_token_index=names["image_token"], boi_token_index=names["boi_token"],
              eoi_token_index=names["eoi_token"]),
    )  # fmt: skip
    return Parts(config, made, image, {"image_seq_length": 4})


def paligemma() -> Parts:
    """No chat template, and a table with more rows than there are tokens."""
    made = tokenizer(["<unk>"], None, bos="<bos>", names={"image_token": "<image>"})
    made.add_tokens([*(f"<loc{i:0>4}>" for i in range(1024)), *(f"<seg{i:0>3}>" for i in range(128))])
    image = hf.SiglipImageProcessorPil(size=SQUARE)
    image.image_seq_length = 16
    config = hf.PaliGemmaConfig(
        text_config=text(made, model_type="gemma", head_dim=12) | {"vocab_size": 2000}, vision_config=SIGLIP,
        projection_dim=48, hidden_size=48, tie_word_embeddings=False, **ids(made, image_token_index="<image>"),
    )  # fmt: skip
    return Parts(config, made, image, {})


def mistral3() -> Parts:
    special = ["<unk>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    made = tokenizer(special, MISTRAL, bos="<s>", eos="</s>")
    image = hf.PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size={"height": 7, "width": 7})
    vision = {**TOWER, "model_type": "pixtral", "head_dim": 16, "image_size": 56}
    config = hf.Mistral3Config(
        text_config=text(made, model_type="mistral", sliding_window=None), vision_config=vision, spatial_merge_size=2,
        vision_feature_layer=-1, tie_word_embeddings=False, **ids(made, image_token_index="[IMG]"),
    )  # fmt: skip
    return Parts(config, made, image, {"patch_size": 7, "spatial_merge_size": 2})


MAKERS: dict[str, Callable[[], Parts]] = {
    "llava": llava, "llava_next": llava_next, "llava_onevision": llava_onevision,
    **{kind: partial(qwen, kind) for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")},
    "internvl": internvl, "smolvlm": partial(idefics, "smolvlm"), "idefics3": partial(idefics, "idefics3"),
    "gemma3": gemma3, "paligemma": paligemma, "mistral3": mistral3,
}  # fmt: skip
KINDS = tuple(MAKERS)


def write(kind: str, folder: Path, seed: int = 0) -> Path:
    """The model of that kind, one of KINDS, in `folder`: the same for the same seed."""
    config, made, image, settings = MAKERS[kind]()
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).float()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or "lambda_" in name or "newline" in name:
            # What upstream starts at nothing or at little would make a test pass whatever the code does with it.
            torch.nn.init.normal_(parameter, std=0.2)
    ends = getattr(config, "eos_token_id", None) or made.eos_token_id
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ends, made.pad_token_id
    folder.mkdir(parents=True, exist_ok=True)
    for part in (model, made, image):
        part.save_pretrained(folder)
    if settings:
        (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder
