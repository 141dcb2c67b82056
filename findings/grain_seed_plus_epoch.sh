#!/usr/bin/env bash
# grain: epoch e of `MapDataset.shuffle(seed=s)` has the order of epoch 0 of `shuffle(seed=s + e)`.
#
# Three runs with the seeds 1, 2 and 3 are a usual way to measure the noise of a result. From the second epoch on they
# are not independent: the run with seed 1 reads in its second epoch what the run with seed 2 read in its first.
# `repeat` reseeds each epoch by adding its number to the seed. A seed that is set on the pipeline, `.seed(s).shuffle()`,
# is hashed first, and the orders of neighbouring seeds differ in all epochs.
#
# Versions: Python 3.11 or newer, grain 0.2.18. Seen:
#     shuffle(seed=1), epochs 0 to 2: [[5, 7, 6, 0, 4, 1, 3, 2], [0, 4, 1, 7, 6, 5, 3, 2], [4, 7, 0, 1, 2, 5, 3, 6]]
#     shuffle(seed=2), epochs 0 to 2: [[0, 4, 1, 7, 6, 5, 3, 2], [4, 7, 0, 1, 2, 5, 3, 6], [6, 0, 4, 3, 2, 1, 5, 7]]
#     of 15 orders (5 seeds, 3 epochs), different: shuffle(seed=s) 7, seed(s).shuffle() 15
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "grain==0.2.18"
cat > "$work/try.py" <<'PY'
import grain

ROWS, EPOCHS, SEEDS = 8, 3, range(1, 6)


def list_orders(dataset: grain.MapDataset) -> list[list[int]]:
    rows = dataset.repeat(EPOCHS)
    return [[rows[epoch * ROWS + row] for row in range(ROWS)] for epoch in range(EPOCHS)]


def count_different(orders: dict[int, list[list[int]]]) -> int:
    return len({tuple(order) for epochs in orders.values() for order in epochs})


explicit = {s: list_orders(grain.MapDataset.range(ROWS).shuffle(seed=s)) for s in SEEDS}
derived = {s: list_orders(grain.MapDataset.range(ROWS).seed(s).shuffle()) for s in SEEDS}
for seed in (1, 2):
    print(f"shuffle(seed={seed}), epochs 0 to 2: {explicit[seed]}")
different = count_different(explicit), count_different(derived)
print("of 15 orders (5 seeds, 3 epochs), different: shuffle(seed=s) {}, seed(s).shuffle() {}".format(*different))
assert all(explicit[s][e] == explicit[s + e][0] for s in SEEDS for e in range(EPOCHS) if s + e in explicit)
assert different == (7, 15), "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py"
