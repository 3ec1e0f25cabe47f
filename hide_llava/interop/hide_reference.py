"""Import task folders of the reference HiDe-LLaVA (docs/CHECKPOINTS.md) as a run of ours, with strict key accounting."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from hide_llava.errors import UserError
from hide_llava.interop.foreign import Base, configuration, refuse_taken, unpickle, write_adapter
from hide_llava.storage import publish, read_json, save_state
from hide_llava.training.run import Run
from hide_llava.training.run_folder import RunFolder, stage_name

PROJECTIONS = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn",
               "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}  # fmt: skip
ADAPTER_KEY = re.compile(
    r"(?:base_model\.)?(?:model\.)*layers\.(?P<layer>\d+)\.(?P<block>self_attn|mlp)\.(?P<proj>\w+_proj)\."
    r"(?:lora_(?P<side>[AB])\.(?:default\.)?lora[AB]\.(?P<slot>\d+)\.(?:mlp\.)?weight|lora_router\.(?:default\.)?weight)$"
)
OTHER_KEY = re.compile(
    r"(?:base_model\.)?(?:model\.)*(?:(?P<projector>mm_projector)\.(?P<linear>[02])\.(?P<part>weight|bias)|"
    r"(?P<anchor>image|text)_(?P<what>anchors|boundary)\.(?P<slot>\d+))$"
)
LINEAR = {"0": "linear_1", "2": "linear_2"}


@dataclass
class Checkpoint:
    """One reference task folder, read: `experts[slot][layer, proj, side]`, projector, anchors by kind [10, d]."""

    folder: Path
    task: int
    expert_num: int
    rank: int
    scale: float
    layers: int
    experts: dict[int, dict[tuple[int, str, str], Tensor]]
    projector: dict[str, Tensor]
    anchors: dict[str, Tensor]
    counts: dict[str, Tensor]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and check one task folder.

    Raises:
        UserError: a key is unknown, missing or doubled with different values; shapes contradict the configuration.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: no adapter_config.json, so this is not a task folder of the reference code.")
    config = read_json(folder / "adapter_config.json")
    try:
        total, experts_num, task = config["r"], config["expert_num"], config["cur_task"]
        scale = config["lora_alpha"] / total
    except KeyError as key:
        raise UserError(f"{folder}/adapter_config.json: no {key}; this is not a HiDe adapter.") from None
    if total % experts_num:
        raise UserError(f"{folder}/adapter_config.json: r={total} is not a multiple of expert_num={experts_num}.")
    experts = _read_adapter(folder / "adapter_model.bin", experts_num, total // experts_num)
    layers = max(layer for layer, _, _ in experts[0]) + 1
    learned = range(task + 1)
    for slot, tensors in experts.items():
        empty = not any(bool(t.any()) for (_, _, side), t in tensors.items() if side == "B")
        if empty and slot in learned:
            raise UserError(f"{folder}: expert {slot} should be learned by task {task}, but all its B are zero.")
    projector, anchors, counts = _read_others(folder / "non_lora_trainables.bin")
    kept = {slot: experts[slot] for slot in learned}
    return Checkpoint(folder, task, experts_num, total // experts_num, scale, layers, kept, projector, anchors, counts)


def _read_adapter(path: Path, slots: int, rank: int) -> dict[int, dict[tuple[int, str, str], Tensor]]:
    experts: dict[int, dict[tuple[int, str, str], Tensor]] = {i: {} for i in range(slots)}
    for key, tensor in unpickle(path).items():
        match = ADAPTER_KEY.match(key)
        if match is None or PROJECTIONS.get(match["proj"]) != match["block"]:
            raise UserError(f"{path}: unknown key {key}.")
        if match["side"] is None:
            continue  # lora_router: the reference trains and stores it, and never uses it
        if int(match["slot"]) not in experts:
            raise UserError(f"{path}: {key} is a slot beyond expert_num={slots}.")
        place, expert = (int(match["layer"]), match["proj"], match["side"]), experts[int(match["slot"])]
        if place in expert and not torch.equal(expert[place], tensor):
            raise UserError(f"{path}: {key} is there under two names with different values.")
        if tensor.shape[0 if match["side"] == "A" else 1] != rank:
            raise UserError(f"{path}: {key} has shape {tuple(tensor.shape)}, expected rank {rank}.")
        expert[place] = tensor
    depth = 1 + max((layer for e in experts.values() for layer, _, _ in e), default=-1)
    wanted = {(layer, p, side) for layer in range(depth) for p in PROJECTIONS for side in "AB"}
    for slot, expert in experts.items():
        if missing := wanted - expert.keys() or ({("any",)} if not wanted else None):
            raise UserError(f"{path}: slot {slot} lacks {len(missing)} tensors, first {sorted(missing)[0]}.")
    return experts


def _read_others(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    projector: dict[str, Tensor] = {}
    found: dict[tuple[str, str], dict[int, Tensor]] = {}
    for key, tensor in unpickle(path).items():
        match = OTHER_KEY.match(key)
        if match is None:
            raise UserError(f"{path}: unknown key {key}.")
        if match["projector"]:
            projector[f"{LINEAR[match['linear']]}.{match['part']}"] = tensor.float()
        else:
            found.setdefault((match["anchor"], match["what"]), {})[int(match["slot"])] = tensor.float().flatten()
    if projector and len(projector) != 4:
        raise UserError(f"{path}: the projector has {len(projector)} of 4 tensors.")
    wanted = [(kind, what) for kind in ("image", "text") for what in ("anchors", "boundary")]
    for pair in wanted:
        slots = found.get(pair, {})
        if not slots or sorted(slots) != list(range(len(slots))):
            raise UserError(f"{path}: {pair[0]}_{pair[1]} is missing or has gaps.")
    stacked = {pair: torch.stack([found[pair][i] for i in range(len(found[pair]))]) for pair in wanted}
    anchors = {kind: stacked[kind, "anchors"] for kind in ("image", "text")}
    return projector, anchors, {kind: stacked[kind, "boundary"][:, 0] for kind in ("image", "text")}


def import_run(
    checkpoints: list[Path], base: Path, clip: Path, out: Path, preset: str = "hide-official",
    benchmark: str | None = None, slots: int | None = None,
) -> RunFolder:  # fmt: skip
    """Build a run folder from reference task folders; see the command's help.

    Raises:
        UserError: a folder is damaged, two folders are of different runs, or the run folder is taken.
    """
    read = sorted((read_checkpoint(Path(c)) for c in checkpoints), key=lambda c: c.task)
    _same_run(read)
    last = read[-1]
    overrides = [f"method={preset}", f"method.rank={last.rank}", f"method.alpha={last.scale * last.rank}",
                 f"method.slots={slots or last.expert_num}"]  # fmt: skip
    run = Run(configuration(overrides, last.expert_num, base, clip, out, benchmark))
    if not run.family.recorded:
        raise UserError(f"--base {base}: is {run.family.title}; the authors' checkpoints are of LLaVA-1.5.")
    refuse_taken(run)
    if last.task >= len(run.stages):
        raise UserError(f"{last.folder}: is of task {last.task + 1}, and {run.benchmark.name} has {len(run.stages)} tasks; "
                        "give a --benchmark with as many, or fewer checkpoints.")  # fmt: skip
    target = run.open({"imported_from": [c.folder.name for c in read], "count_reliable": False})
    for stage in run.stages[: last.task + 1]:
        own = next((c for c in read if c.task == stage.index), None)
        holder = next(c for c in read if c.task >= stage.index)
        temporary = target.path / "stages" / f".{stage_name(stage)}.tmp"
        _write_adapter(holder, stage.index, temporary / "adapter")
        state: dict[str, Any] = {"adapters": [f"expert-{stage.index + 1:02d}"]}
        if own is None:
            state["adapter_only"] = True
        else:
            state |= _method_state(own, run.options.anchors)
            if own.projector:
                save_file(own.projector, temporary / "projector.safetensors")
        save_state(temporary, "method", state)
        publish(temporary, target.stage(stage_name(stage)))
        target.update_stage(stage_name(stage), status="complete" if own else "adapter only")
    return target


def _same_run(read: list[Checkpoint]) -> None:
    for earlier, later in itertools.pairwise(read):
        if earlier.task == later.task:
            raise UserError(f"{earlier.folder} and {later.folder} are both task {later.task}.")
        for slot, tensors in earlier.experts.items():
            if any(not torch.equal(t, later.experts[slot][place]) for place, t in tensors.items()):
                raise UserError(f"{earlier.folder} and {later.folder}: expert {slot} differs, so they are not one run.")


def described(checkpoints: list[Path], base: Path, clip: Path) -> list[str]:
    """What is in task folders, in lines, after it was compared with the base.

    Raises:
        UserError: as of `import_run`; or a linear of the base has another shape.
    """
    read = sorted((read_checkpoint(Path(c)) for c in checkpoints), key=lambda c: c.task)
    _same_run(read)
    model, lines = Base(base, clip), []
    for one in read:
        for slot, expert in one.experts.items():
            placed = {(_path(model, layer, p, one.folder), side): t for (layer, p, side), t in expert.items()}
            model.check(one.folder / f"adapter_model.bin, slot {slot}", placed, one.rank)
        model.check_projector(one.folder / "non_lora_trainables.bin", one.projector)
        lines.append(
            f"{one.folder.name}: task {one.task + 1} of {one.expert_num}, {len(one.experts)} learned experts of rank {one.rank}, "
            f"scale {one.scale:g}, on {one.layers} layers; {len(one.projector)} tensors of the projector; anchors of image and "
            "text; left out: unlearned slots and the routers, which that code never uses"
        )
    return lines


def _path(model: Base, layer: int, projection: str, folder: Path) -> str:
    name = model.places.get((layer, f"{PROJECTIONS[projection]}.{projection}"))
    if name is None:
        raise UserError(f"{folder}: has an expert on {projection} of layer {layer}, which {model.folder} does not have.")
    return name


def _write_adapter(checkpoint: Checkpoint, slot: int, folder: Path) -> None:
    """Expert `slot` as a plain peft LoRA of rank r and alpha = scale · r."""
    home = "model.language_model.layers"
    tensors = {(f"{home}.{layer}.{PROJECTIONS[p]}.{p}", side): t for (layer, p, side), t in checkpoint.experts[slot].items()}
    targets = (
        r".*language_model\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
    )
    config = LoraConfig(r=checkpoint.rank, lora_alpha=checkpoint.scale * checkpoint.rank, lora_dropout=0.05,
                        target_modules=targets, task_type="CAUSAL_LM")  # fmt: skip
    write_adapter(folder, config, tensors)


def _method_state(checkpoint: Checkpoint, arithmetic: str) -> dict[str, Any]:
    learned = list(range(checkpoint.task + 1))
    state: dict[str, Any] = {"learned": learned, "current": checkpoint.task, "gathering": False}
    for kind in ("image", "text"):
        state[f"slot_anchor.{kind}"] = checkpoint.anchors[kind]
        for task in learned:
            anchor, count = checkpoint.anchors[kind][task].clone(), checkpoint.counts[kind][task].clone()
            if arithmetic == "exact":  # the mean is what the reference stored; its count has one pseudo-sample too many
                count = (count - 1).long()
                anchor = anchor.double() * count
            state[f"{kind}_anchor.{task}.sum"], state[f"{kind}_anchor.{task}.count"] = anchor, count
    return state
