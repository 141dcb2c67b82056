"""Learn a byte-level BPE from the training part of a source: `python -m data_pipelines.train_tokenizer --help`.

    python -m data_pipelines.train_tokenizer --source=books/ --vocab-size=32768 --output=data/tokenizer
    python -m data_pipelines.train_tokenizer --source=web/ --vocab-size=50257 --pattern=gpt4 --special-tokens=chat \\
        --max-bytes=500000000 --output=data/tokenizer

The text is a stream of which only the distinct words and their counts are kept, some 0.7 kB each: memory grows with the
vocabulary of the text, not with its length, and `--max-bytes` bounds both. The same text gives the same tokenizer on
any number of cores.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import tokenizers
import tyro
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_pipelines.encode.splits import DEFAULT_SPLIT, Divided, Split, divided
from data_pipelines.readers.documents import TEXT_FIELD, Document, ReadContext, iter_text
from data_pipelines.readers.sources import open_source
from data_pipelines.runtime.options import at_least
from data_pipelines.runtime.progress import Rate, moving_line, say_notes
from data_pipelines.runtime.sigint import ending_at_ctrl_c
from gptjax.chat import CHAT_TOKENS
from gptjax.errors import UserError, explained
from gptjax.tokenizer import END_OF_TEXT, GPT2_PATTERN, GPT4_PATTERN, Tokenizer, load_tokenizer

PATTERNS = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN}
MOST_BYTES = 2_000_000_000
"""A vocabulary is learnt from so many bytes at most, unless said otherwise: more of them changes little."""
PIECE_BYTES = 2**16
"""Texts are cut into words in pieces of this size: words of a whole text at once take some eighty times its own."""


@dataclass(frozen=True)
class TrainTokenizer:
    """Learn a byte-level BPE and write it to OUTPUT/tokenizer.json."""

    source: str
    """Whatever `prepare` takes as its source."""
    vocab_size: int
    """Ids in all: 256 bytes, the merges, `<|endoftext|>` and the other special tokens, in this order."""
    output: Path
    """Directory that receives tokenizer.json."""
    pattern: Literal["gpt2", "gpt4"] = "gpt2"
    """How text is cut into words before merging; gpt4 takes digits in threes and line ends apart."""
    split: str = DEFAULT_SPLIT
    """As for `prepare`: only the training part is read, so that validation text has no say in the vocabulary."""
    text_field: str = TEXT_FIELD
    """As for `prepare`: the field of a record that holds its text."""
    strict: bool = False
    """As for `prepare`: stop at the first record that is broken or not Unicode."""
    special_tokens: str = ""
    """Special tokens besides `<|endoftext|>`, with commas between: `chat` (for <|im_start|>,<|im_end|>) or names."""
    max_bytes: int = MOST_BYTES
    """Learn from so many bytes of the training part at most, from its beginning; more of them changes little."""

    def __post_init__(self) -> None:
        at_least(1, max_bytes=self.max_bytes)


def special_names(spec: str) -> list[str]:
    """`chat,<|pad|>` as a list of names, `chat` standing for those of the chat template."""
    words = [word.strip() for word in spec.split(",")] if spec else []
    return [name for word in words for name in (CHAT_TOKENS if word == "chat" else (word,))]


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    pattern: Literal["gpt2", "gpt4"] = "gpt2",
    special_tokens: Sequence[str] = (),
) -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` ids, the last of them `<|endoftext|>` and then `special_tokens`.

    The same texts give the same tokenizer. Raises where the text has too few words for so many ids.
    """
    specials = list(dict.fromkeys([END_OF_TEXT, *special_tokens]))
    ordinary, smallest = vocab_size - len(specials), 256 + 1 + len(specials)
    if vocab_size < smallest:
        raise UserError(f"vocabulary of {vocab_size}: wanted at least {smallest} (256 bytes, a merge, special tokens).")
    model = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=ordinary, initial_alphabet=alphabet, show_progress=False)
    some = (piece for text in texts for piece in iter_text(text.encode(), size=PIECE_BYTES))
    with ending_at_ctrl_c():
        model.train_from_iterator(some, trainer)
    if (found := model.get_vocab_size()) != ordinary:
        raise UserError(
            f"the text yields only {found + len(specials)} tokens, not {vocab_size}. "
            "Use more text or a smaller vocabulary."
        )
    with tempfile.TemporaryDirectory() as directory:
        model.save(str(Path(directory) / "tokenizer.json"))
        return load_tokenizer(directory).extended(specials)


def first_bytes(documents: Iterable[Document], limit: int) -> Iterator[str]:
    """The texts of documents, in pieces, until they make up `limit` bytes; the last is cut, between two characters.

    A document is let go of before the next one is asked for.
    """
    for document in documents:
        for text in iter_text(document, size=PIECE_BYTES):
            content = text.encode()
            if len(content) >= limit:
                yield content[:limit].decode(errors="ignore")
                return
            yield text
            limit -= len(content)
        del document


class Learnt(NamedTuple):
    """A tokenizer, and the megabytes of text from which it was learnt."""

    tokenizer: Tokenizer
    megabytes: float


def learn_bpe(
    documents: Iterable[Document],
    *,
    vocab_size: int,
    max_bytes: int,
    pattern: Literal["gpt2", "gpt4"] = "gpt2",
    special_tokens: Sequence[str] = (),
) -> Learnt:
    """As `train_bpe`, from the first `max_bytes` of the documents only; says on stderr how far it is."""
    with moving_line("reading") as show:
        read = _Read(first_bytes(documents, max_bytes), show)
        tokenizer = train_bpe(read, vocab_size=vocab_size, pattern=pattern, special_tokens=special_tokens)
    return Learnt(tokenizer, read.bytes / 1e6)


class _Read:
    """The texts on their way to the trainer; counts their bytes and shows them, and in the end what comes next."""

    def __init__(self, texts: Iterable[str], show: Callable[[str], None]) -> None:
        self.bytes = 0
        self._texts, self._show = texts, show

    def __iter__(self) -> Iterator[str]:
        rate = Rate()
        for text in self._texts:
            yield text
            self.bytes += len(text.encode())
            self._show(f"counting words: {self.bytes / 1e6:,.1f} MB, {rate(self.bytes):.1f} MB/s")
        self._show(f"learning merges from {self.bytes / 1e6:,.1f} MB")


def train(request: TrainTokenizer) -> Tokenizer:
    """Read, learn, write; prints what was learnt and how long it took."""
    start = time.perf_counter()
    context = ReadContext(request.text_field, request.strict)
    corpus = Divided(open_source(request.source), Split.parse(request.split))
    tokenizer, megabytes = learn_bpe(
        (document for split, document in divided(corpus, context) if split == "train"),
        vocab_size=request.vocab_size,
        max_bytes=request.max_bytes,
        pattern=request.pattern,
        special_tokens=special_names(request.special_tokens),
    )
    path = tokenizer.save(request.output.expanduser())
    seconds = time.perf_counter() - start
    print(f"{path}: {tokenizer.vocab_size:,} tokens learnt from {megabytes:,.1f} MB in {seconds:.1f} s")
    print_special_tokens(tokenizer)
    say_notes(context.notes.lines())
    return tokenizer


def print_special_tokens(tokenizer: Tokenizer) -> None:
    """Names and ids, a line for each."""
    for name, number in sorted(tokenizer.specials.items(), key=lambda item: item[1]):
        print(f"  {name} {number:,}")


if __name__ == "__main__":
    with explained():
        train(tyro.cli(TrainTokenizer, prog="python -m data_pipelines.train_tokenizer"))
