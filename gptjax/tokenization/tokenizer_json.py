"""tokenizer.json and its older relatives: how a table of tokens is stored, and which files can be read.

A file of one of our kinds is read into a `TokenTable`, which is all that decides the ids; nothing else of it matters.
Any other is a `LibraryFile`, which stays as it is. Files are written by Hugging Face `tokenizers`.
"""

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gptjax.core.errors import UserError, quote, quote_error
from gptjax.core.files import LARGEST_TOKENIZER, expand_path, read_text
from gptjax.core.json_names import refuse_repeated
from gptjax.tokenization.library_calls import call_quietly, parse_library
from gptjax.tokenization.precompiled import check_tables
from gptjax.tokenization.special_names import CONFIG_FILES, END_OF_TEXT

FILE_NAME = "tokenizer.json"
PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
"""GPT-2's older files, vocabulary and merges, under either of their names."""
ADVICE = "Use gpt2, or learn a byte-level BPE: python -m data_pipelines.train_tokenizer"
MODEL_ADVICE = (
    "transformers' PreTrainedTokenizerFast.from_pretrained(DIR).save_pretrained(OUT) writes a tokenizer.json of it."
)
"""Not AutoTokenizer: under the name LlamaTokenizer it takes any model of SentencePiece for a BPE like Llama's."""
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts text into words before merging (openai/gpt-2, src/encoder.py)."""
GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The later rule of cl100k: digits in threes, line ends apart, one leading sign sticks to a word."""

Kind = Literal["bpe", "bytes", "chars", "tokenizers"]
Merges = Sequence[tuple[bytes, bytes]]


class TokenTable(NamedTuple):
    """Tokens by their bytes, special ones by name; for BPE also the merges in order, and how words are cut."""

    kind: Kind
    tokens: Mapping[bytes, int]
    specials: Mapping[str, int] = {}
    merges: Merges = ()
    pattern: str | None = None
    left_out: Sequence[str] = ()
    """Special tokens that the file puts beside every text."""


class LibraryFile(NamedTuple):
    """A tokenizer.json that only the library can follow: its text, its `tokenizers.Tokenizer`, and what that writes."""

    text: str
    library: Any
    content: dict[str, Any]
    left_out: Sequence[str] = ()
    """Special tokens that the file puts beside every text."""


def to_json(table: TokenTable) -> str:
    """The content of `tokenizer.json`, as the library writes it: with indents, Python takes ten times as long."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers  # only writing needs it

    if table.kind == "chars":
        vocab = {token.decode(): i for token, i in table.tokens.items()}
        written = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
        written.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        written.decoder = decoders.Fuse()
    else:
        spelled = {token: spell_token(token) for token in table.tokens}
        vocab = {spelled[token]: i for token, i in table.tokens.items()} | dict(table.specials)
        spell = lambda token: spelled.get(token) or spell_token(token)
        merges = [(spell(left), spell(right)) for left, right in table.merges]
        written = Tokenizer(models.BPE(vocab, merges, ignore_merges=has_several_merges(table)))
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=table.pattern == GPT2_PATTERN)
        written.pre_tokenizer = bytes_only
        if table.pattern not in (None, GPT2_PATTERN):
            split = pre_tokenizers.Split(Regex(table.pattern), "isolated")
            written.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
        written.decoder = decoders.ByteLevel()
    names = sorted(table.specials, key=table.specials.__getitem__)
    written.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    return written.to_str(pretty=True)


def has_several_merges(table: TokenTable) -> bool:
    """Whether tokens are made in more than one way, as in Llama 3's file: it lists every pair that is a token."""
    return table.kind == "bpe" and len(table.merges) > len(table.tokens) - 256


