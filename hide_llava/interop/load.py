"""A run of HiDe from its exported experts, by torch, transformers and peft alone: load(folder).answer(picture, question)."""

import json
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, CLIPImageProcessorPil, CLIPModel


class Hide(torch.nn.Module):
    """y = W x + s Σ ε B_i A_i x below, s Σ w_i B_i A_i x in the expanded layers, w = softmax(similarity to anchors / τ)."""

    def __init__(self, folder, base=None, clip=None, dtype=torch.float32):
        super().__init__()
        self.folder, self.rule = Path(folder), json.loads((Path(folder) / "routing.json").read_text())
        names, self.w = self.rule["experts"], None
        self.anchors = load_file(self.folder / "routing.safetensors")
        base = base or (self.folder / "base" if (self.folder / "base").is_dir() else self.rule["base"])
        self.base = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype).eval()
        if self.rule.get("grids"):  # an image budget leaves larger ones out
            self.base.config.image_grid_pinpoints = self.rule["grids"]
        if (self.folder / "projector.safetensors").is_file():
            wrong = self.base.load_state_dict(load_file(self.folder / "projector.safetensors"), strict=False).unexpected_keys
            assert not wrong, wrong
        where = {name: str(self.folder / "experts" / name) for name in names}
        self.model = PeftModel.from_pretrained(self.base, where[names[0]], adapter_name=names[0])
        for name in names[1:]:
            self.model.load_adapter(where[name], name)
        how = {"delta_sum": "cat", "factor_sum": "linear"}[self.rule["fusion"]]
        self.model.add_weighted_adapter(names, [self.rule["fusion_weight"]] * len(names), "fused", how)
        for path, layer in self.model.named_modules():
            if isinstance(layer, LoraLayer):
                expanded = int(path.split("layers.")[1].split(".")[0]) in self.rule["expanded_layers"]
                layer.set_adapter(names if expanded else ["fused"])
                for i, name in enumerate(names if expanded else []):
                    layer.lora_B[name].register_forward_hook(lambda _, __, y, i=i: y * self.w[:, i, None, None].to(y.dtype))
        self.model.eval()  # adapters are made in training mode, with dropout
        self.clip = CLIPModel.from_pretrained(clip or self.rule["clip"], dtype=torch.float32).eval()
        self.words = AutoTokenizer.from_pretrained(clip or self.rule["clip"])
        if self.rule["tower"] == "clip":  # else it sees what the model sees
            self.square = CLIPImageProcessorPil.from_pretrained(clip or self.rule["clip"])

    @torch.no_grad()
    def route(self, questions, pixels=None, pictures=()):
        """Weights w [B, experts]. pixels: LLaVA-1.5's pixel_values. pictures: for other models, whose CLIP looks for itself."""
        rule, cos = self.rule, torch.nn.functional.cosine_similarity
        here, anchors = self.clip.device, {name: value.to(self.clip.device) for name, value in self.anchors.items()}
        told = [self.words(q, return_tensors="pt", truncation=True, max_length=rule["text_length"]).to(here) for q in questions]
        text = torch.cat([self.clip.text_model(**t).pooler_output for t in told])
        scores = (rule["image_weight"] + rule["text_weight"]) * cos(text[:, None], anchors["text"][None], dim=-1)
        if pixels is None and not pictures:
            assert rule["text_only"] == "text", "this run routes questions without a picture by a text that only it knows"
        else:
            if rule["tower"] == "clip":
                grey = tuple(int(255 * m) for m in self.square.image_mean)
                squares = [ImageOps.pad(p, (max(p.size),) * 2, color=grey) for p in pictures]
                pixels = self.square(squares, return_tensors="pt")["pixel_values"]
            tower = self.clip.vision_model if rule["tower"] == "clip" else self.base.model.vision_tower
            states = tower(pixels.to(here, tower.dtype)).last_hidden_state[:, 0].float()
            norm = tower.post_layernorm
            seen = torch.nn.functional.layer_norm(states, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
            image = cos(self.clip.visual_projection(seen)[:, None], anchors["image"][None], dim=-1)
            both = rule["image_weight"] * image + rule["text_weight"] * cos(text[:, None], anchors["text"][None], dim=-1)
            scores = torch.where(anchors["image_known"].bool(), both, scores)
        if rule["routing"] == "top1":
            w = torch.nn.functional.one_hot(scores.argmax(1), scores.shape[1]).float()
        else:
            w = (scores / rule["temperature"]).softmax(1)
        learned = len(rule["experts"])  # of the slots that the softmax is over; experts beyond the slots have no weight
        return torch.nn.functional.pad(w, (0, max(0, learned - w.shape[1])))[:, :learned]

    def forward(self, w, **inputs):
        """Of the model, each row with its weights w [B, experts]."""
        self.w = w.to(self.base.device)
        return self.model(**inputs)

    @torch.no_grad()
    def answer(self, picture, question, max_new_tokens=128):
        """The run's greedy answer; picture: a file."""
        image, processor = Image.open(picture), AutoProcessor.from_pretrained(self.folder)
        image = (ImageOps.exif_transpose(image) if self.rule.get("turned") else image).convert("RGB")
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
        bos, cut = processor.tokenizer.bos_token, self.rule.get("cut", {})
        begun = bool(bos) and prompt.startswith(bos)  # the template put it there already
        inputs = processor(text=prompt, images=image, add_special_tokens=not begun, return_tensors="pt", **cut)
        self.w = self.route([question], inputs["pixel_values"], [image])
        made = self.model.generate(**inputs.to(self.base.device), max_new_tokens=max_new_tokens, do_sample=False)
        return processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def load(folder, base=None, clip=None, dtype=torch.float32):
    """folder: the export. base, clip: in place of those that routing.json names. dtype: of the base model."""
    return Hide(folder, base, clip, dtype)
