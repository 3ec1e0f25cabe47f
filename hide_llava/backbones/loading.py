"""Where a model lies, and on which device, in which number format and with which attention it is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from hide_llava.errors import UserError
from hide_llava.schema import ModelConfig

PACKAGE = Path(__file__).parent.parent


def local(name: str | None, root: Path) -> Path | None:
    """The folder that `resolve` finds without asking the hub; None if there is none."""
    if name is None:
        return None
    if name.startswith("package:"):
        return PACKAGE / name.removeprefix("package:")
    return next((folder for folder in (root / name, Path(name)) if folder.is_dir()), None)


def cached(name: str) -> Path | None:
    """The folder of a hub id whose config.json was downloaded before, perhaps without all other files; None if it was not."""
    if name.count("/") != 1 or name.startswith((".", "/", "package:")):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path that is no folder
        return None
    return Path(file).parent if isinstance(file, str) else None


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


def resolve_file(name: str | None, folder: Path) -> Path | None:
    if name is None:
        return None
    for candidate in (folder / name, Path(name)):
        if candidate.is_file():
            return candidate
    raise UserError(f"model.projector={name}: no such file, neither as given nor in {folder}.")


def tower_width(vision: PretrainedConfig) -> int:
    """Of a vision tower's states, by its configuration."""
    return getattr(vision, "embed_dim", None) or vision.hidden_size


def load_weights(cls: Any, folder: Path, dtype: torch.dtype, title: str) -> PreTrainedModel:
    """A folder's model by a class of transformers. title: of the family.

    Raises:
        UserError: it cannot be loaded, or weights are missing.
    """
    try:
        model, info = cls.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: cannot be loaded as {title} ({reason}); are its files complete?") from None
    if info["missing_keys"]:
        raise UserError(f"{folder}: weights are missing, first: {sorted(info['missing_keys'])[0]}.")
    return model


def set_attention(model: PreTrainedModel, config: ModelConfig) -> None:
    """Raises UserError for an attention that the model or this machine does not have."""
    try:
        model.set_attn_implementation(attention_of(config))
    except (ValueError, ImportError) as error:
        raise UserError(f"model.attention={config.attention}: {' '.join(str(error).split())[:200]}") from None
