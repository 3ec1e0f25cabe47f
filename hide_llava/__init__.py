"""Continual instruction tuning of multimodal LLMs: HiDe-LLaVA and the methods of its field on upstream libraries."""

__version__ = "0.1.0"
