#!/usr/bin/env bash
# safetensors 0.8.0 saves a numpy array that is not contiguous with its numbers in the wrong order, without an error.
#
# A transpose, a column, every other column and an array in Fortran's order come back with the right shape and dtype and
# with other numbers, by `save` and by `save_file`. Version 0.7.0 saves them as they are. Weights that are transposed
# between two layouts, as those of GPT-2's linear layers are, meet this.
#
# Versions: Python 3.11 or newer, numpy 2.3.5, safetensors 0.7.0 and 0.8.0. Seen:
#     0.7.0 transpose     [[0, 3], [1, 4], [2, 5]]
#     0.7.0 column        [1, 4]
#     0.7.0 every other   [[0, 2], [3, 5]]
#     0.7.0 Fortran       [[0, 1, 2], [3, 4, 5]]
#     0.8.0 transpose     [[0, 1], [2, 3], [4, 5]]
#     0.8.0 column        [1, 2]
#     0.8.0 every other   [[0, 1], [2, 3]]
#     0.8.0 Fortran       [[0, 3, 1], [4, 2, 5]]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cat > "$work/try.py" <<'PY'
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load, load_file, save, save_file

table = np.arange(6, dtype=np.float32).reshape(2, 3)
given = {
    "transpose": table.T,
    "column": table[:, 1],
    "every other": table[:, ::2],
    "Fortran": np.asfortranarray(table),
}
read = load(save(given))
with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "given.safetensors"
    save_file(given, path)
    assert all(np.array_equal(read[name], array) for name, array in load_file(path).items()), "the two writers differ"
for name in given:
    print(f"{safetensors.__version__} {name:13} {read[name].astype(int).tolist()}")
is_right = {np.array_equal(read[name], array) for name, array in given.items()}
assert is_right == {sys.argv[1] == "right"}, "the behaviour has changed"
PY
for expected in "0.7.0 right" "0.8.0 wrong"; do
    read -r version outcome <<< "$expected"
    "$work/venv/bin/pip" install -q --disable-pip-version-check "numpy==2.3.5" "safetensors==$version"
    "$work/venv/bin/python" "$work/try.py" "$outcome" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
done
