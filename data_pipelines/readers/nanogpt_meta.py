"""nanoGPT's `meta.pkl`, which lies beside the ids of characters and says which they are.

No pickle is executed: what is read here knows texts, numbers and containers, and no class or function.
"""

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from gptjax.core.errors import UserError, quote
from gptjax.tokenization.tokenizer import Chars

META_FILE = "meta.pkl"
LARGEST = 2**24
"""Bytes; all characters of Unicode need fewer."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads Python's own texts, numbers and containers only."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def read_characters(path: Path) -> Chars | None:
    """The tokenizer of the table `stoi`; None for a file without one. Raises `UserError` for another pickle."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        content: Any = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # damaged pickles raise errors of many classes
        advice = "Name the --tokenizer that made the ids, and move the file away."
        raise UserError(f"{path}: cannot be read as a table of characters: {quote(str(error))}. {advice}") from None
    table = content.get("stoi") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        return None
    is_char = lambda char: isinstance(char, str) and len(char) == 1 and not 0xD800 <= ord(char) < 0xE000
    if not all(map(is_char, table)) or sorted(map(str, table.values())) != sorted(map(str, range(len(table)))):
        raise UserError(f"{path}: its stoi does not number single characters from 0 on. Name the --tokenizer.")
    return Chars(table)
