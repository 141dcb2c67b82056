"""The words of a command line before tyro reads them: forms that people type, and what is said of a wrong one.

`list_flags` knows the flags that tyro makes of a dataclass. `normalize_words` writes `--model.bias=False`,
`--steps=1e3` and `--checkpoint.every=none` as tyro wants them. `explain_words` finds the word that tyro refused, and
the one that was meant.
"""

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from gptjax.core.errors import quote
from gptjax.core.flag_synonyms import EXPLANATIONS, FLAGS_BY_WORD, FORMS, VALUES

SHORTEST_MISTAKE = 4
"""Letters of a word for which a flag with almost the same letters may be meant."""
TRUE, FALSE, NONE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}, {"none", "null"}


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
        names = [found for one in metadata if isinstance(found := getattr(one, "name", None), str)]
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
    for word, following in _pair(words):
        name, value = _split(word)
        known, is_positive = _find(name, flags)
        if known is None:
            out += [word, *following]
            continue
        flag, first = flags[known], value if value is not None else next(iter(following), None)
        if flag.is_switch and first is not None and first.lower() in TRUE | FALSE:
            is_true = (first.lower() in TRUE) == is_positive
            out += [_switch(known, is_true), *(following[1:] if value is None else following)]
        elif flag.is_switch:
            out += [_switch(known, is_positive) if value is None else word, *following]
        elif value is not None:
            out += [f"--{known}={_normalize_value(value, flag)}", *following]
        else:
            out += [f"--{known}", *(_normalize_value(one, flag) for one in following)]
    return out


