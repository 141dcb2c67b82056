"""What is being minimised. An objective turns a model and rows into (summed loss, number of scored tokens)."""

from dataclasses import dataclass

from gptjax.errors import UserError
from gptjax.loss import next_token_loss
from gptjax.model import GPT
from gptjax.shapes import BT, Count, RowKeys, Scalar

Group = dict[str, BT]
"""The rows of one accumulation group: `tokens`, `targets`, and whatever else a batch has."""


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the next token: language modelling."""

    chunk_tokens: int = 8192
    """Tokens of one device whose logits are in memory at a time. A GPU is busy only with thousands of
    them; a CPU is fastest with a hundred or two, whose logits nearly fit its cache."""

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise UserError(f"objective.chunk_tokens is {self.chunk_tokens}; it must be at least 1.")

    def __call__(self, model: GPT, group: Group, keys: RowKeys | None = None) -> tuple[Scalar, Count]:
        """(nats, scored targets), summed over all rows on all devices."""
        return next_token_loss(
            model.hidden(group["tokens"], keys),
            model.head_weight,
            group["targets"],
            vocab_size=model.config.vocabulary,
            chunk_tokens=self.chunk_tokens,
            dtype=model.config.head_dtype or model.config.dtype,
            softcap=model.config.softcap,
            layout=model.layout,
        )
