"""Tokenizers of other models that are no table of bytes: the file stays as it is, and the library `tokenizers` encodes.

These are Qwen's, Gemma's, Llama 2's, Mistral's, DeepSeek's, T5's and others. Their text need not survive: normalizers
compose characters, put a blank in front, or drop what they do not know. So bytes of a text are counted in the text
itself, where it is at hand (`encode_with_sizes`), and else in what its ids are decoded to (`bytes_per_token`).

An added token that is not special is found in every text, as in the training of its model. A special one is not.
"""

import functools
import itertools
import json
import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Int32
from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as Library

from gptjax.core.errors import UserError, quote
from gptjax.core.files import hash_json
from gptjax.core.unicode import replace_surrogates
from gptjax.tokenization.base import REPLACEMENT, Ids, TextDecoder, Tokenizer, count_before
from gptjax.tokenization.tokenizer_json import read_letters, spell_token

# Stand for special tokens beside a text: added tokens that no text holds, for these are no characters.
BORDER, EATS_RIGHT, EATS_LEFT = (f"\ufdd0{kind}\ufdd1" for kind in "|><")
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
"""Of an added token."""
DECODED_TOKENS = 8
"""Tokens before new ones with which these are decoded."""


class Encoded(NamedTuple):
    """Ids of a text, and the number of characters up to the end of each."""

    ids: Ids
    ends: np.ndarray


