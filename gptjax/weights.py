"""Weights with letters, and how they are used: drawn sharded, cast, gathered, multiplied, looked up."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from gptjax.gpt_config import GPTConfig
from gptjax.layout import Layout, place
from gptjax.shapes import BT


class Part(nnx.Module):
    """A part of the model: its weights, and what is known while tracing."""

    config: GPTConfig
    layout: Layout

    def linear(self, letters: str, x: Array, w: nnx.Param[Array], bias: nnx.Param[Array] | None = None) -> Array:
        """`project` with a weight in the model's dtype, plus a bias; it has the output's letters beside B and T."""
        dtype, layout = self.config.dtype, self.layout
        y = project(letters, x, use(w, dtype, layout), layout)
        if bias is None:
            return y
        places = [i for i, letter in enumerate(letters.split("->")[1]) if letter in "BT"]
        return y + jnp.expand_dims(use(bias, dtype, layout), places)


def weight(key: Array, letters: str, shape: tuple[int, ...], *, std: float, layout: Layout) -> nnx.Param[Array]:
    """A float32 parameter drawn from N(0, std²), born sharded as its letters say."""
    normal = jax.random.normal(key, shape, jnp.float32, out_sharding=layout.weights(letters))
    return nnx.Param(std * normal, letters=letters)


def constant(value: float, letters: str, shape: tuple[int, ...], *, layout: Layout) -> nnx.Param[Array]:
    """A float32 parameter that starts as one number everywhere."""
    filled = jnp.full(shape, value, jnp.float32, out_sharding=layout.weights(letters))  # pyright: ignore[reportCallIssue]
    return nnx.Param(filled, letters=letters)


def use(parameter: nnx.Param[Array], dtype: str, layout: Layout) -> Array:
    """A weight as products need it: cast first, so that fewer bytes travel, then gathered over fsdp."""
    return place(parameter[...].astype(dtype), layout.gathered(parameter.letters))


def project(letters: str, x: Array, w: Array, layout: Layout) -> Array:
    """`einsum` of activations (B, T, …) with a weight, such as "BTD,DF->BTF", with B and T as one axis meanwhile.

    On CPUs a training step takes about three quarters of the time so (LAB.md).
    """
    ins, out = letters.split("->")
    sizes = dict(zip(ins.replace(",", ""), (*x.shape, *w.shape), strict=True))
    acts, weight = ins.replace("BT", "M").split(",")
    product = jnp.einsum(
        f"{acts},{weight}->{out.replace('BT', 'M')}",
        jnp.reshape(x, (-1, *x.shape[2:]), out_sharding=layout.acts(acts)),
        w,
        out_sharding=layout.acts(out.replace("BT", "M")),
    )
    return jnp.reshape(product, tuple(sizes[letter] for letter in out), out_sharding=layout.acts(out))


def looked_up(table: Float[Array, "rows width"], ids: BT, layout: Layout) -> Float[Array, "B T width"]:
    """The rows of a table (as it is gathered for use) that the ids name."""
    return table[ids] if not layout.sharded else table.at[ids].get(out_sharding=layout.acts("BTD"))
