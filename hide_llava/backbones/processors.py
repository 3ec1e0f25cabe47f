"""What turns a chat and its pictures into token ids and pixels: the processor of a model folder, for pictures only.

No torchvision and no video is needed: pictures are prepared by PIL, whatever is installed, so that a score does not depend
on it. The object is transformers' own, but for Pixtral's, whose module imports torchvision.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.image_utils import SizeDict
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from hide_llava.backbones.image_budget import LIMITS, Limit, keep_to
from hide_llava.errors import UserError
from hide_llava.schema import ImageConfig
from hide_llava.storage import read_json, write_json

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
OWN = ("config.json", "generation_config.json", "README.md", ".gitattributes")  # that a folder with other weights has of its own
THINK = ("<think>", "</think>")


class PixtralProcessor(ProcessorMixin):
    """Pixtral's and Mistral3's pictures in the text, as transformers' class of that name puts them there.

    A picture of h×w patches, after merging, is h rows of w image tokens; each row ends with a break, the last with an end.
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, patch_size: int = 16,
        spatial_merge_size: int = 1, image_token: str = "[IMG]", image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
    ):  # fmt: skip
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.unit = patch_size * spatial_merge_size  # pixels of a token's side
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        tokens = [image_token, image_break_token, image_end_token]
        self.image_token_id, *_ = self.image_token_ids = tokenizer.convert_tokens_to_ids(tokens)

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        return super()._process_images(images, **{**kwargs, "patch_size": self.unit})

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        height, width = (int(side) // self.unit for side in image_inputs["image_sizes"][image_idx])
        rows = [self.image_token * width] * height
        return self.image_break_token.join(rows) + self.image_end_token


class _NoVideos:
    """Stands where a processor wants one for videos; these are the settings that some read."""

    num_frames = fps = None
    model_input_names: tuple[str, ...] = ()


def load_processor(folder: Path, budget: ImageConfig | None = None, limit: Limit | None = None) -> ProcessorMixin:
    """The processor of a model folder: `tokenizer`, `image_processor`, `chat_template`, a call for text and pictures.

    It is called with texts and, for each text, a list of its pictures. If a budget leaves out tile grids of a LLaVA-NeXT or
    LLaVA-OneVision, the model's configuration must follow: see `match_grids`. limit: how a budget is kept to, of a backbone
    that says so itself; None: as LIMITS has it for the model's type.

    Raises:
        UserError: the model's type is not known, a part is missing, or its family does not take that budget.
    """
    folder = Path(folder)
    kind = _config(folder).get("model_type")
    if kind not in PROCESSOR_MAPPING_NAMES:
        raise UserError(
            f"{folder}: its config.json names the model type '{kind}', which cannot be read here; known are "
            f"{', '.join(sorted(LIMITS))}. If it is one of these in its authors' own format, take the folder that was "
            "converted to transformers' format (its name often ends in -hf)."
        )
    config = _parsed(folder, kind)
    pixtral = kind == "mistral3" or getattr(getattr(config, "vision_config", None), "model_type", None) == "pixtral"
    cls = PixtralProcessor if pixtral else getattr(transformers, PROCESSOR_MAPPING_NAMES[kind])
    tokenizer, image = _tokenizer(folder, pixtral), _image_processor(folder, config)
    if kind == "paligemma" and getattr(image, "image_seq_length", None) is None:
        image.image_seq_length = _patches(config)
    parts = {"image_processor": image, "tokenizer": tokenizer, "video_processor": _NoVideos()}
    try:
        stored, _ = cls.get_processor_dict(folder, local_files_only=True)
        settings = {**_of_model(config), **{name: value for name, value in stored.items() if value is not None}}
        settings["chat_template"] = settings.get("chat_template") or tokenizer.chat_template
        processor = _made(cls, {**settings, **parts})
    except Exception as error:
        raise UserError(
            f"{folder}: its processor cannot be made ({_short(error)}); its files are damaged or not of one "
            "model. Take them anew from where the model was published."
        ) from None
    if budget is not None:
        keep_to(budget, limit or LIMITS.get("mistral3" if pixtral else kind), kind, processor, folder)
    return processor


def write_processor(processor: ProcessorMixin, folder: Path, source: Path) -> None:
    """Copy what a model folder has beside its weights and configurations: tokenizer, picture settings, template, licence.

    The picture settings are the processor's if it was set to an image budget; their class keeps the name that the source has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix not in WEIGHTS and file.name not in OWN and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
    image = processor.image_processor
    plain = _image_processor(source, _parsed(source, _config(source).get("model_type")))
    if image.to_dict() == plain.to_dict():
        return
    settings = folder / "processor_config.json"
    stored = read_json(settings) if settings.is_file() else {}
    kind = (stored.pop("image_processor", None) or {}).get("image_processor_type")
    if settings.is_file():
        write_json(settings, stored)
    file = folder / "preprocessor_config.json"
    kind = kind or (read_json(file).get("image_processor_type") if file.is_file() else None)
    image.save_pretrained(folder)
    if kind is not None:
        write_json(file, {**read_json(file), "image_processor_type": kind})


def match_grids(config: PreTrainedConfig, processor: ProcessorMixin) -> None:
    """Give the model's configuration the tile grids that the processor chooses from, if it has any (LLaVA-NeXT, -OneVision).

    The model looks for the grid of a picture by itself, to lay the tiles out and to cut padding off. With another list than
    the processor's it gets another number of image tokens than the text has. Call it on `model.config` after loading.
    """
    grids = getattr(processor.image_processor, "image_grid_pinpoints", None)
    if grids is not None and hasattr(config, "image_grid_pinpoints"):
        config.image_grid_pinpoints = [list(grid) for grid in grids]


def stop_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: of generation_config.json, of config.json and its text model, and of the tokenizer.

    Raises:
        UserError: there is none.
    """
    config, generation = _config(folder), folder / "generation_config.json"
    found = {*_listed({"eos_token_id": tokenizer.eos_token_id})}
    if generation.is_file():
        found |= {*_listed(read_json(generation))}
    # A configuration that never set this has the number of its class there, which is any word in this vocabulary.
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    found |= {*_listed(config), *_listed(config.get("text_config") or {})} & special
    if not found:
        raise UserError(
            f"{folder}: no token ends an answer; set eos_token_id in its generation_config.json to the id of the token "
            "that its chat template puts after an answer."
        )
    return found


def template_options(processor: ProcessorMixin) -> dict[str, Any]:
    """What `apply_chat_template` must be given so that an answer begins right after the prompt, with no thinking before it.

    Raises:
        UserError: the prompt ends within a thinking block all the same.
    """
    template = processor.chat_template
    template = template.get("default", "") if isinstance(template, dict) else template
    if not template:
        return {}
    options = {"enable_thinking": False} if "enable_thinking" in template else {}
    probe = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    prompt = processor.apply_chat_template(probe, tokenize=False, add_generation_prompt=True, **options)
    if prompt.rfind(THINK[0]) > prompt.rfind(THINK[1]):
        switch = "even with enable_thinking=False" if options else "and has no variable enable_thinking to prevent that"
        raise UserError(
            f"{processor.tokenizer.name_or_path}: its chat template opens a {THINK[0]} block before every answer, {switch}, so "
            "it can neither be trained nor asked for plain answers; take the Instruct model, or a template without it."
        )
    return options


# ------------------------------------------------------------------------------------------------ the parts of a processor


def _made(cls: type[ProcessorMixin], settings: dict[str, Any]) -> ProcessorMixin:
    """The object of `cls` from those of the settings that it takes, with the stand-in for videos passed as it is."""
    if cls.__name__ == "SmolVLMProcessor":
        module = inspect.getmodule(cls)
        module.num2words = module.num2words or str  # a package that spells out the number of a video's frames
    taken = inspect.signature(cls.__init__).parameters
    processor = cls.__new__(cls)
    # On the object and not in a class of ours: its class stays upstream's, and a DataLoader's workers can be sent it.
    processor.check_argument_for_proper_class = _passed
    processor.__init__(**{name: value for name, value in settings.items() if name in taken})
    del processor.check_argument_for_proper_class
    return processor


def _passed(*_: Any) -> None:
    """In place of the check that each part is of the class that upstream has for it."""


def _of_model(config: PreTrainedConfig) -> dict[str, Any]:
    """Settings by which text and model agree on the number of image tokens, for older folders, that keep none of their own."""
    if config.model_type == "llava_onevision":
        return {
            "num_image_tokens": _patches(config),
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "vision_aspect_ratio": config.vision_aspect_ratio,
        }
    if config.model_type in ("llava", "llava_next", "mistral3"):
        has_class_token = config.vision_config.model_type == "clip_vision_model"
        return {
            "patch_size": config.vision_config.patch_size,
            "spatial_merge_size": getattr(config, "spatial_merge_size", 1),
            "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
            "num_additional_image_tokens": int(has_class_token),
        }
    return {}


def _patches(config: PreTrainedConfig) -> int:
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2


def _tokenizer(folder: Path, pixtral: bool) -> PreTrainedTokenizerBase:
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in files):
        raise UserError(
            f"{folder}: no tokenizer ({', '.join(files)}); copy the files of its tokenizer there from where the model was "
            "published."
        )
    try:
        if pixtral:  # published under another class's name, and with a splitting of words that upstream mends on demand
            return PreTrainedTokenizerFast.from_pretrained(folder, fix_mistral_regex=True)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"{folder}: its tokenizer cannot be loaded ({_short(error)}); take it anew.") from None


def _image_processor(folder: Path, config: PreTrainedConfig) -> Any:
    """By PIL, of the class that the folder names, whatever its age, or else of the model's own."""
    try:
        made = AutoImageProcessor.from_pretrained(folder, backend="pil", config=config, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{folder}: no settings of its image processor that can be used ({_short(error)}); copy "
            "preprocessor_config.json, or processor_config.json, there from where the model was published."
        ) from None
    if made.size.max_pixels is not None:  # what some Qwen2-VL call the bounds that their class reads as edges
        made.size = SizeDict(shortest_edge=made.size.min_pixels, longest_edge=made.size.max_pixels)
    return made


def _config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as it is written."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json, so it is not a model folder; set model.path to one.")
    return read_json(folder / "config.json")


def _parsed(folder: Path, kind: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"{folder}: its config.json is not a {kind} model's ({_short(error)}); take it anew.") from None


def _listed(settings: dict[str, Any]) -> Iterable[int]:
    """`eos_token_id`, which is nothing, a number or a list."""
    ids = settings.get("eos_token_id")
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
