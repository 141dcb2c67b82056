"""LoRA: which matrices get adapters, and of which size (arXiv:2106.09685)."""

import math
from dataclasses import dataclass

from gptjax.core.errors import UserError


@dataclass(frozen=True)
class LoRA:
    """Train low-rank adapters beside frozen matrices: W + alpha / rank · A B. Only they have moments."""

    rank: int = 0
    """Columns of A and rows of B. 0: no adapters, all weights are trained."""
    alpha: float = 16.0
    """The product of the adapters is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("matrix",)
    """Matrices with adapters: parts of names in the blocks, such as `qkv`, `mlp.up` or `attention`; `matrix` for all in
    the blocks; `head` and `embedding`, if they are not tied."""
    new_tokens: tuple[int | str, ...] = ()
    """Tokens whose rows of the embedding, and of an untied head, are trained, too: ids, or names such as `<|im_end|>`.
    A run adds those that its data adds to `init_from`, and role tokens if `init_from` has not learned chats."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"lora.rank is {self.rank}; it must not be negative.")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha is {self.alpha}; it must be above 0 and finite.")

    def check_trained(self) -> None:
        """Raise `UserError` if nothing would be trained. A run knows it once its data has added `new_tokens`."""
        if self.rank > 0 and not self.targets and not self.new_tokens:
            raise UserError(
                "lora.rank is above 0, but lora.targets and lora.new_tokens are empty: nothing would be trained. Give "
                "lora.targets, such as `matrix` for all matrices of the blocks."
            )

    @property
    def enabled(self) -> bool:
        return self.rank > 0

    @property
    def trained_rows(self) -> tuple[int, ...]:
        """`new_tokens` as ids; a run puts ids in place of names."""
        return tuple(token for token in self.new_tokens if isinstance(token, int))

    @property
    def scale(self) -> float:
        """The factor on A B."""
        return self.alpha / self.rank
