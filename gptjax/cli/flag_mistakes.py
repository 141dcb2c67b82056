"""What is said of wrong words on a command line: `explain_words` finds what tyro refused and the right forms."""

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence, Set

from gptjax.cli.explanations import find_explanation, read_explanations
from gptjax.cli.flag_synonyms import FLAGS_BY_WORD, OTHER_ALONE, SWITCHED_ON, VALUES
from gptjax.cli.flag_values import explain_value, is_number, spell_value, takes_several, write_flag
from gptjax.cli.flags import (
    FALSE,
    TRUE,
    Flag,
    Flags,
    find_flag,
    is_flag,
    normalize_value,
    pair_words,
    split_word,
)
from gptjax.core.errors import quote
from gptjax.core.files import expand_path

SHORTEST_MISTAKE = 4
"""Letters of a word for which a flag with almost the same letters may be meant."""
REPOSITORY = r"[\w.-]+/[\w.-]+"
"""The name of a data set on the hub."""
ALSO = {"optimizer.learning-rate": "optimizer.adam-learning-rate"}
"""A flag, and the one of the other parameters under Muon."""
MOST_TOLD = 6
"""Lines about wrong words of one command line."""
MISSING = {"tokenizer": "It is gpt2, a directory with tokenizer.json or, in prepare_chat, bpe:1024: learned there."}
"""What to say of a flag that is required and not given."""


def explain_words(words: Sequence[str], flags: Flags) -> str | None:
    """Why tyro refused these normalized words: a line for each wrong one with its right form; None if none is found.

    There are at most `MOST_TOLD` lines, one that says how many more there are, and one of flags that are not given.
    """
    settled = {known for word, _ in pair_words(words) if (known := find_flag(split_word(word)[0], flags)[0])}
    if any(not is_flag(word) or ("=" in word and behind) for word, behind in pair_words(words)):
        settled |= {name for name, flag in flags.items() if flag.positional}
    has_first = bool(words) and not is_flag(words[0])
    told: list[str] = []
    for word, following in pair_words(words):
        told += _iter_mistakes(word, following, flags=flags, settled=settled, has_first=has_first)
        settled |= {name for name, flag in flags.items() if any(_names(name, flag, line) for line in told)}
    told = list(dict.fromkeys(told))
    if len(told) > MOST_TOLD:
        told[MOST_TOLD:] = [f"More wrong words: {len(told) - MOST_TOLD}."]
    if missing := _list_missing(flags, settled):
        told.append(_explain_missing(missing, settled, flags))
    return "\n".join(told) or None


def _names(name: str, flag: Flag, line: str) -> bool:
    """Whether a line already says how this flag is given."""
    said = rf"\b{name.upper()} is|without a flag" if flag.positional else rf"--{re.escape(name)}(?![\w-]|\.\w)"
    return re.search(said, line) is not None


def _list_missing(flags: Flags, settled: Set[str]) -> list[str]:
    """The flags that have to be given and are not. `settled` are those that are, or of which it was told."""
    return [name for name, flag in flags.items() if flag.default is dataclasses.MISSING and name not in settled]


def _list_open(flags: Flags, settled: Set[str]) -> list[str]:
    """The flags that a word without one may be meant for."""
    others = [name for name in ("checkpoint",) if name in flags and not flags[name].default and name not in settled]
    return [name for name in _list_missing(flags, settled) if not flags[name].positional] or others


def _iter_mistakes(
    word: str, following: Sequence[str], *, flags: Flags, settled: Set[str], has_first: bool
) -> Iterator[str]:
    """What is wrong with a word and those behind it, in their order. `has_first` is that of `explain_unknown`."""
    positional = [flag for flag in flags.values() if flag.positional]
    most = len(following) + 1 if any(map(takes_several, positional)) else len(positional)
    meant = _list_open(flags, settled)
    if not is_flag(word):
        yield from _explain_strays([word, *following][most:], flags, meant)
        return
    dashed = word if word.startswith("--") else f"-{word}"
    name, value = split_word(dashed)
    known, _ = find_flag(name, flags)
    values = following if value is None else [value]
    first = next(iter(values), None)
    stray = following[(0 if value is not None or (known and flags[known].is_switch) else 1) :][most:]
    if known is None:
        unknown = explain_unknown(name, first, flags, has_first=has_first)
        yield _explain_joined(dashed, flags) or unknown
    elif not word.startswith("--"):
        yield f"{quote(word)} begins with one dash. Write {write_flag(known, first, flags[known])}."
    elif flags[known].positional:
        yield f"--{known} is given without a flag. Write {quote(first) if first else known.upper()}."
    elif problem := _explain_known(known, values, flags):
        yield problem
    elif stray and "=" not in stray[0] and not takes_several(flags[known]):
        yield _explain_stray(known, [*values[:1], *stray], flags=flags, meant=meant)
    if stray and "=" in stray[0] and not (known and takes_several(flags[known])):
        yield from _explain_strays(stray, flags, meant)


