"""In which order the rows of a data set are read, epoch after epoch.

grain's shuffle of seed s gives epoch e the order of seed s + e. So the second epoch of seed 1 would be the first of
seed 2, and runs of consecutive seeds would not be independent. Here, seed and epoch are mixed from epoch 1 on.
"""

import functools
import hashlib
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    import grain

EpochSeeds = Literal["mixed", "added"]
"""How seed and epoch give the seed of an epoch's order: `mixed` by a hash; `added`, as runs of an earlier gptjax do."""


class EpochOrder:
    """A permutation of `length` rows for each epoch."""

    def __init__(self, length: int, *, seed: int, epoch_seeds: EpochSeeds) -> None:
        self._length, self._seed = length, seed
        self._epoch_seeds: EpochSeeds = epoch_seeds
        self._shuffle = functools.lru_cache(maxsize=8)(self._make_shuffle)

    def locate(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The number in the data set, below `length`, of each row of the run."""
        epochs, places = np.divmod(rows, self._length)
        pairs = zip(epochs.tolist(), places.tolist(), strict=True)
        return np.array([self._shuffle(epoch)[place] for epoch, place in pairs])

    def _make_shuffle(self, epoch: int) -> "grain.MapDataset[int]":
        import grain  # slow to import

        seed = seed_of_epoch(self._seed, epoch, self._epoch_seeds)
        return grain.MapDataset.range(self._length).shuffle(seed=seed)


def seed_of_epoch(seed: int, epoch: int, epoch_seeds: EpochSeeds) -> int:
    """The seed, below 2^32, of an epoch's order; that of the first epoch is `seed`."""
    if epoch == 0 or epoch_seeds == "added":
        return (seed + epoch) % 2**32
    # Not numpy's SeedSequence: a saved run must find the same order under every later version.
    return int.from_bytes(hashlib.sha256(f"seed {seed} epoch {epoch}".encode()).digest()[:4], "little")
