"""Pre-train the small base: first sight (patch labels and captions), then language on top of it.

Everything is drawn from a seed while training, so nothing is ever repeated and nothing has to be stored.
bfloat16 autocast makes it several times faster on CPUs that have the instructions.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from hide_llava.benchmarks.mini.drawing import LABEL_SIZES, Scene, patch_labels, render
from hide_llava.storage import complete

from . import toy, vocabulary
from .pretrain import Sample, describe, draw

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
BACKGROUND = (122, 116, 104)
IGNORE = -100
KEEP = 100  # steps after which what a stopped call needs to go on is stored


def pixels(image: Image.Image) -> Tensor:
    """Pad to square with the CLIP mean colour and normalise: (3, 48, 48). The picture's longer side is 48."""
    square = Image.new("RGB", (toy.IMAGE_SIZE, toy.IMAGE_SIZE), BACKGROUND)
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    return torch.tensor((np.asarray(square) / 255 - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1)


def encode(sample: Sample, tokenizer: PreTrainedTokenizerFast, system: bool = True) -> tuple[list[int], list[int]]:
    """Token ids (image token repeated) and labels of one conversation; only answers and their `</s>` are learned."""
    text, spans = vocabulary.SYSTEM + " " if system else "", []
    for number, (question, answer, _) in enumerate(sample.turns):
        image = f"{vocabulary.IMAGE}\n" if number == 0 and sample.scene is not None else ""
        text += f"USER: {image}{question} ASSISTANT:"
        spans.append((len(text), len(text) + len(f" {answer}</s>")))
        text += f" {answer}</s>"
    ids: list[int] = []
    labels: list[int] = []
    start = 0
    for part, chunk in enumerate(text.split(vocabulary.IMAGE)):
        if part:
            ids += [tokenizer.convert_tokens_to_ids(vocabulary.IMAGE)] * toy.IMAGE_TOKENS
            labels += [IGNORE] * toy.IMAGE_TOKENS
            start += len(vocabulary.IMAGE)
        coded = tokenizer(chunk, return_offsets_mapping=True)
        for token, (left, right) in list(zip(coded["input_ids"], coded["offset_mapping"]))[1 if part else 0 :]:
            learned = right > left and any(a <= start + left < b for a, b in spans)
            ids.append(token)
            labels.append(token if learned else IGNORE)
        start += len(chunk)
    return ids, labels


class BaseTrainer:
    """Builds the tokenizers and the model, trains, measures, saves. `out` gets the folders llava/ and clip/."""

    def __init__(self, out: Path, seed: int = 0, log: Callable[[str], None] = print) -> None:
        self.out, self.seed, self.log = out, seed, log
        self.spent = 0.0  # seconds of calls that were stopped
        texts = vocabulary.corpus()
        vocabulary.save_llama(vocabulary.llama_tokenizer(texts), out / "llava")
        clip_size = vocabulary.save_clip(texts, out / "clip")
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "llava")
        self.clip_tokenizer = CLIPTokenizer.from_pretrained(out / "clip")
        self.image_token, self.pad = self.tokenizer.convert_tokens_to_ids([vocabulary.IMAGE, vocabulary.PAD])
        torch.manual_seed(seed)
        self.words = vocabulary.task_words()
        config = toy.llava_config(len(self.tokenizer), self.image_token, self.pad)
        self.model = toy.ToyBase(config, toy.clip_text_config(clip_size))
        self.model.llava.set_attn_implementation("eager")  # faster than the fused kernel at these sizes
        self.heads = nn.ModuleList(nn.Linear(config.vision_config.hidden_size, n) for n in LABEL_SIZES)
        self.rng = np.random.default_rng([seed, 1])
        self.started = time.time()

    # --- losses -------------------------------------------------------------------------------------------------

    def _sight_loss(self, scenes: list[Scene], samples: list[Sample], features: Tensor, image: Tensor) -> Tensor:
        """Patch labels plus CLIP loss. The text is a caption or a question with its answer."""
        labels = torch.tensor(np.stack([patch_labels(scene) for scene in scenes]))
        dense = sum(
            nn.functional.cross_entropy(head(features).flatten(0, 1).float(), labels[..., i].flatten())
            for i, head in enumerate(self.heads)
        )
        texts = [
            describe(scene) if self.rng.random() < 0.7 else " ".join(sample.turns[0][:2])
            for scene, sample in zip(scenes, samples)
        ]
        coded = self.clip_tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        return dense + 0.3 * self.model.contrastive_loss(image, coded["input_ids"], coded["attention_mask"])

    def _batch(self, samples: list[Sample], system: bool = True) -> dict[str, Tensor]:
        rows = [encode(sample, self.tokenizer, system) for sample in samples]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.pad)
        labels = torch.full((len(rows), width), IGNORE)
        for i, (row, target) in enumerate(rows):
            ids[i, : len(row)], labels[i, : len(row)] = torch.tensor(row), torch.tensor(target)
        return {"ids": ids, "labels": labels, "mask": (ids != self.pad).long()}

    def _see(self, samples: list[Sample]) -> tuple[list[Scene], Tensor]:
        scenes = [sample.scene for sample in samples if sample.scene is not None]
        return scenes, torch.stack([pixels(render(scene, self.rng)) for scene in scenes])

    def _answer_loss(self, batch: dict[str, Tensor], features: Tensor) -> Tensor:
        """Next-token loss on the answers; `features` (n, 16, width) are the pictures' patches, in order."""
        llava = self.model.llava.model
        embeds = llava.language_model.embed_tokens(batch["ids"])
        patches = llava.multi_modal_projector(features).to(embeds.dtype)
        where = (batch["ids"] == self.image_token)[..., None].expand_as(embeds)
        embeds = embeds.masked_scatter(where, patches)
        # Causal attention never looks at padding on the right, so no mask is needed.
        hidden = llava.language_model(inputs_embeds=embeds).last_hidden_state
        target = batch["labels"][:, 1:]
        logits = self.model.llava.lm_head(hidden[:, :-1][target != IGNORE])
        return nn.functional.cross_entropy(logits.float(), target[target != IGNORE])

    def _language_loss(self, samples: list[Sample], system: bool) -> Tensor:
        """Answers, with the sight loss kept on at low weight."""
        scenes, picture = self._see(samples)
        features, image = self.model.see(picture)
        with_image = [sample for sample in samples if sample.scene is not None]
        sight = self._sight_loss(scenes, with_image, features, image)
        return self._answer_loss(self._batch(samples, system), features) + 0.2 * sight

    # --- phases -------------------------------------------------------------------------------------------------

    def _run(self, name: str, steps: int, rate: float, step_loss: Callable[[int], Tensor], report: int = 50) -> None:
        named = [*self.model.named_parameters(), *self.heads.named_parameters()]
        parameters = [value for _, value in named]
        inner = [value for name, value in named if value.ndim == 2 and ".layers." in name]
        outer = [value for name, value in named if not (value.ndim == 2 and ".layers." in name)]
        # Muon needs about half the steps of AdamW on the weight matrices inside the layers.
        optimizers = [
            torch.optim.Muon(inner, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(outer, lr=0.4 * rate, weight_decay=0.01, betas=(0.9, 0.98)),
        ]
        warm = max(1, min(50, steps // 10))

        def factor(step: int) -> float:
            return min((step + 1) / warm, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))

        schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
        quick = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        self.model.train()
        mean, file = 0.0, self.out / "state.pt"
        stored = torch.load(file, weights_only=True) if file.is_file() else {"phase": name, "step": 0}
        if stored["phase"] != name:
            if name in stored["done"]:
                return
            stored = {"phase": name, "step": 0, "done": [*stored["done"], stored["phase"]]}
        elif stored["step"]:
            self.model.load_state_dict(stored["model"])
            self.heads.load_state_dict(stored["heads"])
            for each, kept in zip([*optimizers, *schedules], stored["optimizers"]):
                each.load_state_dict(kept)
            self.rng.bit_generator.state = json.loads(stored["random"])
            self.spent = stored["seconds"]
            self.log(f"{name}: goes on after step {stored['step']}")
        for step in range(stored["step"] + 1, steps + 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=quick):
                loss = step_loss(step)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer, schedule in zip(optimizers, schedules):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            mean += loss.item() / report
            if step % report == 0:
                self.log(f"{name} step {step}/{steps} loss {mean:.3f} {self.seconds():.0f} s")
                mean = 0.0
            if step % KEEP == 0 or step == steps:
                kept = {
                    "phase": name, "step": step, "done": stored.get("done", []), "seconds": self.seconds(),
                    "model": self.model.state_dict(), "heads": self.heads.state_dict(),
                    "optimizers": [each.state_dict() for each in (*optimizers, *schedules)],
                    "random": json.dumps(self.rng.bit_generator.state),
                }  # fmt: skip
                with complete(file) as temporary:
                    torch.save(kept, temporary)

    def seconds(self) -> float:
        """Of training, those of calls that were stopped included."""
        return self.spent + time.time() - self.started

    def sight(self, steps: int, batch: int = 128) -> None:
        """Phase 1: the vision tower learns what is where, and CLIP learns captions."""

        def loss(_: int) -> Tensor:
            samples: list[Sample] = []
            while len(samples) < batch:
                sample = draw(self.rng, self.words, 1)
                samples += [sample] if sample.scene is not None else []
            scenes, picture = self._see(samples)
            return self._sight_loss(scenes, samples, *self.model.see(picture))

        self._run("sight", steps, 5e-3, loss)

    def language(self, steps: int, batch: int = 36, rate: float = 8e-3, report: int = 50) -> None:
        """Phase 2: everything learns to answer. One batch in six has single turns, the others have four or five."""

        def loss(step: int) -> Tensor:
            if step % 300 == 0:
                self.log(f"held-out {self.accuracy(300)}")
            # The system prompt is the same everywhere: most of the early batches save its time.
            system = step > 0.6 * steps or step % 4 == 0
            turns = int(self.rng.choice((1, 3, 4, 4, 5, 6)))
            size = round(batch * 6.5 / (2.5 + turns))
            return self._language_loss([draw(self.rng, self.words, turns) for _ in range(size)], system)

        self._run("language", steps, rate, loss, report)

    # --- measuring and saving -----------------------------------------------------------------------------------

    @torch.no_grad()
    def accuracy(self, count: int = 1500) -> dict[str, float]:
        """Exact match on fresh single-turn samples, per family and "all" (every token right under greedy decoding)."""
        self.model.eval()
        rng = np.random.default_rng([self.seed, 7])
        right: Counter[str] = Counter()
        total: Counter[str] = Counter()
        for _ in range(0, count, 100):
            samples = [draw(rng, self.words, 1) for _ in range(100)]
            batch = self._batch(samples)
            scenes = [sample.scene for sample in samples if sample.scene is not None]
            picture = torch.stack([pixels(render(scene, rng)) for scene in scenes])
            out = self.model.llava(input_ids=batch["ids"], attention_mask=batch["mask"], pixel_values=picture)
            wrong = (out.logits[:, :-1].argmax(-1) != batch["labels"][:, 1:]) & (batch["labels"][:, 1:] != IGNORE)
            for sample, miss in zip(samples, wrong.any(1).tolist()):
                for name in (sample.turns[0][2], "all"):
                    total[name] += 1
                    right[name] += not miss
        self.model.train()
        return {name: round(right[name] / total[name], 4) for name in sorted(total)}

    def save(self, facts: dict) -> None:
        """Both folders in fp16 and base.json; written last, so that a complete folder has it."""
        llava, clip = self.out / "llava", self.out / "clip"
        half = {k: v.detach().half().contiguous() for k, v in self.model.llava.state_dict().items()}
        self.model.llava.save_pretrained(llava, state_dict=half)
        preprocessor = {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": toy.IMAGE_SIZE},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": toy.IMAGE_SIZE, "width": toy.IMAGE_SIZE},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": MEAN.tolist(),
            "image_std": STD.tolist(),
        }
        (llava / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1) + "\n", encoding="utf-8")
        config = toy.clip_config(self.model.text_model.config, self.model.llava.config.vision_config)
        config.architectures = ["CLIPModel"]
        config.save_pretrained(clip)
        rest = {
            key: value.detach().half().contiguous()
            for key, value in self.model.state_dict().items()
            if not key.startswith("llava.")
        }
        save_file(rest, clip / "model.safetensors", metadata={"format": "pt"})
        (self.out / "state.pt").unlink(missing_ok=True)
        (self.out / "base.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
