"""Implementations by name."""

import pytest

from gptjax.core.errors import UserError
from gptjax.model.layers import ACTIVATIONS
from gptjax.model.positions import POSITIONS


@pytest.mark.parametrize(("registry", "name"), [(ACTIVATIONS, "gelu_tanh"), (POSITIONS, "rotary")])
def test_built_in_name_keeps_its_meaning(registry: dict, name: str) -> None:
    before = registry[name]
    with pytest.raises(UserError, match=rf"^'{name}' is built in: choose another name for your own\.$"):
        registry[name] = object()
    assert registry[name] is before
