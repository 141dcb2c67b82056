"""Implementations by name, to which a user's file adds its own."""

from typing import TypeVar

from gptjax.core.errors import UserError

Value = TypeVar("Value")


class Registry(dict[str, Value]):
    """Implementations by name, such as `ACTIVATIONS`. A built-in name means the same in every run, so it stays.

    A run records only the name. Commands that do not import the user's file would compute the built-in one in silence.
    """

    def __init__(self, builtin: dict[str, Value]) -> None:
        super().__init__(builtin)
        self.builtin = frozenset(builtin)

    def __setitem__(self, name: str, value: Value) -> None:
        if name in self.builtin:
            raise UserError(f"{name!r} is built in: choose another name for your own.")
        super().__setitem__(name, value)
