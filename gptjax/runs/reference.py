"""A reference's log-probabilities of preference data, computed once and stored in the run directory.

`RUN/reference/SPLIT.npy` holds a float32 for each token of a split: the log-probability of a scored token given its
document so far, 0 for others. A text that is cut keeps the numbers of what is left of it. `reference.json`, written
last, binds them to the tokens and to the weights, and has their SHA-256. Component i of a mixture has a directory `i`.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from gptjax.checkpoints.checkpoint_format import flatten_by_name
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError, count_of
from gptjax.core.file_sums import drop_sums
from gptjax.core.files import file_sha256, write_atomically
from gptjax.core.serialization import Modules
from gptjax.data.config import Mixture
from gptjax.data.loader import put_on_devices
from gptjax.data.preferences import PairSequences
from gptjax.data.source import DataSource, ReadSpec
from gptjax.data.splits import MissingSplit
from gptjax.evaluators.validation import ValidationLoss
from gptjax.model.gpt import GPT, without_gradient
from gptjax.objectives.objective import FrozenModelObjective
from gptjax.objectives.preference import ReferenceObjective, compute_log_probs
from gptjax.process.console import print_once
from gptjax.process.progress import note_progress
from gptjax.runs.initial_weights import load_frozen_weights
from gptjax.runs.resume import Fingerprints, SavedRun, check_same_run
from gptjax.runs.run_dir import REFERENCE, REFERENCE_FILE
from gptjax.sharding.mesh import MeshConfig, reshard

_SPLITS = ("train", "val")


@dataclass(frozen=True)
class FrozenModel:
    """What a run needs of the model that its objective compares with."""

    read_spec: ReadSpec
    """What the run asks of its data, with the stored log-probabilities of a reference."""
    model: GPT | None = None
    """The model, if every step computes with it."""
    fingerprints: Fingerprints = field(default_factory=dict)
    """Its identity, which a resumed run compares."""


def prepare_frozen_model(
    config: TrainConfig,
    spec: ReadSpec,
    mesh: MeshConfig,
    *,
    saved: SavedRun | None = None,
    modules: Modules | None = None,
) -> FrozenModel:
    """Load the objective's frozen model, or store what it says of the data, if that was not done before.

    Objectives without such a model get `spec` back. Call it under `mesh.activate()`. A run that goes on from `saved`
    with its stored log-probabilities needs the model no more. Raises `UserError` before it replaces those by others.

    Args:
        saved: the checkpoint that the run goes on from.
        modules: where configs of other runs find classes of the user's own.
    """
    objective = config.objective
    if not isinstance(objective, FrozenModelObjective):
        return FrozenModel(spec)
    load = partial(load_frozen_weights, config, mesh, modules=modules)
    if not (isinstance(objective, ReferenceObjective) and objective.store_reference):
        model = objective.load_frozen_model(load)
        return FrozenModel(spec, model, {} if model is None else {"reference": hash_weights(model)})
    parts = list(_list_parts(config, spec))
    with_reference = replace(spec, reference=config.directory / REFERENCE)
    known = _find_fingerprint(objective, saved)
    if known is not None and all(_is_stored(part.directory, part.identify(known)) for part in parts):
        return FrozenModel(with_reference, None, {"reference": known})
    validation = _identify_validation(config)
    if saved is not None:
        check_same_run(config, saved, validation)
    if known is not None:
        print_once(
            f"note: {config.directory / REFERENCE} lacks log-probabilities of this data, or a file has changed. They "
            "are computed again, with the reference itself"
        )
    model = load(objective.reference)
    weights = hash_weights(model)
    if saved is not None:
        check_same_run(config, saved, {"reference": weights})
    store_reference(config, parts, model, weights=weights)
    return FrozenModel(with_reference, None, {"reference": weights})


def _identify_validation(config: TrainConfig) -> Fingerprints:
    """The identity of the validation pairs, if the run reads them: what is stored of others is not to be replaced.

    Raises `MissingSplit` if there are none but the run requires them, before anything is computed.
    """
    if not any(isinstance(evaluator, ValidationLoss) for evaluator in config.evaluators):
        return {}
    try:
        stream = config.data.open_stream("val")
    except MissingSplit:
        if config.require_validation:
            raise
        return {}
    return {} if stream is None else {"validation": stream.fingerprint}


def _find_fingerprint(objective: ReferenceObjective, saved: SavedRun | None) -> str | None:
    """That of the reference's weights in a checkpoint with the same reference."""
    before = None if saved is None else saved.config.objective
    is_same = isinstance(before, ReferenceObjective) and before.reference == objective.reference
    return saved.fingerprints.get("reference") if saved is not None and is_same else None


@dataclass(frozen=True)
class ReferencePart:
    """Pairs by split, and the directory of their log-probabilities."""

    directory: Path
    rows: dict[str, PairSequences]
    context_length: int

    def identify(self, weights: str) -> dict[str, Any]:
        """What the log-probabilities belong to, if the reference has weights of this fingerprint."""
        splits = {split: reader.stream.fingerprint for split, reader in self.rows.items()}
        return {"weights": weights, "context_length": self.context_length, "splits": splits}


