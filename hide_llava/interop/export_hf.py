"""`--to hf`: experts and projector in the weights of a plain folder, for methods that answer with one set of weights."""

from __future__ import annotations

from hide_llava.adapters.core import Core
from hide_llava.adapters.route import Route
from hide_llava.errors import UserError
from hide_llava.interop import proof
from hide_llava.interop.exporting import Export
from hide_llava.interop.model_card import LOADING
from hide_llava.training.run import Run
from hide_llava.training.run_folder import stage_name


def write(made: Export) -> None:
    """Fold everything, write the folder, load it by transformers alone and compare.

    Raises:
        UserError: the method's answer is not one set of weights, or the number format holds too little of an update.
    """
    session = made.session
    session.restore(made.stage - 1)
    with session:
        if each_task(made):
            raise UserError(
                f"method={made.run.preset} is told the task of each question and takes that task's expert, so no one model "
                "answers as it does; use --to peft or --to vllm, an adapter for each task."
            )
        ours, routes = proof.of_run(session, made.asked)
        refuse_routed(made.run, routes)
        refuse_standing(session.core, made)
        weights = session.core.weights()
        changed = len(session.core.kept) + len(made.trained_projector())
        made.write_base(made.folder, weights)
        del weights
    del session
    family = made.release()
    model = proof.loaded(made.folder, made.dtype, made.device)
    made.modules = {"tensors": len(model.state_dict()), "changed": changed}
    theirs = proof.of_plain(model, family, made.asked)
    made.prompts = {"model": proof.as_rows(proof.compared(ours, theirs, made.bare, made.dtype, made.name))}
    made.notes += [
        "This is a whole model: the experts and the trained projector are part of its weights.",
        LOADING["hf"].format(here=made.final, dtype=str(made.dtype).removeprefix("torch.")),
        "`generation_config.json` says greedy, with the tokens that end an answer; what the base model's said of sampling and "
        "penalties is left out, as it is in the run.",
    ]


def each_task(made: Export) -> bool:
    """Whether the run is experts of which one answers, chosen by the task that it is told of each question.

    Raises:
        UserError: it is told the task and has no such experts, as a mixture whose gates read it.
    """
    if made.run.oracle and not made.session.method.experts:
        raise UserError(f"method={made.run.preset} is told the task of each question and weighs its adapters by it, so that "
                        f"neither one set of weights nor one adapter answers as it does; {instead(made.run)}")  # fmt: skip
    return made.run.oracle


def refuse_routed(run: Run, routes: list[Route]) -> None:
    """Raises UserError if something of the answer depends on the sample."""
    mixes = any(route.projectors is not None for route in routes)
    if not mixes and not any(route.active or route.gates or route.prompts is not None for route in routes):
        return
    what = "mixes its projectors" if mixes else "chooses and weighs its adapters or prompts"
    raise UserError(f"method={run.preset} {what} for every sample or token, so that no one set of weights answers as it does; "
                    f"{instead(run)}")  # fmt: skip


def instead(run: Run) -> str:
    """What there is for a method that routes."""
    folder = run.folder.path
    if run.method.name == "hide" and run.options.expanded_layers:
        return ("use --to peft, which writes the experts with their routing and a loader, or fold all layers: `hide-llava eval "
                f"{folder} method.expanded_layers=[]`, and export {folder}/variants/expanded_layers=[].")  # fmt: skip
    return f"hand on the run folder itself: `hide-llava predict {folder} --stage N` answers with it."


def refuse_standing(core: Core, made: Export) -> None:
    """Raises UserError if weights of that number format do not hold an update."""
    if not core.standing:
        return
    small = [share for share in core.kept.values() if share < 0.99]
    raise UserError(
        f"{made.run.folder.path}: in {made.run.model.dtype}, {len(small)} of {len(core.kept)} linears of stage "
        f"{stage_name(made.run.stages[made.stage - 1])} would lose more than 1 % of their update by rounding (the least holds "
        f"{min(core.kept.values()):.0%}); give --dtype float32, or --to peft, which rounds nothing."
    )
