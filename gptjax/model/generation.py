"""Text generation. The whole decoding loop, with its key-value cache, is one compiled program.

Prompts and caches are padded to powers of two, so few programs serve all lengths. The loop needs no special first step:
it reads the last token and writes the next. Past the context length each new token sees a context's length of text, and
any sinks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Int, Key

from gptjax.core.errors import UserError
from gptjax.model.gpt import GPT
from gptjax.model.kv_cache import Cache, extend_cache
from gptjax.sharding.axes import BT, BTD, BV
from gptjax.sharding.mesh import reshard

MIN_BUCKET = 32
"""Prompts and caches have at least this many positions."""
MIN_TEMPERATURE = 1e-4
"""Logits divided by less would overflow float32. The likeliest token has all the probability long before."""

Prompts = Sequence[Sequence[int] | np.ndarray] | np.ndarray | Array
"""Rows of token ids, all of the same length."""


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
) -> Int[np.ndarray, "B T_and_new"]:
    """Continue each row of `prompt` (B rows of T ids) by `max_new_tokens` ids. Returns prompts and continuations.

    A row draws from `key` by its index and position alone: it is the same in any batch of prompts, and a longer
    continuation begins like a shorter one. A sharded model must have been created under its mesh.

    Args:
        temperature: divides the logits; 0 takes the likeliest token and needs no key.
        top_k: draw among this many likeliest tokens.
        top_p: draw among the fewest tokens with this much probability (see `filter_logits`).
        end_of_text: an id that ends its row. The rest of the row is filled with it.

    Raises:
        UserError: ids outside the vocabulary, rows of different length, a text too long for the model's context (for
            positional schemes of any length only the prompt counts), or a number out of range.
    """
    tokens = _check_prompt(model, prompt, max_new_tokens)
    _check_settings(temperature, top_k, top_p)
    if temperature > 0 and key is None:
        raise ValueError("generate draws at random when temperature > 0: pass key=jax.random.key(seed).")
    (rows, length), context_length = tokens.shape, model.config.context_length
    total = length + max_new_tokens
    ids = np.full((rows, _bucket(total)), end_of_text or 0, np.int32)
    ids[:, :length] = tokens
    request = Request(
        length=length,
        total=total,
        end_of_text=-1 if end_of_text is None else end_of_text,
        key=None if temperature == 0 else key,
        temperature=temperature,
        # A float32 sum can reach 1 before the last token, so only no filter at all keeps everything.
        top_p=None if top_p == 1.0 else top_p,
        top_k=top_k,
        prompt_positions=min(context_length, _bucket(length)),
    )
    with model.mesh.activate():
        return np.asarray(decode(model, ids, request).ids)[:, :total]


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
    """Arguments of the compiled program. The static ones decide the program; the others change from call to call."""

    length: Any
    total: Any
    end_of_text: Any
    key: Any
    """None: take the likeliest token."""
    temperature: Any
    top_p: Any
    top_k: int | None = field(metadata={"static": True})
    prompt_positions: int = field(metadata={"static": True})


class DecodingState(NamedTuple):
    """State of the decoding loop."""

    position: Array
    """The next position to write."""
    ids: Int[Array, "B S"]
    finished: Array
    """(B,): rows that have written end-of-text."""
    cache: Cache


@jax.jit
def decode(model: GPT, ids: Int[Array | np.ndarray, "B S"], request: Request) -> DecodingState:
    """Read the prompt, then write a token at a time up to `total` or until all rows are finished."""
    mesh, (rows, size) = model.mesh, ids.shape
    model, ids = _cast_weights(model), reshard(jnp.asarray(ids), mesh.activation_spec("__"))

    def read(ids: BT, cache: Cache, start: int | Array) -> tuple[BTD, Cache]:
        return extend_cache(model, reshard(ids, mesh.activation_spec("BT")), cache=cache, start=start)

    def is_unfinished(state: DecodingState) -> Array:
        return (state.position < request.total) & ~jnp.all(state.finished)

    def step(state: DecodingState) -> DecodingState:
        position, ids, finished, cache = state
        last = jax.lax.dynamic_slice_in_dim(ids, position - 1, 1, axis=1)
        x, cache = read(last, cache, position - 1)
        logits = reshard(model.unembed(model.norm(x))[:, 0], mesh.activation_spec("__"))
        chosen = jnp.where(finished, request.end_of_text, _choose_tokens(logits, request, position=position))
        ids = jax.lax.dynamic_update_slice(ids, chosen[:, None], (0, position))
        return DecodingState(position + 1, ids, finished | (chosen == request.end_of_text), cache)

    cache = Cache.empty(model.config, rows, positions=min(size, model.config.context_length), mesh=mesh)
    _, cache = read(ids[:, : request.prompt_positions], cache, 0)
    finished = reshard(jnp.zeros(rows, bool), mesh.activation_spec("_"))
    return jax.lax.while_loop(is_unfinished, step, DecodingState(jnp.asarray(request.length), ids, finished, cache))


def _cast_weights(model: GPT) -> GPT:
    """Matrices in the model's dtype, cast once and not for every token. Vectors stay: norms read float32."""

    def cast(parameter: nnx.Param[Array]) -> nnx.Variable[Array]:
        values = parameter[...]
        return parameter.replace(values.astype(model.config.compute.dtype) if len(parameter.axis_names) > 1 else values)

    return jax.tree.map(cast, model, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))


def _choose_tokens(logits: BV, request: Request, *, position: Array) -> Int[Array, " B"]:
    if request.key is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = filter_logits(logits / request.temperature, top_k=request.top_k, top_p=request.top_p)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(request.key, jnp.arange(len(logits)))
    token_keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, position)
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


def _check_prompt(model: GPT, prompt: Prompts, max_new_tokens: int) -> Int[np.ndarray, "B T"]:
    config, mesh = model.config, model.mesh
    lengths = sorted({len(row) for row in prompt})
    if len(lengths) != 1 or lengths == [0]:
        found = f"rows of {lengths} tokens" if lengths else "no rows"
        raise UserError(f"generate needs rows of equal length, at least one token; got {found}. Call it per length.")
    tokens = np.asarray(prompt)
    (rows, length), vocabulary = tokens.shape, config.resolved_vocab_size
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
    return tokens.astype(np.int32)
