"""A rehearsal of a user's day on one GPU: the command line on a 7B of random weights, and what it took.

`--model qwen2.5-vl-3b` is the same day on a model of that shape, with CLIP beside it: 20 steps and 64 answers a stage.

    doctor → plan → run (HiDe, two tasks; killed in the second) → run (goes on) → eval with another temperature →
    run (sequential LoRA, one task)

Everything runs as a user would run it, each command in a process of its own; numbers are read from what the run folders
store. The weights are random, so answers mean nothing and never end early.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flops
import torch
from gpu import REAL
from gpu_family import write_family
from measure import machine, table
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from hide_llava.backbones.write_hf import write_hf

MINI = Path(__file__).parent.parent / "hide_llava" / "assets" / "mini"
QUESTIONS = (
    "What is the object in the image?\nAnswer the question using a single word or phrase.",
    "How many shapes does the picture show, and which of them is the largest one? Answer with the option's letter from the "
    "given choices directly.\nA. one\nB. two\nC. three\nD. four",
)  # fmt: skip
LLAVA = "llava-1.5-7b"
HEADER = ["command", "seconds", "what was measured", "value"]


@dataclass(frozen=True)
class Size:
    """Of the model, the data and the recipe. words: of the vocabulary. records: of a training and of a question file."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    words: int
    vision: int
    vision_layers: int
    image: int
    patch: int
    text: int
    text_layers: int
    records: int
    steps: int
    batch: int
    device: str
    dtype: str


FULL = Size(4096, 11008, 32, 32, 32000, 1024, 24, 336, 14, 768, 12, 200, 20, 16, "cuda", "bfloat16")
SMALL = Size(64, 96, 2, 4, 1200, 32, 3, 28, 14, 24, 2, 24, 4, 4, "cpu", "float32")


# ---- model and data ----------------------------------------------------------------------------------------------------
def tokenizer_of(words: int) -> PreTrainedTokenizerFast:
    """The small base's tokenizer, filled up to `words` with pieces that no text is cut into."""
    content = json.loads((MINI / "llava" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] < len(vocabulary)]
    for number in range(len(vocabulary), words):
        vocabulary[f"⟦{number}⟧"] = number
    backend = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


def write_model(size: Size, folder: Path, model: str) -> None:
    """`folder/model` in the layout of llava-hf, or of another family, and `folder/clip`, which HiDe routes by."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=size.words, hidden_size=size.hidden, intermediate_size=size.mlp, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.heads, max_position_embeddings=4096, rms_norm_eps=1e-5,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=size.vision, intermediate_size=4 * size.vision, num_hidden_layers=size.vision_layers,
        num_attention_heads=max(4, size.vision // 64), image_size=size.image, patch_size=size.patch, projection_dim=size.text,
    )  # fmt: skip
    if model == LLAVA:
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=size.words, vision_feature_layer=-2)
        with torch.device(size.device):  # drawn where they stay: seven billion numbers take a CPU a minute
            llava = LlavaForConditionalGeneration._from_config(config, dtype=getattr(torch, size.dtype))
        write_hf(llava, tokenizer_of(size.words), folder / "model")
        del llava
        if size.device == "cuda":
            torch.cuda.empty_cache()
    else:
        write_family(folder / "model", QUESTIONS, size is SMALL, size.device, size.dtype)
    end = json.loads((MINI / "clip" / "config.json").read_text())["text_config"]["eos_token_id"]
    clip = CLIPConfig(
        projection_dim=size.text,
        text_config=CLIPTextConfig(
            hidden_size=size.text, intermediate_size=4 * size.text, num_hidden_layers=size.text_layers,
            num_attention_heads=max(4, size.text // 64), vocab_size=max(49408, end + 1), projection_dim=size.text,
            bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
        ).to_dict(),
        # not read beside LLaVA, whose own tower is CLIP's
        vision_config={**vision.to_dict(), **({"num_hidden_layers": 1} if model == LLAVA else {})},
    )  # fmt: skip
    CLIPModel(clip).save_pretrained(folder / "clip")
    pixels = {"size": {"shortest_edge": size.image}, "crop_size": {"height": size.image, "width": size.image}, "resample": 3,
              "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "do_convert_rgb": True}  # fmt: skip
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(pixels))
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / "clip" / file).write_bytes((MINI / "clip" / file).read_bytes())


def write_benchmark(size: Size, folder: Path, name: str) -> None:
    """Two tasks in UCIT's layout, with pictures of 336 pixels, and the YAML of both."""
    draw, tasks = random.Random(0), []
    for t, question in enumerate(QUESTIONS):
        home = folder / "data" / f"task{t}"
        home.mkdir(parents=True)
        for split in ("train", "test"):
            rows = []
            for i in range(size.records):
                file = f"task{t}/{split}{i}.jpg"
                picture = Image.new("RGB", (336, 336), tuple(draw.randrange(256) for _ in range(3)))
                ImageDraw.Draw(picture).ellipse(sorted(draw.choices(range(336), k=2)) * 2, fill=(200, 30 * t, 60))
                picture.save(folder / "data" / file, quality=90)
                answer = draw.choice(("circle", "a red circle", "B"))
                turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
                rows.append({"id": f"{t}-{i}", "image": file, "conversations": turns} if split == "train" else
                            {"question_id": i, "image": file, "text": question, "answer": answer})  # fmt: skip
            (home / f"{split}.json").write_text(json.dumps(rows))
        tasks.append({"id": f"task{t}", "title": f"Task {t}", "train": f"task{t}/train.json", "test": f"task{t}/test.json",
                      "metric": "exact_upper"})  # fmt: skip
    tree = {"name": "rehearsal", "instructions": "data", "images": "data", "max_new_tokens": 10, "tasks": tasks}
    (folder / "bench.yaml").write_text(json.dumps({"benchmark": tree}))
    model = {"name": f"random-{name}", "path": str(folder / "model"), "clip": str(folder / "clip"), "device": size.device,
             "dtype": size.dtype}  # fmt: skip
    (folder / "model.yaml").write_text(json.dumps({"model": model}))


