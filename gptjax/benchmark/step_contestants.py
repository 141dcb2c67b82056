"""The training step of a config as a contestant: compiled, warmed up, alone and inside the training loop."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.serialization import Modules
from gptjax.data.loader import Batch, BatchLoader
from gptjax.data.source import DataSource, ReadSpec, RowReader, Rows
from gptjax.metrics.logger import MetricLogger
from gptjax.model.gpt import GPT
from gptjax.objectives.preference import ReferenceObjective
from gptjax.runs import startup
from gptjax.runs.reference import prepare_frozen_model
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Tokenizer
from gptjax.training.state import TrainState

NUM_BATCHES = 4
"""Batches on the devices that the step alone reads in turn."""
OURS, LOOP = "gptjax", "gptjax, training loop"


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, as the compiler plans them."""

    arguments: int
    """State and batch."""
    outputs: int
    temporaries: int
    aliased: int
    """Outputs that take the place of arguments."""
    total: int
    """arguments + outputs + temporaries - aliased."""

    @classmethod
    def of(cls, program: jax.stages.Compiled) -> "Memory | None":
        """The memory of a program; None on backends that do not tell."""
        if (stats := program.memory_analysis()) is None:
            return None
        parts = (
            stats.argument_size_in_bytes,
            stats.output_size_in_bytes,
            stats.temp_size_in_bytes,
            stats.alias_size_in_bytes,
        )
        return cls(*parts, total=parts[0] + parts[1] + parts[2] - parts[3])


@dataclass(frozen=True)
class CompileTimes:
    """Seconds to trace and compile the step."""

    cold: float
    cached: float
    """With a compilation cache that has the program."""


@dataclass(frozen=True)
class RandomTokens(DataSource):
    """Random tokens in place of the config's data: the same work, with nothing on disk."""

    def open(self, spec: ReadSpec) -> RowReader:
        if spec.with_documents:
            raise UserError("--random-data has no documents, which model.intra_document_mask needs. Use real data.")
        return RandomRows(spec)


@dataclass(frozen=True)
class RandomRows(RowReader):
    """Rows of random tokens, a function of seed and row."""

    spec: ReadSpec

    def read(self, rows: np.ndarray) -> Rows:
        length, draw = self.spec.context_length + 1, lambda row: np.random.default_rng([self.spec.seed, int(row)])
        tokens = np.stack([draw(row).integers(0, self.spec.vocab_size, length, np.int32) for row in rows])
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}


class TrainingRun:
    """A run of a config that is only timed. It keeps nothing: its directory is temporary."""

    def __init__(
        self,
        config: TrainConfig,
        mesh: MeshConfig,
        *,
        tokenizer: Tokenizer | None,
        modules: Modules | None = None,
        times_compilation: bool = False,
    ) -> None:
        """Draw a state, open the data and compile the step, under `mesh.activate()`.

        With `times_compilation` nothing in the program is from a compilation cache, so its metadata has this code's
        scopes.
        """
        self.config, self.mesh = config, mesh
        self.batches, self.frozen = open_batches(config, mesh, tokenizer=tokenizer, modules=modules)
        self.state: TrainState = startup.initialize_state(config, mesh, modules=modules)
        self.compile_times: CompileTimes | None = None
        compile_step = partial(startup.compile_step, config, mesh, self.state, self.batches, frozen=self.frozen)
        if times_compilation:
            self.program, self.compile_times = compile_cold_and_cached(compile_step)
        else:
            self.program = compile_step()
        self.iterator = self.batches.iterate_from(0)
        self.resident: list[Batch] = [next(self.iterator) for _ in range(NUM_BATCHES)]
        self.steps_run = 0

    def step(self, batch: Batch) -> dict[str, jax.Array]:
        """Train for a step, and return its metrics."""
        frozen = () if self.frozen is None else (self.frozen,)
        self.state, metrics = self.program(self.state, batch, *frozen)
        return metrics

    def close(self) -> None:
        """Free the memory of the devices."""
        jax.tree.map(lambda array: array.delete(), (self.state, self.resident, self.frozen))


def open_batches(
    config: TrainConfig, mesh: MeshConfig, *, tokenizer: Tokenizer | None, modules: Modules | None = None
) -> tuple[BatchLoader, GPT | None]:
    """The batches of a run, and the model that its objective compares with, if a step computes it.

    Stored log-probabilities of a reference are zeros: the same work, and nothing is written.
    """
    spec, objective = startup.make_read_spec(config, tokenizer), config.objective
    reader = config.data.open(spec)
    if isinstance(objective, ReferenceObjective) and objective.store_reference:
        reader, spec = ZeroReference(reader), replace(spec, reference=Path())
        return BatchLoader(reader, spec, mesh=mesh), None
    return BatchLoader(reader, spec, mesh=mesh), prepare_frozen_model(config, spec, mesh, modules=modules).model