def _explain_strays(words: Sequence[str], flags: Flags, meant: Sequence[str]) -> Iterator[str]:
    """What to say of words without a flag: of each `name=value`, and of the first of the others."""
    others = [word for word in words if "=" not in word]
    yield from (_explain_bare(word, flags, meant) for word in words if "=" in word or word == others[0])


def _explain_known(name: str, values: Sequence[str], flags: Flags) -> str | None:
    """What is wrong with the values of a known flag, and what may be meant; None if nothing is found."""
    problem = explain_value(name, values, flags[name])
    if problem and values and (told := find_explanation([f"{name}={values[0].lower()}"], flags)):
        problem = f"{problem} {told}"
    if problem and (parts := _list_parts(name, values, flags)):  # --mesh=data=4,fsdp=2
        problem = f"--{name}={quote(values[0])}: each part has its flag. Write {' '.join(parts)}."
    if problem and flags[name].is_switch and (text := flags.get(f"{name}-text")):  # --stop=END
        problem += f" A text is for {write_flag(f'{name}-text', values[0], text)}."
    return problem


def _explain_missing(missing: Sequence[str], settled: Set[str], flags: Flags) -> str:
    """What to say of flags that have to be given and are not."""
    if flags[missing[0]].positional:
        return f"{missing[0].upper()} is not given, the first word behind the command."
    names = " and ".join(f"--{name}" for name in missing)
    forms = " ".join(f"--{name}=…" for name in missing)
    kinds = "".join(f" {MISSING[name]}" for name in missing if name in MISSING)
    if {"text-field", "tokenizer", "output"} <= flags.keys() and "tokenizer" not in settled:
        kinds = (
            " A --tokenizer=… is needed, too, unless the source is a recipe: gpt2, bytes, chars, bpe:SIZE or a file."
        )
    return f"{names} {'is' if len(missing) == 1 else 'are'} not given. Write {forms}.{kinds}"


def _list_parts(name: str, values: Sequence[str], flags: Flags) -> list[str]:
    """The flags that a value such as `data=4,fsdp=2` stands for; [] for others."""
    pairs = [part.partition("=") for part in values[0].split(",")] if values else []
    is_known = all(f"{name}.{key}" in flags and value for key, _, value in pairs)
    return [f"--{name}.{key}={quote(value)}" for key, _, value in pairs] if is_known else []


def _explain_joined(word: str, flags: Flags) -> str | None:
    """What to say of a known flag and its value that are one word, as `"--steps 4"`; None for other words."""
    name, blank, value = word.partition(" ")
    known, _ = find_flag(split_word(name)[0], flags)
    if not blank or known is None:
        return None
    return f"{quote(word)} is one word. Write {write_flag(known, value.strip(), flags[known])}."


def _explain_stray(name: str, given: Sequence[str], *, flags: Flags, meant: Sequence[str]) -> str:
    """What to say of words behind the value of a flag: the flag that a single one lacks, or the quotes of a text."""
    word = given[1] if len(given) > 1 else given[0]
    pattern = _find_pattern(given) if name.endswith("source") else None
    if pattern and all(map(os.path.lexists, given)):
        quoted = f"--{name}={spell_value(pattern)}"
        return f"{quote(word)} belongs to no flag. The shell replaced a pattern; quote it: {quoted}."
    if meant and len(given) == 2:
        return f"{quote(word)} belongs to no flag. Write {write_flag(meant[0], word, flags[meant[0]])}."
    is_text = str in flags[name].types and not all(map(os.path.lexists, given))  # files are no text with blanks
    if not is_text and not flags[name].appends:
        return f"{quote(word)} belongs to no flag. --{name} takes one value, {quote(given[0])}."
    hint = f"A value with blanks needs quotes: --{name}={spell_value(' '.join(given))}."
    if name.endswith("source") and all(os.path.splitext(value)[1] for value in given):
        shown = f": --{name}={spell_value(pattern)}" if pattern else ""
        hint = f"Several files are a directory that holds them, or a quoted pattern{shown}."
    if name in ("tasks", "special-tokens"):
        hint = f"Several are separated by commas: --{name}={spell_value(','.join(given))}."
    if flags[name].appends:
        hint = f"Each value needs its flag: {' '.join(f'--{name}={spell_value(value)}' for value in given)}. {hint}"
    return f"{quote(word)} belongs to no flag. {hint}"