def _pair(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each word that begins with a dash, or the first ones, with the words behind it that belong to it.

    `--steps = 5` and `--steps= 5` become `--steps 5`.
    """
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        if not groups or _is_flag(word):
            groups.append((word, []))
        else:
            groups[-1][1].append(word)
    for word, following in groups:
        if following[:1] == ["="] and len(following) > 1:
            del following[0]
        ends_open = word.startswith("--") and word.endswith("=") and word.count("=") == 1 and following
        yield (word[:-1] if ends_open else word), following


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit() and word[1:2] != "." and word != "-"


def _split(word: str) -> tuple[str, str | None]:
    """Name and value of `--name=value`, the name with dashes inside."""
    name, equals, value = word.partition("=")
    return (name[2:].replace("_", "-") if name.startswith("--") else ""), value if equals else None


def _find(name: str, flags: Flags) -> tuple[str | None, bool]:
    """(the flag of this name, whether it is not negated)."""
    if name in flags:
        return name, True
    head, _, last = name.rpartition(".")
    plain = ".".join(filter(None, [head, last.removeprefix("no-")]))
    return (plain, False) if last.startswith("no-") and plain in flags and flags[plain].is_switch else (None, True)


def _switch(name: str, is_true: bool) -> str:
    head, _, last = name.rpartition(".")
    return f"--{name}" if is_true else f"--{'.'.join(filter(None, [head, f'no-{last}']))}"


def _normalize_value(value: str, flag: Flag) -> str:
    # Where a text is wanted, `none` may be one: --split=none.
    if value.lower() in NONE and types.NoneType in flag.types and str not in flag.types and value not in flag.choices:
        return "None"
    if int in flag.types and float not in flag.types and str not in flag.types:
        plain = value.replace(",", "").replace("_", "")
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


def explain_words(words: Sequence[str], flags: Flags) -> str | None:
    """Why tyro refused these normalized words, and the right form of the first wrong one; None if nothing is found."""
    positional = [flag for flag in flags.values() if flag.positional]
    most = len(words) if any(map(_takes_several, positional)) else len(positional)
    for word, following in _pair(words):
        if not _is_flag(word):
            if beyond := [word, *following][most:]:
                return _explain_bare(beyond[0], flags)
            continue
        name, value = _split(word if word.startswith("--") else f"-{word}")
        known, _ = _find(name, flags)
        values = following if value is None else [value]
        if known is None:
            return explain_unknown(name, next(iter(values), None), flags)
        if not word.startswith("--"):
            return f"{quote(word)} begins with one dash. Write {_write(known, next(iter(values), None), flags[known])}."
        if flags[known].positional:
            return f"--{known} is given without a flag. Write {quote(values[0]) if values else known.upper()}."
        problem = _explain_value(known, values, flags[known])
        stray = following[(0 if value is not None or flags[known].is_switch else 1) :]
        if problem is None and stray[most:] and not _takes_several(flags[known]):
            given = quote(" ".join([*values[:1], *stray]))
            problem = f"{quote(stray[most])} belongs to no flag. A value with blanks needs quotes: --{known}='{given}'."
            if "=" in stray[most]:
                problem = _explain_bare(stray[most], flags)
        if problem is not None:
            return problem
    given = {known for word, _ in _pair(words) if (known := _find(_split(word)[0], flags)[0])}
    missing = [name for name, flag in flags.items() if flag.default is dataclasses.MISSING and name not in given]
    if missing and flags[missing[0]].positional:
        return f"{missing[0].upper()} is not given, the first word behind the command."
    return f"--{missing[0]} is not given. Write --{missing[0]}=…." if missing else None


def _explain_value(name: str, values: Sequence[str], flag: Flag) -> str | None:
    """What is wrong with the values of a known flag, as far as its type is simple."""
    if flag.is_switch:
        wrong = [value for value in values if value]
        return f"--{name}={quote(wrong[0])}: wanted --{name} or {_switch(name, False)}." if wrong else None
    if not values or (values == [""] and flag.types not in ((str,), (str, types.NoneType))):
        return f"--{name} has no value. Write --{name}={_example(flag)}."
    value = values[0]
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
        value in flag.choices or kind(value)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        if flag.choices:
            return f"--{name}={quote(value)}: wanted {', '.join(flag.choices)} or {wanted}."
        return f"--{name}={quote(value)}: wanted {wanted}, such as --{name}={_example(flag)}."
    return None


def _literal_types(flag: Flag) -> list[Any]:
    return [hint for hint in flag.types if typing.get_origin(hint) is Literal]


def _takes_several(flag: Flag) -> bool:
    return (
        not flag.appends and any(typing.get_origin(hint) in (tuple, list, dict, set) for hint in flag.types)
    ) or flag.hint is Any


def _example(flag: Flag) -> str:
    if flag.default not in (None, dataclasses.MISSING) and not isinstance(flag.default, tuple | list | dict):
        return str(flag.default)
    return next((word for kind, word in ((int, "1000"), (float, "0.1")) if kind in flag.types), "…")


def explain_unknown(name: str, value: str | None, flags: Flags) -> str:
    """The message for a flag that does not exist: which one is meant, written out with the value."""
    name, colon, behind = name.partition(":")
    value = behind if colon else value
    shown = quote(name + colon + behind)
    word = name.rpartition(".")[2].lower()
    if meant := _find_meant(name, word, flags):
        value = word if word in VALUES else value  # --bf16
        forms = " or ".join(_write(one, value, flags[one]) for one in meant)
        return f"There is no flag --{shown}. Write {forms}."
    if reason := EXPLANATIONS.get(name.lower(), EXPLANATIONS.get(word)):
        return f"There is no flag --{shown}. {reason}"
    positional = next((flag for flag, kind in flags.items() if kind.positional), None)
    if positional is not None and value:
        return f"There is no flag --{shown}. {positional.upper()} is the first word behind the command: {quote(value)}."
    return f"There is no flag --{shown}. --help lists all flags."


def _find_meant(name: str, word: str, flags: Flags) -> list[str]:
    """The flags that a name may mean, the likeliest first; at most three."""
    synonyms = [flag for flag in FLAGS_BY_WORD.get(word, ()) if flag in flags]
    if synonyms:
        return synonyms[:1]
    if found := [flag for flag in flags if flag.endswith(f".{word}") or flag == word]:
        return sorted(found, key=lambda flag: flag.count("."))[:3]
    if word in EXPLANATIONS or name.lower() in EXPLANATIONS or len(word) < SHORTEST_MISTAKE:
        return []
    bare = word.removeprefix("no-").replace("-", "")
    spelled = {flag.replace("-", ""): flag for flag in flags} | {
        flag.rpartition(".")[2].replace("-", ""): flag for flag in reversed(list(flags))
    }
    close = difflib.get_close_matches(name.replace("-", ""), spelled, n=1, cutoff=0.75)
    close = close or difflib.get_close_matches(bare, spelled, n=1, cutoff=0.75)
    known = [spelled[one] for one in close]
    return (
        known
        or [
            flag
            for key in difflib.get_close_matches(word, FLAGS_BY_WORD, n=1, cutoff=0.85)
            for flag in FLAGS_BY_WORD[key]
            if flag in flags
        ][:1]
    )


def _write(name: str, value: str | None, flag: Flag) -> str:
    """A flag with the value that was given, in the right form."""
    if flag.is_switch:
        return _switch(name, value is None or value.lower() not in FALSE)
    if value in (None, ""):
        return f"--{name}={_example(flag)}"
    is_number = str(value).replace(".", "", 1).isdecimal()
    written = FORMS[name].format(value) if name in FORMS and is_number else _normalize_value(str(value), flag)
    fits = _explain_value(name, [written], flag) is None
    return f"--{name}={quote(written) if fits else '|'.join(flag.choices) or _example(flag)}"


def _explain_bare(word: str, flags: Flags) -> str:
    name, equals, value = word.partition("=")
    name = name.replace("_", "-")
    if equals:
        known, _ = _find(name, flags)
        return (
            f"{quote(word)} begins without dashes. Write {_write(known, value, flags[known])}."
            if known
            else (f"{quote(word)} begins without dashes. {explain_unknown(name, value, flags)}")
        )
    required = [flag for flag, kind in flags.items() if kind.default is dataclasses.MISSING and not kind.positional]
    meant = required or [flag for flag in ("checkpoint",) if flag in flags and not flags[flag].default]
    hint = f" Write --{meant[0]}={quote(word)}." if meant else " Write --FLAG=VALUE; quote a value with blanks."
    return f"{quote(word)} belongs to no flag.{hint}"
