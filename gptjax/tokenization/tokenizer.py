"""Text to token ids and back: byte-level BPE (GPT-2's or one's own), plain bytes, single characters.

Every tokenizer is a table of byte strings, one per id, plus a way to cut text into them. The table gives decoding, the
vocabulary size, the bytes per token and the fingerprint. Only `encode` and the file differ by kind. On disk all kinds
share one format: `tokenizer.json` as Hugging Face `tokenizers` writes and reads it.

Text is encoded as it stands: a literal "<|endoftext|>" in it is ordinary text, and CRLF stays CRLF. A lone surrogate
(half of a character, which UTF-8 cannot hold) becomes U+FFFD. Only pipelines put the end-of-text id before documents.
"""

import copy
import functools
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import numpy as np
import tiktoken
from jaxtyping import Int32

from gptjax.core.errors import UserError, quote
from gptjax.core.files import expand_path, hash_json, write_atomically
from gptjax.core.unicode import replace_surrogates
from gptjax.tokenization.chat_template import CHAT_TEMPLATE_FILE, ChatTemplate, read_chat_template
from gptjax.tokenization.gpt2_files import read_gpt2_file
from gptjax.tokenization.tokenizer_json import (
    CONFIG_FILES,
    END_OF_TEXT,
    FILE_NAME,
    GPT2_PATTERN,
    GPT4_PATTERN,
    Merges,
    TokenTable,
    explain_missing,
    find_begin_of_text,
    find_end_of_text,
    is_token_name,
    parse_vocab_and_merges,
    read_directory,
    read_tokenizer_json,
    to_json,
)

__all__ = ["BPE", "END_OF_TEXT", "GPT2_PATTERN", "GPT4_PATTERN", "Bytes", "Chars", "Tokenizer", "load_tokenizer"]

# The same words as the patterns cut, found without backtracking: a sixth faster, and no run of blanks is too long.
_WITHOUT_BACKTRACKING = {
    GPT2_PATTERN: r"'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    GPT4_PATTERN: (
        r"(?i:'[stmd]|'re|'ve|'ll)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|(?:[^\S\r\n]*+[\r\n]++)++|\s++$|\s+(?!\S)|\s"
    ),
}
SAVED_FILES = (FILE_NAME, CONFIG_FILES[0], CHAT_TEMPLATE_FILE)
"""What `Tokenizer.save` may write."""
GPT2_FINGERPRINT = "be16755c1087356077a870910d070d2dac44c85aa04ac85e0378883e794a97d1"