def store_reference(config: TrainConfig, parts: Iterable[ReferencePart], model: GPT, *, weights: str) -> None:
    """Store the log-probabilities that are not there already."""
    objective, mesh = config.objective, model.mesh
    assert isinstance(objective, ReferenceObjective)
    compute = partial(compute_all, model, objective=objective, batch_size=config.batch.microbatch, mesh=mesh)
    for part in parts:
        identity = part.identify(weights)
        if not _is_stored(part.directory, identity):
            if jax.process_index() == 0:  # after a kill, the old sums would call the new files damaged
                drop_sums(config.directory, REFERENCE)
            _store_rows(part.rows, part.directory, identity=identity, compute=compute)


def _list_parts(config: TrainConfig, spec: ReadSpec) -> Iterator[ReferencePart]:
    """Yield the pairs of each source. Raises `UserError` for data whose log-probabilities cannot be stored."""
    splits = _SPLITS if config.evaluators else _SPLITS[:1]
    for source, directory, wanted in _list_sources(config.data, config.directory / REFERENCE, splits):
        rows = {split: one for split in wanted if (one := _open_pairs(source, split, spec)) is not None}
        yield ReferencePart(directory, rows, spec.context_length)


def _list_sources(
    data: DataSource, directory: Path, splits: tuple[str, ...]
) -> Iterator[tuple[DataSource, Path, tuple[str, ...]]]:
    """Yield each source, where its log-probabilities are, and the splits that are read: train, and perhaps val."""
    if not isinstance(data, Mixture):
        yield data, directory, splits
        return
    for i, component in enumerate(data.components):
        yield from _list_sources(component.data, directory / str(i), splits if i == data.validation else splits[:1])


def _open_pairs(source: DataSource, split: str, spec: ReadSpec) -> PairSequences | None:
    """The pairs of a split; None if the source has no validation split."""
    try:
        rows = source.open_rows(split, spec)
    except MissingSplit:
        if split == "train":
            raise
        return None
    if not isinstance(rows, PairSequences) and (rows is not None or split == "train"):
        raise UserError(
            f"data: the reference's log-probabilities of {type(source).__name__} cannot be stored, only those of "
            "PreferenceShards and mixtures of them. Compute them in every step: --objective.no-store-reference."
        )
    return rows


def _store_rows(
    rows: dict[str, PairSequences],
    directory: Path,
    *,
    identity: dict[str, Any],
    compute: Callable[[PairSequences], np.ndarray],
) -> None:
    is_writer, sums = jax.process_index() == 0, dict[str, str]()
    if is_writer:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / REFERENCE_FILE).unlink(missing_ok=True)
    for split, reader in rows.items():
        print_once(
            f"reference: computing the log-probabilities of {count_of(reader.num_pairs, 'pairs')} of {split}, once"
        )
        content = io.BytesIO()
        np.save(content, compute(reader), allow_pickle=False)
        sums[split] = hashlib.sha256(content.getbuffer()).hexdigest()
        if is_writer:
            write_atomically(directory / f"{split}.npy", content.getvalue())
    if is_writer:
        write_atomically(directory / REFERENCE_FILE, json.dumps(identity | {"sha256": sums}))
    multihost_utils.sync_global_devices("reference")


def remove_unfinished(directory: Path) -> None:
    """Remove what an unfinished computation has left in the directory of a reference. What is complete stays."""
    for file in (file for split in _SPLITS for file in directory.rglob(f"{split}.npy")):
        if not (file.parent / REFERENCE_FILE).is_file():
            file.unlink()


def _is_stored(directory: Path, identity: dict[str, Any]) -> bool:
    """Whether the files are there, as they were written, and belong to this identity. They may hold more splits."""
    try:
        found = json.loads((directory / REFERENCE_FILE).read_text(encoding="utf-8"))
        sums, splits = found.pop("sha256"), list(identity["splits"])
        found["splits"] = {split: found["splits"][split] for split in splits}
        return found == identity and all(sums[split] == file_sha256(directory / f"{split}.npy") for split in splits)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def watch_reference(directory: Path) -> Callable[[], None]:
    """A function that raises a `UserError` if a stored file of a run has changed since this call.

    Whether the files are as they were written is known now: `prepare_frozen_model` has read them.
    """
    paths = sorted((directory / REFERENCE).rglob("*.npy"))

    def find_state(path: Path) -> tuple[int, int, int] | None:
        with suppress(FileNotFoundError):
            found = path.stat()
            return found.st_size, found.st_mtime_ns, found.st_ctime_ns

    begun_with = {path: find_state(path) for path in paths}

    def check() -> None:
        for path, state in begun_with.items():
            if find_state(path) != state:
                raise UserError(
                    f"{path} has changed after this run began to read it. Give the same command again: the run goes on "
                    "from its last checkpoint, and the file is computed again."
                )

    return check


def compute_all(
    model: GPT, rows: PairSequences, *, objective: ReferenceObjective, batch_size: int, mesh: MeshConfig
) -> np.ndarray:
    """The log-probability of every scored token that the rows read, by its place in the stream."""
    replicated = PartitionSpec() if mesh.is_sharded else None

    @jax.jit
    def compute(model: GPT, batch: dict[str, jax.Array]) -> jax.Array:
        rows = {name: array[0] for name, array in batch.items()}
        return reshard(
            compute_log_probs(without_gradient(model), rows, chunk_tokens=objective.chunk_tokens), replicated
        )

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