def read_directory(directory: Path) -> TokenTable | LibraryFile:
    """The table of a directory that holds tokenizer.json or GPT-2's older pair under either of its names."""
    if (directory / FILE_NAME).is_file():
        return read_tokenizer_json(directory / FILE_NAME)
    for vocab_name, merges_name in PAIRS:
        if (directory / vocab_name).is_file() and (directory / merges_name).is_file():
            files = [directory / vocab_name, directory / merges_name]
            try:
                vocab, merges = (read_text(file, limit=LARGEST_TOKENIZER).encode() for file in files)
            except (OSError, ValueError) as error:
                raise UserError(f"{files[0]}: it, or {merges_name}, cannot be read: {quote(str(error))}.") from None
            return parse_vocab_and_merges(vocab, merges, where=files[0])
    others = [path.name for pattern in ("*.model", "*.tiktoken") for path in sorted(directory.glob(pattern))]
    advice = f" {quote(others[0])} is of another kind. {MODEL_ADVICE}" if others else ""
    raise UserError(
        f"{directory}: found no tokenizer. Wanted tokenizer.json, or vocab.bpe with encoder.json, "
        f"or merges.txt with vocab.json.{advice}"
    )


def find_tokenizer_directory(name: str) -> Path | None:
    """Where the other files of a tokenizer of `load_tokenizer` are; None for one without."""
    if name == "bytes" or name.partition(":")[0] == "gpt2":
        return None
    path = expand_path(name)
    return path if path.is_dir() else path.parent


def explain_missing(name: str) -> str:
    """What to say of a name under which there is no tokenizer."""
    kind, _, size = name.partition(":")
    if named := re.fullmatch(r"bpe[-_= ]?(\d+)", name, re.IGNORECASE):
        return f"tokenizer {name!r}: no such file. Write bpe:{named[1]}, which prepare and prepare_chat learn."
    if kind == "bpe" and not size.isdecimal():
        return f"tokenizer {name!r}: wanted bpe:SIZE, such as bpe:1024, which prepare and prepare_chat learn."
    if name == "chars" or name.startswith("bpe:"):
        learn = "python -m data_pipelines.train_tokenizer learns a BPE"
        learners = "prepare and prepare_chat learn" if name.startswith("bpe:") else "prepare learns"
        return f"tokenizer {name!r}: only {learners} it, from its text. {learn}; then name its directory."
    is_repository = re.fullmatch(r"[\w-]+/[\w.-]+", name) and not name.endswith(".json")
    files = " ".join((FILE_NAME, *CONFIG_FILES, "chat_template.jinja"))
    hub = f" The hub's is fetched by hf download {name} {files} --local-dir=DIR" if is_repository else ""
    learned = "prepare learns chars or bpe:8192, prepare_chat bpe:1024"
    return f"tokenizer {name!r}: no such file. Use gpt2, bytes, a tokenizer.json; {learned}.{hub}"


def read_tokenizer_json(path: Path) -> TokenTable | LibraryFile:
    """The table of a `tokenizer.json`, ours or another's, or the file as it is if no table expresses it.

    Raises `UserError` for one that cannot be read, or that encodes at random.
    """
    text, library = _load_library(path)
    ids = _check_ids(library.get_vocab(with_added_tokens=True), path)  # the library would write each id of a gap
    if not ids:
        raise UserError(f"{path}: has no tokens. {ADVICE}")
    if max(ids.values()) >= len(ids):
        _check_names(text, path)
    _check_unique(library.get_vocab(with_added_tokens=False), path)
    content = json.loads(call_quietly(library.to_str))  # which has what older files leave out
    check_tables(content["normalizer"], path)
    if dropout := content["model"].get("dropout"):
        raise UserError(f"{path}: model.dropout is {quote(repr(dropout))}, so that ids are drawn at random. {ADVICE}")
    added = content["added_tokens"]
    found = _find_table(content, path) if not content["normalizer"] and all(t["special"] for t in added) else None
    left_out = [token["content"] for token in added if _adds(content["post_processor"], token)]
    return LibraryFile(text, library, content, left_out) if found is None else found._replace(left_out=left_out)


def _load_library(path: Path) -> tuple[str, Any]:
    """The text of a file, and what the library makes of it."""
    try:
        text = read_text(path, limit=LARGEST_TOKENIZER)
        return text, parse_library(text)
    except Exception as error:  # the library has no class of its own for errors
        if path.suffix == ".model":
            raise UserError(f"{path}: is a model of SentencePiece, or of tiktoken. {MODEL_ADVICE}") from None
        raise UserError(f"{path}: not a tokenizer.json of Hugging Face: {quote_error(error)}.") from None