class Tokenizer(ABC):
    """A table of tokens (`tokens`: bytes → id) and of special ones (`specials`: name → id).

    `bytes_per_token` says how many bytes of UTF-8 each id stands for, 0 for special tokens; bits per byte need it.
    """

    kind: Literal["bpe", "bytes", "chars"]
    merges: Merges = ()
    pattern: str | None = None
    chat_template: ChatTemplate | None = None
    """How conversations are written; None if no chats were prepared with this tokenizer."""
    begin_of_text_name: str | None = None
    """The special token that begins documents, if it is another than their end: in models of other programs."""

    def __init__(self, tokens: Mapping[bytes, int], specials: Mapping[str, int]) -> None:
        self.tokens = dict(tokens)
        self.specials = dict(specials)
        self.vocab_size = 1 + max([*self.tokens.values(), *self.specials.values()])
        self.end_of_text_name = find_end_of_text(self.specials)
        self.bytes_per_token: Int32[np.ndarray, " V"] = np.zeros(self.vocab_size, np.int32)
        self._text_of: list[bytes] = ["\N{REPLACEMENT CHARACTER}".encode()] * self.vocab_size
        for token, i in self.tokens.items():
            self.bytes_per_token[i], self._text_of[i] = len(token), token
        for name, i in self.specials.items():
            self._text_of[i] = name.encode()

    @property
    def name(self) -> str:
        """`gpt2`, `bytes`, or the kind with the size, such as `bpe-4096` and `chars-65`."""
        if self.fingerprint == GPT2_FINGERPRINT:
            return "gpt2"
        return self.kind if self.kind == "bytes" else f"{self.kind}-{self.vocab_size}"

    @property
    def end_of_text(self) -> int | None:
        """The id that `prepare` puts before documents; None if there is none."""
        return None if self.end_of_text_name is None else self.specials[self.end_of_text_name]

    @property
    def begin_of_text(self) -> int | None:
        """The id after which a model begins a document: of its own kind, or the end of text."""
        return self.end_of_text if self.begin_of_text_name is None else self.specials[self.begin_of_text_name]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the ids; the same after saving and loading."""
        table = sorted((i, token.hex()) for token, i in self.tokens.items())
        content = [self.kind, self.pattern, table, sorted(self.specials.items())]
        if self.end_of_text_name != find_end_of_text(self.specials):
            content.append(self.end_of_text_name)
        return hash_json(content)

    @abstractmethod
    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        """Ids of `text`, all of it taken as ordinary text."""

    def with_special_tokens(self, specials: Iterable[str]) -> "Tokenizer":
        """This tokenizer with more special tokens, such as those of a chat; see `BPE.with_special_tokens`."""
        raise UserError(
            f"the {self.name} tokenizer cannot take special tokens ({', '.join(specials)}); use a byte-level BPE: "
            "gpt2, bpe:1024 (prepare_chat learns it), or one that python -m data_pipelines.train_tokenizer makes."
        )

    def extends(self, other: "Tokenizer") -> bool:
        """Whether this tokenizer is another one with more special tokens behind its vocabulary."""
        added = {i for name, i in self.specials.items() if name not in other.specials}
        same = {name: i for name, i in self.specials.items() if name in other.specials} == other.specials
        rest = (self.kind, self.pattern, self.tokens) == (other.kind, other.pattern, other.tokens)
        return bool(added) and min(added) >= other.vocab_size and same and rest

    def with_end_of_text(self, name: str) -> "Tokenizer":
        """The same tokenizer with this special token as its end of text. The ids of a text stay.

        Raises `UserError` for a name that is no special token.
        """
        if name not in self.specials:
            known = ", ".join(map(quote, self.specials)) or "none"
            raise UserError(f"--end-of-text={quote(name)} is no special token of {self.name}; it has {known}.")
        other = copy.copy(self)
        vars(other).pop("fingerprint", None)  # cached
        other.end_of_text_name = name
        return other

    def explain_no_end_of_text(self) -> str | None:
        """What to say where documents matter and the tokenizer names no end of text; None if it does."""
        if self.end_of_text_name is not None:
            return None
        choice = f" data_pipelines.extend_tokenizer adds one, such as {END_OF_TEXT}." if self.kind == "bpe" else ""
        if names := ", ".join(map(quote, list(self.specials)[:8])):
            choice = f" Its special tokens are {names}; --end-of-text=NAME chooses one."
        return f"the tokenizer {self.name} names no end of text, so documents run together.{choice}"

    def with_chat_template(self, template: ChatTemplate | None) -> "Tokenizer":
        """The same tokenizer with this template. The ids and the fingerprint stay."""
        other = copy.copy(self)
        other.chat_template = template
        return other

    def to_json(self) -> str:
        """The content of `tokenizer.json`."""
        return to_json(TokenTable(self.kind, self.tokens, self.specials, self.merges, self.pattern))

    def encode_with_specials(self, text: str) -> Int32[np.ndarray, " T"]:
        """Ids of `text`, in which names of special tokens stand for these tokens. Only for text that one trusts."""
        names = sorted(self.specials, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        ids = [
            np.array([self.specials[part]], np.int32) if part in self.specials else self.encode(part) for part in parts
        ]
        return np.concatenate(ids)

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of one id: a part of a character for some, the name of a special token, U+FFFD for an unknown id."""
        return self._text_of[token] if 0 <= token < self.vocab_size else "\N{REPLACEMENT CHARACTER}".encode()

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of `ids`; bytes that are not UTF-8, and ids outside the vocabulary, become U+FFFD."""
        flat = np.asarray(ids, np.int64).reshape(-1).tolist()
        return b"".join(map(self.token_bytes, flat)).decode("utf-8", errors="replace")

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write `directory/tokenizer.json`, creating the directory; return the path.

        A chat template goes beside it; tokenizer_config.json, too, unless documents begin and end with `END_OF_TEXT`.
        """
        path = Path(directory) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.end_of_text_name != find_end_of_text(self.specials, path.parent) or self.begin_of_text_name:
            content = {"eos_token": self.end_of_text_name, "bos_token": self.begin_of_text_name}
            content["tokenizer_class"] = "PreTrainedTokenizerFast"
            write_atomically(path.parent / CONFIG_FILES[0], json.dumps(content, indent=1) + "\n")
        write_atomically(path, self.to_json())
        if self.chat_template is not None:
            self.chat_template.save(path.parent)
        else:
            (path.parent / CHAT_TEMPLATE_FILE).unlink(missing_ok=True)
        return path


