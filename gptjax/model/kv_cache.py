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
from jaxtyping import Bool, Float, Int

from gptjax.model.attention import AttentionInputs, AttentionOptions, attention_specs, dot_product_attention
from gptjax.model.block import LayerInputs
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.sharding.axes import BT, BTD, BTHK
from gptjax.sharding.mesh import MeshConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, in the model's dtype. Position p is stored at p modulo S."""

    k: Float[Array, "N B S J K"]
    v: Float[Array, "N B S J K"]

    @classmethod
    def empty(cls, config: GPTConfig, rows: int, *, positions: int, mesh: MeshConfig) -> "Cache":
        """A cache for `rows` sequences and S = `positions`."""
        shape = (config.num_layers, rows, positions, config.kv_heads, config.head_dim)
        spec = mesh.activation_spec("NBSJK")
        return cls(*(jnp.zeros(shape, config.compute.dtype, out_sharding=spec) for _ in "kv"))  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True)
class CachedAttention:
    """Attention over a cache (`block.Attend`): each layer stores its new keys and values, then reads all of them."""

    config: GPTConfig
    mesh: MeshConfig
    positions: Int[Array, " T"]

    def __call__(self, inputs: AttentionInputs, layer: int | Array, cache: Cache) -> tuple[BTHK, Cache]:
        mesh, stored = self.mesh, self.mesh.activation_spec("NBSJK")
        options = AttentionOptions.from_config(self.config, layer=layer)
        specs: Any = (stored, attention_specs(inputs, mesh), mesh.activation_spec(""), mesh.activation_spec("T"))
        attend = mesh.shard_map(partial(_attend, options), specs, (mesh.activation_spec("BTHK"), stored))
        return attend(cache, inputs, jnp.asarray(layer), self.positions)


def _attend(
    options: AttentionOptions, cache: Cache, inputs: AttentionInputs, layer: Array, positions: Int[Array, " T"]
) -> tuple[BTHK, Cache]:
    size = cache.k.shape[2]
    start = (layer, 0, positions[0] % size, 0, 0)
    k = jax.lax.dynamic_update_slice(cache.k, inputs.k[None].astype(cache.k.dtype), start)
    v = jax.lax.dynamic_update_slice(cache.v, inputs.v[None].astype(cache.v.dtype), start)
    mask = ring_mask(positions, size, window=options.window)
    return dot_product_attention(inputs.q, k[layer], v[layer], options, mask=mask, sinks=inputs.sinks), Cache(k, v)


def ring_mask(positions: Int[Array, " T"], size: int, *, window: int | None) -> Bool[Array, "1 T S"]:
    """The slots of a ring of `size` that queries at these positions may see."""
    age = (positions[None, :, None] - jnp.arange(size)[None, None]) % size
    mask = age <= positions[None, :, None]  # an older slot than the text was never written
    return mask if window is None else mask & (age < window)


def extend_cache(model: GPT, tokens: BT, *, cache: Cache, start: int | Array) -> tuple[BTD, Cache]:
    """Read `tokens` at positions start, start + 1, …: the residual stream after the last layer, and the cache.

    Several tokens at once must not pass the end of the cache. One token at a time wraps around.
    """
    positions = start + jnp.arange(tokens.shape[1])
    inputs = LayerInputs(tokens, positions, model.embed(tokens, positions))
    return model.run_layers(inputs, CachedAttention(model.config, model.mesh, positions), cache=cache)