# ---- commands ------------------------------------------------------------------------------------------------------------
class Rehearsal:
    """The commands so far, their table, and the time that is left."""

    def __init__(self, size: Size, folder: Path, minutes: float, model: str):
        self.size, self.folder, self.rows, self.model = size, folder, [], model
        self.begun, self.seconds = time.monotonic(), 60 * minutes

    def words(self, method: str, output: str) -> list[str]:
        size, folder = self.size, self.folder
        return [f"benchmark={folder}/bench.yaml", f"model={folder}/model.yaml", f"method={method}", f"data_root={folder}",
                f"output={folder}/{output}", f"train.max_steps={size.steps}", f"train.global_batch_size={size.batch}",
                "train.save_steps=5" if size.steps > 5 else "train.save_steps=1"]  # fmt: skip

    def add(self, command: str, seconds: float | str, what: str = "", value: str = "") -> None:
        self.rows.append([command, seconds if isinstance(seconds, str) else f"{seconds:.1f}", what, value])
        print(" | ".join(self.rows[-1]), file=sys.stderr, flush=True)

    def call(self, label: str, *words: str, kill_at: Path | None = None) -> bool:
        """Run `hide-llava WORDS`; whether it did what it should. `kill_at`: SIGKILL as soon as that file is there."""
        if time.monotonic() > self.begun + self.seconds:
            self.add(label, "not run (time)")
            return False
        log, start = self.folder / f"{label.split(' (')[0].replace(' ', '-')}.log", time.monotonic()
        with open(log, "w") as file:
            command = [sys.executable, "-m", "hide_llava.cli", *words]
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=self.folder)
            end = self.begun + self.seconds + 60
            while process.poll() is None and time.monotonic() < end and not (kill_at is not None and kill_at.exists()):
                time.sleep(0.05)
            stopped = process.poll() is None
            if stopped:
                process.send_signal(signal.SIGKILL)
            process.wait()
        killed = stopped and kill_at is not None and kill_at.exists()
        fine = killed if kill_at is not None else process.returncode == 0
        host = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        self.add(label, time.monotonic() - start, "host memory, largest so far", f"{host:.1f} GiB")
        if not fine:
            self.add(label, f"FAILED ({process.returncode})")
            print(f"---- {log}\n" + log.read_text()[-4000:], flush=True)
        return fine

    def read(self, label: str, run: str) -> None:
        """Rows on what a finished run stores of its training and answers."""
        folder, size = self.folder / run, self.size
        manifest = json.loads((folder / "manifest.json").read_text())
        for stage in manifest["stages"]:
            name = f"{label}, {stage['name']}"
            log = folder / "stages" / stage["name"] / "trainer_log.jsonl"
            if log.is_file() and stage.get("train_seconds"):
                self.steps(name, stage, [json.loads(line) for line in log.read_text().splitlines()])
            answers = size.records * len(stage["eval_tasks"])
            if (seconds := stage.get("eval_seconds")) is not None:
                self.add(name, seconds, "answers", f"{answers / seconds:.1f} samples/s, batch {self.batch(folder, stage)}")
            for key, what in (("restore_seconds", "read all stages"), ("fold_seconds", "fold"),
                              ("unfold_seconds", "unfold")):  # fmt: skip
                if stage.get(key) is not None:
                    self.add(name, stage[key], what)
            for key, what in (("train_peak_gib", "GPU memory, training"), ("eval_peak_gib", "GPU memory, answers")):
                if stage.get(key) is not None:
                    self.add(name, "", what, f"{stage[key]:.1f} GiB")
            if "folding" in stage:
                self.add(name, "", "folded linears", json.dumps(stage["folding"]))

    def batch(self, folder: Path, stage: dict[str, Any]) -> str:
        found = [folder / "eval" / stage["name"] / task / "score.json" for task in stage["eval_tasks"]]
        return "/".join(str(json.loads(file.read_text())["batch_size"]) for file in found if file.is_file())

    def steps(self, name: str, stage: dict[str, Any], log: list[dict[str, Any]]) -> None:
        """Steps and positions per second, and the share of the card's peak."""
        took = next((row["train_runtime"] for row in reversed(log) if "train_runtime" in row), None)
        if took is None:
            return
        size = self.size
        rate = size.steps / took
        if self.model != LLAVA:  # how many positions a picture takes, its family decides
            self.add(name, took, "training", f"{rate:.3f} steps/s, {rate * size.batch:.1f} samples/s")
            return
        text = 60 + len(QUESTIONS[stage["name"].startswith("02")].split()) * 2  # tokens beside the picture, roughly
        positions = (size.image // size.patch) ** 2 + text
        value = f"{rate:.3f} steps/s, {rate * size.batch:.1f} samples/s, {rate * size.batch * positions:,.0f} positions/s"
        peak = flops.peak(torch.cuda.get_device_name()) if size.device == "cuda" else None
        if peak:
            useful, again = flops.step(REAL, positions)
            share = [100 * size.batch * rate * work / peak for work in (useful, useful + again)]
            value += f", MFU {share[0]:.0f} %, HFU {share[1]:.0f} %"
        self.add(name, took, "training", value)


def rehearse(size: Size, folder: Path, minutes: float, model: str) -> bool:
    """All of it; whether every command did what it should."""
    stage, fine = Rehearsal(size, folder, minutes, model), []
    start = time.monotonic()
    if not (folder / "model" / "config.json").is_file():
        write_model(size, folder, model)
        stage.add("model of random weights", time.monotonic() - start, "size",
                  f"{sum(p.stat().st_size for p in (folder / 'model').iterdir()) / 2**30:.1f} GiB")  # fmt: skip
    if not (folder / "bench.yaml").is_file():
        write_benchmark(size, folder, model)
    hide, second = stage.words("hide", "hide"), folder / "hide" / "state" / "02-task1"
    fine.append(stage.call("doctor", "doctor", *hide))
    fine.append(stage.call("plan", "plan", *hide))
    at = second / f"checkpoint-{5 if size.steps > 5 else 1}" / "complete"
    fine.append(stage.call("run hide (killed in its second task)", "run", *hide, kill_at=at))
    fine.append(stage.call("run hide (goes on)", "run", *hide))
    if (folder / "hide" / "manifest.json").is_file():
        stage.read("hide", "hide")
    fine.append(stage.call("eval hide, another temperature", "eval", str(folder / "hide"), "method.temperature=0.05"))
    fine.append(stage.call("run lora", "run", *stage.words("lora", "lora"), "tasks=[task0]"))
    if (folder / "lora" / "manifest.json").is_file():
        stage.read("lora", "lora")
    print(table(HEADER, stage.rows), flush=True)
    print(f"\ntotal: {time.monotonic() - stage.begun:.0f} s; {'every command did what it should' if all(fine) else 'FAILED'}")
    return all(fine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="toy size on a CPU")
    parser.add_argument("--model", choices=(LLAVA, "qwen2.5-vl-3b"), default=LLAVA)
    parser.add_argument("--minutes", type=float, default=8.0, help="after this no further command is begun")
    parser.add_argument("--folder", type=Path, default=None, help="default: a folder that is deleted afterwards")
    args = parser.parse_args()
    if not args.small and not torch.cuda.is_available():
        raise SystemExit("perf/gpu_rehearsal.py: torch sees no CUDA device; use a machine with a GPU, or --small.")
    size = SMALL if args.small else FULL
    if args.model != LLAVA and not args.small:
        size = replace(size, records=64)
    print(f"{size}\n{machine(size.device, torch.get_num_threads())}\n{time.strftime('%Y-%m-%d')}\n", flush=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("HIDE_CACHE", str(folder / "cache"))
        if not rehearse(size, folder, args.minutes, args.model):
            sys.exit(1)


if __name__ == "__main__":
    main()
