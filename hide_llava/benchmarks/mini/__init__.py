"""The embedded benchmarks `mini-ucit` and `mini-dcl`: small learnable tasks in the formats of UCIT and MLLM-DCL, from a seed."""

from hide_llava.benchmarks.mini.generate import SIZES, SUITES, VERSION, generate

__all__ = ["SIZES", "SUITES", "VERSION", "generate"]
