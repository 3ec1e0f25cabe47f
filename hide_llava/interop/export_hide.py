"""HiDe for others: its experts as peft adapters, its routing as JSON and safetensors, and load.py, which answers with them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hide_llava.backbones.base import Backbone
from hide_llava.backbones.loading import resolve
from hide_llava.errors import UserError
from hide_llava.interop import load, proof
from hide_llava.interop.exporting import Export, called, name_base
from hide_llava.interop.model_card import LOADING
from hide_llava.interop.peft_proof import with_adapters
from hide_llava.methods.hide import HiDe
from hide_llava.storage import write_json
from hide_llava.training.memory import reclaim


def write(made: Export) -> None:
    """Raises UserError for options whose routing the loader does not know."""
    session, method = made.session, made.session.method
    _check(made, method)
    experts = [method.expert(task) for task in method.learned]
    for name in experts:
        session.core.save(name, made.folder / "experts" / name)
        name_base(made.folder / "experts" / name, made.base)
    made.write_projector(made.folder)
    write_json(made.folder / "routing.json", rule(made, method, experts))
    save_file(anchors(method), made.folder / "routing.safetensors")
    shutil.copyfile(load.__file__, made.folder / "load.py")
    with session:
        ours, routes = proof.of_run(session, made.asked)
        weights = [torch.stack([route.weights[name] for name in experts], 1).cpu() for route in routes]
    del routes, session, method
    made.session.backbone.write_processor(made.folder, made.source, made.transform)
    family = made.release()
    _prove(made, family, ours, weights, experts)
    made.notes += [
        f"`experts/` holds the adapters of {len(experts)} tasks in their order, `routing.json` and `routing.safetensors` what "
        "weighs them for a question (anchors, temperature, the two weights, the expanded layers), and `load.py` puts them "
        "together with torch, transformers and peft alone.",
        LOADING["load"].format(here=made.final),
        "A single expert is a plain peft adapter, `PeftModel.from_pretrained(base, \"experts/NAME\")`, and answers as it does in "
        "training; the run's answers need all of them.",
    ]  # fmt: skip


def _check(made: Export, method: HiDe) -> None:
    config = method.config
    no_loader = "hand on the run folder itself"
    reasons = {
        "the oracle is told the task of each question; use --to vllm, an adapter for each task":
            "oracle" in (config.routing, config.router),
        f"method.router={config.router} is no router that an export's loader knows; {no_loader}, or export a variant with "
        "method.router=anchors": config.router != "anchors",
        f"method.projector=per_task mixes projectors for every sample; {no_loader}": config.projector == "per_task",
        f"router.encoder={made.run.encoder} is not CLIP, by which an export's loader routes; {no_loader}":
            made.run.encoder != "clip",
        f"its model has no chat template, by which an export's loader asks; {no_loader}":
            not made.run.family.recorded and not made.session.backbone.processor.chat_template,
    }  # fmt: skip
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        raise UserError(f"{made.run.folder.path}: {reason}.")


def rule(made: Export, method: HiDe, experts: list[str]) -> dict[str, Any]:
    """What routing.json says."""
    config, run = method.config, made.run
    epsilon = 1 / len(experts) if config.fusion_weight is None else config.fusion_weight
    encoder = made.session.routed.encoder
    return {
        "experts": experts, "base": made.base, "clip": called(run, run.model.clip),
        "tower": "own" if run.family.own_clip else "clip",
        "fusion": config.fusion, "fusion_weight": epsilon, "expanded_layers": method.expanded, "routing": config.routing,
        "image_weight": config.image_weight, "text_weight": config.text_weight, "temperature": config.temperature,
        "turned": run.benchmark.image_orientation == "exif", "grids": made.grids, "cut": made.cut,
        "text_only": config.text_only, "text_length": encoder.text_model.config.max_position_embeddings,
    }  # fmt: skip


def anchors(method: HiDe) -> dict[str, Tensor]:
    """image [E, d], text [E, d] fp32 of every slot that the softmax is over, and image_known [E]: 0 where a task had none."""
    image, text = method._anchors()
    known = torch.tensor([float(a is not None) for a in image])
    width = next((len(a) for a in image if a is not None), 1)
    filled = [torch.zeros(width) if a is None else a.cpu().float() for a in image]
    return {"image": torch.stack(filled), "text": torch.stack(text).cpu().float().contiguous(), "image_known": known}


def _prove(
    made: Export, family: type[Backbone], ours: list[Tensor], weights: list[Tensor], experts: list[str]
) -> None:
    """Run the load.py that was written, as its reader does, and compare weights and logits."""
    place = importlib.util.spec_from_file_location("hide_export_load", made.folder / "load.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    own = made.folder / "base"
    base = str(own if own.is_dir() else made.source)
    model = module.load(made.folder, base, str(clip_of(made)), made.dtype).to(made.device)
    theirs, apart = [], 0.0
    for sample, text, known in zip(made.asked, proof.QUESTIONS, weights):
        inputs = {k: v.to(made.device) for k, v in family.plain(sample, model.base).items()}
        w = model.route([text], inputs["pixel_values"], [proof.picture()])
        apart = max(apart, (w.cpu() - known).abs().max().item())
        with torch.no_grad():
            theirs.append(model(w, **inputs, use_cache=False).logits[0].float().cpu())
    if apart > 1e-3:
        raise UserError(f"{made.name} was not finished: load.py weighs experts otherwise, by {apart:.2g}; nothing was kept.")
    made.prompts = {"load.py": proof.as_rows(proof.compared(ours, theirs, made.bare, made.dtype, made.name))}
    del model
    reclaim()
    plain = proof.loaded(Path(base), made.dtype, made.device)  # whose adapters are counted
    _, made.modules = with_adapters(plain, {name: made.folder / "experts" / name for name in experts})


def clip_of(made: Export) -> Path:
    """The folder of the run's CLIP."""
    return resolve(made.run.model.clip, made.run.model_root)
