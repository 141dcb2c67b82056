"""Tokenizers that are a table of byte strings: byte-level BPE (GPT-2's or one's own), plain bytes, single characters.

The table gives decoding, the vocabulary size, the bytes per token and the fingerprint. Only `encode` and the file
differ by kind. Every text survives: CRLF stays CRLF. On disk all kinds share one format: `tokenizer.json` as Hugging
Face `tokenizers` writes and reads it.
"""

import codecs
import functools
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

import numpy as np
import tiktoken
from jaxtyping import Int32

from gptjax.core.errors import UserError
from gptjax.core.files import hash_json
from gptjax.core.unicode import replace_surrogates
from gptjax.tokenization.base import REPLACEMENT, Ids, TextDecoder, Tokenizer
from gptjax.tokenization.special_names import find_end_of_text
from gptjax.tokenization.tokenizer_json import (
    GPT2_PATTERN,
    GPT4_PATTERN,
    Merges,
    TokenTable,
    is_token_name,
    to_json,
)

# The same words as the patterns cut, found without backtracking: a sixth faster, and no run of blanks is too long.
_WITHOUT_BACKTRACKING = {
    GPT2_PATTERN: r"'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    GPT4_PATTERN: (
        r"(?i:'[stmd]|'re|'ve|'ll)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|(?:[^\S\r\n]*+[\r\n]++)++|\s++$|\s+(?!\S)|\s"
    ),
}

FEW = 32
"""Ids over which a loop is faster than numpy, as over the header of a message."""


class TableTokenizer(Tokenizer):
    """A table of tokens (`tokens`: bytes → id) and of special ones (`specials`: name → id)."""

    merges: Merges = ()

    def __init__(self, tokens: Mapping[bytes, int], specials: Mapping[str, int]) -> None:
        self.tokens = dict(tokens)
        super().__init__(specials, vocab_size=1 + max([*self.tokens.values(), *specials.values()]))
        self._text_of: list[bytes] = [REPLACEMENT.encode()] * self.vocab_size
        for text, i in (*self.tokens.items(), *((name.encode(), i) for name, i in self.specials.items())):
            self._text_of[i] = text

    def count_bytes_per_token(self) -> Int32[np.ndarray, " V"]:
        sizes = np.zeros(self.vocab_size, np.int32)
        for token, i in self.tokens.items():
            sizes[i] = len(token)
        return sizes

    def compute_fingerprint(self) -> str:
        table = sorted((i, token.hex()) for token, i in self.tokens.items())
        content = [self.kind, self.pattern, table, sorted(self.specials.items())]
        if self.end_of_text_name != find_end_of_text(self.specials):
            content.append(self.end_of_text_name)
        return hash_json(content)

    def extends(self, other: Tokenizer) -> bool:
        added = {i for name, i in self.specials.items() if name not in other.specials}
        same = {name: i for name, i in self.specials.items() if name in other.specials} == other.specials
        rest = (self.kind, self.pattern, self.tokens) == (other.kind, other.pattern, other.tokens)
        return bool(added) and min(added) >= other.vocab_size and same and rest

    def to_json(self) -> str:
        return to_json(TokenTable(self.kind, self.tokens, self.specials, self.merges, self.pattern))

    def encode_with_sizes(self, text: str) -> tuple[Ids, Ids]:
        ids = self.encode(text)
        return ids, self.bytes_per_token[ids]

    def encode_pair(
        self, first: str, second: str, *, after: str | None = None, before: str | None = None
    ) -> tuple[Ids, int]:
        ids, border = self.encode(first + second), len(replace_surrogates(first).encode())
        return ids, self._count_within(ids[: border + 1], border)  # a token has at least one byte

    def _count_within(self, ids: Ids, limit: int) -> int:
        """How many of the first tokens have at most `limit` bytes together."""
        if len(ids) > FEW:
            return int(self.bytes_per_token[ids].cumsum().searchsorted(limit, side="right"))
        for count, i in enumerate(ids.tolist()):
            limit -= len(self._text_of[i])
            if limit < 0:
                return count
        return len(ids)

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of one id: a part of a character for some, the name of a special token, U+FFFD for an unknown id."""
        return self._text_of[token] if 0 <= token < self.vocab_size else REPLACEMENT.encode()

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        flat = np.asarray(ids, np.int64).reshape(-1).tolist()
        return b"".join(map(self.token_bytes, flat)).decode("utf-8", errors="replace")

    def make_decoder(self, after: Iterable[int] = ()) -> TextDecoder:
        return _BytesDecoder(self)


class _BytesDecoder(TextDecoder):
    """Holds back the bytes of an unfinished character. Those that remain become U+FFFD."""

    def __init__(self, tokenizer: TableTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, ids: Iterable[int]) -> str:
        return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, ids)))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class BPE(TableTokenizer):
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
        return tiktoken.Encoding(
            self.name, pat_str=fast, mergeable_ranks=dict(self.tokens), special_tokens=self.specials
        )

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        try:
            return self._tiktoken.encode_to_numpy(replace_surrogates(text), disallowed_special=()).astype(np.int32)
        except ValueError as error:
            raise UserError(
                f"tokenizer {self.name}: a text of {len(text):,} characters cannot be cut into words ({error}). "
                "A run of about a million spaces before a word does this; shorten it."
            ) from None


class Bytes(TableTokenizer):
    """One id per byte of UTF-8, the byte's own value; no special ids."""

    kind = "bytes"

    def __init__(self) -> None:
        super().__init__({bytes([b]): b for b in range(256)}, {})

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        return np.frombuffer(replace_surrogates(text).encode(), np.uint8).astype(np.int32)


class Chars(TableTokenizer):
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
