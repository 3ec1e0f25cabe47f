"""What all imports of other people's checkpoints have in common: their files, the base's linears, the run that is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText

from hide_llava.backbones.auto import bare, family_in
from hide_llava.backbones.original import is_original, original_config
from hide_llava.config import RunConfig, compose
from hide_llava.errors import UserError
from hide_llava.storage import load_tensors, publish, read_json, save_state, write_json
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder, stage_name

# Before `layers.N`: the decoder of LLaVA's own code and of transformers' models, in the names of several of its versions.
DECODERS = ("model.", "model.language_model.", "language_model.model.", "language_model.", "model.text_model.")
LINEAR = re.compile(
    r"(?:base_model\.model\.)?(?P<home>(?:\w+\.)*)layers\.(?P<layer>\d+)\.(?P<linear>(?:self_attn|mlp)\.\w+_proj)\.(?P<rest>.+)$"
)
PROJECTOR = re.compile(r"(?:base_model\.)?(?:model\.)*mm_projector\.(?P<linear>[02])\.(?P<part>weight|bias)$")
LINEARS = {"0": "linear_1", "2": "linear_2"}  # of LLaVA's projector, in its own code and in transformers'


def unpickle(path: Path) -> dict[str, Tensor]:
    """A `.bin` of tensors, weights only; anything else in it is refused."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; this is not a folder of a trained adapter.") from None
    except Exception as error:
        raise UserError(f"{path}: not a plain tensor file ({' '.join(str(error).split())[:160]}).") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: not a plain tensor file (it holds something else than tensors by name).")
    return found


def tensors_of(folder: Path, stem: str) -> tuple[Path, dict[str, Tensor]] | None:
    """`stem`.safetensors or `stem`.bin of a folder and its tensors; None if neither is there."""
    for file, read in ((folder / f"{stem}.safetensors", load_tensors), (folder / f"{stem}.bin", unpickle)):
        if file.is_file():
            return file, read(file)
    return None


