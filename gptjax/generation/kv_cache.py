"""Keys and values of past tokens, and the forward pass that reads and extends them.

A position is written before any query can see it. So a prompt may be padded: whatever the padding leaves behind is
overwritten in time. Beyond its length the cache is a ring: each new token replaces the oldest.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, UInt16

from gptjax.model.attention import attention_specs
from gptjax.model.attention_inputs import AttentionInputs, AttentionOptions
from gptjax.model.block import LayerInputs
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.model.products import multiply_read_only
from gptjax.model.stored_matrix import hide_dtype, reveal_dtype
from gptjax.model.xla_attention import dot_product_attention
from gptjax.sharding.axes import BT, BTD, BTHK, BTJK, Positions
from gptjax.sharding.mesh import MeshConfig

Stored = Float[Array, "N B J S K"] | UInt16[Array, "N B J S K"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, in the model's dtype (`products.hide_dtype`). Position p is at p modulo S."""

    k: Stored
    v: Stored

    @classmethod
    def empty(cls, config: GPTConfig, rows: int, *, positions: int, mesh: MeshConfig) -> "Cache":
        """A cache for `rows` sequences and S = `positions`."""
        shape = (config.num_layers, rows, config.kv_heads, positions, config.head_dim)
        spec = mesh.activation_spec("NBJSK")
        return cls(*(hide_dtype(jnp.zeros(shape, config.compute.dtype, out_sharding=spec)) for _ in "kv"))  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True)
class CachedAttention:
    """Attention over a cache (`block.Attend`): each layer stores its new keys and values, then reads all of them."""

    config: GPTConfig
    mesh: MeshConfig
    positions: Positions

    def __call__(self, inputs: AttentionInputs, layer: int | Array, cache: Cache) -> tuple[BTHK, Cache]:
        mesh, stored = self.mesh, self.mesh.activation_spec("NBJSK")
        options = AttentionOptions.from_config(self.config, layer=layer)
        placed = mesh.activation_spec("BT" if self.positions.ndim == 2 else "T")
        specs: Any = (stored, attention_specs(inputs, mesh), mesh.activation_spec(""), placed)
        attend = mesh.shard_map(partial(_attend, options), specs, (mesh.activation_spec("BTHK"), stored))
        return attend(cache, inputs, jnp.asarray(layer), self.positions)


def _attend(
    options: AttentionOptions, cache: Cache, inputs: AttentionInputs, layer: Array, positions: Positions
) -> tuple[BTHK, Cache]:
    k = _write(cache.k, inputs.k, layer, positions=positions)
    v = _write(cache.v, inputs.v, layer, positions=positions)
    mask = ring_mask(positions, cache.k.shape[3], window=options.window)
    keys, values = (reveal_dtype(stored[layer]).transpose(0, 2, 1, 3) for stored in (k, v))
    y = dot_product_attention(
        inputs.q, keys, values, options, mask=mask, sinks=inputs.sinks, product=multiply_read_only
    )
    return y, Cache(k, v)


def _write(stored: Stored, new: BTJK, layer: Array, *, positions: Positions) -> Stored:
    """The cache with a layer's keys or values at these positions."""
    size = stored.shape[3]
    dtype = jnp.bfloat16 if stored.dtype == jnp.uint16 else stored.dtype
    heads = hide_dtype(new.astype(dtype)).transpose(0, 2, 1, 3)
    if positions.ndim == 1:
        return jax.lax.dynamic_update_slice(stored, heads[None], (layer, 0, 0, positions[0] % size, 0))
    for row in range(len(new)):
        start = (layer, row, 0, positions[row, 0] % size, 0)
        stored = jax.lax.dynamic_update_slice(stored, heads[None, row : row + 1], start)
    return stored


def ring_mask(positions: Positions, size: int, *, window: int | None) -> Bool[Array, "#B T S"]:
    """The slots of a ring of `size` that queries at these positions may see."""
    positions = jnp.atleast_2d(positions)[..., None]
    age = (positions - jnp.arange(size)[None, None]) % size
    mask = age <= positions  # an older slot than the text was never written
    return mask if window is None else mask & (age < window)


def extend_cache(
    model: GPT, tokens: BT, *, cache: Cache, start: int | Int[Array, ""] | Int[Array, " B"]
) -> tuple[BTD, Cache]:
    """Read `tokens` at positions start, start + 1, …: the residual stream after the last layer, and the cache.

    Rows may have starts of their own. Several tokens at once must not pass the end of the cache. One token at a time
    wraps around.
    """
    offsets = jnp.arange(tokens.shape[1])
    positions = start[:, None] + offsets[None] if isinstance(start, Array) and start.ndim else start + offsets
    inputs = LayerInputs(tokens, positions, model.embed(tokens, positions))
    return model.run_layers(inputs, CachedAttention(model.config, model.mesh, positions), cache=cache)
