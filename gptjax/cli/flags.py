"""The flags of a dataclass, and the words of a command line before tyro reads them: forms that people type.

`list_flags` knows the flags that tyro makes of a dataclass. `normalize_words` writes `--model.bias=False`,
`--steps=1e3` and `--checkpoint.every=none` as tyro wants them.
"""

import contextlib
import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from gptjax.cli.flag_synonyms import VALUES

TRUE, FALSE, NONE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}, {"none", "null"}
UNITS = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
"""What people write behind a whole number."""


class Flag(NamedTuple):
    """What a flag takes: its field's type and, if it has one, its default."""

    hint: Any
    default: Any = dataclasses.MISSING
    positional: bool = False
    appends: bool = False
    """Whether it may be given several times, with one value each."""

    @property
    def types(self) -> tuple[Any, ...]:
        """The types of the value: those of a union, each alone."""
        return typing.get_args(self.hint) if _is_union(self.hint) else (self.hint,)

    @property
    def is_switch(self) -> bool:
        """A boolean, which tyro reads from `--x` and `--no-x`."""
        return self.hint is bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that a literal type allows."""
        literals = [typing.get_args(hint) for hint in self.types if typing.get_origin(hint) is Literal]
        return tuple(str(choice) for group in literals for choice in group)


Flags = Mapping[str, Flag]
"""Flags by name: `model.num-layers`."""


def list_flags(kind: type, default: Any = None) -> dict[str, Flag]:
    """The flags of a dataclass, or of a value of it, whose parts decide which flags there are."""
    return dict(_iter_flags(kind if default is None else type(default), default, ""))


def _iter_flags(kind: Any, value: Any, prefix: str) -> Iterator[tuple[str, Flag]]:
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):  # a user's class whose types cannot be looked up: tyro decides
        return
    for field in (field for field in dataclasses.fields(kind) if field.init and field.name in hints):
        hint, metadata = _strip_annotations(hints[field.name])
        names = [found for mark in metadata if isinstance(found := getattr(mark, "name", None), str)]
        path = ".".join(filter(None, [prefix, *(names or [field.name.replace("_", "-")])]))
        inner = field.default if value is None else getattr(value, field.name, None)
        parts = list(enumerate(inner)) if isinstance(inner, tuple | list) else []
        if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            yield from _iter_flags(type(inner), inner, path)
        elif any(dataclasses.is_dataclass(part) for _, part in parts):
            for number, part in parts:
                yield from _iter_flags(type(part), part, f"{path}.{number}")
        elif parts or inner != () or set(typing.get_args(hint)) <= {str, int, float, Ellipsis}:
            marks = repr(metadata)
            yield path, Flag(hint, inner, positional="Positional" in marks, appends="AppendAction" in marks)


def _strip_annotations(hint: Any) -> tuple[Any, list[Any]]:
    metadata: list[Any] = []
    while typing.get_origin(hint) is typing.Annotated:
        metadata += hint.__metadata__
        hint = hint.__origin__
    return hint, metadata


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def normalize_words(words: Sequence[str], flags: Flags) -> list[str]:
    """The words with known flags in tyro's form: dashes, switches without a value, numbers and `None` as it reads them.

    Words that are not understood stay as they are.
    """
    out: list[str] = []
    for word, following in pair_words(words):
        name, value = split_word(word)
        known, is_positive = find_flag(name, flags)
        if known is None:
            out += [word, *following]
            continue
        flag, first = flags[known], value if value is not None else next(iter(following), None)
        if flag.is_switch and first is not None and first.lower() in TRUE | FALSE:
            is_true = (first.lower() in TRUE) == is_positive
            out += [write_switch(known, is_true), *(following[1:] if value is None else following)]
        elif flag.is_switch:
            out += [write_switch(known, is_positive) if value is None else word, *following]
        elif value is not None:
            out += [f"--{known}={normalize_value(value, flag)}", *following]
        else:
            out += [f"--{known}", *(normalize_value(argument, flag) for argument in following)]
    return out


def pair_words(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each word that begins with a dash, or the first ones, with the words behind it that belong to it.

    `--steps = 5` and `--steps= 5` become `--steps 5`.
    """
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        if not groups or is_flag(word):
            groups.append((word, []))
        else:
            groups[-1][1].append(word)
    for word, following in groups:
        if following[:1] == ["="] and len(following) > 1:
            del following[0]
        ends_open = word.startswith("--") and word.endswith("=") and word.count("=") == 1 and following
        yield (word[:-1] if ends_open else word), following


def drop_flags(words: Sequence[str], *names: str) -> list[str]:
    """The words without the flags of these names, such as `schedule-steps`, and without the values behind them."""
    return [
        kept for word, following in pair_words(words) if split_word(word)[0] not in names for kept in (word, *following)
    ]


def is_flag(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit() and word[1:2] != "." and word != "-"


def split_word(word: str) -> tuple[str, str | None]:
    """Name and value of `--name=value`, the name with dashes inside."""
    name, equals, value = word.partition("=")
    return (name[2:].replace("_", "-") if name.startswith("--") else ""), value if equals else None


def find_flag(name: str, flags: Flags) -> tuple[str | None, bool]:
    """(the flag of this name, whether it is not negated)."""
    if name in flags:
        return name, True
    head, _, last = name.rpartition(".")
    plain = ".".join(filter(None, [head, last.removeprefix("no-")]))
    return (plain, False) if last.startswith("no-") and plain in flags and flags[plain].is_switch else (None, True)


def write_switch(name: str, is_true: bool) -> str:
    head, _, last = name.rpartition(".")
    return f"--{name}" if is_true else f"--{'.'.join(filter(None, [head, f'no-{last}']))}"


def normalize_value(value: str, flag: Flag) -> str:
    # Where a text is wanted, `none` may be one: --split=none.
    if value.lower() in NONE and types.NoneType in flag.types and str not in flag.types and value not in flag.choices:
        return "None"
    if int in flag.types and float not in flag.types and str not in flag.types:
        plain = value.replace("_", "")
        plain = plain.replace(",", "") if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", plain) else plain
        with contextlib.suppress(ValueError):
            return str(int(plain))  # a float has not all integers beyond 2^53
        with contextlib.suppress(ValueError):
            number = float(plain)
            return str(int(number)) if number.is_integer() else value
        return value
    if flag.choices and value not in flag.choices:
        spelled = VALUES.get(value.lower(), value.lower())
        return next((choice for choice in flag.choices if choice.lower() == spelled), value)
    return value


def expand_unit(value: str) -> int | None:
    """`10k` is 10000, and `1.5b` 1500000000; None for what is no whole number."""
    found = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?|\.\d+)([kmbg])", value.lower())
    if found is None:
        return None
    number = Fraction(found[1].replace("_", "")) * UNITS[found[2]]
    return int(number) if number.denominator == 1 and number else None