def _find_pattern(given: Sequence[str]) -> str | None:
    """The pattern of several paths in one directory with one ending, as the shell replaces it; None for others."""
    folders, endings = {os.path.dirname(word) for word in given}, {os.path.splitext(word)[1] for word in given}
    is_one = len(given) > 1 and len(folders) == len(endings) == 1
    return os.path.join(folders.pop(), f"*{endings.pop()}") if is_one else None


def explain_unknown(name: str, value: str | None, flags: Flags, *, has_first: bool = False) -> str:
    """The message for a flag that does not exist: which one is meant, written out with the value.

    `has_first` says that the first word behind the command is given, so that no flag can stand for it.
    """
    name, colon, behind = name.partition(":")
    value = (behind or value) if colon else value
    shown = quote(name + colon + behind)
    word = name.rpartition(".")[2].lower()
    with_value = f"{word}={str(value).lower()}"
    if reason := find_explanation([with_value], flags) or find_explanation([word], flags, instead=True):
        return f"There is no flag --{shown}. {reason}"
    meant = [flag for flag in _find_meant(name, word, flags) if not (has_first and flags[flag].positional)]
    meant, value = _choose_meant(meant, word, value, flags)
    reason = find_explanation([name.lower(), word], flags)
    is_text = value and value.lower() not in TRUE | FALSE
    if reason and value and is_text and meant and explain_value(meant[0], [value], flags[meant[0]]) is not None:
        meant = []  # the word means a flag of another program
    if meant == ["data.path"] and value and _is_text_file(value):
        how = f"python -m data_pipelines.prepare --source={spell_value(value)} makes them of this file"
        return f"There is no flag --{shown}. Write --data.path=DIR, a directory of shards; {how}."
    if meant:
        if flags[meant[0]].positional:
            return f"There is no flag --{shown}. {_explain_first(meant[0], value)}"
        values = value.split(",") if value and word.endswith("s") and flags[meant[0]].appends else [value]
        forms = " or ".join(
            " ".join(write_flag(flag, _negate(word, flag, one), flags[flag]) for one in values) for flag in meant
        )
        rest = next((ALSO[flag] for flag in meant if flag in ALSO and ALSO[flag] in flags), None)
        also = "" if rest is None else f" It is that of the matrices; embeddings, head and vectors have --{rest}."
        return f"There is no flag --{shown}. Write {forms}.{also}"
    if reason:
        return f"There is no flag --{shown}. {reason}"
    positional = next((flag for flag, kind in flags.items() if kind.positional), None)
    if positional is not None and value and not has_first:
        return f"There is no flag --{shown}. {_explain_first(positional, value)}"
    return f"There is no flag --{shown}. --help lists all flags."


def _choose_meant(meant: list[str], word: str, value: str | None, flags: Flags) -> tuple[list[str], str | None]:
    """(the flags that the value fits, or all; the value to write), where a word may be a flag or a value of it.

    `--bf16` and `--fsdp` are values, `--fsdp=8` is a number of devices.
    """
    value = "false" if value is None and word.startswith("no-") else value
    is_switched_on = value is None or value.lower() in TRUE - {"1"}
    spelled = VALUES.get(word, word)
    if is_switched_on and (chosen := [flag for flag in meant if spelled in flags[flag].choices]):
        return chosen[:1], spelled
    if is_switched_on and meant and (on := SWITCHED_ON.get(meant[0])):
        return meant[:1], on
    if value and "data.path" in meant and "data.source" in flags:
        is_name = word in ("dataset", "dataset-name") and "/" not in value and not expand_path(value).exists()
        return ["data.source" if is_name or _is_text_file(value) else "data.path"], value
    is_remote = value and re.fullmatch(REPOSITORY, value) and not expand_path(value).exists()
    if "source" in meant and "dataset" in word and is_remote:
        return ["source"], f"hf:{value}"
    if "split" in meant and is_number(value):
        return ["split"], value
    fitting = [
        flag
        for flag in meant
        if value and explain_value(flag, [normalize_value(value, flags[flag])], flags[flag]) is None
    ]
    return (fitting[:1] if word in FLAGS_BY_WORD else []) or meant[: 1 if word in FLAGS_BY_WORD else 3], value


