"""The alphabet: one letter means one dimension, in names, einsums, types, shardings and tests.

    B  batch            T  time (query)      S  source time (key)
    D  model width      H  heads             K  head width
    F  MLP width        V  vocabulary        N  layers, or those with a skip
    J  heads of keys and values              E  width of value embeddings (J × K)
    C  q, k, v; k, v; or another pair        I  attention sinks
    G  accumulation groups                   M  tokens of a batch in a row (B × T)
    P  channels that a gate reads

An alias such as `BTD` types an array of that shape; the tests run every signature against real arrays
(jaxtyping + beartype). A weight carries its letters as metadata, and they say how it is sharded (`layout`)
and what part it plays for the optimizer (`role`, `matrix_axes`).
"""

from typing import Literal

from jax import Array
from jaxtyping import Float, Int, Key

BT = Int[Array, "B T"]
BS = Int[Array, "B S"]
GBT = Int[Array, "G B T"]
BTD = Float[Array, "B T D"]
BTHK = Float[Array, "B T H K"]
BTJK = Float[Array, "B T J K"]
BSJK = Float[Array, "B S J K"]
BTV = Float[Array, "B T V"]
BV = Float[Array, "B V"]
VD = Float[Array, "V D"]
V = Float[Array, " V"]
Scalar = Float[Array, ""]
Count = Int[Array, ""]
DropoutKeys = Key[Array, " B"]
"""A dropout key for each row of a batch: its mask depends on the row alone, not on where or with whom it runs."""

Role = Literal["matrix", "embedding", "value_embedding", "head", "vector"]


def weight_role(axis_names: str) -> Role:
    """The part that a weight plays, read off its letters: `VD` is looked up, `DV` ends the model, `DF` multiplies.

    What is no table and has nothing to do with the width, or one axis only, is a vector: gains and biases (`V` of the
    head), scalars of a layer (no letters), sink keys and values (`IJK`).
    """
    if axis_names == "VE":
        return "value_embedding"
    if axis_names in ("VD", "TD"):
        return "embedding"
    if axis_names == "DV":
        return "head"
    return "matrix" if "D" in axis_names and len(axis_names) > 1 else "vector"


def matrix_axes(axis_names: str, *, heads: bool = False) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(input axes, output axes) of a matrix weight; an axis in neither (C: q, k and v) counts separate matrices.

    A matrix leads from the width or back to it: `DCHK` takes D to HK for each C, `HKD` takes HK to D. With `heads`,
    each head's projection out of the width is a matrix of its own: `DCHK` takes D to K for each C and H.
    """
    width = (axis_names.index("D"),)
    counted = "C" + axis_names[-2] if heads and width[0] == 0 and axis_names.endswith("K") else "C"
    others = tuple(i for i, letter in enumerate(axis_names) if letter not in "D" + counted)
    return (width, others) if width[0] == 0 else (others, width)
