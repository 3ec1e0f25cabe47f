"""This package beside the authors' code: the same random checkpoint, the same work, whole processes in turn, on a CPU.

    python perf/reference.py --checkout PATH --python PATH/bin/python [--what evaluation,training] [--rounds 3] [--small]

Neither the authors' code nor an environment for it is part of this repository; `--help` ends with how to get both.
Take the same torch on both sides (a CPU build is enough), else two versions of torch are compared. Their files are not edited;
`perf/reference_side.py` says what is replaced in memory so that they run in fp32 on a CPU.

evaluation  their `llava.eval.model_answer` as it is (one question at a time, 4 loader workers) against `hide-llava predict`, at
            batch size 1 and at its default; greedy tokens are compared. Beside them the base model without a method, as the
            floor. Seconds are per question, from the loader's first batch to the last answer.
training    their `train()` through transformers' Trainer without DeepSpeed, as their script sets it (gradient checkpointing)
            against `train_stage`, at its defaults and, where they differ, with `train.gradient_checkpointing=true`; batches
            of 4. Seconds are per optimizer step behind the first. The losses of the first step are compared.

Read the ratios of CPU time: each is theirs divided by ours within one round, and the median over rounds is shown with the
smallest and the largest. Peak memory is the resident set of the main process, interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from measure import machine, table
from reference_world import World, write_world

from hide_llava.config import from_yaml, to_yaml

HOW = """Neither the authors' code nor an environment for it is part of this repository. To get both:

    git clone https://github.com/Ghy0501/HiDe-LLaVA PATH            # measured: commit 4dd0793
    python3.11 -m venv ENV
    ENV/bin/pip install torch==2.13.0 transformers==4.31.0 accelerate==0.21.0 'numpy<2' sentencepiece==0.1.99 \\
        einops tqdm pillow psutil shortuuid protobuf
    ENV/bin/pip install --no-deps peft==0.4.0
