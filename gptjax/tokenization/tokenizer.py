"""Text to token ids and back: `load_tokenizer`, and the kinds that there are.

Our own kinds are tables of bytes (`table_tokenizers`): they are fast, and every text survives. Any other tokenizer.json
is encoded by the library that it was written for (`library_tokenizer`).
"""

import contextlib
import functools
import itertools
import json
import os
from pathlib import Path
from typing import Any

from gptjax.core.errors import UserError, quote
from gptjax.core.file_sums import ChangedFileError, check_listed_files, sum_file
from gptjax.core.files import expand_path
from gptjax.core.garbage import pause_garbage_collection
from gptjax.process.console import print_once
from gptjax.tokenization.base import SAVED_FILES, Tokenizer
from gptjax.tokenization.chat_template import CHAT_TEMPLATE_FILE, JINJA_FILE, read_chat_template
from gptjax.tokenization.gpt2_files import read_gpt2_file
from gptjax.tokenization.special_names import CONFIG_FILES, END_OF_TEXT, find_begin_of_text, find_end_of_text
from gptjax.tokenization.table_tokenizers import BPE, Bytes, Chars, TableTokenizer
from gptjax.tokenization.tokenizer_json import (
    FILE_NAME,
    GPT2_PATTERN,
    GPT4_PATTERN,
    PAIRS,
    LibraryFile,
    TokenTable,
    explain_missing,
    parse_vocab_and_merges,
    read_directory,
    read_tokenizer_json,
)

__all__ = [
    "BPE",
    "END_OF_TEXT",
    "GPT2_PATTERN",
    "GPT4_PATTERN",
    "SAVED_FILES",
    "TOKENIZER_FILES",
    "Bytes",
    "Chars",
    "Tokenizer",
    "check_tokenizer_files",
    "load_tokenizer",
    "note_left_out",
]

TOKENIZER_FILES = (
    FILE_NAME,
    *CONFIG_FILES,
    CHAT_TEMPLATE_FILE,
    JINJA_FILE,
    *itertools.chain.from_iterable(PAIRS),
)
"""All files of a directory that a tokenizer and its chat template may be read from."""


def load_tokenizer(spec: str | os.PathLike[str], *, end_of_text: str | None = None) -> Tokenizer:
    """`gpt2`, `gpt2:DIR` (its two files), `bytes`, a `tokenizer.json` of any kind, or a directory that holds one.

    A directory may also hold GPT-2's pair `vocab.bpe`, `encoder.json`, or the same as `merges.txt`, `vocab.json`. A
    `chat_template.json` beside it is its template. The end of text is `end_of_text`, else what tokenizer_config.json or
    special_tokens_map.json says, else `<|endoftext|>`, if that is a special token.

    Raises a `UserError` if there is none that can be read: a `ChangedFileError` if one of its files is not as gptjax
    wrote it.
    """
    with pause_garbage_collection():
        found = _load(os.fspath(spec))
    return found if end_of_text is None else found.with_end_of_text(end_of_text)


def note_left_out(tokenizer: Tokenizer, name: str | os.PathLike[str]) -> Tokenizer:
    """The same tokenizer. A note on stderr says what its file adds to texts and is left out here.

    For a file that a user names. A copy that was saved with shards or a model needs no note again.
    """
    if names := " and ".join(map(quote, tokenizer.left_out)):
        print_once(f"note: {name} adds {names} to each text, and here a text is read without it", to_stderr=True)
    return tokenizer


def _load(name: str) -> Tokenizer:
    if name in ("bytes", "gpt2"):
        return Bytes() if name == "bytes" else _load_gpt2()
    if name.startswith("gpt2:"):
        tokenizer = load_tokenizer(expand_path(name.removeprefix("gpt2:")))
        if tokenizer.name != "gpt2":
            raise UserError(f"{name}: these files are not GPT-2's vocabulary, but {tokenizer.name}.")
        return tokenizer
    path = expand_path(name)
    if path.exists():
        check_tokenizer_files(path if path.is_dir() else path.parent)
    if path.is_dir():
        return _add_neighbours(read_directory(path), path)
    if path.is_file():
        return _add_neighbours(read_tokenizer_json(path), path.parent)
    raise UserError(explain_missing(name))


def check_tokenizer_files(directory: Path) -> None:
    """Raise a `ChangedFileError` for a file that is not what `checksums.json` or the manifest of shards lists."""
    check_listed_files(directory, TOKENIZER_FILES)
    content: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):  # another program may have one of that name
        content = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    listed: Any = content.get("tokenizer_files") if isinstance(content, dict) else None
    for path, sha256 in ((directory / name, listed[name]) for name in TOKENIZER_FILES if name in (listed or ())):
        if path.is_file() and sum_file(path).sha256 != sha256:
            raise ChangedFileError(
                f"{path} has changed since it was written: its SHA-256 differs. Put the right one back, or prepare the "
                "data again with --overwrite."
            )


def _add_neighbours(file: TokenTable | LibraryFile, directory: Path) -> Tokenizer:
    """The tokenizer of a file with what others beside it say: its chat template, and what ends and begins documents."""
    found: Tokenizer
    template = read_chat_template(directory)
    if isinstance(file, LibraryFile):
        from gptjax.tokenization.library_tokenizer import LibraryTokenizer  # imports the library, which few need

        names = [token.content for token in file.library.get_added_tokens_decoder().values()]
        roles = () if template is None else template.special_tokens
        found = LibraryTokenizer(*file[:3], end_of_text=find_end_of_text(names, directory), roles=roles)
        end = found.end_of_text_name
    else:
        found = _make_tokenizer(file)
        if (end := find_end_of_text(found.specials, directory)) is not None:
            found = found.with_end_of_text(end)
    found.left_out = file.left_out
    found.begin_of_text_name = find_begin_of_text(found.specials, directory, end_of_text=end)
    return found.with_chat_template(template)


def _make_tokenizer(table: TokenTable) -> TableTokenizer:
    if table.kind == "bytes":
        return Bytes()
    if table.kind == "chars":
        return Chars({token.decode(): i for token, i in table.tokens.items()})
    return BPE(table.tokens, table.specials, merges=table.merges, pattern=table.pattern or "")


@functools.cache
def _load_gpt2() -> Tokenizer:
    vocab, merges = read_gpt2_file("encoder.json"), read_gpt2_file("vocab.bpe")
    return _make_tokenizer(parse_vocab_and_merges(vocab, merges, where=Path("encoder.json")))
