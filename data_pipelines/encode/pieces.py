"""Large documents in pieces: cut where no token can span, so that the pieces' tokens are exactly the document's.

The one idea: where the pattern that cuts text into words is known, there are places at which a word must end, whatever
stands around them. A letter before anything that is no letter is one, for a word that holds a letter ends with it; so
is a digit before anything that is none; and a blank after anything that is not white space, for it can only begin a
word. Bytes and characters have no words, and are cut anywhere between two characters. Where no such place comes for
long (a word without end, letters that are not listed here, another pattern), `cuts.py` looks at the words and tokens.
"""

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple

from data_pipelines.encode.cuts import Cuts
from data_pipelines.readers.documents import Document
from gptjax.tokenizer import GPT2_PATTERN, GPT4_PATTERN, Tokenizer

PIECE_BYTES = 2**19
"""A piece is cut at the first place after so many bytes."""
LOOK_BYTES = 2**12
"""So many bytes at a time are looked at for a place,"""
MOST_LOOKS = 2**5
"""and so often."""

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


class Piece(NamedTuple):
    """The UTF-8 of a document from byte `begin` up to `end`; `ends` says whether the document does so there."""

    content: bytes
    begin: int
    end: int
    ends: bool


def pieces(document: Document, tokenizer: Tokenizer, *, begin: int = 0) -> Iterator[Piece]:
    """A document in pieces of about `PIECE_BYTES` at most; from `begin` on, which is the end of a piece."""
    place = _PLACES.get(tokenizer.pattern)
    cuts = Cuts(tokenizer) if len(document) > PIECE_BYTES else None
    while begin < len(document):
        end = len(document) if cuts is None else _end(document, begin, place, cuts)
        yield Piece(bytes(document[begin:end]), begin, end, end == len(document))
        begin = end


def _end(document: Document, begin: int, place: re.Pattern[str] | None, cuts: Cuts) -> int:
    """Depends on nothing but the document and where the piece begins: a run that goes on finds the same pieces."""
    limit = min(begin + PIECE_BYTES + MOST_LOOKS * LOOK_BYTES, len(document))
    end = None if place is None else _known_place(document, begin + PIECE_BYTES - 1, limit, place)
    if end is None and limit < len(document):
        end = _cut(document, begin, cuts)
    return len(document) if end is None else end


def _known_place(document: Document, end: int, limit: int, place: re.Pattern[str]) -> int | None:
    while end < limit:
        while document[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        text = _text(document, end, min(end + LOOK_BYTES, limit))
        if found := place.search(text):
            return end + len(text[: found.end()].encode())
        if end + LOOK_BYTES >= limit:
            return None
        end += len(text[:-_AHEAD].encode())
    return None


def _cut(document: Document, begin: int, cuts: Cuts) -> int | None:
    size = PIECE_BYTES + MOST_LOOKS * LOOK_BYTES
    text = _text(document, begin, begin + size)
    first, last = (len(_text(document, begin, begin + count)) for count in (PIECE_BYTES, size - LOOK_BYTES))

    def place(characters: int) -> int:
        return begin + len(text[:characters].encode())

    found = cuts.find(text, first, last, lambda cut: _text(document, place(cut), place(cut) + size))
    return None if found is None else place(found)


def _text(document: Document, begin: int, end: int) -> str:
    """What lies there, but for a character at the end that is not complete."""
    return codecs.utf_8_decode(document[begin:end], "strict", False)[0]
