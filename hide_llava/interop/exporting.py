"""One export at work: the run, its model, where it is written, and the proof so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hide_llava.backbones.base import Backbone
from hide_llava.backbones.loading import device_of, dtype_of, resolve
from hide_llava.storage import read_json, write_json
from hide_llava.training.memory import reclaim
from hide_llava.training.run import Run
from hide_llava.training.session import Session

PROJECTOR = "projector.safetensors"


@dataclass
class Export:
    """One export at work.

    stage: from 1. folder: where it is written until it is finished. final: where it will lie. base: what adapters name as
    their base model. asked: the two prompts; bare: the base model's logits of them. modules, prompts: the proof so far.
    notes: sentences for the reader of the README. grids: tile grids that the model's configuration has to be given, where an
    image budget left some out. cut: arguments of the processor's call by which pictures keep to it; files hold all others.
    """

    run: Run
    stage: int
    folder: Path
    final: Path
    session: Session
    base: str
    asked: list[dict[str, Any]]
    bare: list[Tensor]
    modules: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    grids: list[list[int]] | None = field(init=False, default=None)
    cut: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        backbone = self.session.backbone  # which is let go before what was written is loaded
        if self.run.model.image.max_tiles is not None:
            self.grids = getattr(backbone.model.config, "image_grid_pinpoints", None)
        processor = getattr(backbone, "processor", None)
        plain, own = (getattr(one, "images_kwargs", None) or {} for one in (type(processor), processor))
        self.cut = {key: value for key, value in own.items() if plain.get(key) != value}

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.run.model)

    @property
    def device(self) -> torch.device:
        return device_of(self.run.model)

    @property
    def source(self) -> Path:
        """The base model's folder."""
        return resolve(self.run.model.path, self.run.model_root)

    @property
    def transform(self) -> str:
        return self.run.common.settings(None)["image_transform"]

    @property
    def name(self) -> str:
        return f"the export of {self.run.folder.path}, stage {self.stage},"

    def trained_projector(self) -> dict[str, Tensor]:
        """The projector's weights by upstream's names, if they are not the base model's."""
        core = self.session.core
        if all(torch.equal(v.cpu(), core.projector_state()[k].cpu()) for k, v in self.session.initial_projector.items()):
            return {}
        own = {id(p) for p in core.projector.parameters()}
        return {k: p.detach().cpu().clone() for k, p in core.llava.named_parameters() if id(p) in own}

    def write_projector(self, folder: Path) -> bool:
        """The trained projector beside adapters; whether there is one."""
        weights = self.trained_projector()
        if weights:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / PROJECTOR)
        return bool(weights)

    def write_base(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """A whole model folder; weights: of `Core.weights`, which are written in one dtype."""
        plain = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in weights.items()}
        self.session.backbone.write(folder, self.source, plain, self.transform)

    def release(self) -> type[Backbone]:
        """Let the model go before the export is loaded in its place; returns the model's family."""
        family = type(self.session.backbone)
        self.session = None
        reclaim()
        return family


def name_base(folder: Path, base: str) -> None:
    """Say in an adapter's configuration which base model it is for."""
    file = folder / "adapter_config.json"
    write_json(file, {**read_json(file), "base_model_name_or_path": base})


def called(run: Run, model: str) -> str:
    """What others load a model of the run's configuration by: its name on the hub, or its folder here."""
    return model if is_hub_id(model) else str(resolve(model, run.model_root).resolve())


def is_hub_id(name: str) -> bool:
    """Whether it looks like OWNER/NAME and not like a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "package:")) and not Path(name).is_dir()
