"""One of several processes that read the batches of runs and nothing else: what came to lie on its devices, in a file.

`python reader.py OUT FIRST:END ... CONFIG ...` reads these steps of every config, each time as a run that begins or
resumes at FIRST. That of the config named `permuted` has its devices in another order, as a mesh of TPUs may.
"""

import sys
from itertools import islice
from pathlib import Path

import jax
import numpy as np

from gptjax.config import TrainConfig, load_config
from gptjax.sharding.distributed import initialize_distributed
from gptjax.train import open_run_loader

ABSENT = np.iinfo(np.int32).min
"""Stands where the row is another process's."""


def read(config: TrainConfig, first: int, end: int) -> dict[str, np.ndarray]:
    """`STEP.NAME` → (G, B, T) of what lies on this process's devices, by its place in the whole batch."""
    mesh, found = config.mesh.resolve(jax.device_count()), {}
    devices = jax.devices()
    with mesh.activate(devices[::2] + devices[1::2] if config.name == "permuted" else devices):
        for step, rows in enumerate(islice(open_run_loader(config, mesh).iterate_from(first), end - first), first):
            for name, array in rows.items():
                found[f"{step}.{name}"] = np.full(array.shape, ABSENT, np.int32)
                for shard in array.addressable_shards:
                    found[f"{step}.{name}"][shard.index] = shard.data
    return found


def main(out: str, *words: str) -> None:
    initialize_distributed()
    spans = [word for word in words if ":" in word]
    for config in map(load_config, words[len(spans) :]):
        for span in spans:
            found = read(config, *map(int, span.split(":")))
            np.savez(Path(out) / f"{config.name} {span} {jax.process_index()}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
