"""`--to vllm`: a base folder with all that is not one expert's, and an adapter for each expert, as `vllm serve` takes them."""

from __future__ import annotations

from hide_llava.interop.exporting import Export


def write(made: Export) -> None:
    raise NotImplementedError
