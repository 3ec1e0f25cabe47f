"""The low-rank updates that the stages of a run stored, read one linear at a time, without the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open

from hide_llava.backbones.loading import cached, local
from hide_llava.errors import UserError
from hide_llava.results.run_reader import StoredRun
from hide_llava.storage import read_json
from hide_llava.training.run_folder import RunFolder

Array = NDArray[np.float64]
LowRank = tuple[Array, Array]
"""A [r, d_in] and B [d_out, r], the scale in B: the update is B A."""

KEY = re.compile(r"base_model\.model\.(?P<module>.*layers\.(?P<layer>\d+)\.(?P<linear>.+))\.lora_A\.weight")
OF_PICTURES = re.compile(r"vision|visual|vit\.|encoder\.layers|image")  # in the name of a weight that is not the decoder's


@dataclass(frozen=True)
class Update:
    """What one stage changed with one adapter. before: the folder of the same adapter as the last stage left it."""

    label: str
    stage: str
    adapter: str
    folder: Path
    before: Path | None = None


def updates_of(run: StoredRun) -> list[Update]:
    """The updates of a run's finished stages, in order.

    A stage that trains an adapter of its own (an expert) changed the model by that adapter; one that goes on training an
    adapter of the stage before changed it by the difference.

    Raises:
        UserError: no stage stored a LoRA adapter, as methods of prompts do not.
    """
    found: list[Update] = []
    last: dict[str, Path] = {}
    for stage in run.manifest["stages"]:
        folder = RunFolder(run.path).stage(stage["name"])
        if not (folder / "method.json").is_file():
            continue
        names = read_json(folder / "method.json").get("adapters") or []
        for name in names:
            home = folder / "adapter" if len(names) == 1 else folder / "adapter" / name
            title = stage.get("title") or stage["name"]
            label = title if len(names) == 1 else f"{title}: {name}"
            found.append(Update(label, stage["name"], name, home, last.get(name)))
            last[name] = home
    if not found:
        raise UserError(f"{run.path}: no finished stage holds a LoRA adapter, so there are no weight changes to study.")
    return found


class Stored:
    """The open files of several updates; `read` gives one linear of each."""

    def __init__(self, updates: list[Update]):
        self.updates = updates

    def __enter__(self) -> Stored:
        self._stack = ExitStack()
        self._files = {folder: self._opened(folder) for u in self.updates for folder in (u.folder, u.before) if folder}
        self._configs = {folder: LoraConfig.from_pretrained(str(folder)) for folder in self._files}
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def _opened(self, folder: Path) -> Any:
        file = folder / "adapter_model.safetensors"
        try:
            return self._stack.enter_context(safe_open(file, "pt"))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: cannot be read ({error}); this stage has to be trained again.") from None

    def modules(self) -> list[tuple[str, int, str]]:
        """(module name, decoder layer, name of the linear in its layer) of all adapted linears, by layer."""
        keys = dict.fromkeys(key for file in self._files.values() for key in file.keys())  # noqa: SIM118
        found = [match for key in keys if (match := KEY.fullmatch(key))]
        if not found:
            raise UserError(f"{self.updates[0].folder}: none of its weights is a LoRA of a decoder layer.")
        rows = [(m["module"], int(m["layer"]), m["linear"].rpartition(".")[2]) for m in found]
        return sorted(rows, key=lambda row: row[1])

    def read(self, module: str) -> list[LowRank | None]:
        """The change of one linear by each update, None where it has no adapter there."""
        return [self._change(update, module) for update in self.updates]

    def _change(self, update: Update, module: str) -> LowRank | None:
        now = self._factors(update.folder, module)
        before = self._factors(update.before, module) if update.before else None
        if now is None or before is None:
            return now
        return np.concatenate([now[0], before[0]]), np.concatenate([now[1], -before[1]], axis=1)

    def _factors(self, folder: Path, module: str) -> LowRank | None:
        file, config = self._files[folder], self._configs[folder]
        keys = [f"base_model.model.{module}.lora_{x}.weight" for x in "AB"]
        if keys[0] not in file.keys():  # noqa: SIM118
            return None
        a, b = (file.get_tensor(key).double().numpy() for key in keys)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, module), config.lora_alpha)
        scale = alpha / (len(a) ** 0.5 if config.use_rslora else len(a))
        return a, scale * b


class BaseWeights:
    """The base model's linears, read tensor by tensor from the files of its folder; nothing is downloaded.

    why: the reason that there are none, "" if there are.
    """

    def __init__(self, run: StoredRun):
        config = RunFolder(run.path).config
        folder = local(config.model.path, config.model_folder()) or cached(config.model.path)
        files = (sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))) if folder else []
        self.why = "" if files else f"the base model {config.model.path} is not on this machine"
        self._names: dict[str, list[tuple[str, Any]]] = {}
        for file in files:
            for name, read in _tensors(file):
                place = re.search(r"layers\.\d+\..+(?=\.weight$)", name)
                if place and not OF_PICTURES.search(name):
                    self._names.setdefault(place[0], []).append((name, read))

    def norm(self, module: str, shape: tuple[int, int]) -> float | None:
        """‖W‖_F of that linear; None where the model has no weight, or not just one, that this must be."""
        place = module[re.search(r"layers\.\d+\.", module).start() :]
        tensors = [read() for _, read in self._names.get(place, [])]
        fitting = [tensor for tensor in tensors if tuple(tensor.shape) == shape]
        return float(torch.linalg.vector_norm(fitting[0], dtype=torch.float64)) if len(fitting) == 1 else None


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """(name, function that reads it) of the tensors of one file, which is mapped and not read whole."""
    try:
        if file.suffix == ".safetensors":
            content = safe_open(file, "pt")
            yield from ((name, lambda name=name: content.get_tensor(name)) for name in content.keys())  # noqa: SIM118
        else:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            yield from ((name, lambda tensor=tensor: tensor) for name, tensor in state.items())
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{file}: cannot be read ({str(error).splitlines()[0]}); is the file complete?") from None
