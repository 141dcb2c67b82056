"""Trains a byte-level BPE on a stream of text. Only the distinct words and their counts are kept."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_pipelines.readers.documents import Document, iter_text
from data_pipelines.runtime.progress import progress_line
from data_pipelines.runtime.sigint import call_interruptibly
from gptjax.core.errors import UserError
from gptjax.tokenization.chat import CHAT_TOKENS
from gptjax.tokenization.tokenizer import END_OF_TEXT, GPT2_PATTERN, GPT4_PATTERN, Tokenizer, load_tokenizer

PatternName = Literal["gpt2", "gpt4"]
PATTERNS: dict[PatternName, str] = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN}
MAX_BYTES = 2_000_000_000
"""More text than this changes a vocabulary little."""
MOST_TOKENS = 2**20
"""Four times the largest vocabulary in use: a larger size is a slip of the finger."""
TEXT_BYTES = 2**16
"""Text is given to the trainer in strings of this size: splitting a string into words takes some 80 times its size."""


def parse_special_tokens(spec: str) -> list[str]:
    """`chat,<|pad|>` as a list of names; `chat` stands for those of the chat template."""
    words = [word.strip() for word in spec.split(",")] if spec else []
    return [name for word in words for name in (CHAT_TOKENS if word == "chat" else (word,))]


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    pattern: PatternName = "gpt2",
    special_tokens: Sequence[str] = (),
    on_wait: Callable[[], object] = lambda: None,
) -> Tokenizer:
    """Train a byte-level BPE of `vocab_size` ids, the last of them `<|endoftext|>` and then `special_tokens`.

    A text with too few words for so many ids gives fewer (`describe_fewer`). `on_wait` is called all along.

    Raises `UserError` for a size without merges, and for one above `MOST_TOKENS`.
    """
    specials = list(dict.fromkeys([END_OF_TEXT, *special_tokens]))
    smallest = 256 + 1 + len(specials)
    if not smallest <= vocab_size <= MOST_TOKENS:
        parts = "256 bytes, a merge, special tokens"
        raise UserError(f"vocabulary of {vocab_size}: wanted at least {smallest} ({parts}), at most {MOST_TOKENS}.")
    model = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    ordinary = vocab_size - len(specials)
    trainer = trainers.BpeTrainer(vocab_size=ordinary, initial_alphabet=alphabet, show_progress=False)
    call_interruptibly(lambda: model.train_from_iterator(iter(texts), trainer), on_wait=on_wait)
    with tempfile.TemporaryDirectory() as directory:
        model.save(str(Path(directory) / "tokenizer.json"))
        return load_tokenizer(directory).with_special_tokens(specials)


def describe_fewer(tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    """A note where the text of a trained tokenizer has merges for fewer ids than were asked for."""
    if tokenizer.vocab_size >= vocab_size:
        return []
    found = f"{tokenizer.vocab_size:,}"
    return [f"the text has merges for {found} tokens, not {vocab_size:,}: the tokenizer has {found}"]


def train_bpe_on_documents(
    documents: Iterable[Document],
    *,
    vocab_size: int,
    max_bytes: int = MAX_BYTES,
    pattern: PatternName = "gpt2",
    special_tokens: Sequence[str] = (),
) -> Tokenizer:
    """As `train_bpe`, on the first `max_bytes` of the documents; shows progress on stderr."""
    status = "reading"

    def iter_texts() -> Iterator[str]:
        nonlocal status
        size = 0
        for text in take_bytes(documents, max_bytes):
            yield text
            size += len(text.encode())
            status = f"counting words: {size / 1e6:,.1f} MB"
        status = f"computing merges from {size / 1e6:,.1f} MB"

    with progress_line(status) as show:
        return train_bpe(
            iter_texts(),
            vocab_size=vocab_size,
            pattern=pattern,
            special_tokens=special_tokens,
            on_wait=lambda: show(status),
        )


def take_bytes(documents: Iterable[Document], limit: int) -> Iterator[str]:
    """Yield the text of the documents in strings, until they have `limit` bytes; the last is cut between characters."""
    for document in documents:
        for text in iter_text(document, size=TEXT_BYTES):
            content = text.encode()
            if len(content) >= limit:
                yield content[:limit].decode(errors="ignore")
                return
            yield text
            limit -= len(content)
