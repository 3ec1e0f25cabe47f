"""A model with a method on it, ready to train or answer: built from a configuration, restored from a run's stages."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import nn
from transformers import set_seed

from hide_llava.adapters.core import Core
from hide_llava.adapters.peft_folder import replace_values
from hide_llava.backbones.auto import load
from hide_llava.backbones.base import Backbone
from hide_llava.backbones.loading import resolve
from hide_llava.backbones.routing_encoder import ClipBeside, ClipRoutingEncoder, OwnFeatures
from hide_llava.backbones.sentence_encoder import SentenceEncoder
from hide_llava.data.reader import Reader
from hide_llava.distributed import is_main
from hide_llava.errors import UserError
from hide_llava.methods.base import Context, Method, Stage
from hide_llava.methods.checks import check_needs, check_training
from hide_llava.methods.routed import RoutedLlava
from hide_llava.storage import load_state, load_tensors, read_json, save_state, write_jsonl, write_text
from hide_llava.training.lineage import check_origin
from hide_llava.training.run import Run
from hide_llava.training.run_folder import stage_name


def encoder_kind(name: str) -> str:
    """What `router.encoder` names: clip, open_clip or own. Raises UserError for anything else."""
    kind = name.partition(":")[0]
    if kind not in ("clip", "open_clip", "own"):
        raise UserError(f"router.encoder={name}: expected clip or open_clip:<model>:<weights>, or own.")
    return kind


def routing_encoder(
    name: str, backbone: Backbone, needs: frozenset[str], sentence: Callable[[], nn.Module]
) -> nn.Module | None:
    """The encoder that a method's `needs` call for, or None. name: `router.encoder`. sentence: makes the sentence encoder."""
    if not needs & {"clip_image", "clip_text"}:
        return None
    kind = encoder_kind(name)
    if kind == "clip":
        encoder = ClipRoutingEncoder(backbone.model, backbone.clip) if backbone.own_clip else ClipBeside(backbone.clip)
    elif kind == "open_clip":
        from hide_llava.backbones.open_clip_encoder import OpenClipRoutingEncoder

        encoder = OpenClipRoutingEncoder(name.partition(":")[2], beside=not backbone.transforms)
    else:
        encoder = OwnFeatures(backbone, sentence())
    return encoder.to(backbone.model.device)


def sentence_encoder(name: str | None, root: Path, backbone: Backbone, clip: nn.Module | None) -> nn.Module:
    """The encoder that `model.sentence` names; `clip` is the routing encoder, for `model.sentence=clip`."""
    if name is None:
        raise UserError(
            "this method routes by sentence embeddings; set model.sentence to a sentence-transformers folder or hub id "
            "(the paper: sentence-transformers/all-MiniLM-L6-v2), or to clip for CLIP's text features."
        )
    if name == "clip" and clip is None:
        raise UserError("router.encoder=own takes its text features from model.sentence, which can then not be clip.")
    return clip if name == "clip" else SentenceEncoder(resolve(name, root)).to(backbone.model.device)


ABOUT = """What one stage of a run trained: the adapter(s) {what} in plain peft folders under `adapter/`{projector}.

`PeftModel.from_pretrained` reads an adapter folder alone, and then answers as the run did only if everything named above is
put into the base model too. A run's later stages, and methods that route or fold several experts, also need the folders of
the earlier stages and the method's state (`method.json`, `method.safetensors`): `hide-llava predict RUN --stage N` reads
them all. `stage.json` says which configuration and which stage before it this one came from.
"""


