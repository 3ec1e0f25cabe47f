"""`--to vllm`: a base folder with all that is not one expert's, and an adapter for each expert, as `vllm serve` takes them.

vLLM (its repository's `vllm/lora` of 2026, 0.22) reads a peft folder: it takes `base_model.model.` off a name, gives the rest the
name that the base model's weights get (`model.language_model.` becomes `language_model.model.`), and refuses a rank above
`--max-lora-rank`, which is one of RANKS. Adapters of a projector are only taken with an experimental option, and left out
without a word otherwise; so the trained projector is part of the base here.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from hide_llava.errors import UserError
from hide_llava.interop import proof
from hide_llava.interop.export_hf import each_task, refuse_standing
from hide_llava.interop.export_peft import single
from hide_llava.interop.exporting import Export, name_base
from hide_llava.interop.peft_proof import with_adapters
from hide_llava.storage import read_json, write_json

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be

Answers = dict[str, list[Tensor]]  # adapter → the run's logits of each prompt when that expert alone answers


def write(made: Export) -> None:
    """Raises UserError where an adapter beside a base cannot be what the method does, or is too large for vLLM."""
    made.base = str(made.final.resolve() / "base")
    made.session.restore(made.stage - 1)
    if made.run.method.name == "hide":
        ours = _hide(made)
    elif each_task(made):
        ours = _each_task(made)
    else:
        ours = _one(made)
    rank = _largest_rank(made, list(ours))
    family = made.release()
    model = proof.loaded(made.folder / "base", made.dtype, made.device)
    without = proof.of_plain(model, family, made.asked)
    peft, made.modules = with_adapters(model, {name: _place(made, name) for name in ours})
    for name, logits in ours.items():
        peft.set_adapter(name)
        theirs = proof.of_plain(model, family, made.asked, peft)
        what = f"{made.name} with its adapter {name},"
        made.prompts[name] = proof.as_rows(proof.compared(logits, theirs, without, made.dtype, what))
    made.notes.append(_how(made, list(ours), rank))


def _place(made: Export, name: str) -> Path:
    return made.folder / "adapters" / name


def _save(made: Export, name: str, stored: str, layers: list[int] | None = None) -> None:
    """Adapter `stored` of the run as `adapters/NAME`; layers: only on these."""
    folder = _place(made, name)
    made.session.core.save(stored, folder)
    name_base(folder, made.base)
    if layers is None:
        return
    kept = {path for path, layer, _ in made.session.core.layers(stored) if layer in layers}
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    save_file({k: v for k, v in state.items() if k.removeprefix("base_model.model.").split(".lora_")[0] in kept}, file)
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", {**config, "target_modules": sorted(kept)})


def _one(made: Export) -> Answers:
    session = made.session
    session.core.apart = True
    with session:
        ours, routes = proof.of_run(session, made.asked)
        _save(made, made.run.method.name, single(made, routes))
        made.write_base(made.folder / "base", session.core.weights())
    return {made.run.method.name: ours}


def _each_task(made: Export) -> Answers:
    session, ours = made.session, {}
    if getattr(made.run.options, "projector", None) == "per_task":
        raise UserError(
            f"method={made.run.preset} with method.projector=per_task: each expert has a projector of its own, and a base "
            "has one; use --to peft."
        )
    made.write_base(made.folder / "base", session.core.weights())
    for name in session.method.experts:
        _save(made, name, name)
    with session:
        for name, task in zip(session.method.experts, session.method.learned):
            ours[name] = proof.of_run(session, made.asked, task)[0]
    return ours


def _hide(made: Export) -> Answers:
    """The fused lower layers and the projector in the base, one expert's expanded layers in each adapter."""
    session, method, ours = made.session, made.session.method, {}
    if method.config.projector == "per_task":
        raise UserError(f"{made.run.folder.path}: method.projector=per_task mixes projectors, and a base has one.")
    if not method.expanded:
        raise UserError(f"{made.run.folder.path}: no layer is expanded, so nothing is left for adapters; use --to hf.")
    said, hard = method.config.routing, method.config.routing in ("top1", "oracle") or method.config.router != "anchors"
    method.config = method.config.model_copy(update={"routing": "oracle"})
    experts = [method.expert(task) for task in method.learned]
    with session:
        refuse_standing(session.core, made)
        made.write_base(made.folder / "base", session.core.weights())
        for name, task in zip(experts, method.learned):
            ours[name] = proof.of_run(session, made.asked, task)[0]
    for name in experts:
        _save(made, name, name, method.expanded)
    soft = f" This run weighs all experts for each question (`{said}`), which one adapter cannot."
    made.notes.append(
        f"`base/` holds the fused lower layers, an adapter the expanded layers {method.expanded} of one expert: a request with "
        "one of them answers as the run does when it routes hard (`method.routing=top1`, or the task is told). Which is for you "
        "to choose." + ("" if hard else soft)
    )
    return ours


def _largest_rank(made: Export, names: list[str]) -> int:
    """The smallest --max-lora-rank for all adapters.

    Raises:
        UserError: there is none.
    """
    ranks = {name: read_json(_place(made, name) / "adapter_config.json")["r"] for name in names}
    name = max(ranks, key=ranks.__getitem__)
    if ranks[name] > RANKS[-1]:
        raise UserError(f"{made.run.folder.path}: adapter {name} has rank {ranks[name]}, and vLLM takes {RANKS[-1]} at most; "
                        "use --to hf.")  # fmt: skip
    return next(rank for rank in RANKS if rank >= ranks[name])


def _how(made: Export, names: list[str], rank: int) -> str:
    modules = " ".join(f"{name}={made.final}/adapters/{name}" for name in names)
    serve = f"vllm serve {made.final}/base --enable-lora --max-lora-rank {rank} --max-loras {len(names)} --lora-modules {modules}"
    return (
        "`base/` is a whole model with the trained projector, `adapters/` the experts that are served beside it:\n\n"
        f"```\n{serve}\n```\n\n"
        f"A request names an adapter as its model, for example `\"model\": \"{names[-1]}\"`. **vLLM itself was not run with "
        "this**: names and ranks are as its sources of version 0.22 read them, and the numbers under Proof are transformers' and "
        "peft's. Whether vLLM serves adapters of this family is in its table of supported models."
    )
