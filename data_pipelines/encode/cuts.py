"""Where a text may be cut though no certain place is near: between two words, or inside of one that does not end.

The one idea: a cut is right if left and right of it have, each by itself, the tokens that both have together. Between
words the pattern says so, when it finds the same words with the other side taken away. Inside a word (a genome without
line ends, a million dashes) it is a matter of byte pairs: a place that ends a token was crossed by no merge, and
whether a merge crosses it is decided by the two tokens that meet there. So where left and right, encoded by
themselves, meet with two tokens that also met when the word went on, no merge would cross the place now either.

Words are found here by the package regex, and in tiktoken by one in Rust, with other tables of Unicode. So a cut is
made only between characters that Python's own tables know too, which are older than both, and only where tiktoken
agrees about the words around.
"""

import functools
import itertools
import unicodedata
from collections.abc import Callable, Iterator

import numpy as np
import regex

from gptjax.tokenizer import GPT2_PATTERN, GPT4_PATTERN, Tokenizer

TRIES = 16
"""Places inside a word that are tried; nearly always the first is good."""


NEAR = 100
"""Characters on each side of a cut between words that are encoded to see whether it makes no difference."""


class Cuts:
    """The cuts that a tokenizer allows; none where it has no pattern, or one that only tiktoken can read."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            self._words = None if tokenizer.pattern is None else regex.compile(tokenizer.pattern)
        except regex.error:
            self._words = None
        # Of these it is known that the rest of a long word of one kind is a word, which ends where the whole does.
        self._rest_is_word = tokenizer.pattern in (GPT2_PATTERN, GPT4_PATTERN)
        self._bytes_per_token = tokenizer.bytes_per_token
        # What is encoded to judge one cut is what the next one is looked for in.
        self._encode = functools.lru_cache(maxsize=1)(tokenizer.encode)
        self._encode_few = tokenizer.encode

    def find(self, text: str, first: int, last: int, text_from: Callable[[int], str]) -> int | None:
        """A cut behind `first` to `last` of the characters; None where none was found.

        The text begins at a cut, and may end anywhere some way behind `last`. `text_from` gives the text behind a cut,
        as it will be given here to find the next one: that this one is right depends on the next being found in it.
        """
        if self._words is None:
            return None
        before: list[tuple[int, int]] = []  # two words, for what a pattern makes of one may depend on the next
        for word in self._words.finditer(text):
            start, end = word.span()
            if before and start >= first and self._separates(text, before, end):
                return start
            if end > last:
                inside = self._inside(text, start, end, first, last) if self._rest_is_word else iter(())
                return next((cut for cut, token in inside if self._encode(text_from(cut))[0] == token), None)
            before = [*before[-1:], (start, end)]
        return None

    def _separates(self, text: str, words: list[tuple[int, int]], end: int) -> bool:
        """Whether a cut behind these words changes neither them nor the next one, up to `end`, nor their tokens."""
        begin, cut = words[0][0], words[-1][1]
        if not self._parts(text, words, end):
            return False
        left, right = text[max(begin, cut - NEAR) : cut], text[cut : min(end, cut + NEAR)]
        alone = np.concatenate([self._encode_few(left), self._encode_few(right)])
        return np.array_equal(self._encode_few(left + right), alone)

    def _parts(self, text: str, words: list[tuple[int, int]], end: int) -> bool:
        """Whether the pattern, seeing one side only, finds these words before a cut and one up to `end` behind it."""
        assert self._words is not None
        begin, cut = words[0][0], words[-1][1]
        left = [word.span() for word in self._words.finditer(text, begin, cut)]
        right = self._words.match(text[cut:])
        known = all(unicodedata.category(c) != "Cn" for c in text[max(begin, cut - 2) : cut + 2])
        return known and left == words and right is not None and right.end() == end - cut

    def _inside(self, text: str, start: int, end: int, first: int, last: int) -> Iterator[tuple[int, int]]:
        """(place, token behind it) for some ends of tokens in the word from `start` to `end`."""
        tokens = self._encode(text)
        begins = np.frombuffer(text.encode(), np.uint8) & 0xC0 != 0x80  # of each byte, whether a character does so
        characters = np.append(0, np.cumsum(begins))
        ends = np.cumsum(self._bytes_per_token[tokens])[:-1]
        places = characters[ends]
        good = np.flatnonzero(begins[ends] & (places >= max(first, start + 1)) & (places <= last))
        for i in itertools.islice(good.tolist(), TRIES):
            cut = int(places[i])
            if _is_of_one_kind(text, start, cut) and self._parts(text, [(start, cut)], end):
                yield cut, int(tokens[i + 1])


def _is_of_one_kind(text: str, start: int, cut: int) -> bool:
    """Whether a word goes on at the cut as it was; other characters might belong to the next word but for it."""
    before, behind = _kind(text[cut - 1]), _kind(text[cut])
    return before == behind and (behind != "blank" or text[start:cut].isspace())


def _kind(character: str) -> str:
    if character.isalpha():
        return "letter"
    if character.isspace():
        return "blank"
    return "number" if character.isnumeric() else "other"
