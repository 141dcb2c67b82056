"""The config that a message names for prepared data: that for few tokens, or that for more."""

from dataclasses import dataclass

FEW_TOKENS = 100_000
"""A model learns fewer tokens by heart in seconds."""


@dataclass(frozen=True)
class FittingFlags:
    """The flags of a training command by the size of its data. RUN stands for a run that is not known."""

    few: str
    """For fewer than `FEW_TOKENS` tokens."""
    many: str

    def choose(self, tokens: int) -> str:
        """The flags that suit so many tokens."""
        return self.few if tokens < FEW_TOKENS else self.many


CHAT_FLAGS = FittingFlags("--config=own_chats_cpu --init-from=RUN", "--config=modern_253m_sft --init-from=RUN")
PAIR_FLAGS = FittingFlags("--config=own_pairs_cpu --init-from=RUN", "--config=modern_253m_dpo --init-from=RUN")
TEXT_FLAGS = FittingFlags("--config=own_text_cpu", "--config=own_text_cpu")
