"""What ends a command by intention: a user's mistake, and a signal; and what may have been meant by a word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# names that other programs give to what is called otherwise here; where several are known, the first that fits is meant
OTHER_NAMES = {
    "lr": ("learning_rate",), "batch_size": ("global_batch_size",), "bs": ("global_batch_size", "batch_size"),
    "batch": ("global_batch_size", "batch_size"), "train_batch_size": ("global_batch_size",),
    "per_device_train_batch_size": ("per_device_batch_size",), "micro_batch_size": ("per_device_batch_size",),
    "gradient_accumulation_steps": ("global_batch_size",), "num_epochs": ("epochs",), "num_train_epochs": ("epochs",),
    "steps": ("max_steps",), "wd": ("weight_decay",), "warmup": ("warmup_ratio",), "mm_projector_lr": ("projector_lr",),
    "lr_scheduler_type": ("schedule",), "scheduler": ("schedule",), "optim": ("optimizer",), "clip_grad": ("max_grad_norm",),
    "model_max_length": ("max_length",), "max_seq_length": ("max_length",), "cutoff_len": ("max_length",),
    "deepspeed": ("engine",), "zero": ("engine",), "bf16": ("dtype",), "fp16": ("dtype",), "precision": ("dtype",),
    "torch_dtype": ("dtype",), "load_in_4bit": ("quantization",), "bits": ("quantization",), "quant": ("quantization",),
    "attn_implementation": ("attention",), "model_name_or_path": ("path",), "r": ("rank",), "lora_r": ("rank",),
    "lora_rank": ("rank",), "lora_alpha": ("alpha",), "lora_dropout": ("dropout",), "target_modules": ("targets",),
    "lora_target_modules": ("targets",), "max_tokens": ("max_new_tokens",), "max_length": ("max_new_tokens",),
    "random_seed": ("seed",), "output_dir": ("output",), "out": ("output",), "data_dir": ("data_root",),
    "data_path": ("data_root",), "dataset": ("benchmark",), "max_samples": ("limit",), "order": ("task_order",),
}  # fmt: skip


class UserError(Exception):
    """Bad usage or bad input: the command line prints its message without a traceback and exits with code 2.

    The message is one sentence or two: what is wrong, where (file, record, field), and what to do about it.
    """

    def __init__(self, message: str = ""):
        # torch rebuilds an exception of a data worker from the text of its traceback; only our sentence is for the user
        if message.startswith("Caught UserError in "):
            message = message.rsplit("hide_llava.errors.UserError: ", 1)[-1].strip()
        super().__init__(message)


class BadRecord(UserError):
    """A record that cannot be trained on or asked. `kind`: a few words, by which such records are counted."""

    def __init__(self, message: str = "", kind: str = "other"):
        super().__init__(message)
        self.kind = kind


class Diverged(UserError):
    """A training whose loss, gradient or parameters are no usable numbers any more."""


class Interrupted(BaseException):
    """SIGTERM or SIGUSR1 arrived; the state is saved and the same command goes on from it.

    Not an Exception, so that code which turns any failure of a library into a sentence lets it pass.
    """


def nearest(word: str, known: list[str], prefix: str = "") -> str:
    """`Did you mean '<prefix>x'?`, whatever the case, or the list of what is known."""
    if not known:
        return "It has no options." if prefix else "There is none."
    spelt = {name.lower(): name for name in known}
    close = known_as(word, spelt) or difflib.get_close_matches(word.lower(), spelt, 1, 0.5)
    return f"Did you mean '{prefix}{spelt[close[0]]}'?" if close else f"Known: {', '.join(sorted(known))}."


def known_as(word: str, known: Iterable[str]) -> list[str]:
    """What that word of other programs is called here, if it is among the known names."""
    return [name for name in OTHER_NAMES.get(word.lower(), ()) if name in known]
