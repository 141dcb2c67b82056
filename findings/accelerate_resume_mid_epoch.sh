#!/usr/bin/env bash
# Resumed within an epoch as accelerate documents it, a run reads rows of that epoch twice and never reads others.
#
# The guide says: `load_state`, and `skip_first_batches` by the number of batches that were read. `load_state` restores
# the random numbers as they were when the state was saved, that is behind the draw of the epoch's order. The loader
# draws again, another order, and of that the first batches are skipped. No warning is given. Nothing differs if the
# state was saved at the end of an epoch. With `use_seedable_sampler=True`, which is not the default, the order follows
# from seed and epoch, and the run goes on as it would have.
#
# Versions: Python 3.11 or newer, accelerate 1.15.0, torch 2.13.0. Seen: 12 rows in batches of 2, saved after 3 of 6
#     default:  without a break [11, 0, 3, 9, 2, 1, 10, 7, 5, 6, 8, 4]
#               with a break    [11, 0, 3, 9, 2, 1] + [2, 9, 5, 11, 6, 0], read twice [0, 2, 9, 11], never [4, 7, 8, 10]
#     seedable: without a break [8, 0, 5, 9, 7, 4, 2, 10, 3, 1, 11, 6]
#               with a break    [8, 0, 5, 9, 7, 4] + [2, 10, 3, 1, 11, 6], read twice [], never []
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "accelerate==1.15.0" "torch==2.13.0" numpy
cat > "$work/try.py" <<'PY'
import json
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader, TensorDataset

state, kind, begin, end = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
options = {} if kind == "default" else {"use_seedable_sampler": True}
accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
set_seed(0)
model = torch.nn.Linear(1, 1)
loader = DataLoader(TensorDataset(torch.arange(12)), batch_size=2, shuffle=True)
model, loader = accelerator.prepare(model, loader)
batches = loader
if begin:
    accelerator.load_state(state)
    batches = accelerator.skip_first_batches(loader, begin)
rows = []
for count, (batch,) in enumerate(batches, start=begin + 1):
    rows += batch.tolist()
    if count == end:
        accelerator.save_state(state)
        break
print(json.dumps(rows))
PY
run() { "$work/venv/bin/python" "$work/try.py" "$work/$1" "$@" 2> "$work/errors" || { cat "$work/errors" && exit 1; }; }
for kind in default seedable; do
    whole=$(run "$kind" 0 6) first=$(run "$kind" 0 3) rest=$(run "$kind" 3 6)
    python3 - "$kind" "$whole" "$first" "$rest" <<'PY'
import json
import sys

kind, (whole, first, rest) = sys.argv[1], map(json.loads, sys.argv[2:])
print(f"{kind + ':':9} without a break {whole}")
print(f"          with a break    {first} + {rest}", end="")
twice, never = sorted(set(first) & set(rest)), sorted(set(whole) - set(first + rest))
print(f", read twice {twice}, never {never}")
assert first == whole[:6], "the behaviour has changed"
assert (first + rest == whole) == (kind == "seedable") == (not twice), "the behaviour has changed"
PY
done
