"""Add special tokens to a tokenizer: `python -m data_pipelines.extend_tokenizer --help`.

    python -m data_pipelines.extend_tokenizer --tokenizer=gpt2 --special-tokens=chat --output=data/gpt2_chat
    python -m data_pipelines.extend_tokenizer --tokenizer=gpt2 --special-tokens='<|a|>,<|b|>' --output=data/gpt2_ab

The new ids follow the vocabulary and every text keeps its ids, so weights trained with the old tokenizer remain valid.
GPT-2's 50,257 ids are usually stored in 50,304 rows: 47 special tokens fit without a larger table.
"""

from dataclasses import dataclass
from pathlib import Path

from data_pipelines.encode.bpe_trainer import parse_special_tokens
from data_pipelines.runtime.options import run_command
from data_pipelines.train_tokenizer import check_output, print_special_tokens, save_tokenizer
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer, note_left_out


@dataclass(frozen=True)
class ExtendTokenizer:
    """Add special tokens to a tokenizer and write it to OUTPUT/tokenizer.json."""

    tokenizer: str
    """`gpt2`, `gpt2:DIR`, a tokenizer.json or a directory with one."""
    output: Path
    """Directory that receives tokenizer.json."""
    special_tokens: str = "chat"
    """Names separated by commas: `chat` (<|im_start|>,<|im_end|>) or names such as <|pad|>."""


def extend_tokenizer(request: ExtendTokenizer) -> Tokenizer:
    """Read, add and write; prints the ids of the special tokens."""
    given = note_left_out(load_tokenizer(request.tokenizer), request.tokenizer)
    tokenizer = given.with_special_tokens(parse_special_tokens(request.special_tokens))
    check_output(request.output, vocab_size=tokenizer.vocab_size)
    path = save_tokenizer(tokenizer, request.output)
    print(f"{path}: {tokenizer.vocab_size:,} tokens")
    print_special_tokens(tokenizer)
    return tokenizer


if __name__ == "__main__":
    run_command(extend_tokenizer, ExtendTokenizer)
