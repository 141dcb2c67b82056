"""The base class of all parts of the model."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gptjax.model.config import GPTConfig
from gptjax.model.params import cast_and_gather, project
from gptjax.sharding.mesh import MeshConfig


class Module(nnx.Module):
    """A part of the model: its weights, and the static config and mesh under which it computes."""

    config: GPTConfig
    mesh: MeshConfig

    @jax.named_scope("linear")
    def linear(self, axis_names: str, x: Array, w: nnx.Param[Array], bias: nnx.Param[Array] | None = None) -> Array:
        """`project` with a weight in the model's dtype, plus a bias. The bias has the output's axes besides B and T."""
        dtype, mesh = self.config.compute.dtype, self.mesh
        y = project(axis_names, x, cast_and_gather(w, dtype, mesh), mesh)
        if bias is None:
            return y
        batch_axes = [i for i, letter in enumerate(axis_names.split("->")[1]) if letter in "BT"]
        return y + jnp.expand_dims(cast_and_gather(bias, dtype, mesh), batch_axes)
