"""Adapters of a model: low-rank matrices beside frozen ones, and the rows of added tokens.

A model with adapters has them as `model.adapters`. `apply_adapters` gives the model that computes with them: an adapted
weight is a `LowRankMatrix`, which `projection.project` multiplies in two steps. `merge_adapters` adds them to the
weights, for evaluation, generation and export.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gptjax.core.errors import UserError
from gptjax.finetuning.lora import LoRA
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.model.module import Module
from gptjax.model.projection import LowRankMatrix
from gptjax.sharding.axes import matrix_axes, weight_role
from gptjax.sharding.mesh import MeshConfig


class Adapters(Module):
    """A and B of each adapted weight, by its name with `_` for the dots, and changes of the rows of added tokens."""

    def __init__(self, model: GPT, lora: LoRA, *, key: Array) -> None:
        self.config, self.mesh, self.lora = model.config, model.mesh, lora
        weights = find_targets(model, lora)
        self.names = tuple(weights)
        for number, (name, weight) in enumerate(weights.items()):
            a, b = _draw_pair(jax.random.fold_in(key, number), weight, lora.rank, mesh=model.mesh)
            setattr(self, _attribute(name, "a"), a)
            setattr(self, _attribute(name, "b"), b)
        rows = lambda names: _zeros((len(lora.trained_rows), model.config.embed_dim), names, mesh=model.mesh)
        self.rows = rows("RD") if lora.trained_rows else None
        self.head_rows = rows("RD") if lora.trained_rows and model.head is not None else None

    def get_pair(self, name: str) -> tuple[Any, Any]:
        """A and B of the weight of this name."""
        return getattr(self, _attribute(name, "a")), getattr(self, _attribute(name, "b"))


def _attribute(name: str, part: str) -> str:
    return f"{name.replace('.', '_')}_{part}"


def find_targets(model: GPT, lora: LoRA) -> dict[str, Any]:
    """The weights that get adapters, by name: matrices of the blocks, and an untied head and embedding on request.

    Raises `UserError` for a target that is none of them.
    """
    found: dict[str, Any] = {}
    leaves = jax.tree.leaves_with_path(model.blocks, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    names = {f"blocks.{jax.tree_util.keystr(path, simple=True, separator='.')}": weight for path, weight in leaves}
    matrices = {name: weight for name, weight in names.items() if weight_role(weight.axis_names) == "matrix"}
    tables = {} if model.head is None else {"head": model.head, "token_embedding": model.token_embedding}
    for target in lora.targets:
        named = {name: w for name, w in matrices.items() if target == "matrix" or f".{target}." in f".{name}."}
        chosen = named | {name: w for name, w in tables.items() if target in (name, weight_role(w.axis_names))}
        if not chosen and target in ("token_embedding", "head", "embedding") and model.head is None:
            raise UserError(
                f"lora.targets has {target!r}, but the embedding and the head are tied: an adapter of one would change "
                "the other when it is merged. Leave it out; lora.new_tokens trains the rows of added tokens."
            )
        if not chosen:
            known = ", ".join((*matrices, *tables))
            raise UserError(f"lora.targets has {target!r}; wanted `matrix`, or parts of these names: {known}.")
        found |= chosen
    return found


def _draw_pair(key: Array, weight: Any, rank: int, *, mesh: MeshConfig) -> tuple[Any, Any]:
    """A uniform within 1 / √inputs, as PEFT draws it, and B zero, for a weight or a stack of weights of the layers."""
    names, shape = weight.axis_names, weight.get_value().shape
    inputs, stacked = len(matrix_axes(names)[0]), len(shape) - len(names)
    sizes = shape[stacked : stacked + inputs]
    a_names, b_names = f"{names[:inputs]}R", f"R{names[inputs:]}"
    a_shape, b_shape = (*shape[:stacked], *sizes, rank), (*shape[:stacked], rank, *shape[stacked + inputs :])
    bound, spec = 1 / math.sqrt(math.prod(sizes)), _find_spec(mesh, a_names, ndim=len(a_shape))
    a = jax.random.uniform(key, a_shape, jnp.float32, -bound, bound, out_sharding=spec)
    return nnx.Param(a, axis_names=a_names), _zeros(b_shape, b_names, mesh=mesh)


def _zeros(shape: tuple[int, ...], names: str, *, mesh: MeshConfig) -> Any:
    spec = _find_spec(mesh, names, ndim=len(shape))
    return nnx.Param(jnp.zeros(shape, jnp.float32, out_sharding=spec), axis_names=names)  # pyright: ignore[reportCallIssue]


def _find_spec(mesh: MeshConfig, names: str, *, ndim: int) -> Any:
    """The sharding of a weight with these axis names, or of a stack of such weights."""
    spec = mesh.weight_spec(names)
    return spec if spec is None or ndim == len(names) else jax.sharding.PartitionSpec(None, *spec)


def add_adapters(model: GPT, lora: LoRA, *, key: Array) -> GPT:
    """The model with new adapters, which change nothing yet; the model itself without LoRA. Call it in `jax.jit`."""
    return model if not lora.enabled else replace_trainable(model, Adapters(model, lora, key=key))


def abstract_adapted_model(config: GPTConfig, lora: LoRA, *, mesh: MeshConfig | None = None) -> GPT:
    """The model with its adapters, with shapes and shardings in place of arrays."""
    key = jax.random.key(0)
    return jax.eval_shape(lambda: add_adapters(GPT(config, key=key, mesh=mesh), lora, key=key))


def get_trainable(model: GPT) -> Any:
    """What is trained: the adapters if there are any, else the whole model."""
    return model if model.adapters is None else model.adapters


def replace_trainable(model: GPT, trainable: Any) -> GPT:
    """The model with another trained part."""
    if isinstance(trainable, GPT):
        return trainable
    copy = jax.tree.map(lambda leaf: leaf, model)
    copy.adapters = nnx.data(trainable)
    return copy


def apply_adapters(model: GPT) -> GPT:
    """The model that computes with its adapters; the model itself if it has none."""
    return _combine(model, partial(_attach, mesh=model.mesh))


def _attach(weight: Any, a: Any, b: Any, scale: float, *, mesh: MeshConfig) -> Array | LowRankMatrix:
    """Both factors beside the weight; of the head and the embedding, which are no products of `project`, the sum."""
    if weight_role(weight.axis_names) != "matrix":
        return _merge(weight, a, b, scale, mesh=mesh)
    return LowRankMatrix(weight[...], a[...], b[...], scale)


def merge_adapters(model: GPT) -> GPT:
    """The model with its adapters added to the weights; the model itself if it has none."""
    return model if model.adapters is None else _merge_all(model)


@jax.jit
def _merge_all(model: GPT) -> GPT:
    return _combine(model, partial(_merge, mesh=model.mesh))


def _merge(weight: Any, a: Any, b: Any, scale: float, *, mesh: MeshConfig) -> Array:
    ins, outs = a.axis_names[:-1], b.axis_names[1:]
    stack = "N" * (weight[...].ndim - len(ins + outs))
    spec = _find_spec(mesh, ins + outs, ndim=weight[...].ndim)
    product = jnp.einsum(f"{stack}{ins}R,{stack}R{outs}->{stack}{ins}{outs}", a[...], b[...], out_sharding=spec)
    return weight[...] + scale * product


def _combine(model: GPT, join: Any) -> GPT:
    """A model without adapters, whose adapted weights are `join(weight, a, b, scale)`."""
    adapters = model.adapters
    if adapters is None:
        return model
    copy = jax.tree.map(lambda leaf: leaf, model)
    del copy.adapters
    for name in adapters.names:
        *path, last = name.split(".")
        owner: Any = copy
        for part in path:
            owner = getattr(owner, part)
        weight = getattr(owner, last)
        setattr(owner, last, weight.replace(join(weight, *adapters.get_pair(name), adapters.lora.scale)))
    if adapters.rows is not None:
        copy.token_embedding = copy.token_embedding.replace(
            copy.token_embedding[...] + _spread(adapters, adapters.rows)
        )
    if adapters.head_rows is not None:
        copy.head = copy.head.replace(copy.head[...] + _spread(adapters, adapters.head_rows).T)
    return copy


def _spread(adapters: Adapters, rows: Any) -> Array:
    """Changes of some tokens' rows as a change of the whole table (V, D)."""
    chosen = jnp.array(adapters.lora.trained_rows)
    places = jnp.arange(adapters.config.padded_vocab_size)
    selection = (places[:, None] == chosen[None]).astype(jnp.float32)
    return jnp.einsum("VR,RD->VD", selection, rows[...], out_sharding=adapters.mesh.weight_spec("VD"))
