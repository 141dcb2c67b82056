"""Text that a model continues: keys and values are remembered, and the whole decoding loop is one compiled program.

The one idea: a position of the cache is written before anything can see it. So a prompt may be padded (whatever the
padding leaves behind is overwritten in time), programs are shared between prompts of about the same length, and the
loop needs no special first step: it reads the last token that it has, and writes the next. Past the context the cache
is a ring: each new token takes the place of the oldest, and sees a context's length of text (and any sinks).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int, Key

from gptjax.core.errors import UserError
from gptjax.model.attention import AttentionInputs, Sinks, dot_product_attention
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.model.layers import fold_in_rows
from gptjax.sharding.axes import BT, BTD, BTHK, BTJK, BV
from gptjax.sharding.mesh import MeshConfig, reshard

SMALLEST_BUCKET = 32
"""Prompts and caches have at least this many positions, then powers of two: few programs serve all lengths."""

MIN_TEMPERATURE = 1e-4
"""Logits divided by less would leave float32, and the choice is made long before."""

Prompts = Sequence[Sequence[int] | np.ndarray] | np.ndarray | Array
"""Rows of token ids, all of the same length."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, in the model's dtype: position p lies at p modulo their number S."""

    k: Float[Array, "N B S J K"]
    v: Float[Array, "N B S J K"]

    @classmethod
    def empty(cls, config: GPTConfig, rows: int, *, positions: int, mesh: MeshConfig) -> "Cache":
        shape = (config.num_layers, rows, positions, config.kv_heads, config.head_dim)
        spec = mesh.activation_spec("NBSJK")
        return cls(*(jnp.zeros(shape, config.compute.dtype, out_sharding=spec) for _ in "kv"))  # pyright: ignore[reportCallIssue]


def extend_cache(model: GPT, tokens: BT, *, cache: Cache, start: int | Array) -> tuple[BTD, Cache]:
    """Read `tokens` at positions start, start + 1, …: the residual stream after the last block, and the cache.

    Several tokens at once must not pass the end of the cache; from one at a time, it goes round.
    """
    config, mesh = model.config, model.mesh
    positions = start + jnp.arange(tokens.shape[1])
    rows, shared, stored = (mesh.activation_spec(axis_names) for axis_names in ("BTHK", "BTJK", "NBSJK"))

    def attention(layer: int | Array, heads: AttentionInputs, cache: Cache) -> tuple[BTHK, Cache]:
        scale = config.attention_scale or 1.0 / math.sqrt(config.head_dim)
        inside = partial(_attend, scale=scale, window=model.window(layer))
        sinks = None if heads.sinks is None else Sinks(rows, *[mesh.unsharded_spec("IJK")] * 2)  # pyright: ignore[reportArgumentType]
        ins = (stored, stored, rows, shared, shared, sinks, mesh.activation_spec(""), mesh.activation_spec("T"))
        attend = mesh.shard_map(inside, ins, (rows, stored, stored))
        y, k, v = attend(cache.k, cache.v, *heads, jnp.asarray(layer), positions)
        return y, Cache(k, v)

    return model.run_blocks(model.embed(tokens, positions), tokens, positions, attention, cache)


def _attend(
    all_k: Array,
    all_v: Array,
    q: BTHK,
    k: BTJK,
    v: BTJK,
    sinks: Sinks | None,
    layer: Array,
    positions: Int[Array, " T"],
    *,
    scale: float,
    window: int | None,
) -> tuple[BTHK, Array, Array]:
    """Remember k and v of one layer, and attend to all that it remembers up to each query."""
    size = all_k.shape[2]
    at = (layer, 0, positions[0] % size, 0, 0)
    all_k = jax.lax.dynamic_update_slice(all_k, k[None], at)
    all_v = jax.lax.dynamic_update_slice(all_v, v[None], at)
    age = (positions[None, :, None] - jnp.arange(size)[None, None]) % size
    seen = age <= positions[None, :, None]  # what would be older than the text was never written
    seen = seen if window is None else seen & (age < window)
    return dot_product_attention(q, all_k[layer], all_v[layer], seen=seen, scale=scale, sinks=sinks), all_k, all_v


