#!/usr/bin/env bash
# With `partial_restore=True` Orbax returns a weight that the checkpoint lacks as it was passed in: a layer that was
# renamed stays at its random start, with no error and no warning.
#
# The option is there to read a part of a checkpoint, such as the weights without the optimizer: "only restore the
# parameters that are specified". It also drops the check of the other direction. What was asked for and not found is
# the value of the target, and where the target is a ShapeDtypeStruct the result has that in place of an array. Without
# the option both directions are errors.
#
# Versions: Python 3.11 or newer, orbax-checkpoint 0.12.8, jax 0.10.2. Seen:
#     a part of what is stored, default:                 ValueError
#     a part of what is stored, partial_restore=True:    embed [1. 1.]
#     a renamed weight, default:                         ValueError
#     a renamed weight, partial_restore=True:            embed [1. 1.], unembed [-7. -7.]
#     a renamed weight as a shape, partial_restore=True: embed [1. 1.], unembed ShapeDtypeStruct
#     log messages of level WARNING or above: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "orbax-checkpoint==0.12.8" "jax==0.10.2" "jaxlib==0.10.2"
cat > "$work/try.py" <<'PY'
import logging
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


class Counter(logging.Handler):
    messages = 0

    def emit(self, record):
        self.messages += 1


def restore(target, *, partial):
    """What comes back, as text."""
    arguments = ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=partial
    )
    try:
        found = checkpointer.restore(path, args=arguments)
    except ValueError:
        return "ValueError"
    shown = {name: value if isinstance(value, jax.Array) else type(value).__name__ for name, value in found.items()}
    return ", ".join(f"{name} {value}" for name, value in sorted(shown.items()))


path, checkpointer = Path(sys.argv[1]).absolute() / "saved", ocp.PyTreeCheckpointer()
checkpointer.save(path, {"embed": jnp.ones(2), "head": jnp.full(2, 3.0)})
counter = Counter(logging.WARNING)
for name in (None, "absl", "orbax"):
    logging.getLogger(name).addHandler(counter)
embed, start = jnp.zeros(2), jnp.full(2, -7.0)
cases = {
    "a part of what is stored": {"embed": embed},
    "a renamed weight": {"embed": embed, "unembed": start},
    "a renamed weight as a shape": {"embed": embed, "unembed": jax.ShapeDtypeStruct((2,), jnp.float32)},
}
seen = []
for name, target in cases.items():
    for partial in (False, True):
        if partial or "shape" not in name:
            seen.append(restore(target, partial=partial))
            option = "partial_restore=True" if partial else "default"
            print(f"{f'{name}, {option}:':50} {seen[-1]}")
print(f"log messages of level WARNING or above: {counter.messages}")
expected = ["ValueError", "embed [1. 1.]", "ValueError", "embed [1. 1.], unembed [-7. -7.]"]
assert seen == [*expected, "embed [1. 1.], unembed ShapeDtypeStruct"] and not counter.messages, "has changed"
PY
mkdir "$work/checkpoint"
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py" "$work/checkpoint" 2> "$work/errors" ||
    { cat "$work/errors" && exit 1; }
