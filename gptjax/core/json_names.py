"""Names that stand twice in a JSON object, of which Python takes the last in silence."""

import json
from typing import Any

from gptjax.core.errors import quote


class _Several:
    """The value of a name that has several; it is no text, and no other type of JSON."""

    def __repr__(self) -> str:
        return "several values"


SEVERAL = _Several()


class RepeatedName(ValueError):
    """A name has several values."""

    def __init__(self, name: str) -> None:
        super().__init__(explain_repeated(name))


def explain_repeated(name: str) -> str:
    """What is wrong with a name that has several values, and what to do."""
    return f'"{quote(name)}" stands twice in one object, with different values. Keep the one that is meant.'


def refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook`. Raises `ValueError` for a name that stands twice, though its values be equal."""
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{quote(next(name for name in names if names.count(name) > 1))} stands twice")
    return out


def _refuse_several(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = _mark_several(pairs)
    if len(out) < len(pairs):
        for name, value in out.items():
            if value is SEVERAL:
                raise RepeatedName(name)
    return out


def _mark_several(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        for name in out:
            first, *others = (value for other, value in pairs if other == name)
            if any(value != first for value in others):
                out[name] = SEVERAL
    return out


def explain_names(value: Any) -> str | None:
    """What is wrong where a value of `parse_fields` has a name with several values, however deep; None if none has."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        found = explain_repeated(str(name)) if part is SEVERAL else explain_names(part)
        if found is not None:
            return found
    return None


parse_record = json.JSONDecoder(object_pairs_hook=_refuse_several).decode
"""The value of a JSON text. Raises `RepeatedName` where a name has several values."""
parse_fields = json.JSONDecoder(object_pairs_hook=_mark_several).decode
"""The same with `SEVERAL` as the value of such a name, for a reader of some fields of many."""
