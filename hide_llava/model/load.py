"""Load a LLaVA-1.5 from a Hugging Face folder or hub id, or from an original-format folder, with all that goes with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.utils import is_flash_attn_2_available

from hide_llava.data.images import ImageTransform
from hide_llava.data.tokenizer import load_tokenizer
from hide_llava.errors import UserError
from hide_llava.model.original import is_original, load_original
from hide_llava.model.quantized import quantize
from hide_llava.precision import allow_tf32
from hide_llava.schema import ModelConfig

PACKAGE = Path(__file__).parent.parent


@dataclass
class Loaded:
    """What the rest of the program needs of a model.

    image_tokens: decoder positions of one image. preprocessor: folder of the image preprocessor's settings.
    clip: folder for routing features, or None.
    """

    llava: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    image_tokens: int
    preprocessor: Path
    clip: Path | None

    def transform(self, mode: str) -> ImageTransform:
        return ImageTransform(self.preprocessor, mode=mode)


def local(name: str | None, root: Path) -> Path | None:
    """The folder that `resolve` finds without asking the hub; None if there is none."""
    if name is None:
        return None
    if name.startswith("package:"):
        return PACKAGE / name.removeprefix("package:")
    return next((folder for folder in (root / name, Path(name)) if folder.is_dir()), None)


def resolve(name: str | None, root: Path) -> Path | None:
    """A model name to a folder: `package:…`, a path, a folder under `root`, or a hub id that is downloaded.

    Raises:
        UserError: none of these, with the places that were looked at.
    """
    folder = local(name, root)
    if name is None or folder is not None:
        return folder
    if name.count("/") == 1 and not name.startswith((".", "/")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name))
        except Exception as error:
            raise UserError(
                f"model '{name}': no such folder under {root}, and the hub does not answer ({type(error).__name__}); "
                "download it first, or set model_root / HIDE_MODELS."
            ) from None
    raise UserError(
        f"model '{name}': no such folder, neither as given nor under {root}. Set model_root or HIDE_MODELS."
    )


def device_of(config: ModelConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"model.device={config.device}: cannot be used here ({str(error).splitlines()[0]}); expected auto, cpu or cuda."
        ) from None
    return device


def dtype_of(config: ModelConfig) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if device_of(config).type == "cuda" else torch.float32
    return getattr(torch, config.dtype)


def attention_of(config: ModelConfig) -> str:
    """`auto` takes flash attention where it can be imported and runs, else SDPA."""
    if config.attention == "auto":
        usable = is_flash_attn_2_available() and dtype_of(config) != torch.float32 and _runs_flash(device_of(config))
        return "flash_attention_2" if usable else "sdpa"
    return {"flash": "flash_attention_2"}.get(config.attention, config.attention)


def _runs_flash(device: torch.device) -> bool:
    """Flash attention 2 has kernels for Ampere and newer GPUs only."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def load(config: ModelConfig, root: Path) -> Loaded:
    """Load model, tokenizer and image settings; the model is frozen, on its device, in eval mode.

    root: the folder that models lie under.

    Raises:
        UserError: folder missing, not a LLaVA-1.5, weights missing, tokenizer not exact.
    """
    allow_tf32(config.tf32)
    folder, clip = resolve(config.path, root), resolve(config.clip, root)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json, so it is not a model folder; set model.path to a LLaVA-1.5 folder.")
    dtype = dtype_of(config)
    if not is_original(folder):
        _check_architecture(folder)
    tokenizer = load_tokenizer(folder)
    if is_original(folder):
        if clip is None:
            raise UserError(f"{folder}: an original-format LLaVA needs model.clip (its CLIP folder).")
        projector = resolve_file(config.projector, folder)
        llava = load_original(folder, clip, dtype, projector)
        preprocessor = clip
    else:
        llava, preprocessor = _load_hf(folder, dtype), folder
    vocabulary = len(tokenizer)
    if llava.get_input_embeddings().num_embeddings > vocabulary:
        llava.resize_token_embeddings(vocabulary)  # drop <image>/<pad> rows: no answer or loss can contain them
    try:
        llava.set_attn_implementation(attention_of(config))
    except (ValueError, ImportError) as error:
        raise UserError(f"model.attention={config.attention}: {' '.join(str(error).split())[:200]}") from None
    if config.quantization != "none":
        quantize(llava, config.quantization, dtype)
    llava.to(device_of(config)).eval().requires_grad_(False)
    # Greedy means greedy: upstream fills in whatever the folder's generation_config.json says (repetition penalties,
    # suppressed words, a time limit), so that file is not used.
    llava.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
    )
    return Loaded(llava, tokenizer, image_tokens(llava), preprocessor, clip)


def resolve_file(name: str | None, folder: Path) -> Path | None:
    if name is None:
        return None
    for candidate in (folder / name, Path(name)):
        if candidate.is_file():
            return candidate
    raise UserError(f"model.projector={name}: no such file, neither as given nor in {folder}.")


def _check_architecture(folder: Path) -> None:
    kind = json.loads((folder / "config.json").read_text()).get("architectures") or ["a model of unknown kind"]
    if "LlavaForConditionalGeneration" not in kind:
        raise UserError(
            f"{folder}: holds {kind[0]}, expected LlavaForConditionalGeneration; set model.path to a LLaVA-1.5 folder."
        )


def _load_hf(folder: Path, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    try:
        llava, info = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: cannot be loaded as LLaVA-1.5 ({reason}); are its files complete?") from None
    if info["missing_keys"]:
        raise UserError(f"{folder}: weights are missing, first: {sorted(info['missing_keys'])[0]}.")
    return llava


def image_tokens(llava: nn.Module) -> int:
    vision = llava.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return patches if llava.config.vision_feature_select_strategy == "default" else patches + 1
