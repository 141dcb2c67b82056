#!/usr/bin/env bash
# datasets: from epoch 1 on the seed of `interleave_datasets` has no effect: runs of all seeds mix their sources alike.
#
# Three runs with the seeds 1, 2 and 3 are a usual way to measure the noise of a result. In epoch 0 each takes its rows
# from the two sources in an order of its own. Behind `set_epoch(1)` the seed is replaced by the number of the epoch.
# transformers' Trainer and accelerate call `set_epoch` by themselves. The seed of `shuffle` keeps its effect.
#
# Versions: Python 3.11 or newer, datasets 5.2.0. Seen:
#     interleave_datasets, epoch 0, seeds 1 to 3: ['bbabaabababb', 'aababbaaabba', 'aabbaaaabaab']
#     interleave_datasets, epoch 1, seeds 1 to 3: ['bababababbaa', 'bababababbaa', 'bababababbaa']
#     interleave_datasets, epoch 2, seeds 1 to 3: ['aaababbbbaab', 'aaababbbbaab', 'aaababbbbaab']
#     shuffle, epoch 1, seeds 1 to 3: ['fbkihdacjleg', 'idahekgcbjlf', 'jkblgadhfeci']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "datasets==5.2.0"
cat > "$work/try.py" <<'PY'
from itertools import islice

from datasets import Dataset, interleave_datasets

SOURCES = [Dataset.from_dict({"source": [name] * 50}).to_iterable_dataset() for name in "ab"]
LETTERS = Dataset.from_dict({"source": list("abcdefghijkl")}).to_iterable_dataset()


def interleave(seed):
    return interleave_datasets(SOURCES, probabilities=[0.5, 0.5], seed=seed)


def shuffle(seed):
    return LETTERS.shuffle(seed=seed)


different = {}
for make, name in ((interleave, "interleave_datasets"), (shuffle, "shuffle")):
    for epoch in range(3):
        orders = []
        for seed in (1, 2, 3):
            stream = make(seed)
            stream.set_epoch(epoch)
            orders.append("".join(row["source"] for row in islice(stream, 12)))
        different.setdefault(name, []).append(len(set(orders)))
        print(f"{name}, epoch {epoch}, seeds 1 to 3: {orders}")
assert different == {"interleave_datasets": [3, 1, 1], "shuffle": [3, 3, 3]}, "the behaviour has changed"
PY
HF_HOME="$work/cache" HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" ||
    { cat "$work/errors" && exit 1; }
