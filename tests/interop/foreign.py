"""Checkpoints as the published training codes write them, of random tensors, and what those codes compute with them.

Names: haotian-liu/LLaVA:llava/train/train.py and peft 0.4 for a plain LoRA; zackschen/CoIN:CoIN/peft/tuners/coinmoelora.py;
Minato-Zackie/SMoLoRA:PEFT_SMoLoRA/peft/tuners/smolora.py. No checkpoint of theirs was at hand.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
ALL = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", *FFN)
LINEARS = {0: "linear_1", 2: "linear_2"}


class Written:
    """A base model, a checkpoint on it, and the tensors by what they are."""

    def __init__(self, base: Path, seed: int = 0):
        self.model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()
        self.draw = torch.Generator().manual_seed(seed)
        self.adapter: dict[str, Tensor] = {}
        self.others: dict[str, Tensor] = {}
        self.settings: dict[str, Any] = {"base_model_name_or_path": "vicuna", "bias": "none", "lora_dropout": 0.05,
                                         "task_type": "CAUSAL_LM", "modules_to_save": None}  # fmt: skip

    def random(self, *shape: int, scale: float = 0.1) -> Tensor:
        return scale * torch.randn(*shape, generator=self.draw)

    def linears(self, names: tuple[str, ...]) -> list[tuple[str, str, nn.Linear]]:
        """(name in a checkpoint, name in transformers, linear) of every layer."""
        found = []
        for layer in range(self.model.config.text_config.num_hidden_layers):
            for name in names:
                path = f"model.language_model.layers.{layer}.{name}"
                found.append((f"base_model.model.model.layers.{layer}.{name}", path, self.model.get_submodule(path)))
        return found

    def projector(self) -> None:
        for place, name in LINEARS.items():
            linear = self.model.model.multi_modal_projector.get_submodule(name)
            for part in ("weight", "bias"):
                tensor = getattr(linear, part).detach() + self.random(*getattr(linear, part).shape)
                self.others[f"base_model.model.model.mm_projector.{place}.{part}"] = tensor
                getattr(linear, part).data = tensor

    def add(self, linear: nn.Linear, update: Callable[[Tensor], Tensor]) -> None:
        """From now on the model's linear gives W x + update(x)."""
        linear.register_forward_hook(lambda _, args, output: output + update(args[0]))

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        torch.save(self.adapter, folder / "adapter_model.bin")
        torch.save(self.others, folder / "non_lora_trainables.bin")
        (folder / "adapter_config.json").write_text(json.dumps(self.settings))
        (folder / "config.json").write_text(json.dumps({"model_type": "llava_llama"}))
        return folder


def lora(base: Path, names: tuple[str, ...] = ALL) -> Written:
    """A plain LoRA of rank 4: y = W x + (alpha / r) B A x."""
    made = Written(base)
    made.settings |= {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": [n.split(".")[1] for n in names]}
    made.projector()
    for stored, _, linear in made.linears(names):
        a, b = made.random(4, linear.in_features), made.random(linear.out_features, 4)
        made.adapter |= {f"{stored}.lora_A.weight": a, f"{stored}.lora_B.weight": b}
        made.add(linear, lambda x, a=a, b=b: 2 * x @ a.T @ b.T)
    return made


def experts(made: Written, stored: str, linear: nn.Linear, count: int, rank: int) -> list[tuple[Tensor, Tensor]]:
    """Random experts of one linear, put into the checkpoint."""
    found = []
    for i in range(count):
        a, b = made.random(rank, linear.in_features), made.random(linear.out_features, rank)
        made.adapter |= {f"{stored}.lora_A.loraA.{i}.weight": a, f"{stored}.lora_B.loraB.{i}.mlp.weight": b}
        found.append((a, b))
    return found


def moelora(base: Path) -> Written:
    """Four experts of rank 2: y = W x + (alpha / r) Σ_i softmax(W_g x)_i B_i A_i x, for every token."""
    made = Written(base)
    made.settings |= {"peft_type": "MOE_LORA_CoIN", "r": 8, "lora_alpha": 16, "expert_num": 4, "task_embedding_dim": 64}
    made.projector()
    for stored, _, linear in made.linears(ALL):
        pairs = experts(made, stored, linear, 4, 2)
        router = made.adapter[f"{stored}.lora_router.weight"] = made.random(4, linear.in_features, scale=1.0)

        def update(x: Tensor, pairs: list = pairs, router: Tensor = router) -> Tensor:
            gate = (x @ router.T).softmax(-1)
            return sum(2 * gate[..., i, None] * (x @ a.T @ b.T) for i, (a, b) in enumerate(pairs))

        made.add(linear, update)
    return made


def smolora(base: Path, task: int = 1, on_projector: float = 0.0) -> Written:
    """Two visual and two instruction experts of rank 2 on the FFN, one of each chosen for the whole call and weighed for a token.

    task: by whose instruction it is asked. on_projector: size of B of the experts on the projector; 0: as they begin.
    """
    made = Written(base)
    means = made.random(2, 384, scale=1.0)
    made.settings |= {"peft_type": "SMOLORA", "r": 8, "lora_alpha": 16, "expert_num": 4, "ins_type": task,
                      "ins_emb": means.tolist()}  # fmt: skip
    made.projector()
    for stored, _, linear in made.linears(FFN):
        pairs = experts(made, stored, linear, 4, 2)
        sizes = {"vu_gate": (2, linear.in_features), "ins_gate": (2, 384), "fc_A": (1, linear.out_features),
                 "fc_B": (1, linear.out_features)}  # fmt: skip
        own = {name: made.random(*size, scale=1.0) for name, size in sizes.items()}
        made.adapter |= {f"{stored}.lora_{name}.weight": tensor for name, tensor in own.items()}

        def update(x: Tensor, pairs: list = pairs, own: dict = own) -> Tensor:
            seen = int((x.mean(1) @ own["vu_gate"].T).argmax(-1))  # of a batch of one
            told = 2 + int((own["ins_gate"] @ means[task]).argmax())
            visual, instruction = (2 * x @ pairs[i][0].T @ pairs[i][1].T for i in (seen, told))
            scores = torch.cat([visual @ own["fc_A"].T, instruction @ own["fc_B"].T], -1).softmax(-1)
            return scores[..., :1] * visual + scores[..., 1:] * instruction

        made.add(linear, update)
    for place, name in LINEARS.items():
        linear = made.model.model.multi_modal_projector.get_submodule(name)
        stored = f"base_model.model.model.mm_projector.{place}"
        for i in range(4):
            made.adapter[f"{stored}.lora_A.loraA.{i}.weight"] = made.random(2, linear.in_features)
            made.adapter[f"{stored}.lora_B.loraB.{i}.weight"] = made.random(linear.out_features, 2, scale=on_projector)
        made.adapter[f"{stored}.lora_vu_gate.weight"] = made.random(2, linear.in_features)
    return made
