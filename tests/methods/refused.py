"""Method settings that must be refused when the configuration is read."""

import pytest

from hide_llava.errors import UserError
from hide_llava.methods.registry import method_config


def assert_refused(method: str, field: str, value: object, says: str, **others: object) -> None:
    """The message names the field with its value, and the allowed range."""
    with pytest.raises(UserError) as caught:
        method_config({"name": method, **others, field: value})
    assert f"method.{field}={value}" in str(caught.value) and says in str(caught.value)
