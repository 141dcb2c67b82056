"""Modules that are imported on first use, so that `--help` and a mistyped flag do not wait for them."""

import importlib
from typing import Any


class LazyModule:
    """Stands for a module, which is imported when an attribute of it is first used.

    Use it only where an import is slow, and keep the plain import for type checkers:

        if TYPE_CHECKING:
            from flax import nnx
        else:
            nnx = LazyModule("flax.nnx")

    Annotations with names of such a module are strings. The import system's own locks make a first use safe in threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)  # found without this method from now on
        return value
