"""Calls of the library `tokenizers`, whose Rust code may panic: no `except Exception` catches that, and it prints."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gptjax.core.errors import UserError, quote_error
from gptjax.process.held_stderr import hold_stderr

T = TypeVar("T")
PROBE = "Az 09\n\u00e9\u2615\u6f22 \t<s>"
"""A text at which the library may panic over a damaged file."""


@contextlib.contextmanager
def catch_panics() -> Iterator[None]:
    """Raise a `UserError` for a panic of Rust code inside the context."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ != "PanicException":
            raise
        raise UserError(f"the library tokenizers ended in a panic: {quote_error(error)}.") from None


def call_quietly(function: Callable[[], T]) -> T:
    """What a function of the library returns. A panic is a `UserError`, and nothing of it is printed."""
    with hold_stderr(), catch_panics():
        return function()


def parse_library(text: str) -> Any:
    """The library's tokenizer of the text of a tokenizer.json. Raises an `Exception` of any kind."""
    from tokenizers import Tokenizer

    def parse() -> Any:
        library = Tokenizer.from_str(text)
        library.no_padding()  # it may be long, and is never asked for
        library.no_truncation()
        with contextlib.suppress(Exception):  # it is told where a text needs it
            library.encode(PROBE, add_special_tokens=False)
        return library

    return call_quietly(parse)
