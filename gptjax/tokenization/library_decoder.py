"""Text of ids that arrive one after another, where the library decodes: `LibraryDecoder`."""

import itertools
from collections.abc import Iterable, Sequence

from gptjax.tokenization.base import REPLACEMENT, TextDecoder, Tokenizer

DECODED_TOKENS = 8
"""Tokens before new ones with which these are decoded."""


class LibraryDecoder(TextDecoder):
    """Decodes new ids together with up to `DECODED_TOKENS` before them.

    The ids of `after` count from behind their last special token, so that an answer is decoded as the beginning of a
    text. The unknown token is a part of a text. Special tokens among the new ids begin nothing anew.
    """

    def __init__(self, tokenizer: Tokenizer, after: Iterable[int], *, probes: Sequence[int]) -> None:
        """`probes` are ids after which a text shows what of it is certain."""
        self._tokenizer, self._probes, ids = tokenizer, probes, [int(i) for i in after]
        specials = {*tokenizer.specials.values()} - {tokenizer.unknown}
        begin = max((place + 1 for place, i in enumerate(ids) if i in specials), default=0)
        self._ids = ids[max(begin, len(ids) - DECODED_TOKENS) :]
        self._given = len(tokenizer.decode(self._ids))

    def add(self, ids: Iterable[int]) -> str:
        self._ids += ids
        whole = self._tokenizer.decode(self._ids)
        others = (self._tokenizer.decode([*self._ids, probe]) for probe in self._probes)
        certain = _find_common_beginning([whole, *others]).rstrip(REPLACEMENT)
        new = certain[self._given :]
        self._given = max(self._given, len(certain))
        if certain == whole:
            self._ids = self._ids[-DECODED_TOKENS:]
            self._given = len(self._tokenizer.decode(self._ids))
        return new

    def finish(self) -> str:
        whole = self._tokenizer.decode(self._ids)
        new, self._given = whole[self._given :], len(whole)
        return new


def _find_common_beginning(texts: Sequence[str]) -> str:
    columns = zip(*texts, strict=False)
    return "".join(column[0] for column in itertools.takewhile(lambda column: len({*column}) == 1, columns))
