"""Schedules against plain Python at every boundary, and against optax where it has the same one."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.core.errors import UserError
from gptjax.optim import Constant, Cosine, Linear, Schedule, WarmupStableDecay
from gptjax.optim.schedules import DecayShape, Step

LONGEST = 80
"""Every schedule is computed for so many steps: each operation is compiled once."""


def evaluate(schedule: Schedule, steps: int, *, until: int | None = None) -> np.ndarray:
    """The schedule at every step up to `until`, computed as in training: from a traced int32."""
    values = jax.vmap(lambda step: schedule(step, steps=steps))(jnp.arange(LONGEST, dtype=jnp.int32))
    assert values.dtype == jnp.float32
    return np.asarray(values)[: until or steps]


def nanogpt_cosine(step: int, *, warmup_steps: int, end: int, min_ratio: float) -> float:
    """nanoGPT's rule in plain Python, for a peak of 1."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if step > end:
        return min_ratio
    ratio = (step - warmup_steps) / (end - warmup_steps)
    return min_ratio + 0.5 * (1 + math.cos(math.pi * ratio)) * (1 - min_ratio)


def test_cosine_equals_nanogpt_at_every_step():
    expected = [nanogpt_cosine(step, warmup_steps=7, end=40, min_ratio=0.1) for step in range(60)]
    np.testing.assert_allclose(evaluate(Cosine(warmup_steps=7, decay_steps=40), 60), expected, atol=2e-7)


def test_cosine_ends_with_the_run_by_default():
    schedule = Cosine(warmup_steps=2, min_ratio=0.1)
    fixed = replace(schedule, decay_steps=20)
    np.testing.assert_array_equal(evaluate(schedule, 20, until=30), evaluate(fixed, 999, until=30))


def test_cosine_with_warmup_and_floor_equals_optax():
    reference = optax.warmup_cosine_decay_schedule(1 / 11, 1.0, 10, 50, end_value=0.05)
    values = evaluate(Cosine(warmup_steps=10, min_ratio=0.05, decay_steps=50), 70)
    np.testing.assert_allclose(values, reference(np.arange(70)), atol=2e-6)


def test_linear_decay_and_beyond_equals_optax():
    reference = optax.linear_schedule(1.0, 0.2, 30)
    np.testing.assert_allclose(evaluate(Linear(min_ratio=0.2), 30, until=45), reference(np.arange(45)), atol=2e-7)


def test_linear_warms_up_then_decays():
    values = evaluate(Linear(warmup_steps=3, min_ratio=0.0), 13, until=16)
    np.testing.assert_allclose(values[:3], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(values[3:], [1 - k / 10 for k in range(11)] + [0.0, 0.0], atol=1e-7)


def test_constant_warms_up_and_stays():
    np.testing.assert_allclose(evaluate(Constant(warmup_steps=4), 10), [0.2, 0.4, 0.6, 0.8] + 6 * [1.0])
    np.testing.assert_array_equal(evaluate(Constant(), 3), [1.0, 1.0, 1.0])


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_warmup_stable_decay_has_three_parts(shape: DecayShape):
    schedule = WarmupStableDecay(warmup_steps=4, decay_fraction=0.25, min_ratio=0.1, shape=shape)
    values = evaluate(schedule, 40, until=44)
    ratios = np.arange(10) / 10
    height = 1 - ratios if shape == "linear" else 0.5 * (1 + np.cos(np.pi * ratios))
    np.testing.assert_allclose(values[:4], [0.2, 0.4, 0.6, 0.8])
    np.testing.assert_array_equal(values[4:31], np.ones(27))
    np.testing.assert_allclose(values[30:40], 0.1 + 0.9 * height, atol=2e-7)
    np.testing.assert_array_equal(values[40:], np.full(4, np.float32(0.1)))


def test_stable_part_does_not_depend_on_run_length():
    schedule = WarmupStableDecay(warmup_steps=5, decay_fraction=0.2)
    np.testing.assert_array_equal(evaluate(schedule, 100, until=80), evaluate(schedule, 1000, until=80))


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(warmup_steps=3),
        Cosine(warmup_steps=3),
        Linear(warmup_steps=3),
        WarmupStableDecay(warmup_steps=3),
        WarmupStableDecay(warmup_steps=3, decay_fraction=1.0, shape="cosine"),
        WarmupStableDecay(decay_fraction=0.0),
        Cosine(warmup_steps=0, min_ratio=1.0),
        Linear(),
    ],
    ids=str,
)
def test_short_runs_have_positive_multipliers(schedule: Schedule):
    for steps in range(6):
        values = evaluate(schedule, steps, until=steps + 8)
        assert np.isfinite(values).all()
        assert ((values >= 0) & (values <= 1)).all()
        assert (values[:steps] > 0).all()


@pytest.mark.parametrize("schedule", [Cosine(), Linear(min_ratio=0.1), WarmupStableDecay(min_ratio=0.1)], ids=str)
def test_after_the_run_the_value_is_exactly_min_ratio(schedule: Schedule):
    assert float(schedule(50, steps=50)) == np.float32(0.1)
    assert float(schedule(2**31 - 1, steps=50)) == np.float32(0.1)


def test_integer_step_equals_traced_step():
    schedule = Cosine(warmup_steps=2)
    eager = [float(schedule(step, steps=9)) for step in range(9)]
    traced = jax.jit(jax.vmap(lambda step: schedule(step, steps=9)))(jnp.arange(9))
    np.testing.assert_allclose(eager, traced, atol=1e-7)


@dataclass(frozen=True)
class Halving:
    """A schedule as a user would write it."""

    def __call__(self, step: Step, *, steps: int) -> jax.Array:
        return jnp.float32(0.5) ** jnp.asarray(step, jnp.float32)


def test_any_class_with_the_call_is_a_schedule():
    assert isinstance(Halving(), Schedule)
    assert evaluate(Halving(), 3).tolist() == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(warmup_steps=-1), "Cosine.warmup_steps is -1"),
        (lambda: Constant(warmup_steps=-3), "Constant.warmup_steps is -3"),
        (lambda: Linear(min_ratio=1.5), "Linear.min_ratio is 1.5"),
        (lambda: Cosine(min_ratio=-0.1), "Cosine.min_ratio is -0.1"),
        (lambda: Cosine(warmup_steps=10, decay_steps=10), "Cosine.decay_steps is 10"),
        (lambda: WarmupStableDecay(decay_fraction=1.1), "decay_fraction is 1.1"),
        (lambda: WarmupStableDecay(decay_fraction=-0.1), "decay_fraction is -0.1"),
        (lambda: WarmupStableDecay(min_ratio=2.0), "WarmupStableDecay.min_ratio is 2.0"),
    ],
)
def test_invalid_fields_are_named(make: Callable[[], Schedule], message: str):
    with pytest.raises(UserError, match=message):
        make()
