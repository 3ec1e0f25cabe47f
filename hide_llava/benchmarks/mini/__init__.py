"""The embedded benchmark `mini-ucit`: six learnable tasks in UCIT's format, made from a seed."""

from hide_llava.benchmarks.mini.generate import SIZES, VERSION, generate

__all__ = ["SIZES", "VERSION", "generate"]
