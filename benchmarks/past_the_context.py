"""Loss of a trained model by position, far past its context length.

    python benchmarks/past_the_context.py --runs runs/modern_cpu runs/modern_cpu_sinks --data=data/books

Rows of validation text are read a token at a time, as `sample` does. Past the context length the cache is a ring: every
token sees a context's length of text before it, and any sinks. Beside each loss (nats a token) is the loss of the same
tokens read as in training, in rows of a context's length of which the second half counts. There a token sees three
quarters of a context on average, so a sound model is a little better with the ring. A model that needs the first token
of a text, which the ring drops, gets worse where the ring begins to drop tokens.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

from gptjax.data.splits import open_split
from gptjax.model.gpt import GPT
from gptjax.model.kv_cache import Cache, extend_cache
from gptjax.run_dir import RunDir
from gptjax.sharding.mesh import MeshConfig


@dataclass(frozen=True)
class Request:
    """Command-line arguments."""

    runs: tuple[Path, ...]
    """Run directories."""
    data: Path
    """Prepared shards with a validation split."""
    contexts: int = 8
    """Context lengths to read, a power of two."""
    rows: int = 32


@jax.jit
def compute_losses(model: GPT, rows: Array) -> Array:
    """(T,): the mean loss at every position of (B, T + 1) tokens, read through the cache."""
    cache = Cache.empty(model.config, len(rows), positions=model.config.context_length, mesh=model.mesh)

    def step(cache: Cache, now: tuple[Array, Array, Array]) -> tuple[Cache, Array]:
        position, token, target = now
        x, cache = extend_cache(model, token[:, None], cache=cache, start=position)
        logits = model.unembed(model.norm(x))[:, 0].astype(jnp.float32)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=1)
        return cache, -picked.mean()

    positions = jnp.arange(rows.shape[1] - 1)
    return jax.lax.scan(step, cache, (positions, rows[:, :-1].T, rows[:, 1:].T))[1]


@jax.jit
def compute_training_losses(model: GPT, rows: Array) -> Array:
    """(T,): the mean loss read as in training; NaN for the first half of a context."""
    context_length = model.config.context_length
    half = context_length // 2

    def second_half(start: Array) -> Array:
        window = jax.lax.dynamic_slice_in_dim(rows, start, context_length + 1, axis=1)
        logits = model(window[:, :-1])[:, half:].astype(jnp.float32)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), window[:, 1 + half :, None], axis=2)
        return -picked.mean(axis=(0, 2))

    found = jax.lax.map(second_half, jnp.arange(0, rows.shape[1] - context_length, half))
    return jnp.append(jnp.full(half, jnp.nan), found)


def main() -> None:
    request = tyro.cli(Request, description=__doc__)
    stream = open_split(request.data, "val")
    mesh = MeshConfig("single").resolve(1)
    for directory in request.runs:
        with mesh.activate():
            run = RunDir.open(directory)
            model = run.load_model("latest", mesh=mesh, ema=False)
            context_length = model.config.context_length
            length = request.contexts * context_length
            starts = np.linspace(0, len(stream) - length - 1, request.rows).astype(np.int64)
            rows = jnp.asarray(stream.read_sequences(starts, length + 1).astype(np.int32))
            ring, training = np.asarray(compute_losses(model, rows)), np.asarray(compute_training_losses(model, rows))
        print(directory.name)
        ends = [context_length // 2, *(context_length * 2**i for i in range(request.contexts.bit_length()))]
        for begin, end in itertools.pairwise(ends):
            as_trained = training[begin:end].mean()
            print(f"  {begin:>6} to {end:<6} {ring[begin:end].mean():.4f}  as in training {as_trained:.4f}", flush=True)


if __name__ == "__main__":
    main()
