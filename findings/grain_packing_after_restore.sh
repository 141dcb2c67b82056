#!/usr/bin/env bash
# grain: restored from a checkpoint that grain has saved, `ConcatThenSplitIterDataset` leaves out tokens of documents.
#
# Documents of 3, 4, 2 and so on tokens are packed into rows of four. The state of the iterator says (-1, -1) where no
# rest of a document is left over. grain's own handler of checkpoints writes it as JSON, which turns it into the list
# [-1, -1]. After restoring that is no longer taken for "no rest": the next documents are cut or left out. States that
# are kept in memory are right, and so are those that were saved in the middle of a document.
#
# Versions: Python 3.11 or newer, grain 0.2.18, orbax-checkpoint 0.12.8, jax 0.10.2. Seen:
#     all rows: ['1112', '2223', '3444', '4445', '6666', '6777', '8888']
#     restored after 0: ['2222', '3344', '4444', '5666', '6677', '7888', '8000'], expected all of them
#     restored after 1: ['3344', '4444', '5666', '6677', '7888', '8000'], expected the last six
#     restored after 5: ['8880'], expected ['6777', '8888']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "grain==0.2.18" "orbax-checkpoint==0.12.8" "jax==0.10.2" "jaxlib==0.10.2"
cat > "$work/try.py" <<'PY'
import tempfile
from pathlib import Path

import grain
import numpy as np
import orbax.checkpoint as ocp
from grain.experimental import ConcatThenSplitIterDataset

LENGTHS = (3, 4, 2, 6, 1, 5, 3, 4)
DOCUMENTS = [{"tokens": np.full(length, number)} for number, length in enumerate(LENGTHS, start=1)]


def make():
    documents = grain.MapDataset.source(DOCUMENTS).to_iter_dataset()
    return iter(ConcatThenSplitIterDataset(documents, length_struct={"tokens": 4}))


def read(rows):
    return ["".join(map(str, row["tokens"])) for row in rows]


def read_after(count, *, in_memory):
    """The rows behind the first `count`, by a new iterator that takes the state of one that has read so far."""
    before, after = make(), make()
    for _ in range(count):
        next(before)
    if in_memory:
        after.set_state(before.get_state())
    else:
        with tempfile.TemporaryDirectory() as directory, ocp.Checkpointer(grain.checkpoint.CheckpointHandler()) as saver:
            saver.save(Path(directory) / "state", args=grain.checkpoint.CheckpointSave(before))
            saver.restore(Path(directory) / "state", args=grain.checkpoint.CheckpointRestore(after))
    return read(after)


rows = read(make())
print(f"all rows: {rows}")
wrong = []
for count in range(len(rows)):
    assert read_after(count, in_memory=True) == rows[count:], "the behaviour has changed"
    restored = read_after(count, in_memory=False)
    if restored != rows[count:]:
        wrong.append(count)
        expected = {0: "all of them", 1: "the last six"}.get(count, rows[count:])
        print(f"restored after {count}: {restored}, expected {expected}")
assert wrong == [0, 1, 5], "the behaviour has changed"
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
