"""Large documents in pieces: cut where no token can span, so that the pieces' tokens are exactly the document's.

The one idea: where the pattern that cuts text into words is known, there are places at which a word must end, whatever
stands around them. A letter before anything that is no letter is one, for a word that holds a letter ends with it; so
is a digit before anything that is none; and a blank after anything that is not white space, for it can only begin a
word. Bytes and characters have no words, and are cut anywhere between two characters. A single word of many megabytes
stays whole, and costs in tiktoken some forty times its size.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from data_pipelines.documents import Document
from gptjax.tokenizer import GPT2_PATTERN, GPT4_PATTERN, Tokenizer

PIECE_BYTES = 2**19
"""A piece is cut at the first place after so many bytes."""
LOOK_BYTES = 2**12
"""So many bytes at a time are looked at for a place."""

# Letters that every version of Unicode knows as such: basic Latin, kana, CJK, hangul. Then ASCII that is no letter,
# and the full stop and commas of East Asia, whose text may be without blanks. Tables of numbers are, too.
_BETWEEN_WORDS = "\\S(?= )|[A-Za-zぁ-ゖァ-ヺ一-龥가-힣](?=[\\x00-@\\[-`{-\\x7f、。，])|[0-9](?=[\\x00-/:-\\x7f、。，])"
# Of several blanks before a word, the last goes with the word or stands alone; tiktoken cannot look at a million of
# them with something behind, but at the end of a text it can.
_PLACES = {
    GPT2_PATTERN: re.compile(_BETWEEN_WORDS + "|[ \\t\\r\\n](?=[ \\t\\r\\n]\\S)"),
    GPT4_PATTERN: re.compile(_BETWEEN_WORDS + "|[ \\t\\r\\n](?= \\S)|[\\r\\n](?=\\S)"),
    None: re.compile("(?s:.)"),
}
_AHEAD = 2
"""Characters that a pattern looks at behind the place it finds."""

Parts = Iterable[tuple[str, Document]]
"""(split, document), one after another."""


class Position(NamedTuple):
    """How far one has come: documents that are done, and bytes of the next that are done."""

    documents: int = 0
    bytes: int = 0


START = Position()


class Piece(NamedTuple):
    """Consecutive UTF-8 of one document; `begins` and `ends` say whether the document does so here."""

    split: str
    content: bytes
    begins: bool
    ends: bool
    after: Position


def pieces(parts: Parts, tokenizer: Tokenizer, *, start: Position = START) -> Iterator[Piece]:
    """All documents in pieces of about `PIECE_BYTES` at most; from `start` on, which is the end of a piece."""
    place = _PLACES.get(tokenizer.pattern)
    number = 0
    for split, document in parts:
        if number >= start.documents:
            begin = start.bytes if number == start.documents else 0
            while begin < len(document):
                end = _end(document, begin, place)
                ends = end == len(document)
                after = Position(number + 1) if ends else Position(number, end)
                yield Piece(split, bytes(document[begin:end]), begin == 0, ends, after)
                begin = end
        number += 1  # noqa: SIM113  `enumerate` would hold the document
        del document  # or it would be held while the source reads the next one


def _end(document: Document, begin: int, place: re.Pattern[str] | None) -> int:
    end = begin + PIECE_BYTES - 1
    while place is not None and end < len(document):
        while document[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        text, _ = codecs.utf_8_decode(document[end : end + LOOK_BYTES], "strict", False)
        if found := place.search(text):
            return end + len(text[: found.end()].encode())
        if end + LOOK_BYTES >= len(document):
            break
        end += len(text[:-_AHEAD].encode())
    return len(document)
