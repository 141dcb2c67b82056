"""The flags that a message names for prepared data: by the number of its tokens, and by the model that reads them."""

from dataclasses import dataclass, field

FEW_TOKENS = 100_000
"""A model learns fewer tokens by heart in seconds."""
LARGE_WEIGHTS = 2**26
"""Bytes of a model's weights from which the rates of small models undo what it has learned."""
MANY_TOKENS = 8_000_000
"""With fewer, most steps of the recipes of large models would be warmup."""
EPOCHS, ROW_TOKENS = 3, 1024
"""Of a large model: how often it reads the tokens, and its context."""


@dataclass(frozen=True)
class FittingFlags:
    """The flags of a training command, without the model that it begins with."""

    few: str
    """For fewer than `FEW_TOKENS` tokens."""
    many: str
    few_large: str
    """The same with weights of `LARGE_WEIGHTS` bytes or more."""
    some_large: str
    """From `FEW_TOKENS` to `MANY_TOKENS` tokens. The steps are added, as to the next."""
    many_large: str
    rows: int = field(default=1, kw_only=True)
    """A step's rows of the last two."""

    def choose(self, tokens: int, *, weight_bytes: int = 0) -> str:
        """The flags that suit so many tokens and a model of this size; 0 stands for none."""
        if weight_bytes < LARGE_WEIGHTS:
            return self.few if tokens < FEW_TOKENS else self.many
        if tokens < FEW_TOKENS:
            return self.few_large
        flags = self.some_large if tokens < MANY_TOKENS else self.many_large
        return f"{flags} --steps={round(EPOCHS * tokens / (self.rows * ROW_TOKENS))}"


CHAT_FLAGS = FittingFlags(
    "--config=own_chats_cpu",
    "--config=own_chats_cpu --batch-size=16 --steps=1000",
    "--config=own_chats_cpu --optimizer.learning-rate=1e-5",
    "--config=own_chats_cpu --optimizer.learning-rate=1e-5 --batch-size=12",
    "--config=modern_253m_sft",
    rows=12,
)
PAIR_FLAGS = FittingFlags(
    "--config=own_pairs_cpu",
    "--config=own_pairs_cpu --steps=200",
    "--config=own_pairs_cpu --optimizer.learning-rate=5e-6",
    "--config=own_pairs_cpu --optimizer.learning-rate=5e-6 --batch-size=16",
    "--config=modern_253m_dpo",
    rows=16,
)
TEXT_FLAGS = FittingFlags("--config=own_text_cpu --steps=300", *["--config=own_text_cpu"] * 4)