class BPE(Tokenizer):
    """Byte-level BPE: `pattern` cuts text into words, then byte pairs merge, lowest id first (tiktoken)."""

    kind = "bpe"

    def __init__(
        self, tokens: Mapping[bytes, int], specials: Mapping[str, int], *, merges: Merges, pattern: str
    ) -> None:
        self.pattern = pattern
        self.merges = list(merges)
        super().__init__(tokens, specials)

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = functools.partial(BPE, merges=self.merges, pattern=self.pattern or "")
        state = {name: getattr(self, name) for name in ("chat_template", "end_of_text_name", "begin_of_text_name")}
        return rebuild, (self.tokens, self.specials), state

    def with_special_tokens(self, specials: Iterable[str]) -> "BPE":
        """This tokenizer with more special tokens, numbered from `vocab_size` on in the order given.

        Names that are special already keep their ids, and every text keeps its ids too. Raises for a blank name, and
        for the name of an ordinary token, since a file could not tell the two apart.
        """
        added = [name for name in dict.fromkeys(specials) if name not in self.specials]
        for name in added:
            if not name.strip() or is_token_name(name, self.tokens):
                raise UserError(f"special token {name!r}: is blank, or an ordinary token too. Use one like <|name|>.")
        numbered = {name: self.vocab_size + i for i, name in enumerate(added)}
        more = BPE(self.tokens, self.specials | numbered, merges=self.merges, pattern=self.pattern or "")
        more.chat_template = self.chat_template
        more.end_of_text_name = self.end_of_text_name or more.end_of_text_name
        more.begin_of_text_name = self.begin_of_text_name
        return more

    @functools.cached_property
    def _tiktoken(self) -> tiktoken.Encoding:
        pattern = self.pattern or ""
        fast = _WITHOUT_BACKTRACKING.get(pattern, pattern)
        return tiktoken.Encoding(self.name, pat_str=fast, mergeable_ranks=self.tokens, special_tokens=self.specials)

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        try:
            return self._tiktoken.encode_to_numpy(replace_surrogates(text), disallowed_special=()).astype(np.int32)
        except ValueError as error:
            raise UserError(
                f"tokenizer {self.name}: a text of {len(text):,} characters cannot be cut into words ({error}). "
                "A run of about a million spaces before a word does this; shorten it."
            ) from None


class Bytes(Tokenizer):
    """One id per byte of UTF-8, the byte's own value; no special ids."""

    kind = "bytes"

    def __init__(self) -> None:
        super().__init__({bytes([b]): b for b in range(256)}, {})

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        return np.frombuffer(replace_surrogates(text).encode(), np.uint8).astype(np.int32)