"""  # a checkout and an environment
HERE = Path(__file__).resolve().parent
NEEDED = ("llava/eval/model_answer.py", "llava/train/train_MOE.py", "HiDe/peft/tuners/clitmoelora.py")
VERSION = "4.31."  # of transformers, which their code is written for
BATCH = 4
WHAT = ("evaluation", "training")
FULL = {"hidden": 512, "layers": 8, "heads": 8, "words": 32_000, "vision": 192, "vision_layers": 6, "text_layers": 2}
SMALL = {"hidden": 64, "layers": 2, "heads": 4, "words": 2_000, "vision": 32, "vision_layers": 2, "text_layers": 1}
HEADER = ["variant", "CPU s whole", "CPU s / {unit}", "start-up CPU s", "peak MiB", "whole CPU", "CPU / {unit}", "wall s"]


@dataclass
class Variant:
    """One way to do the work: a role of `reference_side.py`, the words it gets, and what each round measured. other: it gives
    other answers, because it is another model."""

    name: str
    role: str
    words: list[str]
    other: bool = False
    rounds: list[dict[str, Any]] = field(default_factory=list)


class Reference:
    """The world on disk and the two environments."""

    def __init__(self, folder: Path, checkout: Path, python: Path, layers: int, args: argparse.Namespace):
        self.folder, self.checkout, self.python, self.args = folder, checkout, python, args
        self.shapes = [str(layers), str(args.experts)]
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
                            "CUDA_VISIBLE_DEVICES": "", "HIDE_CACHE": str(folder / "cache")}  # fmt: skip

    def evaluation(self) -> list[Variant]:
        folder, experts, new = self.folder, self.args.experts, str(self.args.new_tokens)
        theirs = ["--model-path", f"{folder}/Task{experts}_llava_lora_ours", "--model-base", f"{folder}/base",
                  "--question-file", f"{folder}/data/test.json", "--image-folder", f"{folder}/data/pictures",
                  "--text-tower", f"{folder}/clip", "--answers-file", f"{folder}/theirs/answers.jsonl",
                  "--temperature", "0", "--conv-mode", "vicuna_v1", "--max_new_tokens", new]  # fmt: skip
        ours = [f"{folder}/run-{experts}", "--stage", str(experts), "--questions", f"{folder}/data/test.json", "--images",
                f"{folder}/data/pictures", "--output", f"{folder}/ours.jsonl", "--max-new-tokens", new]  # fmt: skip
        base = [str(self.base_alone()), "--stage", "1", *ours[3:]]
        return [
            Variant("theirs", "theirs-evaluation", self.shapes + theirs),
            Variant("ours, batch 1", "ours-evaluation", [*ours, "--batch-size", "1"]),
            Variant("ours, default batch", "ours-evaluation", ours),
            Variant("the base model alone, batch 1", "ours-evaluation", [*base, "--batch-size", "1"], other=True),
            Variant("the base model alone, default batch", "ours-evaluation", base, other=True),
        ]

    def base_alone(self) -> Path:
        """A run without a method on the same base model: upstream's own modules, which no adapter can be faster than."""
        folder = self.folder / "run-base"
        config = from_yaml(self.folder / f"run-{self.args.experts}" / "config.yaml")
        config.method, config.output = {"name": "zero_shot", "preset": "zero_shot"}, str(folder)
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        return folder

    def training(self) -> list[Variant]:
        folder, experts, rank = self.folder, self.args.experts, self.args.rank
        theirs = {
            "lora_enable": True, "lora_r": rank * experts, "lora_alpha": 2 * rank * experts, "mm_projector_lr": 2e-5,
            "expert_num": experts, "model_name_or_path": folder / "base", "version": "v1", "cur_task": experts - 1,
            "previous_task_model_path": folder / f"Task{experts - 1}_llava_lora_ours",
            "data_path": folder / "data" / "train.json", "image_folder": folder / "data" / "pictures",
            "vision_tower": folder / "clip", "text_tower": folder / "clip", "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2, "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
            "image_aspect_ratio": "pad", "group_by_modality_length": True, "output_dir": folder / "theirs-trained",
            "num_train_epochs": 1, "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1,
            "evaluation_strategy": "no", "save_strategy": "no", "learning_rate": 2e-4, "weight_decay": 0.0,
            "warmup_ratio": 0.03, "lr_scheduler_type": "cosine", "logging_steps": 1, "model_max_length": 2048,
            "gradient_checkpointing": True, "dataloader_num_workers": 4, "lazy_preprocess": True, "report_to": "none",
            "no_cuda": True,
        }  # fmt: skip
        words = [word for key, value in theirs.items() for word in (f"--{key}", str(value))]
        ours = [f"{folder}/trained", str(experts - 1), f"data_root={folder}/data", f"train.global_batch_size={BATCH}",
                f"train.per_device_batch_size={BATCH}", "train.logging_steps=1"]  # fmt: skip
        variants = [
            Variant("theirs", "theirs-training", self.shapes + words), Variant("ours, defaults", "ours-training", ours)
        ]  # fmt: skip
        if from_yaml(folder / f"run-{experts - 1}" / "config.yaml").train.gradient_checkpointing is not True:
            checkpointing = [*ours, "train.gradient_checkpointing=true"]
            variants.append(Variant("ours, checkpointing", "ours-training", checkpointing))
        return variants

    def call(self, variant: Variant) -> dict[str, Any]:
        """Run one variant in a process of its own; CPU, wall, peak memory and what the process wrote."""
        marks, log = self.folder / "marks.json", self.folder / f"{variant.name.replace(', ', '-').replace(' ', '-')}.log"
        for left in (marks, self.folder / "theirs-trained", self.folder / "trained"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        if variant.role == "ours-training":
            shutil.copytree(self.folder / f"run-{self.args.experts - 1}", self.folder / "trained")
        ours = variant.role.startswith("ours")
        words = [sys.executable if ours else str(self.python), str(HERE / "reference_side.py"), variant.role, str(marks)]
        environment = dict(self.environment)
        if not ours:
            environment.pop("PYTHONPATH", None)  # their environment must not see this package's
        begun = time.monotonic()
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [*words, *variant.words], stdout=file, stderr=subprocess.STDOUT, env=environment,
                cwd=self.folder if ours else self.checkout,
            )  # fmt: skip
            try:
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:  # this command is stopped: so is what it started
                process.kill()
                raise
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or not marks.is_file():
            raise SystemExit(f"'{variant.name}' failed:\n{log.read_text(encoding='utf-8')[-4000:]}")
        seen = json.loads(marks.read_text(encoding="utf-8"))
        return {**seen, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss / 2**10,
                "wall": time.monotonic() - begun}  # fmt: skip


