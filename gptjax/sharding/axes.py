"""Axis names: one letter for each dimension, in type aliases, einsums and shardings.

    B  batch                        T  time (query)        S  source time (key)
    D  embedding (embed_dim)        H  attention heads     K  dimension of a head
    F  MLP hidden dimension         V  vocabulary          N  layers, or those with a U-Net skip
    J  heads of keys and values     E  dimension of value embeddings (J × K)
    C  q, k, v; k, v; or a pair     I  attention sinks
    G  micro-batches                M  tokens of a batch in a row (B × T)
    P  input channels of a gate     R  rank of an adapter, or added tokens

An alias such as `BTD` is the type of an array of that shape; the tests check every signature against real arrays
(jaxtyping and beartype). A parameter carries its axis names as metadata. They decide how it is sharded
(`mesh.MeshConfig.weight_spec`) and which group of the optimizer it is in (`weight_role`, `matrix_axes`).
"""

from typing import Literal

from jax import Array
from jaxtyping import Float, Int, Key

BT = Int[Array, "B T"]
BS = Int[Array, "B S"]
Positions = Int[Array, " T"] | BT
"""Of shape (T,) they are consecutive, and the same in every row."""
GBT = Int[Array, "G B T"]
BTD = Float[Array, "B T D"]
BTHK = Float[Array, "B T H K"]
BTJK = Float[Array, "B T J K"]
BSJK = Float[Array, "B S J K"]
BTV = Float[Array, "B T V"]
BV = Float[Array, "B V"]
V = Float[Array, " V"]
Scalar = Float[Array, ""]
Count = Int[Array, ""]
DropoutKeys = Key[Array, " B"]
"""A dropout key for each sequence of a batch, so that its mask depends neither on the device nor on the other ones."""

ParamRole = Literal["matrix", "embedding", "value_embedding", "head", "vector", "adapter"]


def weight_role(axis_names: str) -> ParamRole:
    """The role of a parameter: `VD` is an embedding, `DV` the head, `DF` a matrix.

    Everything else with one axis, or without `D`, is a vector: norm scales, biases (`V` of the head), scalars of a
    layer (no axis names) and attention sinks (`IJK`). `DR` and `RD` are parts of an adapter.
    """
    if "R" in axis_names:
        return "adapter"
    if axis_names == "VE":
        return "value_embedding"
    if axis_names in ("VD", "TD"):
        return "embedding"
    if axis_names == "DV":
        return "head"
    return "matrix" if "D" in axis_names and len(axis_names) > 1 else "vector"


def matrix_axes(axis_names: str, *, heads: bool = False) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(input axes, output axes) of a matrix parameter; an axis in neither counts separate matrices (C: q, k and v).

    `DCHK` maps D to HK for each C; `HKD` maps HK to D. With `heads`, each head's input projection is a matrix of its
    own: `DCHK` maps D to K for each C and H.
    """
    embed = (axis_names.index("D"),)
    counted = "C" + axis_names[-2] if heads and embed[0] == 0 and axis_names.endswith("K") else "C"
    others = tuple(i for i, name in enumerate(axis_names) if name not in "D" + counted)
    return (embed, others) if embed[0] == 0 else (others, embed)
