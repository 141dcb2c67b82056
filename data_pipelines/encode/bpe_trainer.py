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
from gptjax.core.errors import UserError, count_of
from gptjax.tokenization.chat import CHAT_TOKENS
from gptjax.tokenization.tokenizer import END_OF_TEXT, GPT2_PATTERN, GPT4_PATTERN, Tokenizer, load_tokenizer

PatternName = Literal["gpt2", "gpt4"]
PATTERNS: dict[PatternName, str] = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN}
MAX_BYTES = 2_000_000_000
"""More text than this changes a vocabulary little."""
LITTLE_TEXT = 1000
"""Fewer characters are too few to train on, whatever the tokenizer."""
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
    smaller: str = "--vocab-size={}",
    on_wait: Callable[[], object] = lambda: None,
) -> Tokenizer:
    """Train a byte-level BPE of exactly `vocab_size` ids, the last of them `<|endoftext|>` and then `special_tokens`.

    Raises `UserError` where the text has too few words for so many ids. It names the flag `smaller`, with the most.
    `on_wait` is called all along.
    """
    specials = list(dict.fromkeys([END_OF_TEXT, *special_tokens]))
    ordinary, smallest = vocab_size - len(specials), 256 + 1 + len(specials)
    if vocab_size < smallest:
        raise UserError(f"vocabulary of {vocab_size}: wanted at least {smallest} (256 bytes, a merge, special tokens).")
    model = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=ordinary, initial_alphabet=alphabet, show_progress=False)
    size = 0

    def count_characters() -> Iterator[str]:
        nonlocal size
        for text in texts:
            size += len(text)
            yield text

    call_interruptibly(lambda: model.train_from_iterator(count_characters(), trainer), on_wait=on_wait)
    if (found := model.get_vocab_size()) != ordinary:
        most = found + len(specials)
        less = f", or {smaller.format(most)}" if size >= LITTLE_TEXT else ""
        held = f"the text of {count_of(size, 'characters')}"
        raise UserError(f"{held} yields only {most} tokens, not {vocab_size}. Use more text{less}.")
    with tempfile.TemporaryDirectory() as directory:
        model.save(str(Path(directory) / "tokenizer.json"))
        return load_tokenizer(directory).with_special_tokens(specials)


def train_bpe_on_documents(
    documents: Iterable[Document],
    *,
    vocab_size: int,
    max_bytes: int = MAX_BYTES,
    pattern: PatternName = "gpt2",
    special_tokens: Sequence[str] = (),
    smaller: str = "--vocab-size={}",
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
            smaller=smaller,
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
