"""Names of special tokens: those that the files beside a tokenizer.json name, and those that a text spells."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from gptjax.core.errors import UserError, quote
from gptjax.core.files import LARGEST_TOKENIZER, read_text

END_OF_TEXT = "<|endoftext|>"
CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json")
"""Files beside tokenizer.json in which Hugging Face names the end of text, as `eos_token`."""
END_OF_TURN = "<|im_end|>"
"""What a chat's tokenizer may name instead; its documents still begin with `END_OF_TEXT`, if it has that."""


def find_end_of_text(specials: Iterable[str], directory: Path | None = None) -> str | None:
    """The name of the special token that ends documents: what the files in a directory say, else `END_OF_TEXT`.

    None if the tokenizer has no such token. Raises `UserError` for a damaged file.
    """
    names = set(specials)
    default = END_OF_TEXT if END_OF_TEXT in names else None
    found = _list_named(directory, "eos_token", names=names)
    return next((name for name in found if not (name == END_OF_TURN and default)), default)


def find_begin_of_text(specials: Iterable[str], directory: Path, *, end_of_text: str | None) -> str | None:
    """The name of the special token that begins documents, if the files in a directory name another than their end.

    Where they name the end of a turn as end, documents begin with `END_OF_TEXT`. Raises `UserError` for a damaged file.
    """
    names = set(specials)
    if END_OF_TURN in _list_named(directory, "eos_token", names=names) and end_of_text != END_OF_TURN:
        return None
    return next((name for name in _list_named(directory, "bos_token", names=names) if name != end_of_text), None)


def compile_names(names: Iterable[str]) -> re.Pattern[str]:
    """A regular expression that finds these names in text, the longest one first. Blank names are not looked for.

    Names share their beginnings, so a tokenizer may have thousands.
    """
    found = sorted({name for name in names if name.strip()})
    return re.compile(_join_names(found) if found else r"(?!)")


def _join_names(names: Sequence[str]) -> str:
    """An expression for one of the sorted names."""
    pairs = zip(names[0], names[-1], strict=False)
    shared = "".join(left for left, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    rests = [name[len(shared) :] for name in names]
    longer = [rest for rest in rests if rest]
    if not longer:
        return re.escape(shared)
    parts = [_join_names(list(group)) for _, group in itertools.groupby(longer, key=lambda rest: rest[0])]
    return f"{re.escape(shared)}(?:{'|'.join(parts)}){'?' if len(longer) < len(rests) else ''}"


def _list_named(directory: Path | None, key: str, *, names: Set[str]) -> list[str]:
    """The special tokens that the files in a directory name so."""
    found: list[str] = []
    for path in (directory / name for name in CONFIG_FILES) if directory is not None else ():
        if path.is_file():
            try:
                content = json.loads(read_text(path, limit=LARGEST_TOKENIZER))
            except (OSError, ValueError, RecursionError) as error:
                raise UserError(f"{path}: cannot be read as JSON: {quote(str(error))}.") from None
            named = content.get(key) if isinstance(content, dict) else None
            named = named.get("content") if isinstance(named, dict) else named
            if named is not None and not isinstance(named, str):
                raise UserError(f"{path}: {key} is {quote(repr(named))}; wanted the text of a special token.")
            found += [named] if named is not None and named in names else []
    return found
