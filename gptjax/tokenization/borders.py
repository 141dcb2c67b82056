"""Marks that stand for special tokens beside a text while the library encodes it."""

import itertools
from collections.abc import Sequence

from gptjax.tokenization.base import REPLACEMENT

# Added tokens that no text should hold, for U+FDD0 is a noncharacter.
BORDER, EATS_RIGHT, EATS_LEFT = BORDERS = tuple(f"\ufdd0{kind}\ufdd1" for kind in "|><")


def without_borders(text: str) -> str:
    """Text of the same size that holds none of the marks: U+FFFD is in the place of their first character."""
    is_safe = "\ufdd0" not in text or not any(border in text for border in BORDERS)
    return text if is_safe else text.replace("\ufdd0", REPLACEMENT)


def insert_borders(text: str, cuts: Sequence[int]) -> str:
    """The text with a border at each of these places."""
    places = [0, *cuts, len(text)]
    return BORDER.join(text[begin:end] for begin, end in itertools.pairwise(places))