class LibraryTokenizer(Tokenizer):
    """A tokenizer.json of any kind. `end_of_text` is made special if it is an added token that is not."""

    kind = "tokenizers"
    keeps_text = False

    def __init__(self, text: str, library: Library | None = None, *, end_of_text: str | None = None) -> None:
        self._text, self._library = text, Library.from_str(text) if library is None else library
        self._library.no_truncation()
        self._library.no_padding()
        self._lock = threading.Lock()  # held while `encode_special_tokens` must stay
        found = self._library.get_added_tokens_decoder()
        self._flags = {i: [getattr(token, flag) for flag in ("content", *FLAGS)] for i, token in sorted(found.items())}
        specials = {token.content: i for i, token in found.items() if token.special or token.content == end_of_text}
        self._vocab = self._library.get_vocab(with_added_tokens=True)
        super().__init__(specials, vocab_size=1 + max(self._vocab.values()))
        self.text_tokens = {token.content: i for i, token in found.items() if token.content not in specials}
        self._promoted = None if end_of_text is None or found[specials[end_of_text]].special else end_of_text
        if end_of_text is not None:
            self.end_of_text_name = end_of_text
        if self._promoted is not None:
            self._library.add_special_tokens([found[specials[self._promoted]]])
        self._eats_left = {token.content for token in found.values() if token.lstrip}
        self._eats_right = {token.content for token in found.values() if token.rstrip}
        self._borders = self._add_borders()
        self._is_special = np.zeros(1 + max(self._borders), bool)
        self._is_special[[i for i in self.specials.values() if i != self.unknown]] = True
        self._is_known = np.zeros(self.vocab_size, bool)
        self._is_known[list(self._vocab.values())] = True

    def _add_borders(self) -> list[int]:
        flags: dict[str, dict[str, bool]] = {BORDER: {}, EATS_RIGHT: {"rstrip": True}, EATS_LEFT: {"lstrip": True}}
        self._library.add_tokens([AddedToken(text, normalized=False, **each) for text, each in flags.items()])
        ids = [i for text in flags if (i := self._library.token_to_id(text)) is not None]
        if min(ids) < self.vocab_size:
            raise UserError(
                f"the tokenizer has {len(self._vocab):,} tokens with ids up to {self.vocab_size - 1:,}: wanted ids "
                "without gaps, for the library numbers added tokens by their count."
            )
        return ids

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = functools.partial(LibraryTokenizer, end_of_text=self._promoted)
        state = {name: getattr(self, name) for name in ("chat_template", "end_of_text_name", "begin_of_text_name")}
        return rebuild, (self._text,), state

    @functools.cached_property
    def _content(self) -> dict[str, Any]:
        return json.loads(self._text)

    @property
    def unknown(self) -> int | None:
        model = self._content["model"]
        if isinstance(name := model.get("unk_token"), str):
            return self._library.token_to_id(name)
        return i if isinstance(i := model.get("unk_id"), int) else None

    def encode(self, text: str) -> Ids:
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[Ids]:
        texts = [_without_borders(replace_surrogates(text)) for text in texts]
        with self._lock:
            self._library.encode_special_tokens = True
            found = self._library.encode_batch_fast(texts, add_special_tokens=False)
        encoded = [np.array(each.ids, np.int32) for each in found]
        is_wrong = [self._is_special[ids].any() for ids in encoded]
        trios = zip(texts, encoded, is_wrong, strict=True)
        return [self._encode(text).ids if wrong else ids for text, ids, wrong in trios]

    def encode_with_sizes(self, text: str) -> tuple[Ids, Ids]:
        text = replace_surrogates(text)
        ids, ends = self._encode(text)
        sizes = np.concatenate([[0], np.cumsum([len(char.encode()) for char in text], dtype=np.int64)])
        ends = np.append(ends[:-1], len(text)) if len(ends) else ends  # the last takes what no token has
        return ids, np.diff(sizes[ends], prepend=0).astype(np.int32)

    def encode_pair(
        self, first: str, second: str, *, after: str | None = None, before: str | None = None
    ) -> tuple[Ids, int]:
        begin = "" if after is None else EATS_RIGHT if after in self._eats_right else BORDER
        end = "" if before is None else EATS_LEFT if before in self._eats_left else BORDER
        ids, ends = self._encode(replace_surrogates(first + second), begin=begin, end=end)
        return ids, count_before(ends, len(replace_surrogates(first)))

    def encode_with_specials(self, text: str) -> Ids:
        return np.array(self._run(_without_borders(replace_surrogates(text)), trusted=True).ids, np.int32)

    def _encode(self, text: str, *, begin: str = "", end: str = "") -> Encoded:
        """Ids of text that spells no special token, between borders that are no part of it."""
        text = _without_borders(text)
        found = _with_ends(self._run(begin + text + end))
        if (wrong := self._is_special[found.ids]).any():
            # A model may have a piece for the name of a special token. It is cut in two behind its first character.
            starts = np.concatenate([[0], found.ends[:-1]])[wrong]
            cuts = sorted({*(starts + 1).tolist()} & {*range(1, len(begin + text))})
            found = _with_ends(self._run(_insert(begin + text + end, cuts)))
            shift = len(BORDER) * np.searchsorted(np.array(cuts) + len(BORDER) * np.arange(len(cuts)), found.ends)
            found = Encoded(found.ids, found.ends - shift)
            found = Encoded(self._replace_specials(found.ids), found.ends)
        is_text = ~np.isin(found.ids, self._borders) if begin or end or wrong.any() else slice(None)
        return Encoded(found.ids[is_text], np.clip(found.ends[is_text] - len(begin), 0, len(text)))

    def _run(self, text: str, *, trusted: bool = False) -> Encoding:
        with self._lock:
            self._library.encode_special_tokens = not trusted
            return self._library.encode(text, add_special_tokens=False)

    def _replace_specials(self, ids: Ids) -> Ids:
        """Ids without special ones, which a single character may be."""
        wrong = self._is_special[ids]
        if wrong.any() and self.unknown is None:
            raise UserError(f"the {self.name} tokenizer makes {self.decode(ids[wrong][:1])} of a text that is none.")
        return np.where(wrong, self.unknown or 0, ids).astype(np.int32)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        flat = np.asarray(ids, np.int64).reshape(-1)
        known = (flat >= 0) & (flat < self.vocab_size)
        known[known] = self._is_known[flat[known]]
        if known.all():
            return self._library.decode(flat.tolist(), skip_special_tokens=False)
        parts = np.split(flat, np.flatnonzero(~known))
        parts = [parts[0], *(part[1:] for part in parts[1:])]
        return REPLACEMENT.join(self._library.decode(part.tolist(), skip_special_tokens=False) for part in parts)

    def make_decoder(self, after: Iterable[int] = ()) -> TextDecoder:
        return _LibraryDecoder(self, after)

    @functools.cached_property
    def probes(self) -> list[int]:
        """Ids after which a text shows what of it is certain: a letter, and a byte that is no beginning of one."""
        names = ["<0xFF>", *([spell_token(b"\xff")] if self._is_byte_level else [])]
        found = [i for name in names if (i := self._library.token_to_id(name)) is not None]
        return [*self.encode("a")[-1:].tolist(), *found]

    @functools.cached_property
    def _is_byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(self._content["decoder"])

    def count_bytes_per_token(self) -> Int32[np.ndarray, " V"]:
        """Bytes of each token behind another one, whose decoder may strip blanks from the first."""
        sizes, first = np.zeros(self.vocab_size, np.int32), self.encode("a")[-1:].tolist()
        start, texts = self._library.decode(first, skip_special_tokens=False), dict[str, str]()
        others = {name: i for name, i in self._vocab.items() if name not in self.specials}
        if not self._is_byte_level:
            pairs = [[*first, i] for i in others.values()]
            decoded = self._library.decode_batch(pairs, skip_special_tokens=False)
            texts = {name: text.removeprefix(start) for name, text in zip(others, decoded, strict=True)}
        for name, i in others.items():
            if name in self.text_tokens:
                sizes[i] = len(name.encode())
            elif self._is_byte_level:
                sizes[i] = len(name.encode() if (read := read_letters(name)) is None else read)
            else:
                sizes[i] = 1 if _is_byte(name) else len(texts[name].encode())
        return sizes

    def compute_fingerprint(self) -> str:
        return hash_json([self.vocabulary_hash, list(self._flags.items()), self.end_of_text_name])

    @functools.cached_property
    def vocabulary_hash(self) -> str:
        """A hash of what decides the ids of ordinary text, the same for older and newer spellings of a file."""
        model = {name: value for name, value in self._content["model"].items() if value}
        if isinstance(vocab := model["vocab"], dict):
            model["vocab"] = sorted((i, token) for token, i in vocab.items())
        model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", ())]
        sections = [self._content.get(name) for name in ("normalizer", "pre_tokenizer")]
        return hash_json([self.kind, *sections, sorted(model.items())])

    def extends(self, other: Tokenizer) -> bool:
        if not isinstance(other, LibraryTokenizer) or self.vocabulary_hash != other.vocabulary_hash:
            return False
        new = [i for i in self._flags if i not in other._flags]
        same = {i: flags for i, flags in self._flags.items() if i not in new} == other._flags
        return bool(new) and same and min(new) >= other.vocab_size

    def with_special_tokens(self, specials: Iterable[str]) -> "LibraryTokenizer":
        names = [name for name in dict.fromkeys(specials) if name not in self.specials]
        for name in names:
            if not name.strip() or self._library.token_to_id(name) is not None:
                raise UserError(f"special token {name!r}: is blank, or an ordinary token too. Use one like <|name|>.")
        library = Library.from_str(self._text)
        library.add_special_tokens([AddedToken(name, normalized=False) for name in names])
        content, ids = json.loads(self._text), [library.token_to_id(name) for name in names]
        if ids != list(range(self.vocab_size, self.vocab_size + len(names))):
            raise UserError(
                f"the {self.name} tokenizer has gaps in its ids, so the library would number "
                f"{', '.join(map(quote, names))} among its own. Use another tokenizer."
            )
        written = {token["id"]: token for token in json.loads(library.to_str())["added_tokens"]}
        content["added_tokens"] = [*content["added_tokens"], *(written[i] for i in ids)]
        more = LibraryTokenizer(json.dumps(content, ensure_ascii=False, indent=2), library, end_of_text=self._promoted)
        more.chat_template, more.begin_of_text_name = self.chat_template, self.begin_of_text_name
        more.end_of_text_name = self.end_of_text_name or more.end_of_text_name
        return more

    def with_end_of_text(self, name: str) -> "Tokenizer":
        if name not in self.text_tokens:
            return super().with_end_of_text(name)
        other = LibraryTokenizer(self._text, end_of_text=name)
        other.chat_template, other.begin_of_text_name = self.chat_template, self.begin_of_text_name
        return other

    def to_json(self) -> str:
        return self._text


