"""A model's weights in the form that decoding reads: cast once, and int8 where that is asked for."""

from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import Array

from gptjax.core.errors import UserError
from gptjax.model.gpt import GPT
from gptjax.model.stored_matrix import Quantize, store_head, store_matrix
from gptjax.sharding.axes import matrix_axes, weight_role
from gptjax.sharding.devices import target_device


def prepare_for_decoding(model: GPT, *, quantize: Quantize | None = None) -> GPT:
    """The model with matrices and output head in the form that is read fastest, one token at a time.

    The embeddings stay, for a token reads one row of them. A tied head becomes a copy. A model that is prepared already
    is returned as it is. Prepare a model once if many texts are generated one after another.

    Args:
        quantize: `int8` rounds matrices and head to 8 bits, symmetrically, with a scale for each output.

    Raises:
        UserError: int8 for a model over several devices, or for one that was prepared otherwise.
    """
    if quantize is not None and model.mesh.is_sharded:
        raise UserError(f"quantize={quantize} needs the whole model on one device. Use --mesh=single.")
    if (stored_head := model.stored_head) is not None:
        if quantize is not None and stored_head.scale is None:
            raise UserError(f"quantize={quantize}: the model is already prepared without. Prepare the original.")
        return model
    with model.mesh.activate():
        return _prepare(model, quantize)


@partial(jax.jit, static_argnums=1)
def _prepare(model: GPT, quantize: Quantize | None) -> GPT:
    dtype = model.config.compute.dtype
    keeps_arrays = model.mesh.is_sharded or (quantize is None and target_device().platform != "cpu")

    def prepare(parameter: nnx.Param[Array]) -> nnx.Variable[Any]:
        names = parameter.axis_names
        if weight_role(names) != "matrix":
            return parameter
        values = parameter[...]
        if keeps_arrays:
            return parameter.replace(values.astype(dtype))
        inputs = tuple(axis - len(names) for axis in matrix_axes(names)[0])
        return parameter.replace(store_matrix(values, inputs, dtype=dtype, quantize=quantize))

    prepared = jax.tree.map(prepare, model, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    head = model.token_embedding[...].T if model.head is None else model.head[...]
    stored = head.astype(dtype) if keeps_arrays else store_head(head, dtype=dtype, quantize=quantize)
    prepared.head = nnx.data(nnx.Param(stored, axis_names="DV"))
    return prepared


@partial(jax.jit, static_argnums=1)
def round_weights(model: GPT, quantize: Quantize) -> GPT:
    """The model with its float32 weights rounded as decoding rounds them, to measure what that costs. Any mesh."""

    def round_matrix(w: Array, inputs: tuple[int, ...]) -> Array:
        return store_matrix(w, inputs, dtype=model.config.compute.dtype, quantize=quantize).dequantize()

    def round_parameter(parameter: nnx.Param[Array]) -> nnx.Variable[Array]:
        names = parameter.axis_names
        if weight_role(names) not in ("matrix", "head"):
            return parameter
        return parameter.replace(
            round_matrix(parameter[...], tuple(axis - len(names) for axis in matrix_axes(names)[0]))
        )

    result = jax.tree.map(round_parameter, model, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    if model.head is None:
        result.head = nnx.data(nnx.Param(round_matrix(model.token_embedding[...].T, (0,)), axis_names="DV"))
    return result
