"""Tables of the normalizer `Precompiled`, which is SentencePiece's. The library follows them unchecked, into panics."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.errors import UserError

LONGEST = 2**8
"""Bytes of a sequence that a table replaces; SentencePiece's own have less than 32."""
BLOCK = 256
"""Units behind a node: one for each byte that may follow."""


def check_tables(normalizer: Any, path: Path) -> None:
    """Raise `UserError` where a text would lead behind the end of a table in this section of a tokenizer.json."""
    if not all(map(is_sound, _find_tables(normalizer))):
        raise UserError(f"{path}: the table of its normalizer leads behind its own end. Fetch the file again.")


def _find_tables(normalizer: Any) -> Iterator[bytes]:
    match normalizer:
        case {"type": "Sequence", "normalizers": list(parts)}:
            for part in parts:
                yield from _find_tables(part)
        case {"type": "Precompiled", "precompiled_charsmap": str(table)}:
            yield base64.b64decode(table)


def is_sound(table: bytes) -> bool:
    """Whether every text stays inside a table: the size of a double array, its units of 32 bits, and the texts.

    A unit holds the byte that leads to it, where the units of the next bytes are, and whether a sequence ends there.
    """
    count = int.from_bytes(table[:4], "little") // 4
    if count == 0 or count % BLOCK or len(table) < 4 * (count + 1):  # else each block with a node in it is whole
        return False
    units = np.frombuffer(table[4:], "<u4", count).astype(np.int64)
    texts = np.frombuffer(table[4 * (count + 1) :] + b"\0", np.uint8)
    numbers, labels = np.arange(count), units & 0x8000_00FF
    nodes = numbers ^ (units >> 10) << ((units & 0x200) >> 6)
    parents = np.where((labels > 0) & (labels < BLOCK), numbers ^ labels, -1)
    is_node, found = np.zeros(count + 1, bool), np.array([0])
    for _ in range(LONGEST):
        if len(found) == 0:
            return True
        if nodes[found].max() >= count:
            return False
        values = units[nodes[found[units[found] >> 8 & 1 == 1]]] & 0x7FFF_FFFF
        if (values >= len(texts)).any() or (texts[values] & 0xC0 == 0x80).any():  # behind the end, inside a character
            return False
        new = np.zeros(count + 1, bool)
        new[nodes[found]] = True
        new &= ~is_node
        is_node |= new
        found = np.flatnonzero(new[parents])
    return False