def _check_names(text: str, path: Path) -> None:
    """Raise for a token that stands twice, of which the library takes the last: the first id is then a gap."""
    try:
        json.loads(text, object_pairs_hook=refuse_repeated)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {quote_error(error)}. Keep the one that is meant.") from None


def _find_table(content: dict[str, Any], path: Path) -> TokenTable | None:
    """The table that encodes as this content says; None if there is none."""
    model, kind = content["model"], content["model"]["type"]
    if kind == "WordLevel" and model["vocab"] and all(len(word) == 1 for word in model["vocab"]):
        return TokenTable("chars", {char.encode(): i for char, i in _check_ids(model["vocab"], path).items()})
    is_byte_level = kind == "BPE" and (content["decoder"] or {}).get("type") == "ByteLevel"
    options = ("continuing_subword_prefix", "end_of_word_suffix")
    if not is_byte_level or any(map(model.get, options)):
        return None
    if (pattern := _find_pattern(content["pre_tokenizer"])) is None:
        return None
    if not pattern and not model["merges"]:
        return _find_bytes_table(model["vocab"])
    specials = {token["content"]: token["id"] for token in content["added_tokens"]}
    table = _make_bpe(model["vocab"], model["merges"], specials, pattern=pattern or r"[\s\S]+", where=path)
    # tiktoken merges a token in one way only, unless the whole word is a token.
    return None if table is None or (has_several_merges(table) and not model.get("ignore_merges")) else table


def _adds(post_processor: Any, token: Mapping[str, Any]) -> bool:
    """Whether this section of a file puts a special token beside every text."""
    match post_processor:
        case {"type": "Sequence", "processors": list(parts)}:
            return any(_adds(part, token) for part in parts)
        case {"type": "TemplateProcessing", "single": list(pieces)}:
            return any(piece.get("SpecialToken", {}).get("id") == token["content"] for piece in pieces)
        case {"type": "RobertaProcessing" | "BertProcessing", "sep": [sep, _], "cls": [cls, _]}:
            return token["content"] in (sep, cls)
    return False


def parse_vocab_and_merges(vocab: bytes, merges: bytes, *, where: Path) -> TokenTable:
    """GPT-2's original pair of files; the pattern is not in them and is taken to be GPT-2's."""
    try:
        ids = json.loads(vocab, object_pairs_hook=refuse_repeated)
        lines = merges.decode().split("\n")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: it, or the file of merges beside it, is damaged: {quote(str(error))}.") from None
    if not isinstance(ids, dict):
        raise UserError(f"{where}: holds a JSON {type(ids).__name__}; wanted: an object of ids by token.")
    _check_unique(_check_ids(ids, where), where)
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    specials = {END_OF_TEXT: ids[END_OF_TEXT]} if END_OF_TEXT in ids else {}
    table = _make_bpe(ids, pairs, specials, pattern=GPT2_PATTERN, where=where)
    if table is None:
        raise UserError(
            f"{where}: {len(ids)} tokens and {len(pairs)} merges do not make a byte-level BPE: wanted the 256 bytes, "
            f"written in the alphabet of GPT-2, and one token for each merge, in the order of merging. {ADVICE}"
        )
    return table