class Chars(Tokenizer):
    """One id per character of a known alphabet (`Chars.from_text`); any other character is an error."""

    kind = "chars"

    def __init__(self, alphabet: Mapping[str, int]) -> None:
        self.alphabet = dict(alphabet)
        super().__init__({char.encode(): i for char, i in self.alphabet.items()}, {})
        self._id_of = np.full(0x110000, -1, np.int32)
        for char, i in self.alphabet.items():
            self._id_of[ord(char)] = i

    def __reduce__(self) -> tuple[Any, ...]:
        return Chars, (self.alphabet,)

    @classmethod
    def from_text(cls, text: Iterable[str]) -> "Chars":
        """The alphabet of a text (or of several) in order of code points, as nanoGPT numbers it."""
        characters: set[str] = set()
        for part in [text] if isinstance(text, str) else text:
            characters.update(replace_surrogates(part))
        if not characters:
            raise UserError("a character vocabulary needs text to learn from; found none.")
        return cls({char: i for i, char in enumerate(sorted(characters))})

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        points = np.frombuffer(replace_surrogates(text).encode("utf-32-le"), np.uint32)
        ids = self._id_of[points]
        if ids.size and ids.min() < 0:
            char = chr(points[np.argmin(ids)])
            raise UserError(
                f"the character {char!r} (U+{ord(char):04X}) is not among the {self.vocab_size} characters of this "
                "tokenizer. Remove it from the text, or prepare the data anew from text that contains it."
            )
        return ids


def load_tokenizer(spec: str | os.PathLike[str], *, end_of_text: str | None = None) -> Tokenizer:
    """`gpt2`, `gpt2:DIR` (its two files), `bytes`, a `tokenizer.json`, or a directory that holds one.

    A directory may also hold GPT-2's pair `vocab.bpe`, `encoder.json`, or the same as `merges.txt`, `vocab.json`. A
    `chat_template.json` beside it is its template. The end of text is `end_of_text`, else what tokenizer_config.json or
    special_tokens_map.json says, else `<|endoftext|>`, if that is a special token.
    """
    found = _load(os.fspath(spec))
    return found if end_of_text is None else found.with_end_of_text(end_of_text)


def _load(name: str) -> Tokenizer:
    if name in ("bytes", "gpt2"):
        return Bytes() if name == "bytes" else _load_gpt2()
    if name.startswith("gpt2:"):
        tokenizer = _make_tokenizer(read_directory(expand_path(name.removeprefix("gpt2:"))))
        if tokenizer.name != "gpt2":
            raise UserError(f"{name}: these files are not GPT-2's vocabulary, but {tokenizer.name}.")
        return tokenizer
    if (path := expand_path(name)).is_dir():
        return _add_neighbours(_make_tokenizer(read_directory(path)), path)
    if path.is_file():
        return _add_neighbours(_make_tokenizer(read_tokenizer_json(path)), path.parent)
    raise UserError(explain_missing(name))


def _add_neighbours(tokenizer: Tokenizer, directory: Path) -> Tokenizer:
    """The tokenizer with what files beside it say: its chat template and its end of text."""
    end = find_end_of_text(tokenizer.specials, directory)
    found = tokenizer if end is None else tokenizer.with_end_of_text(end)
    found.begin_of_text_name = find_begin_of_text(tokenizer.specials, directory, end_of_text=end)
    return found.with_chat_template(read_chat_template(directory))


def _make_tokenizer(table: TokenTable) -> Tokenizer:
    if table.kind == "bytes":
        return Bytes()
    if table.kind == "chars":
        return Chars({token.decode(): i for token, i in table.tokens.items()})
    return BPE(table.tokens, table.specials, merges=table.merges, pattern=table.pattern or "")


@functools.cache
def _load_gpt2() -> Tokenizer:
    vocab, merges = read_gpt2_file("encoder.json"), read_gpt2_file("vocab.bpe")
    return _make_tokenizer(parse_vocab_and_merges(vocab, merges, where=Path("encoder.json")))
