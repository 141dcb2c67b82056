"""Measure a trained model's loss by position while it reads far past its context length.

    python benchmarks/past_the_context.py --runs runs/modern_cpu runs/modern_cpu_sinks --data=data/books
    python benchmarks/past_the_context.py --runs RUN --data=DATA --contexts=2 --rows=2        # in seconds

Rows of validation text are read one token at a time, as `sample` does. Past the context length, the key-value cache is
a ring: each token sees one context length of text, and any sinks. As a baseline, the same tokens are read as in
training, in sequences of one context length of which only the second half is counted. A token there sees three quarters
of a context on average, so the ring should be slightly better. A model that relies on the first token of a text is
worse from the position where the ring drops that token.
Results: LAB.md, "Reading past the context length".
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

from gptjax.core.errors import exit_on_user_error
from gptjax.data.splits import open_split
from gptjax.generation.kv_cache import Cache, extend_cache
from gptjax.model.gpt import GPT
from gptjax.runs.run_dir import RunDir
from gptjax.sharding.mesh import MeshConfig


@dataclass(frozen=True)
class Options:
    """Models and text."""

    runs: tuple[Path, ...]
    """Run directories of models with rotary positions."""
    data: Path
    """Prepared shards with a validation split."""
    contexts: int = 8
    """Length of a row in context lengths, a power of two."""
    rows: int = 32
    """Rows, evenly spaced over the split."""


@jax.jit
def compute_ring_losses(model: GPT, rows: Array) -> Array:
    """(T,): the mean loss at every position of rows (B, T + 1), in nats, through the ring."""
    cache = Cache.empty(model.config, len(rows), positions=model.config.context_length, mesh=model.mesh)

    def step(cache: Cache, inputs: tuple[Array, Array, Array]) -> tuple[Cache, Array]:
        position, token, target = inputs
        x, cache = extend_cache(model, token[:, None], cache=cache, start=position)
        logits = model.unembed(model.norm(x))[:, 0].astype(jnp.float32)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=1)
        return cache, -picked.mean()

    positions = jnp.arange(rows.shape[1] - 1)
    return jax.lax.scan(step, cache, (positions, rows[:, :-1].T, rows[:, 1:].T))[1]


@jax.jit
def compute_training_losses(model: GPT, rows: Array) -> Array:
    """(T,): the same as in training. The first half of a context is nan."""
    context_length = model.config.context_length
    half = context_length // 2

    def compute_second_half(start: Array) -> Array:
        window = jax.lax.dynamic_slice_in_dim(rows, start, context_length + 1, axis=1)
        logits = model(window[:, :-1])[:, half:].astype(jnp.float32)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), window[:, 1 + half :, None], axis=2)
        return -picked.mean(axis=(0, 2))

    losses = jax.lax.map(compute_second_half, jnp.arange(0, rows.shape[1] - context_length, half))
    return jnp.append(jnp.full(half, jnp.nan), losses)


def measure_run(options: Options, directory: Path) -> None:
    """Print the two losses over ranges of positions that double in length."""
    stream, mesh = open_split(options.data, "val"), MeshConfig("single").resolve(1)
    with mesh.activate():
        model = RunDir.open(directory).load_model("latest", mesh=mesh, ema=False)
        context_length = model.config.context_length
        length = options.contexts * context_length
        starts = np.linspace(0, len(stream) - length - 1, options.rows).astype(np.int64)
        rows = jnp.asarray(stream.read_sequences(starts, length + 1).astype(np.int32))
        ring, training = np.asarray(compute_ring_losses(model, rows)), np.asarray(compute_training_losses(model, rows))
    print(directory.name)
    ends = [context_length // 2, *(context_length * 2**i for i in range(options.contexts.bit_length()))]
    for begin, end in itertools.pairwise(ends):
        baseline = training[begin:end].mean()
        print(f"  {begin:>6} to {end:<6} {ring[begin:end].mean():.4f}  as in training {baseline:.4f}", flush=True)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    for directory in options.runs:
        measure_run(options, directory)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
