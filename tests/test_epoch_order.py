"""Orders of epochs: seeds have their own, the first epoch keeps its order, and old runs keep all of theirs."""

from dataclasses import replace
from pathlib import Path

import grain
import numpy as np
import pytest
from checkpoint_states import make_state
from tiny import tiny_config, write_shards

from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.config import TrainConfig
from gptjax.core.serialization import to_json
from gptjax.data.batch_size import BatchSize
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.data.epoch_order import EpochOrder, EpochSeeds, seed_of_epoch
from gptjax.data.source import ReadSpec
from gptjax.runs.resume import adopt_history
from gptjax.runs.run_dir import CHECKPOINTS

LENGTH = 50


def list_epochs(seed: int, epochs: int, epoch_seeds: EpochSeeds = "mixed") -> list[tuple[int, ...]]:
    found = EpochOrder(LENGTH, seed=seed, epoch_seeds=epoch_seeds).locate(np.arange(epochs * LENGTH))
    return [tuple(order) for order in found.reshape(epochs, LENGTH).tolist()]


def test_seeds_have_orders_of_their_own_in_all_epochs():
    orders = [order for seed in range(1, 6) for order in list_epochs(seed, 5)]
    assert len(set(orders)) == 25
    assert all(sorted(order) == list(range(LENGTH)) for order in orders)


@pytest.mark.parametrize("seed", [0, 1337, 2**32 - 1])
def test_first_epoch_and_added_seeds_have_the_order_of_a_repeated_shuffle(seed: int):
    repeated = grain.MapDataset.range(LENGTH).shuffle(seed=seed).repeat()
    wanted = [tuple(repeated[epoch * LENGTH + row] for row in range(LENGTH)) for epoch in range(3)]
    assert list_epochs(seed, 1) == wanted[:1]
    assert list_epochs(seed, 3, "added") == wanted


def test_mixed_seeds_stay_what_they_were():
    """A saved run reads on in the orders that it began with."""
    assert [seed_of_epoch(seed, 1, "mixed") for seed in (0, 1337)] == [4286893256, 1440266211]


def test_rows_may_be_asked_for_in_any_order():
    order = EpochOrder(LENGTH, seed=3, epoch_seeds="mixed")
    rows = np.random.default_rng(0).permutation(4 * LENGTH)
    assert order.locate(rows).tolist() == order.locate(np.arange(4 * LENGTH))[rows].tolist()


def test_mixture_components_have_orders_of_their_own_in_all_epochs(tmp_path: Path):
    shards = TokenShards(str(write_shards(tmp_path / "shards", {"train": [np.arange(4 * LENGTH + 1)]})))
    mixture = Mixture((MixtureComponent(shards), MixtureComponent(shards)))
    seen = set()
    for seed in range(1, 4):
        reader = mixture.open(ReadSpec(4, seed, 999, None, False, ((0, BatchSize(4)),)))
        numbers = reader.read(np.arange(6 * LENGTH))["tokens"][:, 0] // 4
        for component in range(2):
            seen |= {tuple(order) for order in numbers[component::2].reshape(3, LENGTH).tolist()}
    assert len(seen) == 3 * 2 * 3


def save(config: TrainConfig, step: int) -> None:
    with CheckpointManager(config.directory / CHECKPOINTS, CheckpointConfig()) as checkpoints:
        checkpoints.save(step, make_state(), metadata={"config": to_json(config)}, best_value=None)


def test_old_run_keeps_added_seeds_and_a_new_one_mixes_them(tmp_path: Path):
    config = tiny_config(tmp_path / "shards")
    assert adopt_history(config).epoch_seeds == "mixed"
    assert adopt_history(replace(config, epoch_seeds="added")).epoch_seeds == "added"
    save(config, 5)  # as it was saved before there were mixed ones
    assert adopt_history(config).epoch_seeds == "added"
    save(adopt_history(config), 6)
    assert adopt_history(config).epoch_seeds == "added"
    other = replace(config, name="other")
    save(adopt_history(other), 5)
    assert adopt_history(other).epoch_seeds == "mixed"