def settings_of(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a checkpoint."""
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: no adapter_config.json, so this is not a folder of a trained adapter.")
    return read_json(folder / "adapter_config.json")


def adapter_of(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """adapter_model of a checkpoint."""
    found = tensors_of(folder, "adapter_model")
    if found is None:
        raise UserError(f"{folder}: neither adapter_model.safetensors nor adapter_model.bin is there.")
    return found


class Base:
    """The model that checkpoints were trained from, as shapes without weights."""

    def __init__(self, folder: Path, clip: Path | None):
        if not (folder / "config.json").is_file():
            raise UserError(f"--base {folder}: no config.json, so it is not a model folder.")
        if is_original(folder) and clip is None:
            raise UserError(f"--base {folder}: is in LLaVA's original format, so its CLIP is needed too: give --clip DIR.")
        family_in(folder)  # refuses a model that reads no pictures
        config = original_config(folder, clip) if is_original(folder) else AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            self.backbone = bare(AutoModelForImageTextToText.from_config(config))
        self.folder = folder

    @cached_property
    def linears(self) -> dict[str, nn.Linear]:
        """The decoder's linears by module name."""
        wanted = re.compile(self.backbone.linears("attention" if self.backbone.lacks else "all"))
        return {name: m for name, m in self.backbone.model.named_modules() if wanted.fullmatch(name)}

    @cached_property
    def places(self) -> dict[tuple[int, str], str]:
        """(layer, `self_attn.q_proj`) → module name."""
        found = {}
        for name in self.linears:
            _, layer, linear = re.split(r"layers\.(\d+)\.", name)
            found[int(layer), linear] = name
        return found

    @cached_property
    def projector(self) -> dict[str, str]:
        """The projector's weights: upstream's name → name in `projector.safetensors` of a stage."""
        own = {id(p): name for name, p in self.backbone.projector.named_parameters()}
        return {name: own[id(p)] for name, p in self.backbone.model.named_parameters() if id(p) in own}

    def place(self, key: str, file: Path) -> tuple[str, str] | None:
        """Of a tensor of an adapter: (module name, what follows it); None where it is no decoder linear's.

        Raises:
            UserError: a linear that the base does not have, or one outside of the decoder.
        """
        match = LINEAR.match(key)
        if match is None:
            return None
        if match["home"] not in DECODERS:
            raise UserError(f"{file}: {key} is an adapter outside of the decoder ({match['home']}…), which no method here has.")
        name = self.places.get((int(match["layer"]), match["linear"]))
        if name is None:
            raise UserError(f"{file}: {key} is of a linear that {self.folder} does not have; was it trained from another base?")
        return name, match["rest"]

    def check(self, file: Path, tensors: dict[tuple[str, str], Tensor], rank: int) -> None:
        """Raises UserError unless A [rank, d_in] and B [d_out, rank] of every (linear, side) fit, and both sides are there."""
        for (name, side), tensor in tensors.items():
            linear = self.linears[name]
            wanted = (rank, linear.in_features) if side == "A" else (linear.out_features, rank)
            if tuple(tensor.shape) != wanted:
                raise UserError(f"{file}: {side} of {name} has shape {tuple(tensor.shape)}, and {self.folder} with rank {rank} "
                                f"needs {wanted}.")  # fmt: skip
            if (name, "B" if side == "A" else "A") not in tensors:
                raise UserError(f"{file}: {name} has a lora_{side} alone.")
        if not tensors:
            raise UserError(f"{file}: holds no adapter of a decoder linear.")
        if not any(bool(t.any()) for (_, side), t in tensors.items() if side == "B"):
            raise UserError(f"{file}: all B are zero, so nothing was trained.")

    def projector_weight(self, key: str) -> str | None:
        """The name in a stage's projector.safetensors of a tensor of a checkpoint; None where it is not the projector's."""
        if match := PROJECTOR.match(key):
            return f"{LINEARS[match['linear']]}.{match['part']}"
        plain = key.removeprefix("base_model.model.").replace("modules_to_save.default.", "").replace("modules_to_save.", "")
        return next((own for name, own in self.projector.items() if plain in (name, name.removeprefix("model."))), None)

    def check_projector(self, file: Path, weights: dict[str, Tensor]) -> None:
        """Raises UserError if the projector is there in part, or of another shape."""
        wanted = {name: p.shape for name, p in self.backbone.projector.named_parameters()}
        wrong = sorted(name for name in wanted.keys() | weights.keys()
                       if name not in wanted or name not in weights or weights[name].shape != wanted[name])  # fmt: skip
        if weights and wrong:
            there = len(wanted.keys() & weights.keys())
            raise UserError(f"{file}: the projector has {there} of {len(wanted)} tensors; first that does not fit: {wrong[0]}.")


@dataclass
class Imported:
    """What one checkpoint is as a stage of ours. state: of the method and its modules. said: what was read, for `--check`."""

    source: Path
    adapter: str
    config: LoraConfig
    tensors: dict[tuple[str, str], Tensor]
    projector: dict[str, Tensor]
    state: dict[str, Any] = field(default_factory=dict)
    said: str = ""


def with_projector(base: Base, folder: Path) -> dict[str, Tensor]:
    """The projector beside an adapter: `non_lora_trainables.bin` of LLaVA's code, or `projector.safetensors` of an export.

    Raises:
        UserError: a tensor in it that is not the projector's.
    """
    found = tensors_of(folder, "non_lora_trainables") or tensors_of(folder, "projector")
    if found is None:
        return {}
    file, tensors = found
    weights = {}
    for key, tensor in tensors.items():
        name = base.projector_weight(key)
        if name is None:
            raise UserError(f"{file}: {key} is not the projector's, and no method here has a place for it.")
        weights[name] = tensor.float().contiguous()
    base.check_projector(file, weights)
    return weights


def targets_of(base: Base, names: Iterable[str]) -> str | list[str]:
    """`target_modules` of an adapter on these linears: our expression where they are what a method adapts, else their names."""
    names = sorted(names)
    for targets in ("all", "attention", "ffn"):
        if targets not in base.backbone.lacks:
            pattern = base.backbone.linears(targets)
            if names == sorted(name for name in base.linears if re.fullmatch(pattern, name)):
                return pattern
    return names


def nearest_targets(names: Iterable[str]) -> str:
    """The value of `method.targets` that holds all these linears."""
    blocks = {"self_attn" in name for name in names}
    return {frozenset({True}): "attention", frozenset({False}): "ffn"}.get(frozenset(blocks), "all")


def configuration(
    overrides: list[str], tasks: int, base: Path, clip: Path | None, out: Path, benchmark: str | None, sentence: str | None = None
) -> RunConfig:
    """The configuration of an imported run. tasks: how many it has where no benchmark is named."""
    folder = out.parent / f".{out.name}.import"
    model = {"name": base.name, "path": str(base.resolve()), "clip": None if clip is None else str(clip.resolve())}
    write_json(folder / "model.yaml", {"model": {**model, "sentence": sentence}})
    if benchmark is None:
        unknown = [{"id": f"task-{i + 1}", "title": f"Task {i + 1}", "train": "unknown.json", "test": "unknown.json",
                    "metric": "exact_upper"} for i in range(tasks)]  # fmt: skip
        write_json(folder / "benchmark.yaml", {"benchmark": {"name": "imported", "tasks": unknown}})
        benchmark = str(folder / "benchmark.yaml")
    try:
        words = [f"benchmark={benchmark}", f"model={folder / 'model.yaml'}", f"output={json.dumps(str(out))}"]
        return compose([*words, *overrides])
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def write_adapter(folder: Path, config: LoraConfig, tensors: dict[tuple[str, str], Tensor]) -> None:
    """A plain peft folder; tensors: (module name, A or B) → weights."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"base_model.model.{name}.lora_{side}.weight": t.float().contiguous() for (name, side), t in tensors.items()}
    save_file(state, folder / "adapter_model.safetensors")
    config.inference_mode = True
    config.save_pretrained(folder)


def refuse_taken(run: Run) -> None:
    """Raises UserError for a run folder that has stages: those of one run alone may stand together."""
    if any(run.folder.path.glob("stages/*")):
        raise UserError(f"{run.folder.path}: holds a run with stages already; choose another --out, or delete the folder.")


def write_run(run: Run, stages: list[Imported]) -> RunFolder:
    """The folder of a run whose stages are checkpoints.

    Raises:
        UserError: the folder is taken, or there are more checkpoints than tasks.
    """
    if len(stages) > len(run.stages):
        raise UserError(f"{len(stages)} checkpoints, and the benchmark has {len(run.stages)} tasks; give one for each stage.")
    refuse_taken(run)
    target = run.open({"imported_from": [one.source.name for one in stages]})
    for stage, one in zip(run.stages, stages):
        temporary = target.path / "stages" / f".{stage_name(stage)}.tmp"
        write_adapter(temporary / "adapter", one.config, one.tensors)
        if one.projector:
            save_file(one.projector, temporary / "projector.safetensors")
        save_state(temporary, "method", {**one.state, "adapters": [one.adapter]})
        publish(temporary, target.stage(stage_name(stage)))
        target.update_stage(stage_name(stage), status="complete")
    return target
