"""The alphabet: one letter means one dimension, in names, einsums, types, shardings and tests.

    B  batch            T  time (query)      S  source time (key)
    D  model width      H  heads             K  head width
    F  MLP width        V  vocabulary        N  layers
    C  the triple q, k, v                    G  accumulation groups

An alias such as `BTD` types an array of that shape; the tests run every signature against real arrays
(jaxtyping + beartype). A weight carries its letters as metadata: the layout and the optimizer read them.
"""

from jax import Array
from jaxtyping import Float, Int, Key

BT = Int[Array, "B T"]
BTD = Float[Array, "B T D"]
BTHK = Float[Array, "B T H K"]
BSHK = Float[Array, "B S H K"]
BTV = Float[Array, "B T V"]
BV = Float[Array, "B V"]
VD = Float[Array, "V D"]
Scalar = Float[Array, ""]
RowKeys = Key[Array, " B"]
"""One dropout key for each row of a batch: a mask then depends on the row, not on where or with whom it is computed."""
