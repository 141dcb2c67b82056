"""The flags that a message names for prepared data: by the number of its tokens, and by the model that reads them."""

from dataclasses import dataclass

FEW_TOKENS = 100_000
"""A model learns fewer tokens by heart in seconds."""
LARGE_WEIGHTS = 2**26
"""Bytes of a model's weights from which the rates of small models undo what it has learned."""


@dataclass(frozen=True)
class FittingFlags:
    """The flags of a training command, without the model that it begins with."""

    few: str
    """For fewer than `FEW_TOKENS` tokens."""
    many: str
    few_large: str
    """The same with weights of `LARGE_WEIGHTS` bytes or more."""
    many_large: str

    def choose(self, tokens: int, *, weight_bytes: int = 0) -> str:
        """The flags that suit so many tokens and a model of this size; 0 stands for none."""
        if weight_bytes >= LARGE_WEIGHTS:
            return self.few_large if tokens < FEW_TOKENS else self.many_large
        return self.few if tokens < FEW_TOKENS else self.many


CHAT_FLAGS = FittingFlags(
    "--config=own_chats_cpu",
    "--config=own_chats_cpu --batch-size=16 --steps=1000",
    "--config=own_chats_cpu --optimizer.learning-rate=1e-5",
    "--config=modern_253m_sft",
)
PAIR_FLAGS = FittingFlags(
    "--config=own_pairs_cpu",
    "--config=own_pairs_cpu --steps=200",
    "--config=own_pairs_cpu --optimizer.learning-rate=5e-6",
    "--config=modern_253m_dpo",
)
TEXT_FLAGS = FittingFlags(*["--config=own_text_cpu"] * 4)
