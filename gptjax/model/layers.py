"""Pure functions of the model: activations, norms, softcap, dropout. A new activation is one line here."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gptjax.core.registry import Registry
from gptjax.sharding.axes import BTD, DropoutKeys

ACTIVATIONS: Registry[Callable[[Array], Array]] = Registry(
    {
        "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "relu": jax.nn.relu,
        "relu2": lambda x: jnp.square(jax.nn.relu(x)),
        "silu": jax.nn.silu,
    }
)
"""Others come from a user's file, which commands that read a run must be given."""


def layer_norm(x: BTD, scale: Float[Array, " D"] | None, bias: Float[Array, " D"] | None, *, epsilon: float) -> BTD:
    """Layer normalisation (arXiv:1607.06450) over D, computed in float32, returned in `x`'s dtype."""
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


def apply_softcap(logits: Array, cap: float | None, curve: str = "tanh") -> Array:
    """Logits squeezed smoothly into (-cap, cap); None leaves them.

    The curve is c tanh(z / c) for `tanh` (Gemma 2, arXiv:2408.00118) and z / √(1 + (z / c)²) for `sqrt`.
    """
    if cap is None:
        return logits
    ratio = logits / cap
    return cap * jnp.tanh(ratio) if curve == "tanh" else logits * jax.lax.rsqrt(1.0 + jnp.square(ratio))


PROBABILITIES, ATTENTION_OUTPUT, MLP_OUTPUT = range(3)
"""Dropout sites of a layer, which are folded into its keys."""


def fold_in_rows(keys: DropoutKeys | None, data: int | Array) -> DropoutKeys | None:
    """A fresh key for each row, for one place in the model (a layer, or a site within it). None stays None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


@jax.named_scope("dropout")
def dropout(x: Array, rate: float, dropout_keys: DropoutKeys | None) -> Array:
    """Zero a share `rate` of each row of x (B, ...) and scale up the rest. Without keys x itself is returned."""
    if dropout_keys is None or rate == 0.0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(dropout_keys)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))