def _is_text_file(value: str) -> bool:
    """Whether a value names a file or a source of text rather than a directory of shards."""
    path = expand_path(value)
    return path.is_file() or (bool(path.suffix) and not path.is_dir()) or value.startswith("hf:")


def _explain_first(name: str, value: str | None) -> str:
    return f"{name.upper()} is the first word behind the command{f': {quote(value)}' if value else ''}."


def _negate(word: str, meant: str, value: str | None) -> str | None:
    """`false` where the word is the opposite of the flag that is meant: `nostop`, `no-stopp`."""
    is_opposite = word.startswith("no") and not meant.rpartition(".")[2].startswith("no")
    return "false" if is_opposite and value is None else value


def _find_meant(name: str, word: str, flags: Flags) -> list[str]:
    """The flags that a name may mean, the likeliest first."""
    if synonyms := [flag for flag in FLAGS_BY_WORD.get(word, ()) if flag in flags]:
        return synonyms
    if name not in OTHER_ALONE and (found := [flag for flag in flags if flag.endswith(f".{word}") or flag == word]):
        return sorted(found, key=lambda flag: flag.count("."))[:3]
    if not {word, name.lower()}.isdisjoint(read_explanations()) or len(name) < SHORTEST_MISTAKE:
        return []
    spelled = {key: flag for flag in reversed(list(flags)) for key in _list_endings(flag)}
    for typed in (name, word, word.removeprefix("no-"), word.removeprefix("no")):
        if close := _find_misspelled(typed, spelled, cutoff=0.75):
            return [spelled[close[0]]]
    keys = _find_misspelled(word, FLAGS_BY_WORD, cutoff=0.85)
    return [flag for key in keys for flag in FLAGS_BY_WORD[key] if flag in flags][:1]


def _list_endings(flag: str) -> list[str]:
    """`model.compute.dtype`, `compute.dtype`, `dtype`."""
    parts = flag.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _find_misspelled(typed: str, known: Iterable[str], *, cutoff: float) -> list[str]:
    """The known word that has almost the same letters in each of its parts; [] if none.

    `embedding-dim` is not `embedding-std`, and `val-fraction` is not `fraction`: whole parts differ.
    """
    return [word for word in difflib.get_close_matches(typed, known, n=5, cutoff=cutoff) if _is_alike(typed, word)][:1]


def _is_alike(typed: str, known: str) -> bool:
    ours, theirs = re.split(r"[-.]", typed), re.split(r"[-.]", known)
    if len(ours) != len(theirs):
        return _measure_likeness("".join(ours), "".join(theirs)) >= 0.9
    return all(_measure_likeness(*pair) >= 0.6 for pair in zip(ours, theirs, strict=True))


def _measure_likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _explain_bare(word: str, flags: Flags, meant: Sequence[str]) -> str:
    name, equals, value = word.partition("=")
    name = name.lstrip("+~").replace("_", "-")  # Hydra's way to add a field, and to take one away
    if equals:
        known, _ = find_flag(name, flags)
        return (
            f"{quote(word)} begins without dashes. Write {write_flag(known, value, flags[known])}."
            if known
            else (f"{quote(word)} begins without dashes. {explain_unknown(name, value, flags)}")
        )
    if (known := find_flag(name, flags)[0]) is not None:
        return f"{quote(word)} begins without dashes. Write --{known}=…."
    hint = f" Write --{meant[0]}={spell_value(word)}." if meant else " Write --FLAG=VALUE; quote a value with blanks."
    return f"{quote(word)} belongs to no flag.{hint}"
