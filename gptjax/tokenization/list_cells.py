"""Lists that a cell of a table holds as text: as JSON, or as pandas writes them."""

import ast
import contextlib
import json
import re
import warnings
from typing import Any

_MESSAGES, _TEXTS = ("[{", "[["), ("['", '["')
"""How lists of messages and lists of texts begin."""
_ITEMS = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[\]}])(\s+(?=['"\[{]))?""", re.DOTALL)
"""A text, or the end of a list or of an object; and the blanks behind it, if an item follows them."""


def begins_as_list(value: Any) -> bool:
    """Whether a value is a text that may be a list."""
    return isinstance(value, str) and value.lstrip()[:1] == "["


def parse_list(value: Any) -> Any:
    """The list that a text holds; other values as they are, also a text that is a number in JSON."""
    return _parse(value, (*_MESSAGES, *_TEXTS)) if begins_as_list(value) else value


def parse_json(value: Any) -> Any:
    """What a text holds as JSON, or messages that it holds as a list of Python; other values as they are."""
    return _parse(value, _MESSAGES)


def _parse(value: Any, starts: tuple[str, ...]) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return _parse_python(value, starts)


def _parse_python(text: str, starts: tuple[str, ...]) -> Any:
    """A list of Python's literals, or the text as it is. An array of NumPy has blanks in place of commas."""
    if not text.startswith(starts):
        return text
    with warnings.catch_warnings(), contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        warnings.simplefilter("ignore")  # of escapes that are none
        return ast.literal_eval(_ITEMS.sub(lambda found: found[1] + (", " if found[2] else ""), text))
    return text
