"""How the next token is drawn from logits: repetition penalty, temperature, top-k, top-p, min-p, in this order."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from gptjax.core.errors import UserError
from gptjax.sharding.axes import BV

MIN_TEMPERATURE = 1e-4
"""Logits divided by less would overflow float32. The likeliest token has all the probability long before."""


@dataclass(frozen=True)
class SamplingOptions:
    """Raises `UserError` for a number out of range."""

    temperature: float = 1.0
    """Divides the logits. 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw among this many likeliest tokens."""
    top_p: float | None = None
    """Draw among the fewest tokens with this much probability."""
    min_p: float | None = None
    """Draw among tokens with at least this share of the likeliest one's probability (arXiv:2407.01082)."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that the text has already, and multiplies negative ones (arXiv:1909.05858)."""

    def __post_init__(self) -> None:
        if self.temperature != 0.0 and not MIN_TEMPERATURE <= self.temperature < float("inf"):
            raise UserError(
                f"temperature is {self.temperature}; use 0 (the likeliest token) or a number from {MIN_TEMPERATURE:g} "
                "on."
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k is {self.top_k}; use a number of tokens from 1, or leave it out to keep all.")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top-p is {self.top_p}; use a probability in (0, 1], or leave it out to keep all.")
        if self.min_p is not None and not 0.0 <= self.min_p <= 1.0:
            raise UserError(f"min-p is {self.min_p}; use a share in [0, 1], or leave it out to keep all.")
        if not 0.01 <= self.repetition_penalty <= 100.0:
            raise UserError(
                f"repetition-penalty is {self.repetition_penalty}; use 1 for none, or a number from 0.01 to 100."
            )


def filter_logits(
    logits: BV, *, top_k: int | None = None, top_p: float | Array | None = None, min_p: float | Array | None = None
) -> BV:
    """Logits with the unlikely tokens at -inf: first top-k, then top-p and min-p of the rest. Of equals the lower id
    stays.

    Args:
        top_k: keep this many tokens (Fan et al. 2018).
        top_p: keep the fewest tokens whose probabilities sum to at least this, and at least one (Holtzman et al. 2020).
        min_p: keep tokens with at least this share of the largest probability (Nguyen et al. 2024).
    """
    nothing = jnp.zeros(logits.shape, bool)
    if top_k is not None:
        _, best = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))
        kept = jnp.put_along_axis(nothing, best, True, axis=-1, inplace=False)
        logits = jnp.where(kept, logits, -jnp.inf)
    if top_p is not None:
        order = jnp.argsort(logits, axis=-1, stable=True, descending=True)
        probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        kept = jnp.put_along_axis(nothing, order, before < top_p, axis=-1, inplace=False)
        logits = jnp.where(kept, logits, -jnp.inf)
    if min_p is not None:
        share = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        logits = jnp.where(share >= min_p, logits, -jnp.inf)
    return logits


def penalize_repetition(logits: BV, seen: Bool[Array, "B V"], penalty: float | Array) -> BV:
    """Logits of the tokens that were `seen`, made less likely (Keskar et al. 2019)."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