def write_vocab_and_merges(
    directory: Path, *, tokens: Mapping[bytes, int], specials: Mapping[str, int], merges: Merges
) -> None:
    """Write vocab.json and merges.txt, as GPT-2's original pair is called in Hugging Face's directories."""
    vocab = {spell_token(token): i for token, i in tokens.items()} | dict(specials)
    lines = [f"{spell_token(left)} {spell_token(right)}" for left, right in merges]
    (directory / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")


def _check_ids(ids: Mapping[str, Any], where: Path) -> Mapping[str, int]:
    """Raise for what is no id, and for ids so large that tables would waste memory."""
    end = 2 * len(ids) + 2**20
    if {*map(type, ids.values())} <= {int} and (not ids or 0 <= min(ids.values()) <= max(ids.values()) < end):
        return ids
    for token, i in ids.items():
        if type(i) is not int or not 0 <= i < end:
            found = f"{quote(repr(token))} has the id {quote(repr(i))}"
            raise UserError(f"{where}: {found}; wanted a number from 0 on, without wide gaps.")
    return ids


def _check_unique(ids: Mapping[str, int], where: Path) -> None:
    """Raise for two tokens with one id, which would be read as one of them."""
    if len(of_id := {i: token for token, i in ids.items()}) < len(ids):
        i = min(i for token, i in ids.items() if of_id[i] != token)
        first, second, *_ = sorted(quote(repr(token)) for token in ids if ids[token] == i)
        raise UserError(f"{where}: {first} and {second} have one id, {i}. {ADVICE}")


def _find_bytes_table(vocab: Mapping[str, int]) -> TokenTable | None:
    is_bytes = vocab == {spell_token(bytes([b])): b for b in range(256)}
    return TokenTable("bytes", {bytes([b]): b for b in range(256)}) if is_bytes else None


def _make_bpe(
    vocab: dict[str, int],
    pairs: Sequence[Sequence[str]],
    specials: dict[str, int],
    *,
    pattern: str,
    where: Path,
) -> TokenTable | None:
    """Byte-level BPE from a file's content. tiktoken merges in the order of ids: None if merges have another.

    A file that was made of tiktoken's ranks lists all pairs that are a token, and has `ignore_merges`.
    """
    _check_ids(vocab | specials, where)
    spelled = {letters: read_letters(letters) for letters in vocab if letters not in specials}
    tokens = {token: vocab[letters] for letters, token in spelled.items() if token is not None}
    halves = [[spelled.get(letters) or read_letters(letters) for letters in pair] for pair in pairs]
    merges = [(pair[0], pair[1]) for pair in halves if len(pair) == 2 and pair[0] is not None and pair[1] is not None]
    ids = [tokens.get(left + right, -1) for left, right in merges]
    increasing = all(0 <= a <= b for a, b in itertools.pairwise(ids)) and ids[:1] != [-1]
    every_byte = all(bytes([b]) in tokens for b in range(256))
    if not (
        increasing and every_byte and len(pairs) == len(merges) and len(tokens) == len(spelled) == 256 + len({*ids})
    ):
        return None
    return TokenTable("bpe", tokens, specials, merges, pattern)


def _find_pattern(pre_tokenizer: Any) -> str | None:
    """The regular expression of a `pre_tokenizer` section; empty if words are not cut at all, None if it is another."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return ""
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return GPT2_PATTERN
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "use_regex": False} as last,
            ],
        } if not last.get("add_prefix_space"):
            return regex
    return None


@functools.cache
def _alphabet() -> tuple[str, ...]:
    """Printable Latin-1 bytes are themselves; the other 68 follow from U+0100 on (openai/gpt-2, src/encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return tuple(chr(b if b in printable else next(stand_ins)) for b in range(256))


@functools.cache
def _letter_of() -> dict[int, str]:
    """For `str.translate`: the letter of a byte, which is a character of Latin-1."""
    return dict(enumerate(_alphabet()))


@functools.cache
def _byte_of() -> dict[int, str]:
    """For `str.translate`: a letter's byte as a character of Latin-1. Characters that are no letter become none."""
    others = dict.fromkeys(range(0x100), "\uffff")
    return others | {ord(letter): chr(b) for b, letter in enumerate(_alphabet())}


def is_token_name(name: str, tokens: Mapping[bytes, int]) -> bool:
    """Whether a file would write one of these tokens as `name`."""
    return read_letters(name) in tokens


def spell_token(token: bytes) -> str:
    """A token of a byte-level BPE as files write it: a letter for each byte."""
    return token.decode("latin-1").translate(_letter_of())


def read_letters(letters: str) -> bytes | None:
    """The bytes of a token as files write them; None for one that has other characters."""
    try:
        return letters.translate(_byte_of()).encode("latin-1")
    except UnicodeEncodeError:
        return None
