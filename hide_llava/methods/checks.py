"""Slips of a method, told in a sentence when a stage begins, instead of as a wrong number or a traceback later."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hide_llava.errors import UserError
from hide_llava.methods.base import Method

NEEDS = ("clip_image", "clip_text", "sentence", "last_line", "zero_image")
RATES = ("adapter", "projector")


def check_needs(method: Method) -> None:
    """Raises UserError for a feature that the engine does not know."""
    from hide_llava.errors import nearest

    for need in sorted(method.needs):
        if need not in NEEDS:
            raise UserError(f"method '{method.name}': needs has '{need}'. {nearest(need, list(NEEDS))}")


def check_training(method: Method) -> None:
    """What `params` and `adapters` say must fit together: what trains is stored, and can be loaded again.

    Raises:
        UserError: nothing trains, an unknown learning rate, or an adapter that trains and is not among `adapters()`.
    """
    groups, name = method.params(), f"method '{method.name}'"
    trained = {id(p) for group in groups for p in group["params"]}
    if not trained:
        raise UserError(
            f"{name}: params() names nothing that trains; a method that only evaluates says trains = False."
        )
    for group in groups:
        if group["lr"] not in RATES and not isinstance(group["lr"], (int, float)):
            raise UserError(f"{name}: params() has lr={group['lr']!r}; expected {', '.join(RATES)} or a number.")
    stored = method.adapters()
    for adapter in method.core.names():
        if adapter not in stored and any(id(p) in trained for p in method.core.parameters_of(adapter)):
            raise UserError(
                f"{name}: adapter '{adapter}' trains but adapters() does not name it, so no stage would store it."
            )


def checked_terms(method: Method, terms: Any) -> dict[str, Tensor]:
    """What `loss` returned. Raises UserError if it is no dictionary of tensors."""
    if not isinstance(terms, dict) or not all(isinstance(term, Tensor) for term in terms.values()):
        raise UserError(f"method '{method.name}': loss() must return a dictionary of name → tensor, got {terms!r:.80}.")
    return terms
