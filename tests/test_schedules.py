"""Schedules against plain Python arithmetic at every boundary, and against optax where it has the like."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.core.errors import UserError
from gptjax.optim.schedules import Constant, Cosine, Linear, Schedule, WarmupStableDecay


def curve(schedule: Schedule, steps: int, *, until: int | None = None) -> np.ndarray:
    """The schedule at every step up to `until`, computed as training does: on a traced int32."""
    at = jax.jit(jax.vmap(lambda step: schedule(step, steps=steps)))
    values = at(jnp.arange(steps if until is None else until, dtype=jnp.int32))
    assert values.dtype == jnp.float32
    return np.asarray(values)


def nanogpt(step: int, *, warmup: int, end: int, floor: float) -> float:
    """The cosine rule in plain Python, for a peak of 1."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step > end:
        return floor
    ratio = (step - warmup) / (end - warmup)
    return floor + 0.5 * (1 + math.cos(math.pi * ratio)) * (1 - floor)


def test_cosine_follows_the_nanogpt_rule_at_every_step():
    expected = [nanogpt(s, warmup_steps=7, end=40, min_ratio=0.1) for s in range(60)]
    np.testing.assert_allclose(curve(Cosine(warmup_steps=7, decay_steps=40), 60), expected, atol=2e-7)


def test_cosine_horizon_is_the_run_unless_given():
    schedule = Cosine(warmup_steps=2, min_ratio=0.1)
    np.testing.assert_array_equal(
        curve(schedule, 20, until=30), curve(replace(schedule, decay_steps=20), 999, until=30)
    )


def test_cosine_equals_optax():
    reference = optax.warmup_cosine_decay_schedule(1 / 11, 1.0, 10, 50, end_value=0.05)
    steps = np.arange(70)
    np.testing.assert_allclose(
        curve(Cosine(warmup_steps=10, min_ratio=0.05, decay_steps=50), 70), reference(steps), atol=2e-6
    )


def test_linear_equals_optax():
    falling = optax.linear_schedule(1.0, 0.2, 30)
    np.testing.assert_allclose(curve(Linear(min_ratio=0.2), 30, until=45), falling(np.arange(45)), atol=2e-7)


def test_linear_after_warmup():
    values = curve(Linear(warmup_steps=3, min_ratio=0.0), 13, until=16)
    np.testing.assert_allclose(values[:3], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(values[3:], [1 - k / 10 for k in range(11)] + [0.0, 0.0], atol=1e-7)


def test_constant_warms_up_and_stays():
    np.testing.assert_allclose(curve(Constant(warmup_steps=4), 10), [0.2, 0.4, 0.6, 0.8] + 6 * [1.0])
    np.testing.assert_array_equal(curve(Constant(), 3), [1.0, 1.0, 1.0])


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_stable_then_decay(shape):
    schedule = WarmupStableDecay(warmup_steps=4, decay_fraction=0.25, min_ratio=0.1, shape=shape)
    values = curve(schedule, 40, until=44)
    ratios = np.arange(10) / 10
    height = 1 - ratios if shape == "linear" else 0.5 * (1 + np.cos(np.pi * ratios))
    np.testing.assert_allclose(values[:4], [0.2, 0.4, 0.6, 0.8])
    np.testing.assert_array_equal(values[4:31], np.ones(27))
    np.testing.assert_allclose(values[30:40], 0.1 + 0.9 * height, atol=2e-7)
    np.testing.assert_array_equal(values[40:], np.full(4, np.float32(0.1)))


def test_a_speedrun_cools_down_by_a_cosine_over_the_last_60_percent_to_15():
    values = curve(WarmupStableDecay(warmup_steps=100, decay_fraction=0.6, min_ratio=0.15, shape="cosine"), 1501)
    np.testing.assert_allclose(values[[0, 99, 100, 600]], [1 / 101, 100 / 101, 1.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(values[[1050, 1500]], [0.575, 0.15], atol=1e-3)
    assert (np.diff(values[601:]) < 0).all()


def test_the_stable_part_does_not_depend_on_the_length_of_the_run():
    schedule = WarmupStableDecay(warmup_steps=5, decay_fraction=0.2)
    np.testing.assert_array_equal(curve(schedule, 100, until=80), curve(schedule, 1000, until=80))


EVERY = [
    Constant(warmup_steps=3),
    Cosine(warmup_steps=3),
    Linear(warmup_steps=3),
    WarmupStableDecay(warmup_steps=3),
    WarmupStableDecay(warmup_steps=3, decay_fraction=1.0, shape="cosine"),
    WarmupStableDecay(decay_fraction=0.0),
    Cosine(warmup_steps=0, min_ratio=1.0),
    Linear(),
]


@pytest.mark.parametrize("schedule", EVERY, ids=str)
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5])
def test_runs_of_any_length_stay_finite_and_positive_while_training(schedule, steps):
    values = curve(schedule, steps, until=steps + 8)
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert (values <= 1).all()
    assert (values[:steps] > 0).all()


@pytest.mark.parametrize(
    "schedule", [Cosine(min_ratio=0.1), Linear(min_ratio=0.1), WarmupStableDecay(min_ratio=0.1)], ids=str
)
def test_after_the_horizon_the_floor_exactly(schedule):
    assert float(schedule(50, steps=50)) == np.float32(0.1)
    assert float(schedule(2**31 - 1, steps=50)) == np.float32(0.1)


def test_a_plain_integer_step_gives_the_same_as_a_traced_one():
    schedule = Cosine(warmup_steps=2)
    eager = [float(schedule(s, steps=9)) for s in range(9)]
    np.testing.assert_allclose(eager, curve(schedule, 9), atol=1e-7)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Cosine(warmup_steps=-1), "Cosine.warmup is -1"),
        (lambda: Constant(warmup_steps=-3), "Constant.warmup is -3"),
        (lambda: Linear(min_ratio=1.5), "Linear.floor is 1.5"),
        (lambda: Cosine(min_ratio=-0.1), "Cosine.floor is -0.1"),
        (lambda: Cosine(warmup_steps=10, decay_steps=10), "Cosine.decay_steps is 10"),
        (lambda: WarmupStableDecay(decay_fraction=1.1), "decay_fraction is 1.1"),
        (lambda: WarmupStableDecay(decay_fraction=-0.1), "decay_fraction is -0.1"),
        (lambda: WarmupStableDecay(min_ratio=2.0), "WarmupStableDecay.floor is 2.0"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_field(make, named):
    with pytest.raises(UserError, match=named):
        make()
