"""Names that stand twice in a JSON object, of which Python takes the last in silence."""

import json
from collections import Counter
from typing import Any

from gptjax.core.errors import quote


class _Several:
    """The value of a name that has several; it is no text, and no other type of JSON."""

    def __repr__(self) -> str:
        return "several values"


SEVERAL = _Several()


class RepeatedName(ValueError):
    """A name has several values."""


def refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook`. Raises `ValueError` for a name that stands twice, though its values be equal."""
    out = dict(pairs)
    if len(out) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{quote(name)} stands twice")
    return out


def _refuse_several(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = _mark_several(pairs)
    if len(out) < len(pairs) and any(value is SEVERAL for value in out.values()):
        raise RepeatedName
    return out


def _mark_several(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        out = dict[str, Any]()
        for name, value in pairs:
            if (first := out.setdefault(name, value)) is not value and not _is_same(first, value):
                out[name] = SEVERAL
    return out


def _is_same(first: Any, second: Any) -> bool:
    """Whether two values are written alike but for blanks and order: 1 is neither 1.0 nor true, and NaN is NaN."""
    try:
        return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    except (TypeError, RecursionError):  # `SEVERAL`, or too deep to compare
        return False


def explain_names(value: Any) -> str | None:
    """What is wrong where a value of `parse_fields` has a name with several values, however deep; None if none has."""
    parts = [value]
    while parts:  # the decoder may go deeper than calls of Python may
        part = parts.pop()
        if isinstance(part, dict):
            for name, inner in part.items():
                if inner is SEVERAL:
                    twice = f'"{quote(name)}" stands twice in one object, with different values'
                    return f"{twice}. Keep the one that is meant."
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return None


parse_record = json.JSONDecoder(object_pairs_hook=_refuse_several).decode
"""The value of a JSON text. Raises `RepeatedName` where a name has several values."""
parse_fields = json.JSONDecoder(object_pairs_hook=_mark_several).decode
"""The same with `SEVERAL` as the value of such a name, for a reader of some fields of many."""
