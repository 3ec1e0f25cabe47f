"""`hide-llava plan`: what a run will do and hold, computed from the configuration; nothing is trained or loaded."""

from __future__ import annotations

import torch
from transformers import AutoConfig, LlavaForConditionalGeneration

from hide_llava.adapters.core import Core
from hide_llava.config import RunConfig
from hide_llava.errors import UserError
from hide_llava.methods.base import Context, Stage, method_class, method_config
from hide_llava.model.load import dtype_of, resolve
from hide_llava.model.original import is_original, original_config
from hide_llava.training.run_folder import method_tasks, stages_of
from hide_llava.training.sequence import stage_plan, task_records, train_file

MIB = 2**20


def skeleton(config: RunConfig) -> LlavaForConditionalGeneration:
    """The model's modules without weights."""
    root = config.model_folder()
    folder = resolve(config.model.path, root)
    if is_original(folder):
        shape = original_config(folder, resolve(config.model.clip, root))
    else:
        shape = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return LlavaForConditionalGeneration(shape)


def count_records(config: RunConfig, stage: Stage) -> int | None:
    """Training records of a stage, or None while a file is not there."""
    files = [train_file(config, t) for t in stage.train]
    if not all(f.is_file() for f in files):
        return None
    return sum(len(task_records(config, t)) for t in stage.train)


def plan(config: RunConfig) -> str:
    """Readable text: batches, steps, trainable and stored parameters, memory of the weights and the optimizer."""
    lines = [f"{config.method['preset']} on {config.benchmark.name} with {config.model.name} → {config.run_folder()}"]
    cls = method_class(config.method["name"])
    stages = stages_of(config)
    if not cls.trains:
        return "\n".join([*lines, f"no training; {len(stages[0].evaluate)} tasks are evaluated"])
    for stage in stages:
        batch, epochs = stage_plan(config, stage)
        records = count_records(config, stage)
        steps = (
            "? (training file not found)" if records is None else batch.steps(records, epochs, config.train.max_steps)
        )
        lines.append(
            f"  {stage.index + 1:2d} {stage.title:<20} {records if records is not None else '?':>7} records × {epochs:g} "
            f"epoch(s), batch {batch.global_batch} = {batch.per_device} per device × {batch.accumulation} accumulation "
            f"× {batch.world} process(es): {steps} steps; then {len(stage.evaluate)} task(s) evaluated"
        )
    return "\n".join([*lines, *_sizes(config, cls)])


def _sizes(config: RunConfig, cls: type) -> list[str]:
    try:
        llava = skeleton(config)
    except UserError as error:
        return [f"sizes: not known, {error}"]
    core = Core(llava)
    tasks = method_tasks(config)
    method = cls(method_config(config.method), core, tasks)
    with torch.device("meta"):
        method.setup()
        method.before_task(tasks[0], Context(widths={"clip_image": 1, "clip_text": 1}))
    groups = method.params()
    trainable = sum(p.numel() for g in groups for p in g["params"])
    adapter = sum(p.numel() for name in method.adapters() for p in core.parameters_of(name))
    base = sum(p.numel() for p in llava.parameters()) - adapter
    width = torch.tensor([], dtype=dtype_of(config.model)).element_size()
    return [
        f"base model: {base / 1e6:,.1f} M parameters, {base * width / MIB:,.0f} MiB in {dtype_of(config.model)}",
        f"trained in one task: {trainable / 1e6:,.2f} M parameters (adapter {adapter / 1e6:,.2f} M, other "
        f"{(trainable - adapter) / 1e6:,.2f} M)",
        f"adapter file of one task: {adapter * 4 / MIB:,.1f} MiB in fp32 ({adapter * 2 / MIB:,.1f} MiB as bf16)",
        f"weights of the trained part, gradients and AdamW state: {trainable * 16 / MIB:,.0f} MiB",
    ]