def per_unit(measured: dict[str, Any], questions: int) -> tuple[float, float]:
    """(CPU seconds per question or per step, CPU seconds before the first of them)."""
    if measured["steps"]:
        steps = measured["steps"]
        return (steps[-1] - steps[0]) / max(len(steps) - 1, 1), steps[0]
    return (measured["end"] - measured["begin"]) / questions, measured["begin"]


def spread(values: list[float]) -> str:
    """The median, and the smallest and largest where there are several."""
    return f"{median(values):.2f}" + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")


def rows_of(variants: list[Variant], questions: int) -> Iterator[list[str]]:
    """A row for each variant: medians over rounds, ratios to the first variant of the same round."""
    first = variants[0].rounds
    for variant in variants:
        units = [per_unit(r, questions) for r in variant.rounds]
        theirs = [per_unit(r, questions)[0] for r in first]
        yield [
            variant.name, f"{median(r['cpu'] for r in variant.rounds):.1f}", f"{median(u for u, _ in units):.3f}",
            f"{median(s for _, s in units):.1f}", f"{median(r['peak'] for r in variant.rounds):.0f}",
            spread([a["cpu"] / b["cpu"] for a, b in zip(first, variant.rounds)]),
            spread([a / b for a, (b, _) in zip(theirs, units)]), f"{median(r['wall'] for r in variant.rounds):.1f}",
        ]  # fmt: skip


def agreement(what: str, variants: list[Variant]) -> Iterator[str]:
    """What the two sides computed, compared in the first round."""
    theirs = variants[0].rounds[0]
    for variant in (v for v in variants[1:] if not v.other):
        ours = variant.rounds[0]
        if what == "evaluation":
            same = sum(a == b for a, b in zip(theirs["tokens"], ours["tokens"]))
            count = sum(map(len, ours["tokens"]))
            yield f"{variant.name}: {same} of {len(theirs['tokens'])} answers have the same tokens ({count} tokens)"
        else:
            yield f"{variant.name}: loss of the first step {theirs['losses'][0]:.5g} theirs, {ours['losses'][0]:.5g} ours"
    if what == "training":
        for variant in variants:
            seen = variant.rounds[0]
            yield f"{variant.name}: {seen['given']:,} numbers in the optimizer, state {seen['state'] / 2**20:.2f} MiB"


def measure(reference: Reference, parts: dict[str, list[Variant]]) -> None:
    """All rounds of all parts. Each round begins with another variant."""
    for turn in range(reference.args.rounds):
        for what, variants in parts.items():
            for i in range(len(variants)):
                variant = variants[(turn + i) % len(variants)]
                variant.rounds.append(reference.call(variant))
                unit, _ = per_unit(variant.rounds[-1], reference.args.questions)
                about = f"{what}, round {turn + 1}, {variant.name}: {unit:.3f} CPU s, load {os.getloadavg()[0]:.1f}"
                print(about, file=sys.stderr, flush=True)


def show(reference: Reference, what: str, variants: list[Variant]) -> None:
    """The table of one part, as far as rounds are complete, and what the two sides agree on."""
    rounds = min(len(variant.rounds) for variant in variants)
    print(f"\n{what}: {reference.args.experts} experts, {rounds} round(s)")
    if rounds:
        complete = [replace(variant, rounds=variant.rounds[:rounds]) for variant in variants]
        header = [cell.format(unit="question" if what == "evaluation" else "step") for cell in HEADER]
        print(table(header, list(rows_of(complete, reference.args.questions))))
        print("\n".join(agreement(what, complete)), flush=True)


