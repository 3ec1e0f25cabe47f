"""`hide-llava doctor`: what this machine has, and what each lack costs, before a long run finds out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hide_llava.backbones.auto import OLDEST, new_enough
from hide_llava.errors import UserError
from hide_llava.metrics.ptb import java_available, java_version
from hide_llava.training.run import Run

EXTRAS = {
    "pycocoevalcap": "caption scores (VizWiz, Flickr30k): pip install -e '.[caption]'",
    "matplotlib": "figures in reports: pip install -e '.[report]'",
    "deepspeed": "ZeRO training: pip install -e '.[train]'",
    "bitsandbytes": "4-bit base models: pip install -e '.[quant]'",
    "open_clip": "router.encoder=open_clip:…: pip install -e '.[open-clip]'",
    "gradio": "the page of `hide-llava chat`: pip install -e '.[chat]'",
    "flash_attn": "model.attention=flash (SDPA is used without it)",
}


def report(run: Run | None) -> tuple[str, bool]:
    """Lines for people, and whether everything a run needs is there."""
    lines = [f"[ok]   python {sys.version.split()[0]}"]
    for package in ("torch", "transformers", "peft", "accelerate", "datasets"):
        lines.append(f"[ok]   {package} {importlib.metadata.version(package)}")
    if not new_enough():
        lines.append(f"[note] transformers is older than {'.'.join(map(str, OLDEST))}: LLaVA-1.5 works, other models do not "
                     "(docs/BACKBONES.md)")  # fmt: skip
    lines += _gpus()
    for module, use in EXTRAS.items():
        have = importlib.util.find_spec(module) is not None
        lines.append(f"[ok]   {module}" if have else f"[note] no {module}: needed for {use}")
    lines.append(
        f"[ok]   Java {java_version()}" if java_available()
        else "[note] no Java: captions (VizWiz, Flickr30k) cannot be scored as published; install a Java runtime, or set "
        "caption.tokenizer=python for a score that is labelled as not comparable"
    )  # fmt: skip
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    lines.append(f"[{'ok' if free > 5 else 'bad'}]   {free:.0f} GiB free here")
    healthy = free > 5
    if run is not None:
        more, fine = _of_run(run)
        lines, healthy = lines + more, healthy and fine
    return "\n".join(lines), healthy


def _gpus() -> list[str]:
    """The GPUs that this process may use, and what to know before it does."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    by = "" if chosen is None else f" (CUDA_VISIBLE_DEVICES={chosen or 'empty'})"
    if not torch.cuda.is_available():
        return [f"[note] no GPU{by}: enough for model=mini, not for a 7B"]
    count, lines = torch.cuda.device_count(), []
    for i in range(count):
        gpu = torch.cuda.get_device_properties(i)
        lines.append(f"[ok]   GPU {i}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute {gpu.major}.{gpu.minor}{by}")
        if gpu.major < 8:
            lines.append(f"[note] GPU {i} is older than Ampere and computes bf16 slowly: set model.dtype=float16")
    if count > 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        lines.append(
            f"[note] {count} GPUs are visible, but `hide-llava run` is one process and uses one of them: "
            "bash scripts/train_all.sh starts one on each, CUDA_VISIBLE_DEVICES=0 chooses one"
        )
    return lines


def _of_run(run: Run) -> tuple[list[str], bool]:
    """Benchmark files, model folders and text tower of one configuration."""
    from hide_llava.backbones.loading import local, resolve
    from hide_llava.preflight import preflight

    lines, healthy = [], True

    def check(label: str, action: Callable[[], Any]) -> Any:
        nonlocal healthy
        try:
            result = action()
        except UserError as error:
            healthy = False
            lines.append(f"[bad]  {label}: {error}")
            return None
        lines.append(f"[ok]   {label}")
        return result

    warnings = check(f"benchmark {run.benchmark.name}: files and metrics", lambda: preflight(run))
    lines += [f"[note] {warning}" for warning in warnings or []]
    check(f"model {run.model.path}", lambda: resolve(run.model.path, run.model_root))
    if not run.family.own_clip:
        lines.append(f"[note] {run.family.title}: {_routed_by(run)}")
    if run.model.clip is not None:
        check(f"CLIP {run.model.clip}", lambda: resolve(run.model.clip, run.model_root))
    elif run.encoder == "clip":
        lines.append("[note] no model.clip: needed to route by CLIP features (HiDe), and by an original-format model")
    sentence = run.model.sentence
    if run.encoder == "own" and sentence in (None, "clip"):
        healthy = False
        lines.append("[bad]  router.encoder=own takes its text features from model.sentence; set it to a sentence encoder")
    elif sentence not in (None, "clip") and (run.encoder == "own" or local(sentence, run.model_root) is not None):
        check(f"sentence encoder {sentence}", lambda: resolve(sentence, run.model_root))
    elif sentence not in (None, "clip"):
        lines.append(f"[note] sentence encoder {sentence} is not under {run.model_root}: read only by methods that route by the "
                     "instruction, which ask the hub for it")  # fmt: skip
    return lines, healthy


def _routed_by(run: Run) -> str:
    """What a method that routes by image and text takes its features from, beside a model whose tower is not CLIP's."""
    kind, _, rest = run.encoder.partition(":")
    if kind == "own":
        return "methods that route take its own tower's features and the sentence encoder's (router.encoder=own)"
    if kind == "open_clip":
        return f"methods that route load {rest} of open_clip beside it"
    return "its vision tower is not CLIP's, so methods that route by CLIP load the whole of model.clip beside it, in fp32"
