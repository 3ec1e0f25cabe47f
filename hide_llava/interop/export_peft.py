"""`--to peft`: the stage as adapters that plain peft loads on the base model, and the trained projector beside them.

A method that answers with one set of weights is one adapter: the one that it trained, where it is that alone, or else the exact
sum of its experts as one of their ranks together. HiDe and `individual` are an adapter for each task; HiDe's come with their
routing (export_hide.py).
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from hide_llava.adapters.route import Route
from hide_llava.errors import UserError
from hide_llava.interop import export_hide, proof
from hide_llava.interop.export_hf import each_task, instead
from hide_llava.interop.exporting import PROJECTOR, Export, name_base
from hide_llava.interop.model_card import LOADING
from hide_llava.interop.peft_proof import with_adapters


def write(made: Export) -> None:
    """Write what the method is made of, load it by peft alone and compare.

    Raises:
        UserError: no adapters of plain peft answer as the method does.
    """
    if not made.session.backbone.complete(made.source):
        made.write_base(made.folder / "base", made.session.core.weights())
        made.base = str(made.final.resolve() / "base")
        made.notes.append("`base/` is the untouched base model in llava-hf's layout: the folder that the run used is in another.")
    made.session.restore(made.stage - 1)
    if made.run.method.name == "hide":
        return export_hide.write(made)
    return _each_task(made) if each_task(made) else _one(made)


def _one(made: Export) -> None:
    session = made.session
    session.core.apart = True
    with session:
        ours, routes = proof.of_run(session, made.asked)
        name = single(made, routes)
        session.core.save(name, made.folder)
        projector = made.write_projector(made.folder)
    del routes, session
    name_base(made.folder, made.base)
    made.session.backbone.write_processor(made.folder, made.source, made.transform)
    family = made.release()
    model = _base(made, made.folder, projector)
    peft, counts = with_adapters(model, {"adapter": made.folder})
    theirs = proof.of_plain(model, family, made.asked, peft)
    made.modules = counts
    made.prompts = {"adapter": proof.as_rows(proof.compared(ours, theirs, made.bare, made.dtype, made.name))}
    made.notes.append(loading(made, str(made.final), projector))


def single(made: Export, routes: list[Route]) -> str:
    """The name of the one adapter that answers as the method does.

    Raises:
        UserError: there is none.
    """
    core = made.session.core
    standing = core.standing
    apart = any(set(r.active) - set(standing) or r.gates or r.prompts is not None or r.projectors is not None for r in routes)
    if apart or len(standing) != 1:
        raise UserError(
            f"method={made.run.preset} chooses and weighs its adapters for every sample or token in a way that plain peft does "
            f"not know; {instead(made.run)}"
        )
    names, weights, mode = core.sums[0]
    if (len(names), weights, mode) == (1, [1.0], "delta_sum"):
        return names[0]
    made.notes.append(
        f"The adapter is the sum of {len(names)} experts of the run, exactly: its rank is that of all together."
        if mode == "delta_sum" else f"The adapter is the run's fusion of {len(names)} experts."
    )  # fmt: skip
    return standing[0]


def _each_task(made: Export) -> None:
    """An expert for each task, chosen by who asks: the method is told the task."""
    session = made.session
    experts = session.method.experts
    ours: dict[str, list[Tensor]] = {}
    per_task = getattr(made.run.options, "projector", None) == "per_task"
    copies = session.core.projectors
    for name in experts:
        session.core.save(name, made.folder / "experts" / name)
        name_base(made.folder / "experts" / name, made.base)
        if per_task:
            session.core.load_projector(copies[name])
            made.write_projector(made.folder / "experts" / name)
    if per_task:
        session.core.load_projector(session.initial_projector)
    projector = not per_task and made.write_projector(made.folder)
    with session:
        for name, task in zip(experts, session.method.learned):
            ours[name] = proof.of_run(session, made.asked, task)[0]
    del session
    made.session.backbone.write_processor(made.folder, made.source, made.transform)
    family = made.release()
    model = _base(made, made.folder, projector)
    peft, made.modules = with_adapters(model, {name: made.folder / "experts" / name for name in experts})
    for name in experts:
        if per_task and (made.folder / "experts" / name / PROJECTOR).is_file():
            proof.put_projector(model, made.folder / "experts" / name / PROJECTOR)
        peft.set_adapter(name)
        theirs = proof.of_plain(model, family, made.asked, peft)
        made.prompts[name] = proof.as_rows(proof.compared(ours[name], theirs, made.bare, made.dtype, made.name))
    places = f"{made.final}/experts/{experts[0]}"
    made.notes.append(
        f"`experts/` holds an adapter for each task, {', '.join(experts)} in the order of the tasks. Which one answers is for "
        "you to say: the run was told the task of every question." + (" Each has a projector of its own." if per_task else "")
    )
    made.notes.append(loading(made, places, bool(per_task or projector), f"{places if per_task else made.final}/{PROJECTOR}"))


def _base(made: Export, folder: Path, projector: bool) -> PreTrainedModel:
    """The base model as a reader of the README loads it."""
    own = folder / "base"
    model = proof.loaded(own if own.is_dir() else made.source, made.dtype, made.device)
    if made.grids is not None:
        model.config.image_grid_pinpoints = made.grids
    if projector:
        proof.put_projector(model, folder / PROJECTOR)
    return model


def loading(made: Export, adapter: str, projector: bool, file: str | None = None) -> str:
    """How adapters are loaded, as code."""
    dtype = str(made.dtype).removeprefix("torch.")
    line = f'base.load_state_dict(load_file("{file or f"{made.final}/{PROJECTOR}"}"), strict=False)  # the trained projector\n'
    lines = f"base.config.image_grid_pinpoints = {made.grids}  # the run's image budget\n" if made.grids is not None else ""
    return LOADING["peft"].format(base=made.base, dtype=dtype, adapter=adapter, projector=lines + (line if projector else ""))

