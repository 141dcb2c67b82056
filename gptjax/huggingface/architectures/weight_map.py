"""Correspondence of a parameter of `GPT` with tensors of another program, read in both directions.

Others keep each block's weights apart and merge axes. Here weights are stacked over the layers and every axis is
separate. A row of a weight map says which axes a tensor merges, and in which order.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np

from gptjax.model.config import GPTConfig
from gptjax.model.requirements import GATE_CHANNELS

DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

HeadOrder = Literal["halves", "swapped", "interleaved"]
"""Order of a head's channels. Here channels i and i + K / 2 are a pair that rotary positions turn by +θ. `swapped`
exchanges the halves, for models that turn by -θ. `interleaved` makes 2i and 2i + 1 a pair."""


@dataclass(frozen=True)
class WeightMapping:
    """One kind of weight."""

    hf_name: str
    """Name of its tensor. `{}` stands for the number of the layer or, for value embeddings, of the table."""
    path: str
    """Path of its parameter in `GPT`."""
    hf_axes: str
    """A word for each axis of the tensor, made of the axis names that it merges."""
    entry: int | None = None
    """The entry of axis C (q, k, v) that the tensor holds; None: all."""
    default: float | None = None
    """What fills the tensor if the model lacks the parameter; None: then there is no tensor."""
    head_order: HeadOrder = "halves"
    """Order of the channels of K."""

    @property
    def is_stacked(self) -> bool:
        """True if the parameter has a leading axis without a name."""
        return "{}" in self.hf_name

    def list_names(self, config: GPTConfig) -> list[str]:
        """The names of its tensors."""
        if not self.is_stacked:
            return [self.hf_name]
        count = len(config.value_table_names) if self.path.startswith("value_embeddings") else config.num_layers
        return [self.hf_name.format(number) for number in range(count)]

    def get_hf_shape(self, config: GPTConfig) -> tuple[int, ...]:
        """The shape of each of its tensors."""
        sizes = get_axis_sizes(config) | ({"C": 2} if self.path.endswith("value_mix.mix") else {})
        return tuple(math.prod(sizes[axis] for axis in word) for word in self.hf_axes.split())

    def to_hf(self, weight: np.ndarray, *, axis_names: str, config: GPTConfig) -> np.ndarray:
        """One layer's weight as a tensor: without padding, its axes ordered and merged."""
        if self.entry is not None:
            weight = weight.take(self.entry, axis=axis_names.index("C"))
            axis_names = axis_names.replace("C", "")
        if "V" in axis_names:
            weight = weight.take(range(config.resolved_vocab_size), axis=axis_names.index("V"))
        if self.head_order != "halves":
            weight = weight.take(order_channels(config.head_dim, self.head_order), axis=axis_names.index("K"))
        axes = [axis_names.index(axis) for axis in self.hf_axes.replace(" ", "")]
        return weight.transpose(axes).reshape(self.get_hf_shape(config))

    def from_hf(self, tensor: np.ndarray, *, out: np.ndarray, axis_names: str, config: GPTConfig) -> None:
        """Write a tensor into one layer's weight `out`, whose padding of the vocabulary stays as it is."""
        if self.entry is not None:
            out = np.moveaxis(out, axis_names.index("C"), 0)[self.entry]
            axis_names = axis_names.replace("C", "")
        if "V" in axis_names:
            vocabulary = [slice(config.resolved_vocab_size if axis == "V" else None) for axis in axis_names]
            out = out[tuple(vocabulary)]
        hf_axes = self.hf_axes.replace(" ", "")
        sizes = dict(zip(axis_names, out.shape, strict=True))
        ordered = tensor.reshape([sizes[axis] for axis in hf_axes])
        ordered = ordered.transpose([hf_axes.index(axis) for axis in axis_names])
        if self.head_order != "halves":
            inverse = np.argsort(order_channels(config.head_dim, self.head_order))
            ordered = ordered.take(inverse, axis=axis_names.index("K"))
        out[...] = ordered


def order_channels(head_dim: int, order: HeadOrder) -> np.ndarray:
    """The channel here at each place of a head there."""
    halves = np.arange(head_dim).reshape(2, -1)
    return {"halves": halves, "swapped": halves[::-1], "interleaved": halves.T}[order].reshape(-1)


def get_axis_sizes(config: GPTConfig) -> dict[str, int]:
    """The size of each axis name, without the padding of the vocabulary."""
    heads = {"C": 3, "H": config.num_heads, "J": config.kv_heads, "K": config.head_dim, "I": config.num_sinks}
    text = {"V": config.resolved_vocab_size, "T": config.context_length}
    widths = {"D": config.embed_dim, "F": config.hidden_dim, "E": config.kv_heads * config.head_dim}
    return heads | text | widths | {"P": GATE_CHANNELS, "N": config.num_layers // 2}


def list_parameters(model: Any) -> dict[str, Any]:
    """All parameters by path, as a weight map writes it."""
    return {format_path(path): leaf for path, leaf in jax.tree.leaves_with_path(model, is_leaf=is_param)}


def get_shapes(rows: Iterable[WeightMapping], config: GPTConfig) -> Mapping[str, tuple[int, ...]]:
    """The shapes of all tensors of the rows, by name."""
    return {name: row.get_hf_shape(config) for row in rows for name in row.list_names(config)}


def format_path(path: Any) -> str:
    """The path of a parameter as a weight map writes it."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def is_param(leaf: Any) -> bool:
    from flax import nnx  # slow to import

    return isinstance(leaf, nnx.Param)
