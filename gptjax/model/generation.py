"""Text generation: one compiled program reads the prompts, another writes all new tokens.

Prompts, caches and continuations are padded to powers of two, so few programs serve all lengths. The loop needs no
special first step: it reads the last token and writes the next. Past the context length each new token sees a context's
length of text, and any sinks.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int, Key

from gptjax.core.errors import UserError
from gptjax.model.decoding import prepare_for_decoding
from gptjax.model.gpt import GPT
from gptjax.model.kv_cache import Cache, extend_cache
from gptjax.model.products import Quantize
from gptjax.sharding.axes import BT, BV
from gptjax.sharding.mesh import MeshConfig, reshard

MIN_BUCKET = 32
"""Prompts and caches have at least this many positions."""
MIN_TEMPERATURE = 1e-4
"""Logits divided by less would overflow float32. The likeliest token has all the probability long before."""

Prompts = Sequence[Sequence[int] | np.ndarray] | np.ndarray | Array
"""Rows of token ids. Their lengths may differ."""


@dataclass(frozen=True)
class DecodingSpeed:
    """How fast a text was written, without compilation and reading of the prompts."""

    tokens: int
    """New tokens of all rows."""
    seconds: float
    bytes_per_step: int
    """Bytes of weights and cache that a step reads. A step writes a token in each row."""
    steps: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def bytes_per_second(self) -> float:
        return self.bytes_per_step * self.steps / self.seconds


def generate(
    model: GPT,
    prompt: Prompts,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end_of_text: int | None = None,
    key: Key[Array, ""] | None = None,
    quantize: Quantize | None = None,
    report_speed: Callable[[DecodingSpeed], object] | None = None,
) -> Int[np.ndarray, "B T_and_new"]:
    """Continue each row of `prompt` (B rows of ids) by `max_new_tokens` ids. Returns prompts and continuations.

    Where prompts differ in length, T is the longest. A shorter row ends earlier and is filled with the end of text, or
    with 0. It is the same text that it would be alone in this row.

    A row draws from `key` by its index and position alone: it is the same in any batch of prompts, and a longer
    continuation begins like a shorter one. A sharded model must have been created under its mesh.

    Args:
        temperature: divides the logits; 0 takes the likeliest token and needs no key.
        top_k: draw among this many likeliest tokens.
        top_p: draw among the fewest tokens with this much probability (see `filter_logits`).
        end_of_text: an id that ends its row. The rest of the row is filled with it.
        quantize: `int8` reads weights rounded to 8 bits (`decoding.prepare_for_decoding`).
        report_speed: called with the speed. The program is then compiled before it is timed.

    Raises:
        UserError: ids outside the vocabulary, int8 over several devices, a text too long for the model's context (for
            positional schemes of any length only the prompt counts), or a number out of range.
    """
    lengths = _check_prompt(model, prompt, max_new_tokens)
    _check_settings(temperature, top_k, top_p)
    if temperature > 0 and key is None:
        raise ValueError("generate draws at random when temperature > 0: pass key=jax.random.key(seed).")
    longest = int(lengths.max())
    ids = np.full((len(lengths), longest + max_new_tokens), end_of_text or 0, np.int32)
    for row, tokens in zip(ids, prompt, strict=True):
        row[: len(tokens)] = tokens
    request = Request(
        # Rows that are equally long write one slice of the cache, not one each.
        lengths=np.int32(longest) if (lengths == longest).all() else lengths,
        max_new_tokens=max_new_tokens,
        end_of_text=-1 if end_of_text is None else end_of_text,
        key=None if temperature == 0 else key,
        temperature=temperature,
        # A float32 sum can reach 1 before the last token, so only no filter at all keeps everything.
        top_p=None if top_p == 1.0 else top_p,
        top_k=top_k,
    )
    new = _continue_prompts(prepare_for_decoding(model, quantize=quantize), ids, lengths, request, report_speed)
    for row, length, written in zip(ids, lengths, new, strict=True):
        row[length : length + max_new_tokens] = written[:max_new_tokens]
    return ids


def _continue_prompts(
    model: GPT,
    ids: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    request: "Request",
    report_speed: Callable[[DecodingSpeed], object] | None,
) -> Int[np.ndarray, "B new"]:
    """The new tokens of prompts with these lengths, which `ids` begin with."""
    longest, context_length = int(lengths.max()), model.config.context_length
    read = np.zeros((len(ids), min(context_length, _bucket(longest))), np.int32)
    read[:, :longest] = ids[:, :longest]
    sizes = {
        "positions": min(context_length, _bucket(longest + request.max_new_tokens)),
        "max_new_tokens": _bucket(request.max_new_tokens),
    }
    with model.mesh.activate():
        state = read_prompts(model, read, ids[np.arange(len(ids)), lengths - 1], **sizes)
        if report_speed is not None:  # no step: compiled only
            state = write_tokens(model, state, replace(request, max_new_tokens=0))
        start = time.perf_counter()
        state = write_tokens(model, jax.block_until_ready(state), request)
        new = np.asarray(state.new)
    if report_speed is not None:
        seconds, size = time.perf_counter() - start, _count_bytes(model, state.cache)
        report_speed(DecodingSpeed(int(state.written), seconds, size, int(state.step)))
    return new


def filter_logits(logits: BV, *, top_k: int | None = None, top_p: float | Array | None = None) -> BV:
    """Logits with the unlikely tokens at -inf: first top-k, then top-p of the rest. Of equals the lower id stays.

    Args:
        top_k: keep this many tokens (Fan et al. 2018).
        top_p: keep the fewest tokens whose probabilities sum to at least this, and at least one (Holtzman et al. 2020).
    """
    nothing = jnp.zeros(logits.shape, bool)
    if top_k is not None:
        _, best = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))
        kept = jnp.put_along_axis(nothing, best, True, axis=-1, inplace=False)
        logits = jnp.where(kept, logits, -jnp.inf)
    if top_p is not None:
        order = jnp.argsort(logits, axis=-1, stable=True, descending=True)
        probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        kept = jnp.put_along_axis(nothing, order, before < top_p, axis=-1, inplace=False)
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits


def _bucket(length: int) -> int:
    return max(MIN_BUCKET, 1 << (length - 1).bit_length())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Request:
    """Arguments of the compiled program. The static one decides the program; the others change from call to call."""

    lengths: Any
    """Tokens of the prompts: () for all, or (B,)."""
    max_new_tokens: Any
    end_of_text: Any
    key: Any
    """None: take the likeliest token."""
    temperature: Any
    top_p: Any
    top_k: int | None = field(metadata={"static": True})


class DecodingState(NamedTuple):
    """State of the decoding loop."""

    step: Array
    """Tokens that every unfinished row has written."""
    last: Int[Array, " B"]
    """The token to be read next."""
    new: Int[Array, "B new"]
    finished: Array
    """(B,): rows that have written end-of-text."""
    written: Array
    """New tokens of all rows, ends of text included."""
    cache: Cache


@partial(jax.jit, static_argnames=("positions", "max_new_tokens"))
def read_prompts(model: GPT, ids: BT, last: Int[Array, " B"], *, positions: int, max_new_tokens: int) -> DecodingState:
    """Read prompts (B, T), padded at the end, into a cache for `positions` tokens. `last` are their last tokens.

    The loop reads the last token again, for its logits.
    """
    mesh, rows = model.mesh, len(ids)
    cache = Cache.empty(model.config, rows, positions=positions, mesh=mesh)
    _, cache = extend_cache(model, reshard(ids, mesh.activation_spec("BT")), cache=cache, start=0)
    whole = lambda x: reshard(x, mesh.activation_spec("_" * x.ndim))
    new, finished = jnp.zeros((rows, max_new_tokens), jnp.int32), jnp.zeros(rows, bool)
    step = jnp.int32(0)
    return DecodingState(step, whole(last), whole(new), whole(finished), step, cache)


@partial(jax.jit, donate_argnums=1)
def write_tokens(model: GPT, state: DecodingState, request: Request) -> DecodingState:
    """Write a token at a time up to `max_new_tokens`, or until all rows are finished."""
    mesh = model.mesh

    def is_unfinished(state: DecodingState) -> Array:
        return (state.step < request.max_new_tokens) & ~jnp.all(state.finished)

    def write_next(state: DecodingState) -> DecodingState:
        position = jnp.asarray(request.lengths) + state.step
        tokens = reshard(state.last[:, None], mesh.activation_spec("BT"))
        x, cache = extend_cache(model, tokens, cache=state.cache, start=_shard_rows(position - 1, mesh))
        logits = reshard(model.unembed(model.norm(x))[:, 0], mesh.activation_spec("__"))
        chosen = jnp.where(state.finished, request.end_of_text, _choose_tokens(logits, request, position=position))
        new = jax.lax.dynamic_update_slice(state.new, chosen[:, None], (0, state.step))
        finished = state.finished | (chosen == request.end_of_text)
        written = state.written + jnp.sum(~state.finished, dtype=jnp.int32)
        return DecodingState(state.step + 1, chosen, new, finished, written, cache)

    return jax.lax.while_loop(is_unfinished, write_next, state)


def _shard_rows(positions: Array, mesh: MeshConfig) -> Array:
    return reshard(positions, mesh.activation_spec("B")) if positions.ndim else positions


def _count_bytes(model: GPT, cache: Cache) -> int:
    """Bytes of weights and cache that a step reads. Of embeddings it reads a row for each token, which is left out."""
    tables = (model.tokens, model.positions, model.value_embeddings)
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    return size(model) - size(tables) + size(cache)


def _choose_tokens(logits: BV, request: Request, *, position: Array) -> Int[Array, " B"]:
    if request.key is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = filter_logits(logits / request.temperature, top_k=request.top_k, top_p=request.top_p)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(request.key, jnp.arange(len(logits)))
    token_keys = jax.vmap(jax.random.fold_in, (0, 0 if position.ndim else None))(row_keys, position)
    return jax.vmap(jax.random.categorical)(token_keys, kept).astype(jnp.int32)


def _check_settings(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if temperature != 0.0 and not MIN_TEMPERATURE <= temperature < float("inf"):
        raise UserError(
            f"temperature is {temperature}; use 0 (the likeliest token) or a number from {MIN_TEMPERATURE:g} on."
        )
    if top_k is not None and top_k < 1:
        raise UserError(f"top-k is {top_k}; use a number of tokens from 1, or leave it out to keep all.")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise UserError(f"top-p is {top_p}; use a probability in (0, 1], or leave it out to keep all.")


def _check_prompt(model: GPT, prompt: Prompts, max_new_tokens: int) -> Int[np.ndarray, " B"]:
    """The lengths of the rows."""
    config, mesh = model.config, model.mesh
    lengths = np.array([len(row) for row in prompt], np.int32)
    if not lengths.size or not lengths.min():
        found = f"rows of {lengths.tolist()} tokens" if lengths.size else "no rows"
        raise UserError(f"generate needs rows of at least one token; got {found}.")
    tokens = np.concatenate([np.asarray(row) for row in prompt])
    rows, length, vocabulary = len(lengths), int(lengths.max()), config.resolved_vocab_size
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise UserError(
            f"the prompt has token ids from {tokens.min()} to {tokens.max()}, but the model's go from 0 to "
            f"{vocabulary - 1}. Encode it with the tokenizer that the model was trained with."
        )
    if max_new_tokens < 1:
        raise UserError(f"max-new-tokens is {max_new_tokens}; ask for at least 1.")
    limit = config.position_scheme.max_length
    if length > config.context_length or (limit is not None and length + max_new_tokens > limit):
        remaining = config.context_length - length
        raise UserError(
            f"{length} prompt tokens and {max_new_tokens} new ones do not fit model.context_length "
            f"{config.context_length}. "
            + (f"Ask for at most {remaining} new tokens, or shorten" if remaining > 0 else "Shorten")
            + " the prompt."
        )
    if rows % mesh.num_batch_shards:
        raise UserError(
            f"{rows} rows do not split over {mesh.num_batch_shards} devices (data × fsdp). "
            f"Use a multiple of {mesh.num_batch_shards}, or --mesh=single."
        )
    return lengths
