"""The base class of all parts of the model."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gptjax.model.config import GPTConfig
from gptjax.model.params import gather
from gptjax.model.projection import project
from gptjax.sharding.mesh import MeshConfig


class Module(nnx.Module):
    """A part of the model: its weights, and the static config and mesh under which it computes."""

    config: GPTConfig
    mesh: MeshConfig

    @jax.named_scope("linear")
    def linear(self, axis_names: str, x: Array, w: nnx.Param[Array], bias: nnx.Param[Array] | None = None) -> Array:
        """`project`, plus a bias with the output's axes besides B and T. The result has `x`'s dtype."""
        y = project(axis_names, x, w[...], dtype=self.config.compute.dtype, mesh=self.mesh)
        if bias is None:
            return y
        batch_axes = [i for i, letter in enumerate(axis_names.split("->")[1]) if letter in "BT"]
        return (y.astype(jnp.float32) + jnp.expand_dims(gather(bias, self.mesh), batch_axes)).astype(x.dtype)
