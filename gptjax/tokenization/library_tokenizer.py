"""Tokenizers of other models that are no table of bytes: the file stays as it is, and the library `tokenizers` encodes.

These are Qwen's, Gemma's, Llama 2's, Mistral's, DeepSeek's, T5's and others. Their text need not survive: normalizers
compose characters, put a blank in front, or drop what they do not know. So bytes of a text are counted in the text
itself, where it is at hand (`encode_with_sizes`), and else in what its ids are decoded to (`bytes_per_token`).

An added token that is not special is found in every text, as in the training of its model. A special one is not. One
that ends documents or is a role of the chat template counts as special, whatever the file calls it.
"""

import copy
import functools
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
from gptjax.tokenization.borders import BORDER, EATS_LEFT, EATS_RIGHT, insert_borders, without_borders
from gptjax.tokenization.chat_template import ChatTemplate
from gptjax.tokenization.library_calls import catch_panics
from gptjax.tokenization.library_decoder import LibraryDecoder
from gptjax.tokenization.special_names import compile_names
from gptjax.tokenization.tokenizer_json import read_letters, spell_token

FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
"""Of an added token."""


class Encoded(NamedTuple):
    """Ids of a text, and the number of characters up to the end of each."""

    ids: Ids
    ends: np.ndarray


class LibraryTokenizer(Tokenizer):
    """A tokenizer.json of any kind. Added tokens that are `end_of_text` or `roles` are special, whatever it says."""

    kind = "tokenizers"
    keeps_text = False

    def __init__(
        self,
        text: str,
        library: Library | None = None,
        content: dict[str, Any] | None = None,
        *,
        end_of_text: str | None = None,
        roles: Iterable[str] = (),
    ) -> None:
        self._text, self._library = text, Library.from_str(text) if library is None else library
        if content is not None:
            self._content = content
        self._library.no_truncation()
        self._library.no_padding()
        self._lock = threading.Lock()  # held while `encode_special_tokens` must stay
        found = self._library.get_added_tokens_decoder()
        self.added_tokens = {
            token.content: (i, *(getattr(token, flag) for flag in FLAGS)) for i, token in sorted(found.items())
        }
        plain = {token.content: token for token in found.values() if not token.special}
        self._end = end_of_text if end_of_text in plain else None
        self._roles = frozenset(plain.keys() & {*roles})
        promoted = {self._end, *self._roles} - {None}
        specials = {token.content: i for i, token in found.items() if token.special or token.content in promoted}
        self._vocab = self._library.get_vocab(with_added_tokens=True)
        super().__init__(specials, vocab_size=1 + max(self._vocab.values()))
        self.text_tokens = {token.content: i for i, token in found.items() if token.content not in specials}
        if end_of_text is not None:
            self.end_of_text_name = end_of_text
        self._library.add_special_tokens([plain[name] for name in plain if name in promoted])
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
                f"the tokenizer has {len(self._vocab):,} tokens with ids up to {self.vocab_size - 1:,}, and the "
                f"library gives a new added token the id {min(ids):,}, which is not behind them. Wanted: ids "
                "without gaps, or an added token with the largest id."
            )
        return ids

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = functools.partial(LibraryTokenizer, end_of_text=self._end, roles=self._roles)
        state = {name: getattr(self, name) for name in ("chat_template", "end_of_text_name", "begin_of_text_name")}
        return rebuild, (self._text,), state

    @functools.cached_property
    def _content(self) -> dict[str, Any]:
        """The file as the library writes it: with every field, in its newest spelling."""
        return json.loads(self._library.to_str())

    @property
    def unknown(self) -> int | None:
        model = self._content["model"]
        if isinstance(name := model.get("unk_token"), str):
            return self._library.token_to_id(name)
        return i if isinstance(i := model.get("unk_id"), int) else None

    def encode(self, text: str) -> Ids:
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[Ids]:
        texts = [without_borders(replace_surrogates(text)) for text in texts]
        found = self._run_all(texts)
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
        (found,) = self._run_all([without_borders(replace_surrogates(text))], trusted=True)
        return np.array(found.ids, np.int32)

    def _encode(self, text: str, *, begin: str = "", end: str = "") -> Encoded:
        """Ids of text that spells no special token, between borders that are no part of it."""
        text = without_borders(text)
        found = _with_ends(self._run(begin + text + end))
        if (wrong := self._is_special[found.ids]).any():
            # A model may have a piece for the name of a special token. It is cut in two behind its first character.
            starts = np.concatenate([[0], found.ends[:-1]])[wrong]
            cuts = sorted({*(starts + 1).tolist()} & {*range(1, len(begin + text))})
            found = _with_ends(self._run(insert_borders(begin + text + end, cuts)))
            shift = len(BORDER) * np.searchsorted(np.array(cuts) + len(BORDER) * np.arange(len(cuts)), found.ends)
            found = Encoded(found.ids, found.ends - shift)
            found = Encoded(self._replace_specials(found.ids), found.ends)
        is_text = ~np.isin(found.ids, self._borders) if begin or end or wrong.any() else slice(None)
        return Encoded(found.ids[is_text], np.clip(found.ends[is_text] - len(begin), 0, len(text)))

    def _run(self, text: str) -> Encoding:
        """What the library makes of a text, with the places of its tokens."""
        return self._run_all([text], with_places=True)[0]

    def _run_all(self, texts: Sequence[str], *, trusted: bool = False, with_places: bool = False) -> list[Encoding]:
        """What the library makes of texts. In trusted ones, names of special tokens stand for these."""
        encode = self._library.encode_batch if with_places else self._library.encode_batch_fast
        run = functools.partial(encode, texts, add_special_tokens=False)
        try:
            with self._lock, catch_panics():
                self._library.encode_special_tokens = not trusted
                return run()
        except Exception as error:  # the library raises no other kind
            raise UserError(
                f"the {self.name} tokenizer cannot encode a text: {quote(str(error))}. Wanted: a tokenizer.json whose "
                "vocabulary has its unknown token."
            ) from None

    def _replace_specials(self, ids: Ids) -> Ids:
        """Ids without special ones, which a single character may be."""
        wrong = self._is_special[ids]
        if wrong.any() and self.unknown is None:
            raise UserError(
                f"the {self.name} tokenizer encodes ordinary text as the special token "
                f"{quote(self.decode(ids[wrong][:1]))} and has no unknown token to use instead."
            )
        return np.where(wrong, self.unknown or 0, ids).astype(np.int32)

    def count_lost(self, text: str, ids: Ids) -> int:
        if not self._drops_characters:
            return super().count_lost(text, ids)
        # The library's places of tokens are wrong behind a character that it leaves out.
        text = compile_names(self.text_tokens).sub(" ", replace_surrogates(text))
        if (normalizer := self._library.normalizer) is not None:
            text = normalizer.normalize_str(text)
        cut = self._library.pre_tokenizer
        words = [text] if cut is None else [word for word, _ in cut.pre_tokenize_str(text)]
        return sum(not (char in self._characters or char.isspace()) for word in words for char in word)

    @functools.cached_property
    def _characters(self) -> frozenset[str]:
        """Those that a BPE can begin with."""
        model = self._content["model"]
        prefix, suffix = (model[name] or "" for name in ("continuing_subword_prefix", "end_of_word_suffix"))
        return frozenset(name.removeprefix(prefix).removesuffix(suffix) for name in self._vocab)

    @functools.cached_property
    def _drops_characters(self) -> bool:
        """Whether a character that the vocabulary lacks is left out: a BPE without unknown token and without bytes."""
        model = self._content["model"]
        if model["type"] != "BPE" or self.unknown is not None:
            return False
        steps = json.dumps([self._content[name] for name in ("normalizer", "pre_tokenizer")])
        byte_names = [[f"<0x{b:02X}>" for b in range(256)]] if model["byte_fallback"] else []
        byte_names += [[spell_token(bytes([b])) for b in range(256)]] if '"ByteLevel"' in steps else []
        return not any(self._vocab.keys() >= set(names) for names in byte_names)

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
        return LibraryDecoder(self, after, probes=self._probes)

    @functools.cached_property
    def _probes(self) -> list[int]:
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
        roles = [sorted(self._roles)] if self._roles else []
        return hash_json([self.kind, self.rules, list(self.added_tokens.items()), self.end_of_text_name, *roles])

    @functools.cached_property
    def rules(self) -> dict[str, str]:
        """Of the library's own spelling, so that files of older versions have the same."""
        model = {name: value for name, value in self._content["model"].items() if value is not None}
        if isinstance(vocab := model["vocab"], dict):
            model["vocab"] = sorted((i, token) for token, i in vocab.items())
        # A field that is off is the same as one that older versions of the library do not have. A number of 0 is not.
        parts = {"tokens": sorted((name, value) for name, value in model.items() if value is not False)}
        parts |= {f"the {name.replace('_', '-')}": self._content[name] for name in ("normalizer", "pre_tokenizer")}
        return {name: hash_json(part) for name, part in parts.items()}

    def extends(self, other: Tokenizer) -> bool:
        if not isinstance(other, LibraryTokenizer) or self.rules != other.rules or self._end != other._end:
            return False
        new = {name: token for name, token in self.added_tokens.items() if name not in other.added_tokens}
        same = {name: token for name, token in self.added_tokens.items() if name not in new} == other.added_tokens
        # One that is not special changes the ids of text that spells it.
        is_behind = all(i >= other.vocab_size and special for i, special, *_ in new.values())
        return same and is_behind and self._roles >= other._roles and (bool(new) or self._roles != other._roles)

    def with_special_tokens(self, specials: Iterable[str]) -> "LibraryTokenizer":
        names = [name for name in dict.fromkeys(specials) if name not in self.specials]
        for name in names:
            if name in self.text_tokens:
                raise UserError(
                    f"special token {name!r}: is an added token of {self.name} that is not special, so text may hold "
                    "it. Use another name. A role of a chat template may have it."
                )
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
        content["added_tokens"] = [*content.get("added_tokens", ()), *(written[i] for i in ids)]
        text = json.dumps(content, ensure_ascii=False, indent=2)
        more = LibraryTokenizer(text, library, end_of_text=self._end, roles=self._roles)
        more.chat_template, more.begin_of_text_name = self.chat_template, self.begin_of_text_name
        more.end_of_text_name = self.end_of_text_name or more.end_of_text_name
        return more

    def with_end_of_text(self, name: str) -> "Tokenizer":
        is_known = name in self.specials or name in self.text_tokens
        if not is_known or (name in self.specials and name not in self._roles and self._end in (None, name)):
            return super().with_end_of_text(name)
        # An added token is special for its being the end only, so a former end becomes what it was.
        return self._read_again(end_of_text=name, roles=self._roles)

    def with_chat_template(self, template: ChatTemplate | None) -> "LibraryTokenizer":
        plain = {self._end, *self._roles, *self.text_tokens}
        roles = plain.intersection(() if template is None else template.special_tokens)
        other = copy.copy(self) if roles == self._roles else self._read_again(end_of_text=self._end, roles=roles)
        other.chat_template, other.end_of_text_name = template, self.end_of_text_name
        return other

    def _read_again(self, *, end_of_text: str | None, roles: Iterable[str]) -> "LibraryTokenizer":
        """The same file with other added tokens that count as special."""
        other = LibraryTokenizer(self._text, end_of_text=end_of_text, roles=roles)
        other.chat_template, other.begin_of_text_name = self.chat_template, self.begin_of_text_name
        other.left_out = self.left_out
        return other

    def to_json(self) -> str:
        return self._text


def _with_ends(found: Encoding) -> Encoded:
    ends = np.array([end for _, end in found.offsets], np.int64)
    return Encoded(np.array(found.ids, np.int32), np.maximum.accumulate(ends))


def _is_byte(name: str) -> bool:
    """Whether a token stands for one byte where characters are missing: <0x0A>."""
    return re.fullmatch(r"<0x[0-9A-F]{2}>", name) is not None
