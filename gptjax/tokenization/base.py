"""What every tokenizer is: `Tokenizer`, with the special tokens that begin and end documents and its file.

Text is encoded as it stands: a literal "<|endoftext|>" in it is ordinary text. A lone surrogate (half of a character,
which UTF-8 cannot hold) becomes U+FFFD. Only pipelines put the end-of-text id before documents.
"""

import copy
import functools
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, SupportsIndex

import numpy as np
from jaxtyping import Int32

from gptjax.core.errors import UserError, quote
from gptjax.core.files import write_atomically
from gptjax.tokenization.chat_template import CHAT_TEMPLATE_FILE, ChatTemplate
from gptjax.tokenization.special_names import CONFIG_FILES, END_OF_TEXT, find_end_of_text
from gptjax.tokenization.tokenizer_json import FILE_NAME, Kind, Merges

SAVED_FILES = (FILE_NAME, CONFIG_FILES[0], CHAT_TEMPLATE_FILE)
"""What `Tokenizer.save` may write."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What stands for bytes that are no UTF-8, and for ids outside the vocabulary."""
GPT2_FINGERPRINT = "be16755c1087356077a870910d070d2dac44c85aa04ac85e0378883e794a97d1"

Ids = Int32[np.ndarray, " T"]


class TextDecoder(ABC):
    """Text of ids that arrive one after another. All that it gives is what the ids together decode to."""

    @abstractmethod
    def add(self, ids: Iterable[int]) -> str:
        """The text that is certain with these ids, whatever follows them."""

    @abstractmethod
    def finish(self) -> str:
        """The text that was held back."""


