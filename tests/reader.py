"""Reads the batches of data sources, alone or as one of several processes, and keeps what lies on its devices.

`python reader.py FILE OUT FIRST:END ...` reads these steps of every `Reading` that is pickled in FILE, as a run does
that starts or resumes at FIRST.
"""

import pickle
import sys
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from gptjax.data.loader import BatchLoader
from gptjax.data.source import DataSource, ReadSpec
from gptjax.sharding.distributed import initialize_distributed
from gptjax.sharding.mesh import MeshConfig

ABSENT = np.iinfo(np.int32).min
"""Stands for a row of another process."""


class Reading(NamedTuple):
    """What is read, and on which mesh; `permuted` devices are in another order, as those of a TPU slice may be."""

    data: DataSource
    spec: ReadSpec
    mesh: MeshConfig
    permuted: bool = False


def read(reading: Reading, span: str) -> dict[str, np.ndarray]:
    """`STEP.NAME` → (G, B, T) of what lies on this process's devices, at its place in the whole batch."""
    first, end = map(int, span.split(":"))
    devices = jax.devices()[: reading.mesh.num_devices]
    found = {}
    with reading.mesh.activate(devices[::2] + devices[1::2] if reading.permuted else devices):
        loader = BatchLoader(reading.data.open(reading.spec), reading.spec, mesh=reading.mesh)
        for step, rows in enumerate(islice(loader.iterate_from(first), end - first), first):
            for name, array in rows.items():
                found[f"{step}.{name}"] = np.full(array.shape, ABSENT, np.int32)
                for shard in array.addressable_shards:
                    found[f"{step}.{name}"][shard.index] = shard.data
    return found


def main(file: str, out: str, *spans: str) -> None:
    initialize_distributed()
    readings = pickle.loads(Path(file).read_bytes())
    found = {(name, span): read(reading, span) for name, reading in readings.items() for span in spans}
    (Path(out) / f"{jax.process_index()}.pickle").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
