"""A reference's log-probabilities of preference data, computed once and stored in the run directory.

`RUN/reference/SPLIT.npy` holds a float32 for each token of a split: the log-probability of a scored token given its
document so far, 0 for others. A text that is cut keeps the numbers of what is left of it. `reference.json`, written
last, binds them to the tokens and to the weights.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from gptjax.config import TrainConfig
from gptjax.core.console import print_once
from gptjax.core.files import write_atomically
from gptjax.core.progress import note_progress
from gptjax.data.loader import put_on_devices
from gptjax.data.preferences import PairSequences
from gptjax.data.source import ReadSpec
from gptjax.model.gpt import GPT
from gptjax.runs.initial_weights import load_weights
from gptjax.sharding.mesh import MeshConfig, reshard
from gptjax.training.checkpoint_format import flatten_by_name
from gptjax.training.objective import FrozenModelObjective
from gptjax.training.preference import ReferenceObjective, compute_log_probs

DIRECTORY = "reference"


@dataclass(frozen=True)
class SecondModel:
    """What a run needs of the model that its objective compares with."""

    read_spec: ReadSpec
    """What the run asks of its data, with the stored log-probabilities of a reference."""
    model: GPT | None = None
    """The model, if every step computes with it."""
    fingerprints: dict[str, str | None] = field(default_factory=dict)
    """Its identity, which a resumed run compares."""


def prepare_second_model(config: TrainConfig, spec: ReadSpec, mesh: MeshConfig) -> SecondModel:
    """Load the objective's second model, or store what it says of the data, if that was not done before.

    Objectives without such a model get `spec` back. Call it under `mesh.activate()`.
    """
    objective = config.objective
    if not isinstance(objective, FrozenModelObjective):
        return SecondModel(spec)
    load = partial(load_weights, config, mesh)
    if isinstance(objective, ReferenceObjective) and objective.store_reference:
        model = load(objective.reference)
        fingerprint = hash_weights(model)
        return SecondModel(store_reference(config, spec, model, weights=fingerprint), None, {"reference": fingerprint})
    model = objective.load_frozen_model(load)
    return SecondModel(spec, model, {} if model is None else {"reference": hash_weights(model)})


def store_reference(config: TrainConfig, spec: ReadSpec, model: GPT, *, weights: str) -> ReadSpec:
    """The spec with the stored log-probabilities, which are computed unless they are there already."""
    objective, mesh = config.objective, model.mesh
    assert isinstance(objective, ReferenceObjective)
    directory = config.directory / DIRECTORY
    splits = ("train", "val") if config.evaluators else ("train",)
    rows = {split: config.data.open_rows(split, spec) for split in splits}
    identity = {
        "weights": weights,
        "context_length": spec.context_length,
        "splits": {split: one.stream.fingerprint for split, one in rows.items() if one is not None},
    }
    if _read_identity(directory) != identity:
        for split, one in rows.items():
            assert isinstance(one, PairSequences)
            print_once(f"reference: computing the log-probabilities of {one.num_pairs:,} pairs of {split}, once")
            found = compute_all(model, one, objective=objective, batch_size=config.batch.microbatch, mesh=mesh)
            if jax.process_index() == 0:
                directory.mkdir(parents=True, exist_ok=True)
                np.save(directory / f"{split}.npy", found, allow_pickle=False)
        if jax.process_index() == 0:
            write_atomically(directory / "reference.json", json.dumps(identity))
        multihost_utils.sync_global_devices("reference")
    return replace(spec, reference=directory)


def _read_identity(directory: Path) -> object:
    try:
        return json.loads((directory / "reference.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def compute_all(
    model: GPT, rows: PairSequences, *, objective: ReferenceObjective, batch_size: int, mesh: MeshConfig
) -> np.ndarray:
    """The log-probability of every scored token that the rows read, by its place in the stream."""
    replicated = PartitionSpec() if mesh.is_sharded else None

    @jax.jit
    def compute(model: GPT, batch: dict[str, jax.Array]) -> jax.Array:
        rows = {name: array[0] for name, array in batch.items()}
        return reshard(compute_log_probs(model, rows, chunk_tokens=objective.chunk_tokens), replicated)

    found = np.zeros(len(rows.stream), np.float32)
    for start in range(0, len(rows), batch_size):
        note_progress()
        numbers = np.minimum(np.arange(start, start + batch_size), len(rows) - 1)
        batch = {name: array[None] for name, array in rows.read(numbers, with_documents=True).items()}
        log_probs, places = np.asarray(compute(model, put_on_devices(batch, mesh))), rows.find_targets(numbers)
        found[places[places >= 0]] = log_probs[places >= 0]
    return found


def hash_weights(model: GPT) -> str:
    """SHA-256 of all weights by name."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten_by_name(model).items()):
        whole = multihost_utils.process_allgather(array, tiled=True) if jax.process_count() > 1 else array
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(whole).tobytes())
    return digest.hexdigest()
