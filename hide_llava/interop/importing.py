"""`hide-llava import KIND`: checkpoints of other code as a run of ours, or with `--check` only what would be read."""

from __future__ import annotations

from pathlib import Path

from hide_llava.errors import UserError
from hide_llava.interop import hide_reference, lora, mixtures
from hide_llava.interop.foreign import Base, Imported, configuration, nearest_targets, write_run
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder

# kind → the preset of its run; HiDe's of MCITlib has the layout of the authors' own code
PRESETS = {"lora": "lora", "moelora": "moelora", "smolora": "smolora", "hide-reference": "hide-official",
           "hide-mcitlib": "hide-mcitlib"}  # fmt: skip


def import_checkpoints(
    kind: str, checkpoints: list[Path], base: Path, out: Path, clip: Path | None = None, preset: str | None = None,
    benchmark: str | None = None, slots: int | None = None, check: bool = False,
) -> tuple[RunFolder | None, list[str]]:  # fmt: skip
    """Import checkpoints, for all kinds but HiDe's in the order of their tasks; the run folder and what was read, in lines.

    check: nothing is written, and the run folder is None.

    Raises:
        UserError: a tensor that has no place here, is missing or of another shape; an option that the kind has not.
    """
    preset = preset or PRESETS[kind]
    if kind.startswith("hide"):
        if clip is None:
            raise UserError(f"import {kind}: HiDe routes by CLIP; give --clip DIR.")
        lines = hide_reference.described(checkpoints, base, clip)
        return (None if check else hide_reference.import_run(checkpoints, base, clip, out, preset, benchmark, slots)), lines
    if slots is not None:
        raise UserError(f"import {kind}: --slots is of HiDe's routing.")
    stages, overrides = _read(kind, checkpoints, Base(base, clip))
    lines = [one.said for one in stages]
    if check:
        return None, lines
    config = configuration([f"method={preset}", *overrides], len(stages), base, clip, out, benchmark, _sentence(kind, clip))
    return write_run(Run(config), stages), lines


def _read(kind: str, checkpoints: list[Path], base: Base) -> tuple[list[Imported], list[str]]:
    if kind == "lora":
        stages = [lora.read(folder, base) for folder in checkpoints]
        names = {name for one in stages for name, _ in one.tensors}
        return stages, lora.overrides(stages, nearest_targets(names))
    read = [
        mixtures.read_moelora(folder, base) if kind == "moelora" else mixtures.read_smolora(folder, base, place)
        for place, folder in enumerate(checkpoints)
    ]
    (stages, options) = ([one for one, _ in read], [options for _, options in read])
    if any(own != options[0] for own in options):
        raise UserError("the checkpoints differ in rank, alpha, dropout or number of experts, so they are not one run.")
    targets = nearest_targets({name for one in stages for name, _ in one.tensors})
    frozen = [] if any(one.projector for one in stages) else ["method.projector=frozen"]
    return stages, [*options[0], f"method.targets={targets}", *frozen]


def _sentence(kind: str, clip: Path | None) -> str | None:
    """What `model.sentence` is: SMoLoRA's method wants an encoder, which it does not ask when it is told the task."""
    if kind != "smolora":
        return None
    if clip is None:
        raise UserError("import smolora: the method loads a text encoder; give --clip DIR.")
    return "clip"
