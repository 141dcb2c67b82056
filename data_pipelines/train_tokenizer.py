"""Train a byte-level BPE on the training part of a source: `python -m data_pipelines.train_tokenizer --help`.

    python -m data_pipelines.train_tokenizer --source=books/ --vocab-size=32768 --output=data/tokenizer
    python -m data_pipelines.train_tokenizer --source=web/ --vocab-size=50257 --pattern=gpt4 --special-tokens=chat \\
        --max-bytes=500000000 --output=data/tokenizer
    python -m data_pipelines.train_tokenizer --source=chats.jsonl --text-field=messages.content --vocab-size=4096 \\
        --output=data/tokenizer
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.encode.bpe_trainer import (
    MAX_BYTES,
    PatternName,
    describe_fewer,
    parse_special_tokens,
    train_bpe_on_documents,
)
from data_pipelines.encode.encoder import LEARNED_MARKS, count_marks
from data_pipelines.encode.splits import Corpus, choose_default_split
from data_pipelines.readers.documents import TEXT_FIELD, Document, ReadContext, parse_separator
from data_pipelines.readers.sources import count_local_bytes, has_text_files, open_source
from data_pipelines.runtime.options import require_at_least, run_command
from data_pipelines.runtime.progress import print_notes
from gptjax.core.errors import UserError
from gptjax.core.file_sums import renew_sums
from gptjax.core.files import expand_path, read_text
from gptjax.data.manifest import MANIFEST_NAME
from gptjax.tokenization.special_names import compile_names
from gptjax.tokenization.tokenizer import SAVED_FILES, Tokenizer


@dataclass(frozen=True)
class TrainTokenizer:
    """Train a byte-level BPE and write it to OUTPUT/tokenizer.json."""

    source: str
    """A source as for `prepare`."""
    vocab_size: int
    """Ids in all: 256 bytes, the merges, `<|endoftext|>` and the other special tokens, in this order. A text with fewer
    merges gives fewer."""
    output: Path
    """Directory that receives tokenizer.json."""
    pattern: PatternName = "gpt2"
    """How text is split into words before merging; gpt4 takes digits in threes and line ends apart."""
    split: str | None = None
    """As for `prepare`; only the training part is read."""
    text_field: str = TEXT_FIELD
    """As for `prepare`: the field of a record that holds its text."""
    separator: str | None = None
    """As for `prepare`: cut text files into documents here."""
    strict: bool = False
    """As for `prepare`: stop at the first record that is invalid or not Unicode."""
    special_tokens: str = ""
    """Special tokens besides `<|endoftext|>`, separated by commas: `chat` (<|im_start|>,<|im_end|>) or names."""
    max_bytes: int = MAX_BYTES
    """Train on at most so many bytes, from the beginning of the training part; more of them change little."""

    def __post_init__(self) -> None:
        require_at_least(1, max_bytes=self.max_bytes)
        parse_separator(self.separator)


def train_tokenizer(request: TrainTokenizer) -> Tokenizer:
    """Read, train and write; prints a summary."""
    start, specials = time.perf_counter(), parse_special_tokens(request.special_tokens)
    check_output(request.output, vocab_size=request.vocab_size)
    context = ReadContext(request.text_field, request.strict, separator=parse_separator(request.separator))
    source = open_source(request.source)
    split = request.split or choose_default_split(source, context, size=count_local_bytes(source))
    corpus = Corpus(source, split)
    tokenizer = train_bpe_on_documents(
        _iter_training(corpus, request, specials=specials, context=context),
        vocab_size=request.vocab_size,
        max_bytes=request.max_bytes,
        pattern=request.pattern,
        special_tokens=specials,
    )
    path = save_tokenizer(tokenizer, request.output)
    print(f"{path}: {tokenizer.vocab_size:,} tokens in {time.perf_counter() - start:.1f} s")
    print_special_tokens(tokenizer)
    print_notes([*describe_fewer(tokenizer, request.vocab_size), *context.notes.lines()])
    return tokenizer


def _iter_training(
    corpus: Corpus, request: TrainTokenizer, *, specials: list[str], context: ReadContext
) -> Iterator[Document]:
    has_text, names = has_text_files(corpus.source), compile_names([*LEARNED_MARKS, *specials])
    for side, document in corpus.iter_to_learn(context, spec=request.source):
        if side == "train":
            count_marks(str(document, "utf-8"), names, context.notes, has_text_files=has_text)
            yield document


def check_output(output: Path, *, vocab_size: int) -> None:
    """Raise a `UserError` for a directory whose other files could not be used with a tokenizer of so many ids."""
    directory = expand_path(output)
    if (directory / MANIFEST_NAME).is_file() or (directory / "checkpoints").is_dir():
        raise UserError(f"--output={output} holds what was made with its own tokenizer. Choose another directory.")
    with contextlib.suppress(OSError, ValueError):
        config = json.loads(read_text(directory / "config.json"))
        rows = config.get("vocab_size") if isinstance(config, dict) else None
        if isinstance(rows, int) and rows < vocab_size:
            raise UserError(
                f"--output={output} holds a model of {rows:,} ids, and the tokenizer would have {vocab_size:,}. Choose "
                "another directory."
            )


def save_tokenizer(tokenizer: Tokenizer, output: Path) -> Path:
    """Write the tokenizer's files with their sums; return the path of tokenizer.json."""
    directory = expand_path(output)
    with renew_sums(directory, SAVED_FILES):
        return tokenizer.save(directory)


def print_special_tokens(tokenizer: Tokenizer) -> None:
    """Print a line for each special token with its id."""
    for name, number in sorted(tokenizer.specials.items(), key=lambda item: item[1]):
        print(f"  {name} {number:,}")


if __name__ == "__main__":
    run_command(train_tokenizer, TrainTokenizer)
