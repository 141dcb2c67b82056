"""Options of `python -m gptjax.bench`, besides the flags of the config."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from gptjax.core.errors import UserError


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, for how long, and where the results go."""

    peer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Also run another implementation in turn with ours: `nanogpt:DIR`, `transformers` or `flax`; or another config,
    `config:FILE`. May be given several times."""
    torch_mode: Literal["both", "eager", "compile"] = "both"
    """Run peers in torch eagerly, with torch.compile, or both."""
    best_batch: str | None = None
    """Sequences of a step to try, such as `4,8,16`. Each contestant then runs at its own best number."""
    random_data: bool = False
    """Random tokens instead of the config's data. Nothing is read from disk."""
    decode: bool = False
    """Measure generation instead of training."""
    decode_batches: str = "1,8"
    """Numbers of texts that are generated at the same time."""
    prompt_tokens: int = 32
    """Tokens of each prompt."""
    new_tokens: int | None = None
    """Tokens generated for each prompt. Default: 128, or what fits the context."""
    profile: bool = False
    """Also break a training step down by part of the model."""
    profile_steps: int = 3
    """Steps that the profiler records."""
    rounds: int = 10
    """Rounds in which everything runs once, in turn."""
    round_seconds: float = 1.0
    """Seconds of work in a round, for each contestant; at least one step."""
    warmup: int = 3
    """Steps before the first round, for each contestant."""
    json: str | None = None
    """Also write the result to this file; `-` writes it to standard output, and the table to standard error."""
    output: str | None = None
    """Also write benchmark.md, benchmark.json and benchmark.png into this directory."""

    def __post_init__(self) -> None:
        for name in ("profile_steps", "rounds", "warmup", "prompt_tokens", "new_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
        if not 0 < self.round_seconds < float("inf"):
            raise UserError(f"--round-seconds is {self.round_seconds}; it must be positive and finite.")
        for name in ("profile", "best_batch"):
            if self.decode and getattr(self, name):
                raise UserError(f"--{name.replace('_', '-')} is for training, and --decode measures generation.")
        _ = self.batch_sizes, self.decode_rows

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The numbers of `best_batch`; none if it is not given."""
        return () if self.best_batch is None else _parse_counts("best-batch", self.best_batch)

    @property
    def decode_rows(self) -> tuple[int, ...]:
        """The numbers of `decode_batches`."""
        return _parse_counts("decode-batches", self.decode_batches)


def _parse_counts(flag: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"--{flag} is {text!r}; it must be numbers from 1 on, separated by commas, such as 4,8,16.")
    return tuple(dict.fromkeys(map(int, words)))
