"""More tokens for trained weights, such as the special tokens of a chat."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, abstract_model, with_static
from gptjax.sharding.mesh import reshard


def grow_vocabulary(model: GPT, vocab_size: int, *, known: int | None = None) -> GPT:
    """The model with this many tokens. Each new row is the mean of the trained ones, so no new token stands out.

    The rows exist already where the stored vocabulary was padded; they were not trained. Call it under
    `mesh.activate()`. A model with as many known tokens is returned as it is.

    Args:
        known: the first so many rows belong to tokens; by default all that are no padding.
    """
    known = model.config.resolved_vocab_size if known is None else known
    if vocab_size == known:
        return model
    config = replace(model.config, vocab_size=vocab_size)
    return jax.jit(lambda model: _grow(model, config, known))(model)


def _grow(model: GPT, config: GPTConfig, old: int) -> GPT:
    mesh = model.mesh
    wanted = with_static(abstract_model(config, mesh), config=model.config, mesh=mesh)

    def grow(parameter: nnx.Param[Array], target: nnx.Param[Array]) -> nnx.Variable[Array]:
        names = parameter.axis_names
        if "V" not in names:
            return parameter
        axis = names.index("V") - len(names)
        table = reshard(parameter[...], None if not mesh.is_sharded else jax.sharding.PartitionSpec())
        known = jax.lax.slice_in_dim(table, 0, old, axis=axis)
        mean = jnp.mean(known, axis=axis, keepdims=True)
        missing = target.get_value().shape[axis] - old
        grown = jnp.concatenate([known, jnp.repeat(mean, missing, axis=axis)], axis=axis)
        return parameter.replace(reshard(grown, mesh.weight_spec(names)))

    grown = jax.tree.map(grow, model, wanted, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    return with_static(grown, config=config)
