"""Positional schemes: learned embeddings and rotary positions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.model.config import GPTConfig
from gptjax.model.positions import POSITIONS, PositionScheme, RotaryPositions, apply_rotary


@pytest.mark.parametrize("name", POSITIONS)
def test_every_scheme_follows_the_protocol(name: str) -> None:
    assert isinstance(GPTConfig(positions=name).position_scheme, PositionScheme)


def test_rotation_turns_a_pair_counterclockwise_by_its_position() -> None:
    """Channels i and i + K / 2 are the real and imaginary part of a number that is multiplied by exp(i · angle)."""
    scheme = RotaryPositions(head_dim=4, rotary_base=100.0, rotary_fraction=1.0)
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 4))
    q, k = scheme.rotate(x, 2 * x, jnp.arange(5, 8))
    angles = np.arange(5, 8)[:, None] * np.array([1.0, 0.1])
    rotated = (np.asarray(x[..., :2]) + 1j * np.asarray(x[..., 2:])) * np.exp(1j * angles)[None, :, None]
    np.testing.assert_allclose(q, np.concatenate([rotated.real, rotated.imag], axis=-1), atol=1e-5)
    np.testing.assert_allclose(k, 2 * q, rtol=1e-6)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotated_products_depend_only_on_the_distance(fraction: float) -> None:
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, 16)) for i in range(2))
    scheme = RotaryPositions(head_dim=16, rotary_base=100.0, rotary_fraction=fraction)

    def product(q_position: int, k_position: int) -> float:
        rotated = [
            apply_rotary(x, scheme.angles(jnp.array([position]))) for x, position in ((q, q_position), (k, k_position))
        ]
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert product(3, 1) == pytest.approx(product(40, 38), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)
    assert product(3, 1) != pytest.approx(product(1, 3), abs=1e-3)
    assert product(7, 7) == pytest.approx(float(jnp.sum(q * k)), abs=1e-4)


@pytest.mark.parametrize(
    ("head_dim", "base", "fraction", "speeds"),
    [
        (8, None, 1.0, [1.0, 0.1, 0.01, 0.001]),
        (8, 1024.0, 0.5, [1.0, 1 / 1024, 0, 0]),
        (8, 100.0, 0.75, [1.0, 0.1, 0.01, 0]),
    ],
)
def test_speeds_fall_from_one_and_the_rest_stands_still(
    head_dim: int, base: float | None, fraction: float, speeds: list[float]
) -> None:
    angles = RotaryPositions(head_dim, base, fraction).angles(jnp.array([1]))
    np.testing.assert_allclose(angles[0], speeds, rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 1.5, 0.3])
def test_a_fraction_without_whole_pairs_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=rf"model\.rotary_fraction is {fraction} of heads with 8 channels"):
        GPTConfig(embed_dim=32, num_heads=4, positions="rotary", rotary_fraction=fraction)


def test_only_learned_positions_limit_the_length() -> None:
    config = GPTConfig(context_length=9)
    assert config.position_scheme.max_length == 9
    assert replace(config, positions="rotary").position_scheme.max_length is None
