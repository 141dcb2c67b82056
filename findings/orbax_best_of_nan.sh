#!/usr/bin/env bash
# Orbax takes a checkpoint whose loss is NaN for the best one, and deletes the one with the lowest loss.
#
# A run that diverges reports NaN. With `best_fn` and `best_mode="min"` such a checkpoint should never be the best. Orbax
# sorts by the loss, and a NaN in the list leaves it unsorted: what is last in it counts as the best. Where the NaN comes
# last, it is the best itself. Where numbers follow it, one of those is, although the lowest loss came before. With
# `max_to_keep` the checkpoint with the lowest loss is deleted in both cases.
#
# Versions: Python 3.11 or newer, orbax-checkpoint 0.12.8, jax 0.10.2. Seen:
#     losses 3.0 2.0 1.0:     best is step 2, kept: [2]
#     losses 3.0 2.0 1.0 nan: best is step 3, kept: [3]
#     losses 1.0 nan 2.0 3.0: best is step 2, kept: [2]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "orbax-checkpoint==0.12.8" "jax==0.10.2" "jaxlib==0.10.2"
cat > "$work/try.py" <<'PY'
import tempfile

import jax.numpy as jnp
import orbax.checkpoint as ocp

NAN = float("nan")


def find_best(losses):
    """The best step, and the steps that are kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=1, best_fn=lambda metrics: metrics["loss"], best_mode="min")
    with tempfile.TemporaryDirectory() as directory, ocp.CheckpointManager(directory, options=options) as manager:
        for step, loss in enumerate(losses):
            manager.save(step, args=ocp.args.StandardSave({"step": jnp.array(step)}), metrics={"loss": loss})
        manager.wait_until_finished()
        return manager.best_step(), sorted(manager.all_steps())


found = []
for losses in ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0, NAN], [1.0, NAN, 2.0, 3.0]):
    best, kept = find_best(losses)
    found.append((best, kept))
    print(f"{'losses ' + ' '.join(map(str, losses)) + ':':23} best is step {best}, kept: {kept}")
assert found == [(2, [2]), (3, [3]), (2, [2])], "the behaviour has changed"
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
