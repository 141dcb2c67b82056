"""Values that the classes of a config refuse: all of a command line, where a class raises for the first."""

import re
from collections.abc import Callable, Sequence

from gptjax.cli.flags import drop_flags, pair_words, split_word
from gptjax.core.errors import UserError

MOST_TOLD = 6
"""Refusals of one command line that are looked for."""


def list_refusals(words: Sequence[str], first: UserError, *, parse: Callable[[list[str]], object]) -> str:
    """The message of the first refusal, and those that are there still when the flags of it are left out.

    A message that names a flag which was left out follows from that, and is not told.
    """
    told, left, dropped = [str(first)], list(words), set[str]()
    message = told[0]
    while len(told) < MOST_TOLD and (named := _find_named(message, left)):
        left, dropped = drop_flags(left, *named), dropped | named
        try:
            parse(left)
        except UserError as error:
            message = str(error)
        except SystemExit:
            break
        else:
            break
        if _find_named(message, left) and not any(_names(message, name) for name in dropped):
            told.append(message)
    return "\n".join(told)


def _find_named(message: str, words: Sequence[str]) -> set[str]:
    """The flags among the words that a message names, by their fields or as flags."""
    return {name for word, _ in pair_words(words) if (name := split_word(word)[0]) and _names(message, name)}


def _names(message: str, flag: str) -> bool:
    field = re.escape(flag).replace(r"\-", "[-_]")
    return re.search(rf"(?<![\w.]){field}(?![\w.]*\w)", message) is not None
