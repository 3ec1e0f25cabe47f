"""One adapter on disk: a plain peft folder (`adapter_config.json`, `adapter_model.safetensors`) that any peft reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hide_llava.errors import UserError

State = dict[str, Tensor]  # base_model.model.<module name>.lora_A.weight → tensor


def write(peft: PeftModel, name: str, folder: Path) -> None:
    """Write adapter `name`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(peft, adapter_name=name)
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / "adapter_model.safetensors")
    config = peft.peft_config[name]
    was, config.inference_mode = config.inference_mode, True
    config.save_pretrained(folder)
    config.inference_mode = was


def read(folder: Path) -> tuple[LoraConfig, State]:
    """An adapter's configuration and weights.

    Raises:
        UserError: a file is missing or unreadable.
    """
    try:
        return LoraConfig.from_pretrained(str(folder)), load_file(folder / "adapter_model.safetensors")
    except Exception as error:
        raise UserError(f"{folder}: not a readable peft adapter ({' '.join(str(error).split())}).") from None


def replace_values(parameter: nn.Parameter, stored: Tensor) -> None:
    """Give a parameter the values *and the dtype* of a stored tensor, on its own device."""
    parameter.data = stored.detach().to(parameter.device, copy=True)


def fill(peft: PeftModel, name: str, layers: Iterable[tuple[str, int, LoraLayer]], state: State, folder: Path) -> None:
    """Put `state`, read from `folder`, into adapter `name`, which is on `layers` (of `Core.layers`).

    A state of just these keys and shapes is copied. For any other, peft's own loader is asked, which knows older
    layouts; it walks over the modules of all adapters, so that reading many with it takes the square of their number.

    Raises:
        UserError: keys or shapes that do not fit this model.
    """
    own = {f"base_model.model.{path}.lora_{x}.weight": getattr(layer, f"lora_{x}")[name].weight
           for path, _, layer in layers for x in "AB"}  # fmt: skip
    if {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in state.items()}:
        for key, parameter in own.items():
            replace_values(parameter, state[key])
        return
    try:
        result = set_peft_model_state_dict(peft, state, adapter_name=name)
    except RuntimeError as error:  # torch's list of all shapes that differ; the first says enough
        first = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), str(error))
        raise UserError(f"{folder}: adapter does not fit this model; {' '.join(first.split())[:300]}") from None
    lacking = [k for k in result.missing_keys if f".{name}." in k]
    if result.unexpected_keys or lacking:
        bad = [*result.unexpected_keys, *lacking]
        raise UserError(f"{folder}: adapter does not fit this model; {len(bad)} keys differ, first: {bad[0]}.")
