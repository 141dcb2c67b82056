"""Positional schemes. A new scheme is a class here, a line in `POSITIONS`, and its fields in `GPTConfig`.

The fields of a scheme have the names of the `GPTConfig` fields that it reads.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gptjax.core.errors import UserError
from gptjax.core.lazy import LazyModule
from gptjax.core.registry import Registry
from gptjax.model.params import embedding_lookup, gather
from gptjax.sharding.axes import BTD, BTHK, BTJK, Positions
from gptjax.sharding.mesh import MeshConfig

if TYPE_CHECKING:
    from flax import nnx
else:
    nnx = LazyModule("flax.nnx")  # half a second

DEFAULT_ROTARY_BASE = 10_000.0


@runtime_checkable
class PositionScheme(Protocol):
    """How the model knows the order of tokens."""

    @property
    def max_length(self) -> int | None:
        """Rows of the scheme's table of position embeddings; None: it has no table and places any length."""
        ...

    def embed(self, x: BTD, positions: Positions, *, table: "nnx.Param[Array] | None", mesh: MeshConfig) -> BTD:
        """Float32 token embeddings with positions. Positions of shape (T,) are consecutive."""
        ...

    def rotate(self, q: BTHK, k: BTJK, positions: Positions) -> tuple[BTHK, BTJK]:
        """Queries and keys with positions."""
        ...


@dataclass(frozen=True)
class LearnedPositions:
    """A learned embedding for each position, added to the token's (GPT-2)."""

    context_length: int

    @property
    def max_length(self) -> int:
        return self.context_length

    def embed(self, x: BTD, positions: Positions, *, table: "nnx.Param[Array] | None", mesh: MeshConfig) -> BTD:
        assert table is not None
        rows = gather(table, mesh)
        if positions.ndim == 2:
            placed = embedding_lookup(rows, positions, mesh)
        else:
            placed = jax.lax.dynamic_slice_in_dim(rows, positions[0], len(positions))[None]
        return x + placed.astype(jnp.float32)

    def rotate(self, q: BTHK, k: BTJK, positions: Positions) -> tuple[BTHK, BTJK]:
        return q, k


@dataclass(frozen=True)
class RotaryPositions:
    """Queries and keys rotated by their positions (RoPE, arXiv:2104.09864)."""

    head_dim: int
    rotary_base: float | None
    rotary_fraction: float

    def __post_init__(self) -> None:
        pairs = self.rotary_fraction * self.head_dim / 2
        if not 0 < self.rotary_fraction <= 1 or self.head_dim % 2 or pairs != int(pairs):
            raise UserError(
                f"model.rotary_fraction is {self.rotary_fraction} of heads with {self.head_dim} channels; it must be "
                "in (0, 1] and give a whole number of channel pairs."
            )

    @property
    def max_length(self) -> None:
        return None

    def embed(self, x: BTD, positions: Positions, *, table: "nnx.Param[Array] | None", mesh: MeshConfig) -> BTD:
        return x

    def rotate(self, q: BTHK, k: BTJK, positions: Positions) -> tuple[BTHK, BTJK]:
        angles = self.angles(positions)
        return apply_rotary(q, angles), apply_rotary(k, angles)

    def angles(self, positions: Positions) -> Float[Array, "*B T pairs"]:
        """The angle of each of a head's K / 2 pairs at each position, in radians.

        Pair i turns by base^(-2i / K) a position. With a fraction below 1 only that fraction of the pairs turns, by
        speeds from 1 to exactly 1 / base in geometric steps; the other pairs are not rotated (modded-nanogpt).
        """
        pairs, base = self.head_dim // 2, self.rotary_base or DEFAULT_ROTARY_BASE
        if self.rotary_fraction == 1.0:
            speeds = base ** (-jnp.arange(pairs) / pairs)
        else:
            rotated = int(self.rotary_fraction * pairs)
            speeds = (1.0 / base) ** jnp.linspace(0.0, 1.0, rotated)
            speeds = jnp.concatenate([speeds, jnp.zeros(pairs - rotated)])
        return jnp.multiply.outer(positions.astype(jnp.float32), speeds)


def apply_rotary(x: BTHK, angles: Float[Array, "*B T pairs"]) -> BTHK:
    """Rotate the pairs (i, i + K / 2) of every head by their angles, in float32, returned in `x`'s dtype."""
    angles = angles[..., None, :] if angles.ndim == 3 else angles[None, :, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return rotated.astype(x.dtype)


POSITIONS: Registry[type] = Registry({"learned": LearnedPositions, "rotary": RotaryPositions})