def checked(args: argparse.Namespace) -> tuple[Path, Path, list[str]]:
    """The checkout, the python and the parts, or an exit that says what is wrong and how to get it."""
    if args.checkout is None or args.python is None:
        raise SystemExit(f"perf/reference.py: --checkout and --python are needed.\n\n{HOW}")
    checkout = args.checkout.expanduser().resolve()
    if absent := [name for name in NEEDED if not (checkout / name).is_file()]:
        raise SystemExit(f"perf/reference.py: --checkout {checkout}: no {absent[0]}, so it is not the authors' code.\n\n{HOW}")
    python = Path(os.path.abspath(args.python.expanduser()))  # not resolved: a link out of an environment leaves it
    probe = "import torch, transformers, accelerate, peft, sentencepiece, psutil, shortuuid; print(transformers.__version__)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    try:
        asked = subprocess.run([python, "-c", probe], capture_output=True, text=True, env=environment)
    except OSError as error:
        raise SystemExit(f"perf/reference.py: --python {python}: cannot be run ({error.strerror}).\n\n{HOW}") from None
    if asked.returncode or not asked.stdout.startswith(VERSION):
        found = asked.stdout.strip() or (asked.stderr.strip().splitlines() or ["nothing"])[-1]
        raise SystemExit(
            f"perf/reference.py: --python {python}: expected transformers {VERSION}x and what it needs; found {found}.\n\n{HOW}"
        )
    for name in ("experts", "rank", "rounds", "questions", "new_tokens", "steps"):
        value, least = getattr(args, name), 2 if name in ("experts", "steps") else 1
        if value is not None and value < least:
            raise SystemExit(f"perf/reference.py: --{name.replace('_', '-')} {value}: expected {least} or more.")
    if args.folder is not None and args.folder.exists():
        raise SystemExit(f"perf/reference.py: --folder {args.folder}: is there already; name a new one.")
    parts = args.what.split(",")
    if unknown := [part for part in parts if part not in WHAT]:
        raise SystemExit(f"perf/reference.py: --what {unknown[0]}: expected {' or '.join(WHAT)}, or both with a comma.")
    return checkout, python, parts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=HOW, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=Path, help="the authors' repository")
    parser.add_argument("--python", type=Path, help="the python of an environment for it")
    parser.add_argument("--what", default="evaluation,training", help="parts, separated by commas (both)")
    parser.add_argument("--rounds", type=int, default=None, help="of all variants in turn (3, with --small 1)")
    parser.add_argument("--experts", type=int, default=6, help="tasks, of which the last is trained (6)")
    parser.add_argument("--rank", type=int, default=8, help="of one expert (8)")
    parser.add_argument("--questions", type=int, default=None, help="(24, with --small 4)")
    parser.add_argument("--new-tokens", type=int, default=16, help="of each answer (16)")
    parser.add_argument("--steps", type=int, default=None, help="of training, the first of which is left out (6, with --small 3)")
    parser.add_argument("--small", action="store_true", help="toy size: whether it works, in under two minutes")
    parser.add_argument("--folder", type=Path, help="new folder for the world and the logs; default: one that is deleted")
    args = parser.parse_args()
    checkout, python, parts = checked(args)
    for name, full, small in (("rounds", 3, 1), ("questions", 24, 4), ("steps", 6, 3)):
        if getattr(args, name) is None:
            setattr(args, name, small if args.small else full)
    sizes = SMALL if args.small else FULL
    world = World(**sizes, rank=args.rank, experts=args.experts, questions=args.questions, records=BATCH * args.steps)
    print(f"{world}\n{machine('cpu', 1)}\n{time.strftime('%Y-%m-%d')}\n", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary) / "world").resolve()
        write_world(world, folder)
        reference = Reference(folder, checkout, python, world.layers, args)
        variants = {part: getattr(reference, part)() for part in parts}
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            measure(reference, variants)
        finally:  # a run that is stopped shows its complete rounds
            for part in parts:
                show(reference, part, variants[part])


if __name__ == "__main__":
    main()
