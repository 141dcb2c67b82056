r"""Large documents in pieces whose tokens are exactly those of the document.

GPT-2's and GPT-4's patterns split text into words, and no token crosses the end of a word. A document is cut only where
a word ends whatever surrounds it: before a space behind a visible character, and after a single `\n` between two
visible ones. In both patterns a word has white space only at its beginning, or `\r` and `\n` at its end, or nothing
else; and a pattern looks ahead only behind white space. Bytes and characters are cut at the same places. A document
without such a place, or for another pattern, stays in one piece.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from data_pipelines.readers.documents import Document
from gptjax.tokenization.tokenizer import GPT2_PATTERN, GPT4_PATTERN, Tokenizer

SEARCH_BYTES = 2**12
# UTF-8 of visible ASCII, U+00C0 to U+0FFF and U+3001 to U+D7FF, none of which is white space.
_VISIBLE = (
    rb"(?:[!-~]|[\xc3-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]"
    rb"|\xe3(?!\x80\x80)[\x80-\xbf]{2}|[\xe4-\xed][\x80-\xbf]{2})"
)
_CUT = re.compile(rb"%b(?= )|%b\n(?=%b)" % (_VISIBLE, _VISIBLE, _VISIBLE))


class Piece(NamedTuple):
    """Part of a document: its UTF-8, whether the document begins and ends here, and the document's point."""

    content: Document
    begins: bool
    ends: bool
    point: float


def iter_pieces(document: Document, tokenizer: Tokenizer, *, point: float, size: int) -> Iterator[Piece]:
    """Yield a document in pieces, each cut at the first possible place after `size` bytes."""
    begin = 0
    while begin < len(document):
        end = len(document)
        if tokenizer.keeps_text and tokenizer.pattern in (None, GPT2_PATTERN, GPT4_PATTERN):
            end = _find_cut(document, begin + size)
        yield Piece(bytes(document[begin:end]), begin == 0, end == len(document), point)
        begin = end


def _find_cut(document: Document, begin: int) -> int:
    for start in range(begin, len(document), SEARCH_BYTES):
        if found := _CUT.search(bytes(document[start : start + SEARCH_BYTES])):
            return start + found.end()
    return len(document)
