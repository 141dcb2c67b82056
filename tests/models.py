"""Small models with made weights: nothing is compiled to create them."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.config import TrainConfig
from gptjax.data.loader import BatchLoader
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, abstract_model, with_static
from gptjax.runs.startup import make_read_spec
from gptjax.sharding.mesh import MeshConfig


def make_model(config: GPTConfig, *, seed: int = 0, std: float = 0.2) -> GPT:
    """A model whose weights are all far from their initial values: sinks and gates that are zero would prove little.

    Each weight depends on its own name and shape, so models with and without an option differ by the option only.
    """

    def draw(path: Any, parameter: nnx.Param[Any]) -> nnx.Variable[Any]:
        name, shape = jax.tree_util.keystr(path, simple=True, separator="."), parameter.get_value().shape
        rng = np.random.RandomState(zlib.crc32(f"{seed} {name}".encode()))
        centre = 1.0 if name.endswith(("scale", "residual_mix", "skip_weights")) else 0.0
        return parameter.replace(jnp.asarray(centre + std * rng.standard_normal(shape), jnp.float32))

    return jax.tree.map_with_path(draw, abstract_model(config), is_leaf=lambda leaf: isinstance(leaf, nnx.Param))


def place_model(model: GPT, mesh: MeshConfig) -> GPT:
    """The same weights, sharded over a mesh that is active."""

    def place(parameter: nnx.Param[Any]) -> nnx.Variable[Any]:
        spec = mesh.weight_spec(parameter.axis_names)
        if spec is None:
            return parameter
        layers = (None,) * (parameter[...].ndim - len(spec))
        sharding = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(*layers, *spec))
        return parameter.replace(jax.device_put(parameter[...], sharding))

    return with_static(jax.tree.map(place, model, is_leaf=lambda leaf: isinstance(leaf, nnx.Param)), mesh=mesh)


def make_tokens(rows: int, length: int, *, vocab_size: int, seed: int = 5) -> jax.Array:
    return jnp.asarray(np.random.RandomState(seed).randint(0, vocab_size, (rows, length)), jnp.int32)


def open_loader(config: TrainConfig, mesh: MeshConfig) -> BatchLoader:
    """The batches of a run whose data has no tokenizer to give."""
    spec = make_read_spec(config, None)
    return BatchLoader(config.data.open(spec), spec, mesh=mesh)
