#!/usr/bin/env bash
# Orbax refuses to restore a jax array in another shape than the stored one, and restores a numpy array so in silence.
#
# What is passed to `restore` says what is wanted: names, shapes, types. Where it is a jax array or its
# ShapeDtypeStruct, a wrong shape is an error that names both. Where it is a numpy array, as in tools that read weights
# on the host, the type is taken from it, and the shape is not looked at: what comes back is as large as what was
# stored. A table of 4 rows stands where 6 are expected, and nothing says that this is the file of another model.
#
# Versions: Python 3.11 or newer, orbax-checkpoint 0.12.8, jax 0.10.2. Seen: stored are 4 rows of 2 in float32
#     jax, 6 rows wanted:              ValueError: Requested shape: (6, 2) is not compatible with the stored shape: ...
#     numpy, 6 rows wanted:            (4, 2) float32
#     numpy, 6 rows in float16 wanted: (4, 2) float16
#     numpy, one vector wanted:        (4, 2) float32
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "orbax-checkpoint==0.12.8" "jax==0.10.2" "jaxlib==0.10.2"
cat > "$work/try.py" <<'PY'
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

directory = Path(sys.argv[1]) / "saved"
WANTED = {
    "jax, 6 rows wanted": jax.ShapeDtypeStruct((6, 2), jnp.float32),
    "numpy, 6 rows wanted": np.zeros((6, 2), np.float32),
    "numpy, 6 rows in float16 wanted": np.zeros((6, 2), np.float16),
    "numpy, one vector wanted": np.zeros(3, np.float32),
}
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(directory, {"table": jnp.arange(8.0).reshape(4, 2)})
    checkpointer.wait_until_finished()
    for name, wanted in WANTED.items():
        try:
            found = checkpointer.restore(directory, {"table": wanted})["table"]
            seen = f"{found.shape} {found.dtype}"
        except ValueError as error:
            seen = f"ValueError: {str(error).split('. ')[0]}"
        print(f"{name + ':':32} {seen}")
        if name.startswith("jax"):
            assert "is not compatible with the stored shape" in seen, "the behaviour has changed"
        else:
            assert seen == f"(4, 2) {wanted.dtype}", "the behaviour has changed"
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
