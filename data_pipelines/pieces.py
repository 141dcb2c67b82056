"""Large documents in pieces: cut where no token can span, so that the pieces' tokens are exactly the document's.

The one idea: where the pattern that cuts text into words is known, there are places at which a word must end, whatever
stands around them. A letter before anything that is no letter is one, for a word that holds a letter ends with it; a
blank after anything that is not white space is another, for it can only begin a word. Bytes and characters have no
words, and are cut anywhere but within a pair of surrogates.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gptjax.tokenizer import GPT2_PATTERN, GPT4_PATTERN, Tokenizer

PIECE_CHARACTERS = 2**19
"""A piece is cut at the first place after so many characters."""

# Letters that every version of Unicode knows as such: basic Latin, kana, CJK, hangul. Then ASCII that is no letter,
# and the full stop and commas of East Asia, whose text may be without blanks.
_BETWEEN_WORDS = "\\S(?= )|[A-Za-zぁ-ゖァ-ヺ一-龥가-힣](?=[\\x00-@\\[-`{-\\x7f、。，])"
# Of several blanks before a word, the last goes with the word or stands alone; tiktoken cannot look at a million of
# them with something behind, but at the end of a text it can.
_PLACES = {
    GPT2_PATTERN: re.compile(_BETWEEN_WORDS + "|[ \\t\\r\\n](?=[ \\t\\r\\n]\\S)"),
    GPT4_PATTERN: re.compile(_BETWEEN_WORDS + "|[ \\t\\r\\n](?= \\S)|[\\r\\n](?=\\S)"),
    None: re.compile("[^\ud800-\udbff]"),
}

Parts = Iterable[tuple[str, str]]
"""(split, text) of one document after another."""


class Position(NamedTuple):
    """How far one has come: documents that are done, and characters of the next that are done."""

    documents: int = 0
    characters: int = 0


START = Position()


class Piece(NamedTuple):
    """Consecutive text of one document; `begins` and `ends` say whether the document does so here."""

    split: str
    text: str
    begins: bool
    ends: bool
    after: Position


def pieces(parts: Parts, tokenizer: Tokenizer, *, start: Position = START) -> Iterator[Piece]:
    """All documents in pieces of about `PIECE_CHARACTERS` at most; from `start` on, which is the end of a piece."""
    place = _PLACES.get(tokenizer.pattern)
    number = 0
    for split, text in parts:
        if number >= start.documents:
            begin = start.characters if number == start.documents else 0
            while begin < len(text):
                end = _end(text, begin, place)
                ends = end == len(text)
                after = Position(number + 1) if ends else Position(number, end)
                yield Piece(split, text[begin:end], begin == 0, ends, after)
                begin = end
        number += 1  # noqa: SIM113  `enumerate` would hold the text
        del text  # or it would be held while the source reads the next one


def _end(text: str, begin: int, place: re.Pattern[str] | None) -> int:
    if place is None or len(text) - begin <= PIECE_CHARACTERS:
        return len(text)
    found = place.search(text, begin + PIECE_CHARACTERS - 1)
    return len(text) if found is None else found.end()
