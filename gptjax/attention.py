"""Causal attention: one function, and the kernel that runs it is named in the log.

`cudnn` is NVIDIA's flash attention (16-bit only, nothing of size T×S in memory), `xla` is the textbook
formula with a float32 softmax and runs everywhere. Attention is always an island (`Layout.island`): rows and heads are
independent, and a custom kernel cannot be partitioned by the compiler.
"""

import math
from functools import partial
from typing import Literal, TypedDict

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Key

from gptjax.errors import UserError
from gptjax.layout import Layout
from gptjax.shapes import BSHK, BTHK, RowKeys

Implementation = Literal["auto", "cudnn", "xla"]


class AttentionNeeds(TypedDict):
    """What a model asks of the kernel."""

    dtype: str
    dropout: float
    head_width: int


def choose(
    wanted: Implementation, *, dtype: str, dropout: float, head_width: int, backend: str
) -> Literal["cudnn", "xla"]:
    """The kernel that will run, or a UserError if the one asked for by name cannot."""
    reason = obstacle(dtype=dtype, dropout=dropout, head_width=head_width, backend=backend)
    if wanted == "cudnn" and reason:
        raise UserError(f"model.attention=cudnn cannot run: {reason}. Use --model.attention=auto.")
    return "cudnn" if wanted != "xla" and reason is None else "xla"


def obstacle(*, dtype: str, dropout: float, head_width: int, backend: str) -> str | None:
    """Why the flash kernel cannot run here; None if nothing is in its way."""
    if backend not in ("gpu", "cuda"):
        return f"the backend is {backend}, not an NVIDIA GPU"
    if dtype == "float32":
        return "model.dtype is float32 and the kernel computes in 16 bits"
    if dropout > 0:
        return f"model.dropout is {dropout} and the kernel has no dropout of probabilities"
    if head_width % 8 or head_width > 128:
        return f"heads are {head_width} wide and the kernel takes multiples of 8 up to 128"
    return None


def attend(
    q: BTHK,
    k: BTHK,
    v: BTHK,
    *,
    kernel: Literal["cudnn", "xla"],
    scale: float | None = None,
    dropout: float = 0.0,
    keys: RowKeys | None = None,
    layout: Layout,
) -> BTHK:
    """softmax(scale · q kᵀ) v, each position seeing itself and the past; `keys` drop probabilities (None: keep all).

    `scale` is 1 / √K unless it is given.
    """
    rows_and_heads = layout.acts("BTHK")
    if kernel == "cudnn":
        flash = lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=True, implementation="cudnn"
        )
        return layout.island(flash, (rows_and_heads,) * 3, rows_and_heads)(q, k, v)
    if keys is None or dropout == 0.0:
        return layout.island(partial(causal, scale=scale), (rows_and_heads,) * 3, rows_and_heads)(q, k, v)
    head_keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(q.shape[2])))(keys)
    if layout.sharded:
        head_keys = jax.sharding.reshard(head_keys, layout.acts("BH"))
    dropping = lambda q, k, v, keys: causal(q, k, v, scale=scale, dropout=dropout, keys=keys)
    return layout.island(dropping, (*(rows_and_heads,) * 3, layout.acts("BH")), rows_and_heads)(q, k, v, head_keys)


def causal(
    q: BTHK,
    k: BSHK,
    v: BSHK,
    *,
    offset: int | Array = 0,
    scale: float | None = None,
    dropout: float = 0.0,
    keys: Key[Array, "B H"] | None = None,
) -> BTHK:
    """The textbook formula: the query at t has position t + offset and sees the keys at s ≤ t + offset."""
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = jnp.einsum("BTHK,BSHK->BHTS", q, k, preferred_element_type=jnp.float32) * scale
    seen = jnp.arange(k.shape[1])[None, :] <= jnp.arange(q.shape[1])[:, None] + offset
    probabilities = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf), axis=-1)
    if keys is not None:
        draw = lambda key: jax.random.bernoulli(key, 1.0 - dropout, probabilities.shape[2:])
        kept = jax.vmap(jax.vmap(draw))(keys)
        probabilities = jnp.where(kept, probabilities / (1.0 - dropout), 0.0)
    return jnp.einsum("BHTS,BSHK->BTHK", probabilities.astype(v.dtype), v)
