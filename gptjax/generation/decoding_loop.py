"""The two compiled programs of generation: one reads the prompts, the other writes tokens in a loop."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from gptjax.generation.kv_cache import Cache, extend_cache
from gptjax.generation.sampling import filter_logits, penalize_repetition
from gptjax.model.gpt import GPT
from gptjax.sharding.axes import BT, BV
from gptjax.sharding.mesh import MeshConfig, reshard


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Request:
    """Arguments of the compiled program. The static one decides the program; the others change from call to call."""

    lengths: Any
    """Tokens of the prompts: () for all, or (B,)."""
    max_new_tokens: Any
    ends: Any
    """(E,): the ids that end a row, or -1 for none."""
    key: Any
    """None: take the likeliest token."""
    temperature: Any
    top_p: Any
    min_p: Any
    repetition_penalty: Any
    """None: no penalty."""
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
    seen: Bool[Array, "B V"] | None = None
    """The tokens of the text, for a penalty."""
    log_probabilities: Float[Array, "B new"] | None = None


@partial(jax.jit, static_argnames=("positions", "max_new_tokens", "log_probabilities"))
def read_prompts(
    model: GPT,
    ids: BT,
    last: Int[Array, " B"],
    *,
    positions: int,
    max_new_tokens: int,
    seen: Bool[Array, "B V"] | None = None,
    log_probabilities: bool = False,
) -> DecodingState:
    """Read prompts (B, T), padded at the end, into a cache for `positions` tokens. `last` are their last tokens.

    The loop reads the last token again, for its logits. All of the state is made here: an array made outside would be
    placed differently than the loop places it, and the loop's second call would compile anew.
    """
    mesh, rows = model.mesh, len(ids)
    cache = Cache.empty(model.config, rows, positions=positions, mesh=mesh)
    _, cache = extend_cache(model, reshard(ids, mesh.activation_spec("BT")), cache=cache, start=0)
    whole = lambda x: reshard(x, mesh.activation_spec("_" * x.ndim))
    new, finished = jnp.zeros((rows, max_new_tokens), jnp.int32), jnp.zeros(rows, bool)
    step = jnp.int32(0)
    nats = whole(jnp.zeros((rows, max_new_tokens))) if log_probabilities else None
    seen = None if seen is None else whole(seen)
    return DecodingState(step, whole(last), whole(new), whole(finished), step, cache, seen, nats)


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
        chosen = jnp.where(state.finished, request.ends[0], _choose_tokens(logits, request, state, position=position))
        put = lambda all, new: jax.lax.dynamic_update_slice(all, new[:, None], (0, state.step))
        finished = state.finished | jnp.any(chosen[:, None] == request.ends[None], axis=-1)
        written = state.written + jnp.sum(~state.finished, dtype=jnp.int32)
        seen, nats = state.seen, state.log_probabilities
        if seen is not None:
            seen = jnp.put_along_axis(seen, chosen[:, None], True, axis=-1, inplace=False)
        if nats is not None:
            nats = put(nats, jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[:, None], axis=-1)[:, 0])
        return DecodingState(state.step + 1, chosen, put(state.new, chosen), finished, written, cache, seen, nats)

    return jax.lax.while_loop(is_unfinished, write_next, state)


def _shard_rows(positions: Array, mesh: MeshConfig) -> Array:
    return reshard(positions, mesh.activation_spec("B")) if positions.ndim else positions


def count_read_bytes(model: GPT, cache: Cache) -> int:
    """Bytes of weights and cache that a step reads. Of embeddings it reads a row for each token, which is left out."""
    tables = (model.token_embedding, model.position_embedding, model.value_embeddings)
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    return size(model) - size(tables) + size(cache)


def _choose_tokens(logits: BV, request: Request, state: DecodingState, *, position: Array) -> Int[Array, " B"]:
    if state.seen is not None:
        logits = penalize_repetition(logits, state.seen, request.repetition_penalty)
    if request.key is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = filter_logits(logits / request.temperature, top_k=request.top_k, top_p=request.top_p, min_p=request.min_p)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(request.key, jnp.arange(len(logits)))
    token_keys = jax.vmap(jax.random.fold_in, (0, 0 if position.ndim else None))(row_keys, position)
    return jax.vmap(jax.random.categorical)(token_keys, kept).astype(jnp.int32)
