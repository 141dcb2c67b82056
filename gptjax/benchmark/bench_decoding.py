"""Measure greedy generation with a cache, alone and beside peers."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.benchmark.bench_training import Report
from gptjax.benchmark.hardware import READ, read_contestant
from gptjax.benchmark.options import BenchOptions
from gptjax.benchmark.peers.matching import Peer, check_comparable, make_decoding_work, open_peer, parse_peers
from gptjax.benchmark.peers.work import TorchPeer
from gptjax.benchmark.results import Comparison, ContestantResult, Environment, Result, note_load
from gptjax.benchmark.step_contestants import OURS, prepare_benchmark
from gptjax.benchmark.timing import FunctionContestant, Spread, compare_rounds, run_in_turn
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.serialization import Modules
from gptjax.generation.generate import generate
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, abstract_model
from gptjax.runs import startup

NEW_TOKENS = 128
CACHED_BYTES = 2**26
"""Weights of fewer bytes may stay in a CPU's cache."""


def benchmark_decoding(
    config: TrainConfig, options: BenchOptions, *, modules: Modules | None, command: str, report: Report
) -> Result:
    """Measure generation with new weights of a config's model, at each number of texts.

    Args:
        report: receives a line about what is done next.

    Raises:
        UserError: the tokens do not fit the context, a peer is not comparable, or a package is missing.
    """
    notes = note_load()
    peers = [peer for spec in options.peer for peer in parse_peers(spec, options.torch_mode)]
    if config.model.vocab_size is None:
        config, _ = prepare_benchmark(config, modules, random_data=options.random_data)
    config = startup.prepare_device(config, modules)
    mesh = config.mesh.resolve(jax.device_count())
    new_tokens = resolve_new_tokens(config.model, options)
    notes += [note for peer in peers for note in check_comparable(peer, config, mesh=mesh, decode=True)]
    if jax.default_backend() == "cpu" and count_read_bytes(config.model, rows=0, length=0) < CACHED_BYTES:
        notes.append("the weights may fit a cache of the CPU, so a share of the memory bandwidth may exceed 1")
    with mesh.activate():
        draw = lambda: GPT(config.model, key=jax.random.key(config.seed), mesh=mesh)
        model = jax.jit(draw)()
        comparisons = []
        for rows in options.decode_rows:
            report(f"generating {rows} × {new_tokens} tokens")
            comparisons.append(
                compare_generation(model, config, options, rows=rows, new_tokens=new_tokens, peers=peers)
            )
    return Result(
        kind="decode",
        environment=Environment.describe(mesh),
        config=config,
        command=command,
        notes=tuple(dict.fromkeys(notes)),
        comparisons=tuple(comparisons),
    )


def resolve_new_tokens(model: GPTConfig, options: BenchOptions) -> int:
    """The number of new tokens: as asked for, or else what fits the context."""
    available = model.context_length - options.prompt_tokens
    if available < (options.new_tokens or 1):
        raise UserError(
            f"{options.prompt_tokens} prompt tokens and {options.new_tokens or 1} new ones do not fit "
            f"model.context_length {model.context_length}. Give less --prompt-tokens or --new-tokens."
        )
    return options.new_tokens or min(NEW_TOKENS, available)


def compare_generation(
    model: GPT, config: TrainConfig, options: BenchOptions, *, rows: int, new_tokens: int, peers: Sequence[Peer]
) -> Comparison:
    """All contestants with `rows` texts at a time."""
    rng = np.random.default_rng(config.seed)
    prompt = rng.integers(0, model.config.resolved_vocab_size, (rows, options.prompt_tokens))
    ours = FunctionContestant(OURS, lambda: generate(model, prompt, max_new_tokens=new_tokens, temperature=0.0))
    read, read_bytes = read_contestant(model.mesh)
    with contextlib.ExitStack() as stack:
        others = []
        for peer in peers:
            assert isinstance(peer, TorchPeer)
            work = make_decoding_work(config, rows=rows, prompt_tokens=options.prompt_tokens, new_tokens=new_tokens)
            others.append(open_peer(peer, work))
            stack.callback(others[-1].close)
        for contestant in (read, ours, *others):
            contestant.run(options.warmup)
        times = run_in_turn([read, ours, *others], rounds=options.rounds, seconds=options.round_seconds)
        needed = new_tokens * count_read_bytes(config.model, rows=rows, length=options.prompt_tokens + new_tokens // 2)
        share = needed / read_bytes
        measured = [
            measure_one(contestant, times, rows=rows, tokens=rows * new_tokens, share=share)
            for contestant in (ours, *others)
        ]
    return Comparison(f"{rows} × {new_tokens} tokens after {options.prompt_tokens}", tuple(measured))


def measure_one(
    contestant: Any, times: Mapping[str, Sequence[float]], *, rows: int, tokens: int, share: float
) -> ContestantResult:
    """`share` is the bytes that a continuation needs over those of a large read."""
    name = contestant.name
    seconds = Spread.of(times[name])
    return ContestantResult(
        name,
        rows=rows,
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds.median,
        ours_over_theirs=None if name == OURS else compare_rounds(times, OURS, to=name),
        bandwidth_share=share * compare_rounds(times, name, to=READ).median,
        about=getattr(contestant, "software", None),
    )


def count_read_bytes(config: GPTConfig, *, rows: int, length: int) -> int:
    """Bytes that a new token of each of `rows` texts has to read: all weights that are multiplied, and the keys and
    values of `length` tokens before it."""
    size = jnp.dtype(config.compute.dtype).itemsize
    leaves = jax.tree.leaves_with_path(abstract_model(config))
    stored = {jax.tree_util.keystr(path, simple=True, separator="."): math.prod(leaf.shape) for path, leaf in leaves}
    looked_up = {"position_embedding", "value_embeddings", *(() if config.tie_embeddings else ("token_embedding",))}
    weights = sum(count for name, count in stored.items() if name.partition(".")[0] not in looked_up)
    cache = 2 * config.num_layers * config.kv_heads * config.head_dim * length * rows
    return size * (weights + cache)