class Session:
    """One backbone with one method, at the stages of one run."""

    def __init__(self, run: Run, backbone: Backbone | None = None):
        self.run = run
        self.backbone = backbone or self._loaded()
        self.core = Core(self.backbone)
        self.initial_projector = self.core.projector_state()
        self.tasks, self.stages = run.method_tasks, run.stages
        self._begin(lambda method: self._encoders(method.needs))
        self.recomputes = False  # whether the stage at work has gradient checkpointing (memory.py)

    def _begin(self, encoders: Callable[[Method], tuple[nn.Module | None, nn.Module | None]]) -> None:
        """Put the run's method on the model. encoders: the routing and the sentence encoder for it."""
        run = self.run
        self.method: Method = run.method(run.options, self.core, self.tasks)
        check_needs(self.method)
        self.routed = RoutedLlava(self.core, self.method, *encoders(self.method))
        set_seed(run.seed)  # before any random initialisation, so that runs repeat
        self.method.setup()
        self._begins_bare = not self.core.names()
        self.routed.method_modules = self.method.modules
        self.widths = _widths(self.routed.encoder, self.routed.sentence_encoder)

    def _encoders(self, needs: frozenset[str]) -> tuple[nn.Module | None, nn.Module | None]:
        run = self.run
        by_clip = {"clip_text"} if "sentence" in needs and run.model.sentence == "clip" else set()

        def sentences(clip: nn.Module | None = None) -> nn.Module:
            return sentence_encoder(run.model.sentence, run.model_root, self.backbone, clip)

        encoder = routing_encoder(run.encoder, self.backbone, needs | by_clip, sentences)
        return encoder, sentences(encoder) if "sentence" in needs else None

    def become(self, run: Run) -> None:
        """Be what a new session of `run` would be, on the model and the encoders that are loaded; `restore` follows.

        run: a variant of this session's run, or the run of which this one is a variant: they differ in inference options only.
        """
        encoders, needs = (self.routed.encoder, self.routed.sentence_encoder), self.method.needs
        self.core.unfold()
        self.core.projectors.clear()
        if not self._begins_bare:  # else `restore` puts the values of the stages into the adapters that are there
            self.core.clear()
        self.core.load_projector(self.initial_projector)
        self.run, self.tasks, self.stages = run, run.method_tasks, run.stages
        self._begin(lambda method: encoders if method.needs == needs else self._encoders(method.needs))

    def _loaded(self) -> Backbone:
        """Raises UserError for a model that was downloaded just now and is of another family than was thought."""
        found, model = load(self.run.model, self.run.model_root), self.run.model
        if not isinstance(found, self.run.family):
            raise UserError(
                f"model {model.path} was not on this machine, so it was taken for a {self.run.family.title}, and it is a "
                f"{found.title}. Now it is here: give the same command again."
            )
        return found

    @property
    def routing_text(self) -> str:
        """By which text a sample is routed: its question, or what the published code makes of it."""
        return "reference" if "zero_image" in self.method.needs else "question"

    def reader(self, transform: str = "pad", masks: str = "exact") -> Reader:
        """How the model reads, with the pixels that the routing encoder takes if it looks for itself."""
        beside = getattr(self.routed.encoder, "pixels", None)
        return self.backbone.reader(transform, masks, self.routing_text, beside)

    def context(self, **values: Any) -> Context:
        return Context(widths=self.widths, **values)

    # ---- stage folders -----------------------------------------------------------------------------------------------
    def save_stage(self, folder: Path, log: list[dict]) -> None:
        """What this stage changed: its adapters, the projector if it trains, the method's state. On every rank."""
        state = self.method.state()
        state |= {f"modules.{k}": v for k, v in self.method.modules.state_dict().items()}
        if not is_main():
            return
        names = self.method.adapters()
        self.core.known(names, f"method '{self.method.name}': adapters()")
        for name in names:
            self.core.save(name, folder / "adapter" if len(names) == 1 else folder / "adapter" / name)
        trained = {id(p) for group in self.method.params() for p in group["params"]}
        if any(id(p) in trained for p in self.core.projector.parameters()):
            save_file(self.core.projector_state(), folder / "projector.safetensors")
            projector = " and `projector.safetensors` (of the model's projector, which was trained with it)"
        else:
            projector = ""
        write_text(folder / "README.md", ABOUT.format(what=", ".join(f"`{n}`" for n in names), projector=projector))
        write_jsonl(folder / "trainer_log.jsonl", log)
        save_state(folder, "method", {**state, "adapters": names})

    def restore(self, index: int) -> None:
        """Bring adapters, projector and method to where stage `index` ended; −1: the untouched base.

        Raises:
            UserError: a stage is not complete, or a file of it is damaged.
        """
        self.core.unfold()
        self.core.load_projector(self.initial_projector)
        where: dict[str, Path] = {}
        training = self.run.training_part() if index >= 0 else {}
        for stage in self.stages[: index + 1]:
            folder = self.run.folder.stage(stage_name(stage))
            if not (folder / "method.json").is_file():
                raise UserError(f"{folder}: this stage is not complete; train it first.")
            check_origin(folder, training)
            names = read_json(folder / "method.json")["adapters"]
            for name in names:
                where[name] = folder / "adapter" if len(names) == 1 else folder / "adapter" / name
            if (folder / "projector.safetensors").is_file():
                self.core.load_projector(load_tensors(folder / "projector.safetensors"))
        for name, folder in where.items():
            try:
                self.core.load(name, folder)
            except UserError as error:
                home = folder.parent if folder.name == "adapter" else folder.parent.parent
                raise UserError(f"{error} Delete {home} and run again: that task is trained again.") from None
        if index >= 0:
            folder = self.run.folder.stage(stage_name(self.stages[index]))
            state = load_state(folder, "method")
            if state.get("adapter_only"):
                raise UserError(f"{folder}: only its expert was imported; import this task's own checkpoint to use it.")
            self.load_method(state)

    def restore_after(self, number: int) -> None:
        """Be what answers after stage `number` (from 1), which may be the untouched base; raises what `restore` does."""
        self.restore(number - 1 if self.run.trains_in(number) else -1)

    def load_method(self, state: dict[str, Any]) -> None:
        state = copy.copy(state)
        modules = {k.removeprefix("modules."): state.pop(k) for k in list(state) if k.startswith("modules.")}
        self.method.load_state(state)
        self.method.modules.load_state_dict(modules)  # checks names and shapes
        for name, parameter in self.method.modules.named_parameters():
            replace_values(parameter, modules[name])

    # ---- training and inference mode ---------------------------------------------------------------------------------
    def begin_stage(self, stage: Stage, context: Context) -> None:
        """Seed, let the method add what it trains, and make exactly that trainable, in `adapter_dtype`; routers stay in fp32.

        Each parameter gets memory of its own: one that still lies in a mapped file may be unaligned there, and its sums then come
        out otherwise in their last bit than in a session that goes on with this stage.
        """
        set_seed(self.run.seed + stage.index)
        self.core.unfold()
        self.routed.train()  # what a method measures before its task is routed as in training
        self.method.before_task(self.tasks[stage.train[0]], context)
        check_training(self.method)
        self.routed.train()  # by the Trainer only in a step; a task that is resumed behind its last one has none
        self.routed.requires_grad_(False)
        routers = [module for module in self.method.modules.modules() if isinstance(module, torch.nn.Linear)]
        kept = {id(parameter) for router in routers for parameter in router.parameters()}
        dtype = getattr(torch, self.run.train.adapter_dtype)
        for group in self.method.params():
            for parameter in group["params"]:
                own = parameter.dtype if id(parameter) in kept else dtype
                parameter.data = parameter.data.to(own, copy=True)
                parameter.requires_grad_(True)
        for name in self.method.adapters():  # a factor that is frozen beside one that trains is of its dtype
            for _, _, layer in self.core.layers(name):
                for half in (layer.lora_A[name].weight, layer.lora_B[name].weight):
                    half.data = half.data.to(dtype)

    def cast_inputs(self, on: bool) -> None:
        """Whether peft casts what an adapted linear reads to the dtype of the adapter, fp32, as is its default.

        Under autocast the adapter's product is in the model's dtype anyway: autocast casts the same values back, and what is
        left is six passes over every activation, and dropout drawn in fp32. Off while the training loop runs under autocast;
        without autocast (evaluation, fp32 models) the cast is what makes the product possible.
        """
        for layer in self.core.llava.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.cast_input_dtype_enabled = on

    def __enter__(self) -> Session:
        """`with session:` folds what does not depend on the input, for generation; leaving unfolds exactly."""
        self.routed.eval()
        self.routed.requires_grad_(False)
        self.method.prepare_inference()
        self.core.fuse()
        return self

    def __exit__(self, *_: Any) -> None:
        self.core.unfold()

    @contextlib.contextmanager
    def bare(self) -> Iterator[None]:
        """Inside `with session:`, for a while: nothing is folded, so that a route alone says what is added to the base model."""
        self.core.refold([], [], "delta_sum", [])
        try:
            yield
        finally:
            self.__enter__()


def _widths(encoder: nn.Module | None, sentence: nn.Module | None) -> dict[str, int]:
    widths = {}
    with torch.no_grad():
        if encoder is not None:
            widths = {"clip_image": encoder.width, "clip_text": encoder.text([""]).shape[1]}
        if sentence is not None:
            widths["sentence"] = sentence.text([""]).shape[1]
    return widths