@dataclass(frozen=True)
class ZeroReference(RowReader):
    """Rows with log-probabilities of zero, as if a reference had been stored."""

    reader: RowReader

    def read(self, rows: np.ndarray) -> Rows:
        found = self.reader.read(rows)
        return found | {"reference": np.zeros(found["tokens"].shape, np.float32)}


class StepContestant:
    """The compiled step alone. Its batches are on the devices already."""

    def __init__(self, training: TrainingRun, *, name: str = OURS) -> None:
        phase = training.config.phases[0]
        self.training, self.name = training, name
        self.rows, self.tokens = phase.batch.size, phase.tokens

    def run(self, count: int) -> float:
        training = self.training
        began_at = time.perf_counter()
        for index in range(count):
            training.step(training.resident[index % NUM_BATCHES])
        jax.block_until_ready(training.state)
        return time.perf_counter() - began_at


class LoopContestant:
    """The step as `gptjax.train` runs it: batches come from the loader, and each step is logged."""

    name = LOOP

    def __init__(self, training: TrainingRun, log: MetricLogger) -> None:
        self.training, self.log = training, log
        self.data_waits: list[float] = []
        """Seconds a step of waiting for data, for each call of `run`."""

    def run(self, count: int) -> float:
        training, waited = self.training, 0.0
        began_at = time.perf_counter()
        with _silence():
            for _ in range(count):
                asked_at = time.perf_counter()
                with self.log.measure("data"):
                    batch = next(training.iterator)
                waited += time.perf_counter() - asked_at
                metrics = training.step(batch)
                training.steps_run += 1
                self.log.step(training.steps_run, metrics | training.batches.epochs(training.steps_run))
            self.log.flush()
        jax.block_until_ready(training.state)
        self.data_waits.append(waited / count)
        return time.perf_counter() - began_at


@contextlib.contextmanager
def open_loop(training: TrainingRun) -> Iterator[LoopContestant]:
    """The training loop of a run, with a log in a temporary directory and without other loggers."""
    with tempfile.TemporaryDirectory() as scratch:
        log_config = replace(training.config.log, tensorboard=False, wandb="off", loggers=())
        config = replace(training.config, output_dir=scratch, name="benchmark", log=log_config)
        with _silence():
            log = startup.open_logger(config, training.mesh, 0)
        try:
            yield LoopContestant(training, log)
        finally:
            with _silence():
                log.close()


def _silence() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stdout(io.StringIO())


def prepare_benchmark(
    config: TrainConfig, modules: Modules | None = None, *, random_data: bool
) -> tuple[TrainConfig, Tokenizer | None]:
    """The config with its data prepared, or with random tokens in their place, and its tokenizer.

    The data is prepared also for random tokens where only its tokenizer tells the size of the vocabulary.
    """
    if random_data and config.model.vocab_size is None:
        config, _ = startup.prepare_config(config, modules)
    config = replace(config, data=RandomTokens()) if random_data else config
    return startup.prepare_config(config, modules)


def compile_cold_and_cached(
    compile_step: Callable[[], jax.stages.Compiled],
) -> tuple[jax.stages.Compiled, CompileTimes]:
    """Compile the step with an empty compilation cache, then with the cache that this has filled.

    The first program is returned.
    """
    times, programs = [], []
    with tempfile.TemporaryDirectory() as scratch, use_compilation_cache(Path(scratch)):
        for _ in range(2):
            jax.clear_caches()
            began_at = time.perf_counter()
            programs.append(compile_step())
            times.append(time.perf_counter() - began_at)
    return programs[0], CompileTimes(*times)


CACHE_SETTINGS = {
    "jax_compilation_cache_dir": None,
    "jax_enable_compilation_cache": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@contextlib.contextmanager
def use_compilation_cache(directory: Path) -> Iterator[None]:
    """Use this directory as JAX's compilation cache inside the block, for programs of any size."""
    before = {name: getattr(jax.config, name) for name in CACHE_SETTINGS}
    try:
        _set_cache(CACHE_SETTINGS | {"jax_compilation_cache_dir": str(directory)})
        yield
    finally:
        _set_cache(before)


def _set_cache(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
