#!/usr/bin/env bash
# optax's `schedule_free` weighs each point of its average with the learning rate of the next step, not with its own:
# during a warmup the average that is evaluated is another one than that of the paper and of the package schedulefree.
#
# The method averages the points z that its steps reach. A point counts with the square of the largest learning rate so
# far. optax counts its steps from 1 there, and the schedule of the optimizer inside from 0. Below a linear warmup
# begins at 0, so that the first step stays where it is. optax gives that point a weight. With a constant rate nothing
# differs, and long after a warmup little does. `mean` is the formula of the paper, written out.
#
# Versions: Python 3.11 or newer, optax 0.2.8, jax 0.10.2. Seen:
#     warmup over 4 steps to 0.5, weights to evaluate with after each step:
#     optax            1.0000 0.9000 0.7562 0.6143 0.5357 0.4922 0.4708 0.4630
#     mean, own rate   1.0000 0.8750 0.7250 0.5942 0.5091 0.4826 0.4756 0.4768
#     mean, next rate  1.0000 0.9000 0.7562 0.6143 0.5357 0.4922 0.4708 0.4630
#     constant 0.5, largest difference between optax and the mean: 0.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "optax==0.2.8" "jax==0.10.2" "jaxlib==0.10.2"
cat > "$work/try.py" <<'PY'
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import schedule_free_eval_params, schedule_free_sgd

STEPS, PEAK, BETA = 8, 0.5, 0.9


def compute_gradient(weight):
    return 2 * weight - 1


def run(schedule):
    """The weights to evaluate with, after each step of optax."""
    optimizer = schedule_free_sgd(schedule, b1=BETA)
    weight, found = jnp.array(1.0), []
    state = optimizer.init(weight)
    for _ in range(STEPS):
        updates, state = optimizer.update(compute_gradient(weight), state, weight)
        weight = optax.apply_updates(weight, updates)
        found.append(float(schedule_free_eval_params(state, weight)))
    return np.array(found)


def mean(schedule, *, ahead):
    """The same by the formula: step with the rate of step t, and weigh the point with the rate of step t + ahead."""
    z = average = weight = 1.0
    total, largest, found = 0.0, 0.0, []
    for step in range(STEPS):
        z -= float(schedule(step)) * compute_gradient(weight)
        largest = max(largest, float(schedule(step + ahead)))
        total += largest**2
        share = largest**2 / total if total else 0.0
        average += share * (z - average)
        weight = BETA * average + (1 - BETA) * z
        found.append(average)
    return np.array(found)


warmup, constant = optax.linear_schedule(0.0, PEAK, 4), optax.constant_schedule(PEAK)
seen = {
    "optax": run(warmup),
    "mean, own rate": mean(warmup, ahead=0),
    "mean, next rate": mean(warmup, ahead=1),
}
print("warmup over 4 steps to 0.5, weights to evaluate with after each step:")
for name, values in seen.items():
    print(f"{name:16} {' '.join(f'{value:.4f}' for value in values)}")
same = np.abs(run(constant) - mean(constant, ahead=0)).max()
print(f"constant 0.5, largest difference between optax and the mean: {same:.4f}")
far = [np.abs(seen["optax"] - values).max() for values in seen.values()]
assert same < 1e-5 and far[1] > 0.02 and far[2] < 1e-5, "the behaviour has changed"
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