def filter_logits(logits: BV, *, top_k: int | None = None, top_p: float | Array | None = None) -> BV:
    """Logits with the unlikely tokens at -inf: first top-k, then top-p of what is left; of equals the lower id stays.

    Args:
        top_k: keep this many tokens (Fan et al. 2018).
        top_p: keep the fewest tokens whose probabilities sum to at least this, and always one (Holtzman et al. 2020).
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
    """Continue each row of `prompt` (B rows of T ids) by `max_new_tokens` ids; returns prompts and continuations.

    A row draws from `key` by its index and position alone: it is the same in any batch of prompts, and a longer
    continuation begins like a shorter one. A sharded model must have been created under its mesh.

    Args:
        temperature: divides the logits; 0 takes the likeliest token and needs no key.
        top_k: draw among this many likeliest tokens.
        top_p: draw among the fewest tokens with this much probability (see `filter_logits`).
        end_of_text: an id after which a row is over; the rest of the row is filled with it.

    Raises:
        UserError: the request cannot be met: ids outside the vocabulary, rows of different length, too long for the
            model's context (with rotary positions only the prompt is bound by it), or a number out of range.
    """
    tokens = _checked_prompt(model, prompt, max_new_tokens)
    _check_settings(temperature, top_k, top_p)
    if temperature > 0 and key is None:
        raise ValueError("generate draws at random when temperature > 0: pass key=jax.random.key(seed).")
    (rows, length), context_length = tokens.shape, model.config.context_length
    total = length + max_new_tokens
    ids = np.full((rows, _bucket(total)), end_of_text or 0, np.int32)
    ids[:, :length] = tokens
    request = _Request(
        length=length,
        total=total,
        end_of_text=-1 if end_of_text is None else end_of_text,
        key=None if temperature == 0 else key,
        temperature=temperature,
        # A sum in float32 can reach 1 before the last token: only no filter at all keeps everything.
        top_p=None if top_p == 1.0 else top_p,
        top_k=top_k,
        prompt_positions=min(context_length, _bucket(length)),
    )
    with model.mesh.activate():
        return np.asarray(_continue(model, ids, request))[:, :total]


def _bucket(length: int) -> int:
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Request:
    """What the program is told: numbers, free to change from call to call, and choices, which decide the program."""

    length: Any
    total: Any
    end_of_text: Any
    key: Any
    """None: take the likeliest token."""
    temperature: Any
    top_p: Any
    top_k: int | None = field(metadata={"static": True})
    prompt_positions: int = field(metadata={"static": True})


@jax.jit
def _continue(model: GPT, ids: Int[Array | np.ndarray, "B S"], request: _Request) -> Int[Array, "B S"]:
    """The compiled program: read the prompt, then a token at a time up to `total` or until all rows are over."""
    mesh, (rows, room) = model.mesh, ids.shape
    model, ids = _cast(model), reshard(jnp.asarray(ids), mesh.activation_spec("__"))

    def read(ids: BT, cache: Cache, start: int | Array) -> tuple[BTD, Cache]:
        return extend_cache(model, reshard(ids, mesh.activation_spec("BT")), cache=cache, start=start)

    def unfinished(state: tuple[Array, Array, Array, Cache]) -> Array:
        position, _, over, _ = state
        return (position < request.total) & ~jnp.all(over)

    def step(state: tuple[Array, Array, Array, Cache]) -> tuple[Array, Array, Array, Cache]:
        position, ids, over, cache = state
        last = jax.lax.dynamic_slice_in_dim(ids, position - 1, 1, axis=1)
        x, cache = read(last, cache, position - 1)
        logits = reshard(model.unembed(model.norm(x))[:, 0], mesh.activation_spec("__"))
        chosen = jnp.where(over, request.end_of_text, _choose(logits, request, position=position))
        ids = jax.lax.dynamic_update_slice(ids, chosen[:, None], (0, position))
        return position + 1, ids, over | (chosen == request.end_of_text), cache

    cache = Cache.empty(model.config, rows, positions=min(room, model.config.context_length), mesh=mesh)
    _, cache = read(ids[:, : request.prompt_positions], cache, 0)
    over = reshard(jnp.zeros(rows, bool), mesh.activation_spec("_"))
    return jax.lax.while_loop(unfinished, step, (jnp.asarray(request.length), ids, over, cache))[1]


def _cast(model: GPT) -> GPT:
    """Weights of products in the model's dtype, once and not at every token; vectors stay, the norms read float32."""

    def cast(parameter: nnx.Param[Array]) -> nnx.Variable[Array]:
        values = parameter[...]
        return parameter.replace(values.astype(model.config.compute.dtype) if len(parameter.axis_names) > 1 else values)

    return jax.tree.map(cast, model, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))


def _choose(logits: BV, request: _Request, *, position: Array) -> Int[Array, " B"]:
    if request.key is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = filter_logits(logits / request.temperature, top_k=request.top_k, top_p=request.top_p)
    make_dropout_keys = jax.vmap(jax.random.fold_in, (None, 0))(request.key, jnp.arange(len(logits)))
    keys = fold_in_rows(make_dropout_keys, position)
    return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)


def _check_settings(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if temperature != 0.0 and not MIN_TEMPERATURE <= temperature < float("inf"):
        raise UserError(
            f"temperature is {temperature}; use 0 (the likeliest token) or a number from {MIN_TEMPERATURE:g} on."
        )
    if top_k is not None and top_k < 1:
        raise UserError(f"top-k is {top_k}; use a number of tokens from 1, or leave it out to keep all.")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise UserError(f"top-p is {top_p}; use a probability in (0, 1], or leave it out to keep all.")


def _checked_prompt(model: GPT, prompt: Prompts, max_new_tokens: int) -> Int[np.ndarray, "B T"]:
    config, mesh = model.config, model.mesh
    lengths = sorted({len(row) for row in prompt})
    if len(lengths) != 1 or lengths == [0]:
        found = f"rows of {lengths} tokens" if lengths else "no rows"
        raise UserError(f"generate wants rows of equal length, at least one token; got {found}. Call it per length.")
    tokens = np.asarray(prompt)
    (rows, length), vocabulary = tokens.shape, config.resolved_vocab_size
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise UserError(
            f"the prompt holds token ids from {tokens.min()} to {tokens.max()}, but the model knows 0 to "
            f"{vocabulary - 1}. Encode it with the tokenizer that the model was trained with."
        )
    if max_new_tokens < 1:
        raise UserError(f"max-new-tokens is {max_new_tokens}; ask for at least 1.")
    if length > config.context_length or (
        config.positions == "learned" and length + max_new_tokens > config.context_length
    ):
        room = config.context_length - length
        raise UserError(
            f"{length} prompt tokens and {max_new_tokens} new ones do not fit model.context_length {config.context_length}. "
            + (f"Ask for at most {room} new tokens, or shorten" if room > 0 else "Shorten")
            + " the prompt."
        )
    if rows % mesh.num_batch_shards:
        raise UserError(
            f"{rows} rows do not split over {mesh.num_batch_shards} devices (data × fsdp). "
            f"Use a multiple of {mesh.num_batch_shards}, or --mesh=single."
        )
    return tokens.astype(np.int32)
