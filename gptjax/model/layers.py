"""Small pure functions of the model: norms, activations, rotation, dropout. A new activation is one line here."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from gptjax.sharding.axes import BTD, BTHK, DropoutKeys

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
}


def layer_norm(x: BTD, scale: Float[Array, " D"] | None, bias: Float[Array, " D"] | None, *, epsilon: float) -> BTD:
    """Layer normalisation (Ba et al. 2016) over D, computed in float32, returned in `x`'s dtype."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + epsilon)
    y = y if scale is None else y * scale[None, None]
    return (y if bias is None else y + bias[None, None]).astype(x.dtype)


def rms_norm(x: Array, scale: Float[Array, " D"] | None, *, epsilon: float) -> Array:
    """Root-mean-square normalisation (arXiv:1910.07467) over the last axis, in float32, returned in `x`'s dtype."""
    x32 = x.astype(jnp.float32)
    y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(axis=-1, keepdims=True) + epsilon)
    return (y if scale is None else y * jnp.expand_dims(scale, tuple(range(x.ndim - 1)))).astype(x.dtype)


def rotary_angles(positions: Int[Array, " T"], head_dim: int, *, base: float, half: bool) -> Float[Array, "T pairs"]:
    """By how much each pair of a head's K / 2 pairs is turned at each position (RoFormer, arXiv:2104.09864).

    The speed of pair i falls from 1 to about 1 / base, as base^(-2i / K). `half` turns only the faster half of the
    pairs, spaced so that the slowest of them has 1 / base, and leaves the others still (modded-nanogpt).
    """
    pairs = head_dim // 2
    if half:
        speeds = (1.0 / base) ** jnp.linspace(0.0, 1.0, pairs // 2)
        speeds = jnp.concatenate([speeds, jnp.zeros(pairs - pairs // 2)])
    else:
        speeds = base ** (-jnp.arange(pairs) / pairs)
    return positions[:, None].astype(jnp.float32) * speeds[None]


def apply_rotary(x: BTHK, angles: Float[Array, "T pairs"]) -> BTHK:
    """Turn the pairs (i, i + K / 2) of every head by their angles, in float32, returned in `x`'s dtype."""
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(x.dtype)


def apply_softcap(logits: Array, cap: float | None, curve: str = "tanh") -> Array:
    """Logits drawn smoothly into (-cap, cap), by a tanh (Gemma 2, arXiv:2408.00118) or a root; None leaves them."""
    if cap is None:
        return logits
    ratio = logits / cap
    return cap * jnp.tanh(ratio) if curve == "tanh" else logits * jax.lax.rsqrt(1.0 + jnp.square(ratio))


def fold_in_rows(keys: DropoutKeys, data: int | Array) -> DropoutKeys:
    """A fresh key for each row, for one place in the model (a layer, a site within it)."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def dropout(x: Array, rate: float, keys: DropoutKeys | None) -> Array:
    """Zero a share `rate` of each row of x (B, ...) and scale up the rest; x itself where `keys` is None."""
    if keys is None or rate == 0.0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))
