"""What is done with a finished run, on the simulated device in bf16: `python -m tests.simulated_cuda.after WORLD OUTPUT`.

A run of HiDe is trained, then the command line is given one line after the other, as a person would; each prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch
from transformers.utils import logging

import hide_llava.methods.all  # noqa: F401
from tests.cli.call import call
from tests.simulated_cuda import device
from tests.simulated_cuda.walk import SETTINGS
from tests.tiny import arguments

RUN = "RUN"
LINES = {
    "run": None,
    "variants": ["eval", RUN, "method.temperature=0.05,0.5", "method.fusion=factor_sum", "--stages", "last"],
    "router": ["analyze", "router", RUN],
    "forgetting": ["analyze", "forgetting", RUN],
    "weights": ["analyze", "weights", RUN],
    "cka": ["analyze", "cka", RUN, "--stage", "2", "--samples", "4"],
    "reproduce": ["reproduce", "hide", RUN, "--samples", "4"],
    "ask": ["ask", RUN, "--json", "--image", "PICTURE", "What is it?"],
    "ask the first stage": ["ask", RUN, "--json", "--stage", "1", "What is it?"],
    "experts for peft": ["export", RUN, "--stage", "2", "--to", "peft", "--output", "OUTPUT/peft"],
    "report": ["report", RUN],
}


def main() -> None:
    world, output = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    places = {RUN: str(output / "run"), "PICTURE": str(next((world / "data").rglob("*.png")))}
    with device.simulated_cuda():
        for name, words in LINES.items():
            words = words or ["run", *arguments(world, "hide", output / "run", *SETTINGS)]
            words = [places.get(word, word.replace("OUTPUT", str(output))) for word in words]
            try:
                called = call(*words)
                line = {"code": called.code, "out": called.out, "err": called.err}
            except Exception:
                line = {"code": 1, "out": "", "err": traceback.format_exc()}
            print("done", json.dumps({"name": name, **line}), flush=True)


if __name__ == "__main__":
    main()
