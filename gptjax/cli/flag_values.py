"""The value of a flag: what is wrong with it, and how it is written in a message."""

import dataclasses
import difflib
import re
import shlex
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from gptjax.cli.flag_synonyms import EXAMPLES, FORMS
from gptjax.cli.flags import FALSE, Flag, expand_unit, normalize_value, write_switch
from gptjax.core.errors import quote


def explain_value(name: str, values: Sequence[str], flag: Flag) -> str | None:
    """What is wrong with the values of a known flag, as far as its type is simple."""
    if flag.is_switch:
        wrong = [value for value in values if value]
        return f"--{name}={quote(wrong[0])}: wanted --{name} or {write_switch(name, False)}." if wrong else None
    if not values or (values == [""] and flag.types not in ((str,), (str, types.NoneType))):
        return f"--{name} has no value. Write --{name}={show_example(flag)}."
    value = values[0]
    if value.startswith("=") and flag.types != (str,):
        return f"--{name}={quote(value)} has two signs of equality. Write --{name}{spell_value(value)}."
    if value == "None" and types.NoneType in flag.types:
        return None
    if flag.choices and set(flag.types) <= {*_literal_types(flag), types.NoneType} and value not in flag.choices:
        close = difflib.get_close_matches(value, flag.choices, n=1, cutoff=0.5)
        hint = f" Did you mean --{name}={close[0]}?" if close else ""
        return f"--{name}={quote(value)}: wanted {', '.join(flag.choices)}.{hint}"
    kind = next((kind for kind in (float, int) if kind in flag.types), None)
    if kind is None or not set(flag.types) <= {int, float, types.NoneType, *_literal_types(flag)}:
        return None
    try:
        _ = value in flag.choices or kind(value)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        if flag.choices:
            return f"--{name}={quote(value)}: wanted {', '.join(flag.choices)} or {wanted}."
        if kind is int and (number := expand_unit(value)) is not None:
            return f"--{name}={quote(value)}: wanted {wanted}. Write --{name}={number}."
        wanted += " or none" if types.NoneType in flag.types else ""
        example = f", such as --{name}={show_example(flag)}" if flag.default is not None else ""
        return f"--{name}={quote(value)}: wanted {wanted}{example}."
    return None


def _literal_types(flag: Flag) -> list[Any]:
    return [hint for hint in flag.types if typing.get_origin(hint) is Literal]


def takes_several(flag: Flag) -> bool:
    return (
        not flag.appends and any(typing.get_origin(hint) in (tuple, list, dict, set) for hint in flag.types)
    ) or flag.hint is Any


def show_example(flag: Flag) -> str:
    if flag.default not in (None, dataclasses.MISSING) and not isinstance(flag.default, tuple | list | dict):
        return str(flag.default)
    return next((word for kind, word in ((int, "1000"), (float, "0.1")) if kind in flag.types), "…")


def write_flag(name: str, value: str | None, flag: Flag) -> str:
    """A flag with the value that was given, in the right form."""
    if flag.is_switch:
        return write_switch(name, value is None or value.lower() not in FALSE)
    if value in (None, ""):
        return f"--{name}={EXAMPLES.get(name) or show_example(flag)}"
    written = FORMS[name].format(value) if name in FORMS and is_number(value) else normalize_value(str(value), flag)
    if explain_value(name, [written], flag) is not None:
        if str(value).lower() in FALSE and (types.NoneType in flag.types or "none" in flag.choices):
            return f"--{name}=none"
        close = difflib.get_close_matches(written, flag.choices, n=1, cutoff=0.87)  # float64 is not float16
        written = close[0] if close else "|".join(flag.choices) or EXAMPLES.get(name) or show_example(flag)
        return f"--{name}={quote(written)}"
    return f"--{name}={spell_value(written)}"


def is_number(value: str | None) -> bool:
    return str(value).replace(".", "", 1).isdecimal()


def spell_value(value: str) -> str:
    """A value as a shell takes it: in quotes if it has blanks or characters that a shell reads."""
    shown = quote(value)
    return shlex.quote(shown) if re.search(r"[\s'\"$`\\\\|&;<>()*?!#]", shown) else shown
