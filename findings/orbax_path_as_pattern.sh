#!/usr/bin/env bash
# Orbax saves nothing that can be read into a directory whose path has brackets, and reports no error.
#
# It saves eight numbers by StandardCheckpointer, at its defaults, into directories of several names. The names with
# brackets or a backslash are valid names of directories. Their saves end as the others do. Restoring them fails:
# the arrays of the process are looked for by a glob of the whole path, in which brackets stand for a set of characters.
#
# Versions: Python 3.11 or newer, orbax-checkpoint 0.12.8, etils 1.15.0, jax 0.10.2. Seen:
#     {'run': 28.0, 'run (1)': 28.0, 'run[lr=1]': 'not restored', 'run\\1': 'not restored'}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "orbax-checkpoint==0.12.8" "etils==1.15.0" "jax==0.10.2"
cat > "$work/try.py" <<'PY'
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

work = Path(sys.argv[1])
found = {}
for name in ("run", "run (1)", "run[lr=1]", "run\\1"):
    path = work / name / "checkpoint"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"weights": np.arange(8.0)})
        checkpointer.wait_until_finished()  # raises nothing
        assert (path / "_CHECKPOINT_METADATA").is_file()
        try:
            found[name] = float(np.sum(checkpointer.restore(path)["weights"]))
        except ValueError as error:
            assert "does not exist" in str(error)
            found[name] = "not restored"
print(found)
assert found == {"run": 28.0, "run (1)": 28.0, "run[lr=1]": "not restored", "run\\1": "not restored"}, (
    "the behaviour has changed"
)
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
