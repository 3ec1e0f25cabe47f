"""A stage of a run for others: as peft adapters, as a plain transformers folder, or as vLLM takes it (docs/EXPORT.md)."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from hide_llava import __version__
from hide_llava.errors import UserError
from hide_llava.interop import hub, proof
from hide_llava.interop.exporting import Export, called
from hide_llava.interop.model_card import card
from hide_llava.plugins import versions
from hide_llava.precision import full_precision
from hide_llava.storage import sha256, write_json, write_text
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder, stage_name
from hide_llava.training.session import Session

PACKAGES = ("torch", "transformers", "peft", "safetensors")


def export(
    run: Path, stage: int, to: str, output: Path, dtype: str | None = None, base: str | None = None, push: str | None = None
) -> Path:
    """Write the run as it was after `stage` (from 1) to the folder `output`, which is new or empty.

    to: peft, hf or vllm. dtype: of the written weights; None: the run's. base: what the base model is called for whoever
    loads an adapter; None: what the run calls it. push: OWNER/NAME on the hub.

    Raises:
        UserError: nothing that can be exported so, or the export does not answer as the run; nothing is left then.
    """
    place = output.resolve()  # which has a name, as `.` has not
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists and is not an empty folder; choose another --output, or delete it.")
    if push is not None:
        hub.check_token(push)
    of_run = Run(RunFolder(run).config, run, dtype)
    of_run.check_stage(stage)
    _check(of_run, stage)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{output}: cannot be made, since what it would lie in is no folder; choose another --output.") from None
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        _write(of_run, stage, to, temporary, output, base)
        if place.exists():
            place.rmdir()
        os.replace(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if push is not None:
        print(f"pushed: {hub.push(place, push)}")
    return output


def _check(run: Run, stage: int) -> None:
    if run.model.quantization != "none":
        raise UserError(
            f"{run.folder.path}: its base model is in {run.model.quantization}, whose weights no plain folder holds, and on the "
            f"unquantised base its adapters answer otherwise; take the peft folders in {run.folder.path}/stages as they are."
        )
    if not run.trains_in(stage):
        raise UserError(f"{run.folder.path}: nothing was trained in stage {stage}, so there is nothing to export but the base.")


def _write(run: Run, stage: int, to: str, temporary: Path, output: Path, base: str | None) -> None:
    from hide_llava.interop import export_hf, export_peft, export_vllm

    weights = run.chain_after(stage)  # a damaged stage is refused before anything is written
    session = Session(run)
    asked = proof.samples(session, run.common.settings(None)["image_transform"])
    with full_precision():  # TF32 rounds folded weights and sums of low rank differently
        bare = proof.of_base(session, asked)
        made = Export(run, stage, temporary, output, session, base or called(run, run.model.path), asked, bare)
        del session  # which `made` lets go before it loads what was written
        {"hf": export_hf.write, "peft": export_peft.write, "vllm": export_vllm.write}[to](made)
    if made.cut:
        said = ", ".join(f"{key}={value!r}" for key, value in made.cut.items())
        made.notes.append("Pictures are cut as in the run only if the processor is told at every call, since no file of a model "
                          f"folder says so: `processor(..., {said})`.")  # fmt: skip
    about = {
        "to": to, "run": run.folder.path.name, "stage": stage, "stage_name": stage_name(run.stages[stage - 1]),
        "method": run.method.name, "preset": run.preset, "options": run.options.model_dump(), "benchmark": run.benchmark.name,
        "tasks": [run.tasks[i].id for s in run.stages[:stage] for i in s.train], "seed": run.seed,
        "model": run.model.path, "model_sha256": run.model_sha256(), "weights_sha256": weights, "base": made.base,
        "dtype": str(made.dtype).removeprefix("torch."), "image_transform": made.transform if run.family.transforms else None,
        "versions": {"hide_llava": __version__, **versions(PACKAGES)},
        "modules": made.modules, "prompts": made.prompts,
        "files": {str(p.relative_to(temporary)): sha256(p) for p in sorted(temporary.rglob("*")) if p.is_file()},
    }  # fmt: skip
    write_json(temporary / "export.json", about)
    write_text(temporary / "README.md", card(run, about, made.source, made.notes))
