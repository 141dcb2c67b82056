"""Small pure functions of the model: the norm, the activations, dropout. A new activation is one line here."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gptjax.shapes import BTD, RowKeys

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def layer_norm(x: BTD, scale: Float[Array, " D"], bias: Float[Array, " D"] | None, *, epsilon: float) -> BTD:
    """Layer normalisation (Ba et al. 2016) over D, computed in float32, returned in `x`'s dtype."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + epsilon) * scale[None, None]
    return (y if bias is None else y + bias[None, None]).astype(x.dtype)


def fold_rows(keys: RowKeys, data: int | Array) -> RowKeys:
    """A fresh key for each row, for one place in the model (a layer, a site within it)."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def dropout(x: Array, rate: float, keys: RowKeys | None) -> Array:
    """Zero a share `rate` of each row of x (B, ...) and scale up the rest; x itself where `keys` is None."""
    if keys is None or rate == 0.0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))