class Tokenizer(ABC):
    """Text to ids and back. `specials` are the special tokens, by name; no text becomes one of them."""

    kind: Kind
    keeps_text: ClassVar[bool] = True
    """Whether decoding gives back every text that was encoded, byte for byte."""
    tokens: Mapping[bytes, int] = {}
    """The bytes of each ordinary token; empty if the library encodes."""
    merges: Merges = ()
    pattern: str | None = None
    text_tokens: Mapping[str, int] = {}
    """Added tokens that are not special: the library finds them in every text."""
    added_tokens: Mapping[str, tuple[int, ...]] = {}
    """The id and the flags of each added token, special or not, if the library encodes."""
    left_out: Sequence[str] = ()
    """Special tokens that the file which was read puts beside every text, and that are left out here."""
    chat_template: ChatTemplate | None = None
    """How conversations are written; None if no chats were prepared with this tokenizer."""
    begin_of_text_name: str | None = None
    """The special token that begins documents, if it is another than their end: in models of other programs."""

    def __init__(self, specials: Mapping[str, int], *, vocab_size: int) -> None:
        self.specials = dict(specials)
        self.vocab_size = vocab_size
        self.end_of_text_name = find_end_of_text(self.specials)

    def __copy__(self) -> "Tokenizer":
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

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

    @property
    def unknown(self) -> int | None:
        """The id of text that the vocabulary cannot express; None if there is none."""
        return None

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the ids; the same after saving and loading."""
        return self.compute_fingerprint()

    @functools.cached_property
    def bytes_per_token(self) -> Int32[np.ndarray, " V"]:
        """How many bytes of UTF-8 each id is decoded to, 0 for special tokens; bits per byte need it."""
        return self.count_bytes_per_token()

    @functools.cached_property
    def rules(self) -> dict[str, str]:
        """Hashes of what decides the ids of ordinary text in a file, by name; empty unless the library encodes."""
        return {}

    def count_lost(self, text: str, ids: Ids) -> int:
        """How many times the text of these ids holds what the vocabulary cannot express."""
        return 0 if self.unknown is None else int((ids == self.unknown).sum())

    @abstractmethod
    def compute_fingerprint(self) -> str: ...

    @abstractmethod
    def count_bytes_per_token(self) -> Int32[np.ndarray, " V"]: ...

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """Ids of `text`, all of it taken as ordinary text."""

    def encode_all(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def encode_with_sizes(self, text: str) -> tuple[Ids, Ids]:
        """Ids of `text`, and how many bytes of its UTF-8 each stands for. Together they are those of the text."""

    @abstractmethod
    def encode_pair(
        self, first: str, second: str, *, after: str | None = None, before: str | None = None
    ) -> tuple[Ids, int]:
        """Ids of two texts as one, and how many of them lie wholly within the first.

        `after` and `before` are special tokens between which they stand, where that matters to them.
        """

    @abstractmethod
    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of `ids`; bytes that are not UTF-8, and ids outside the vocabulary, become U+FFFD."""

    @abstractmethod
    def make_decoder(self, after: Iterable[int] = ()) -> TextDecoder:
        """A decoder for ids that follow those of `after`, which may be a prompt."""

    def decode_after(self, after: Iterable[int], ids: Iterable[int]) -> str:
        """Text of ids that follow those of `after`: some decoders strip a blank from a beginning only."""
        decoder = self.make_decoder(after)
        return decoder.add(ids) + decoder.finish()

    @abstractmethod
    def to_json(self) -> str:
        """The content of `tokenizer.json`."""

    @abstractmethod
    def extends(self, other: "Tokenizer") -> bool:
        """Whether all ids of another tokenizer mean the same to this one, which has more special tokens.

        These stand behind the other's vocabulary, or are added tokens of it that are roles here. Texts keep their ids,
        except those that spell such a role (`list_new_roles`).
        """

    def list_new_roles(self, other: "Tokenizer") -> list[str]:
        """The role tokens of this tokenizer that another one finds in ordinary text."""
        return [name for name in self.specials if name in other.text_tokens]

    def with_special_tokens(self, specials: Iterable[str]) -> "Tokenizer":
        """This tokenizer with more special tokens, numbered from `vocab_size` on in the order given.

        Names that are special already keep their ids, and every text keeps its ids too. Raises `UserError` for a blank
        name, for the name of an ordinary token, and if this kind cannot have more.
        """
        raise UserError(
            f"the {self.name} tokenizer cannot take special tokens ({', '.join(specials)}); use a byte-level BPE: "
            "gpt2, bpe:1024 (prepare_chat learns it), or one that python -m data_pipelines.train_tokenizer makes."
        )

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
        is_open = self.kind in ("bpe", "tokenizers")
        choice = f" data_pipelines.extend_tokenizer adds one, such as {END_OF_TEXT}." if is_open else ""
        if names := ", ".join(map(quote, list(self.specials)[:8])):
            choice = f" Its special tokens are {names}; --end-of-text=NAME chooses one."
        return f"the tokenizer {self.name} names no end of text, so documents run together.{choice}"

    def with_chat_template(self, template: ChatTemplate | None) -> "Tokenizer":
        """The same tokenizer with this template. Added tokens that are roles in it count as special from then on.

        The ids of every other text stay, and without such tokens the fingerprint, too.
        """
        other = copy.copy(self)
        other.chat_template = template
        return other

    def encode_with_specials(self, text: str) -> Ids:
        """Ids of `text`, in which names of special tokens stand for these tokens. Only for text that one trusts."""
        names = sorted(self.specials, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        ids = [
            np.array([self.specials[part]], np.int32) if part in self.specials else self.encode(part) for part in parts
        ]
        return np.concatenate(ids)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write `directory/tokenizer.json`, creating the directory; return the path.

        A chat template goes beside it; tokenizer_config.json, too, unless documents begin and end with `END_OF_TEXT`.
        """
        path = Path(directory) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        is_other = self.end_of_text_name != find_end_of_text(self.specials, path.parent)
        if is_other or self.begin_of_text_name or not self.keeps_text:  # a name may make a token of the library special
            content = {"eos_token": self.end_of_text_name, "bos_token": self.begin_of_text_name}
            content["tokenizer_class"] = "PreTrainedTokenizerFast"
            write_atomically(path.parent / CONFIG_FILES[0], json.dumps(content, indent=1) + "\n")
        write_atomically(path, self.to_json())
        if self.chat_template is not None:
            self.chat_template.save(path.parent)
        else:
            (path.parent / CHAT_TEMPLATE_FILE).unlink(missing_ok=True)
        return path


def count_before(ends: np.ndarray, border: int) -> int:
    """How many tokens end at the border or before it, with nothing before a border of 0."""
    return int(ends.searchsorted(border, side="right")) if border else 0