class _LibraryDecoder(TextDecoder):
    """Decodes new ids together with those before them, back to the last special token, where a decoder begins anew."""

    def __init__(self, tokenizer: LibraryTokenizer, after: Iterable[int]) -> None:
        self._tokenizer, ids = tokenizer, [int(i) for i in after]
        specials = set(tokenizer.specials.values())
        begin = max((place + 1 for place, i in enumerate(ids) if i in specials), default=0)
        self._ids = ids[max(begin, len(ids) - DECODED_TOKENS) :]
        self._given = len(tokenizer.decode(self._ids))

    def add(self, ids: Iterable[int]) -> str:
        self._ids += ids
        whole = self._tokenizer.decode(self._ids)
        others = (self._tokenizer.decode([*self._ids, probe]) for probe in self._tokenizer.probes)
        certain = _find_common_beginning([whole, *others]).rstrip(REPLACEMENT)
        new = certain[self._given :]
        self._given = max(self._given, len(certain))
        if certain == whole:
            self._ids = self._ids[-DECODED_TOKENS:]
            self._given = len(self._tokenizer.decode(self._ids))
        return new

    def finish(self) -> str:
        whole = self._tokenizer.decode(self._ids)
        new, self._given = whole[self._given :], len(whole)
        return new


def _with_ends(found: Encoding) -> Encoded:
    ends = np.array([end for _, end in found.offsets], np.int64)
    return Encoded(np.array(found.ids, np.int32), np.maximum.accumulate(ends))


def _find_common_beginning(texts: Sequence[str]) -> str:
    columns = zip(*texts, strict=False)
    return "".join(column[0] for column in itertools.takewhile(lambda column: len({*column}) == 1, columns))


def _without_borders(text: str) -> str:
    """Text of the same size that holds nothing of what stands for special tokens here: U+FFFD is in its place."""
    is_safe = "\ufdd0" not in text or not any(border in text for border in (BORDER, EATS_RIGHT, EATS_LEFT))
    return text if is_safe else text.replace("\ufdd0", REPLACEMENT)


def _insert(text: str, cuts: Sequence[int]) -> str:
    """The text with a border at each of these places."""
    places = [0, *cuts, len(text)]
    return BORDER.join(text[begin:end] for begin, end in itertools.pairwise(places))


def _is_byte(name: str) -> bool:
    """Whether a token stands for one byte where characters are missing: <0x0A>."""
    return re.fullmatch(r"<0x[0-9A-F]{2}>", name) is not None
