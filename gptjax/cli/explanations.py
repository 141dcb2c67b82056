"""What is said of a word for which there is no flag; the sentences are in explanations.toml."""

import fnmatch
import functools
import re
import tomllib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import NamedTuple

from gptjax.cli.flags import Flags


class Row(NamedTuple):
    """A sentence, and the commands to which it is told: those with these flags, as `a+b | c` for both a and b, or c."""

    say: str
    to: str
    instead: bool = False
    """Also where the word may mean a flag of the command."""


@functools.cache
def read_explanations() -> dict[str, list[Row]]:
    """The rows of each word or pattern, in the order in which they are tried. The file is read at the first mistake."""
    found: dict[str, list[Row]] = {}
    for row in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["told"]:
        for word in row["words"].split():
            found.setdefault(word, []).append(Row(row["say"], row["to"], row.get("instead", False)))
    return found


def find_explanation(words: Sequence[str], flags: Flags, *, instead: bool = False) -> str | None:
    """What is said of the first of these words to a command with these flags; None if nothing is.

    With `instead`, only what is said also where a flag may be meant.
    """
    known = {re.sub(r"\.\d+\.", ".N.", flag) for flag in flags}
    told = (row for word in words for row in _find_rows(word))
    fitting = (row.say for row in told if row.instead >= instead and is_for(row, known))
    return next(fitting, None)


def _find_rows(word: str) -> list[Row]:
    """The rows of a word, and of the patterns with a `*` that it fits."""
    rows = read_explanations()
    fitting = (known for pattern, known in rows.items() if "*" in pattern and fnmatch.fnmatchcase(word, pattern))
    return [row for known in (rows.get(word, ()), *fitting) for row in known]


def is_for(row: Row, flags: Set[str]) -> bool:
    """Whether a command with these flags has those of the row or, if it names none, those in its sentence."""
    if row.to:
        return any({*part.split("+")} <= flags for part in row.to.split(" | "))
    own = re.sub(r"(gptjax|data_pipelines)\.\w+( --\S+)+", "", row.say)  # the flags of other commands
    return {*re.findall(r"--([a-z][\w-]*(?:\.[\w-]+)*)", own)} <= flags
