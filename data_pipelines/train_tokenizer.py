"""Learn a byte-level BPE from the training part of a source: `python -m data_pipelines.train_tokenizer --help`."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tokenizers
import tyro
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_pipelines.sources import open_source
from data_pipelines.splits import Split
from gptjax.errors import UserError, explained
from gptjax.tokenizer import END_OF_TEXT, GPT2_PATTERN, GPT4_PATTERN, Tokenizer, load_tokenizer

SMALLEST = 258
"""256 bytes, one merge, `<|endoftext|>`."""
PATTERNS = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN}


@dataclass(frozen=True)
class TrainTokenizer:
    """Learn a byte-level BPE and write it to OUTPUT/tokenizer.json."""

    source: str
    """A file, a directory, a quoted pattern, `stdlib` or `shakespeare`."""
    vocab_size: int
    """Ids in all: 256 bytes, the merges, and `<|endoftext|>` as the last."""
    output: Path
    """Directory that receives tokenizer.json."""
    pattern: Literal["gpt2", "gpt4"] = "gpt2"
    """How text is cut into words before merging; gpt4 takes digits in threes and line ends apart."""
    split: str = "documents:0.005"
    """As for `prepare`: only the training part is read, so that validation text has no say in the vocabulary."""


def train_bpe(texts: Iterable[str], *, vocab_size: int, pattern: Literal["gpt2", "gpt4"] = "gpt2") -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` ids, `<|endoftext|>` last. The same texts give the same tokenizer."""
    if vocab_size < SMALLEST:
        raise UserError(f"vocabulary of {vocab_size}: wanted at least {SMALLEST} (256 bytes, a merge, {END_OF_TEXT}).")
    model = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(texts, trainer)
    if (found := model.get_vocab_size() + 1) != vocab_size:
        raise UserError(
            f"the text yields only {found} tokens, not {vocab_size}. Use more text or a smaller vocabulary."
        )
    model.add_special_tokens([END_OF_TEXT])
    with tempfile.TemporaryDirectory() as directory:
        model.save(str(Path(directory) / "tokenizer.json"))
        return load_tokenizer(directory)


def train(request: TrainTokenizer) -> Tokenizer:
    """Read, learn, write; prints what was learnt and how long it took."""
    start = time.perf_counter()
    parts = Split.parse(request.split).parts(open_source(request.source), Counter())
    texts = (text for split, text in parts if split == "train")
    tokenizer = train_bpe(texts, vocab_size=request.vocab_size, pattern=request.pattern)
    path = tokenizer.save(request.output)
    print(f"{path}: {tokenizer.vocab_size:,} tokens learnt in {time.perf_counter() - start:.1f} s")
    return tokenizer


if __name__ == "__main__":
    with explained():
        train(tyro.cli(TrainTokenizer, prog="python -m data_pipelines.train_tokenizer"))
