"""nanoGPT's `meta.pkl`, which lies beside the ids of characters and says which they are.

No pickle is executed: one is loaded only if all of its operations make texts, numbers and dictionaries.
"""

import pickle
import pickletools
from pathlib import Path
from typing import Any

from gptjax.core.errors import UserError, quote
from gptjax.tokenization.tokenizer import Chars

META_FILE = "meta.pkl"
LARGEST = 2**23
"""Bytes; a table of a hundred thousand characters takes two million."""
OPERATIONS = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
        *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "INT", "BININT", "BININT1", "BININT2"),
        *("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
    )
)
"""Of pickles without classes, functions, and keys that many others of one hash can stand beside."""
CONTAINERS = frozenset(("EMPTY_DICT", "DICT", "EMPTY_LIST", "LIST"))
MOST_CONTAINERS = 100
"""An empty one takes 64 times its byte of the file."""


def read_characters(path: Path) -> Chars | None:
    """The tokenizer of the table `stoi`; None for a file without one. Raises `UserError` for another pickle."""
    try:
        content = _load(path)
    except Exception as error:  # damaged pickles raise errors of many classes
        advice = "Name the --tokenizer that made the ids, and move the file away."
        raise UserError(f"{path}: cannot be read as a table of characters: {quote(str(error))}. {advice}") from None
    table = content.get("stoi") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        return None
    is_char = lambda char: isinstance(char, str) and len(char) == 1 and not 0xD800 <= ord(char) < 0xE000
    are_ids = all(type(number) is int for number in table.values()) and sorted(table.values()) == list(
        range(len(table))
    )
    if not are_ids or not all(map(is_char, table)):
        raise UserError(f"{path}: its stoi does not number single characters from 0 on. Name the --tokenizer.")
    return Chars(table)


def _load(path: Path) -> Any:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    content, containers = path.read_bytes(), 0
    for operation, argument, _ in pickletools.genops(content):
        if operation.name not in OPERATIONS:
            raise ValueError(f"it has the operation {operation.name}")
        if "PUT" in operation.name and (argument or 0) > len(content):  # places of a table that would be made
            raise ValueError("it numbers more values than it has")
        if isinstance(argument, int) and abs(argument) >= 2**31:
            raise ValueError("it has a number of more than 31 bits")
        containers += operation.name in CONTAINERS
        if containers > MOST_CONTAINERS:
            raise ValueError(f"it has more than {MOST_CONTAINERS} lists and tables")
    return pickle.loads(content)
