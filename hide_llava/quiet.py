"""What a process of ours prints beside its own lines."""

from __future__ import annotations

import os


def quiet() -> None:
    """Only our own lines and real warnings: not upstream's load reports and bars."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import logging as python_logging
    import warnings

    import torch
    from transformers.utils import logging

    python_logging.getLogger("bitsandbytes").setLevel(python_logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where installed, warns that it chose so
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
