"""Which part of a source is for validation, as flags and notes name it: `hash:0.01`, `tail:0.1`."""

import re

DEFAULT_SPLIT = "hash:0.005"
INSTEAD = "split by {} instead"
"""The end of the note of a split that is not the one asked for."""


def find_used_split(asked: str, notes: str) -> str:
    """The split in use: the one asked for, unless the notes of a preparation name another."""
    found = re.search(INSTEAD.format(r"(\S+)"), notes)
    return found[1] if found else asked


def enlarge_split(spec: str) -> str | None:
    """A split that keeps more for validation, at least twice as much; None for `none` and above a half."""
    kind, _, number = spec.partition(":")
    if kind in ("hash", "tail"):
        return f"{kind}:{max(2 * float(number), 0.05):g}" if float(number) <= 0.25 else None
    return "tail:0.1" if kind == "random" else None
