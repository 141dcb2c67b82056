"""Causal attention as the textbook has it, with a float32 softmax, in operations that XLA compiles for any device.

Long rows are computed by blocks of queries. The fused kernels are in `flash_attention.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Key, Shaped

from gptjax.model.attention_inputs import AttentionInputs, AttentionOptions, Sinks, causal_mask, same_document_mask
from gptjax.model.products import multiply
from gptjax.sharding.axes import BSJK, BT, BTHK
from gptjax.sharding.devices import target_device

SAVED = "attention"
SAVE_SMALL_ARRAYS = jax.checkpoint_policies.save_only_these_names(SAVED)
"""Blocks of queries keep their output and the statistics of the softmax. The backward pass computes scores again."""

HeadDropoutKeys = Key[Array, "B H"]


def causal_attention(
    inputs: AttentionInputs,
    options: AttentionOptions,
    *,
    segments: BT | None = None,
    dropout_keys: HeadDropoutKeys | None = None,
) -> BTHK:
    """The textbook formula over whole rows, or by blocks of queries. The backward pass computes long rows' again."""
    q, k, v, sinks = inputs
    length, size = q.shape[1], options.query_block or _default_query_block(options, q.shape[1])
    if size < length <= options.max_unrolled * size:
        return _attend_unrolled(inputs, options, size=size, segments=segments, dropout_keys=dropout_keys)
    if size < length:
        return _attend_mapped(inputs, options, size=size, segments=segments, dropout_keys=dropout_keys)
    mask = causal_mask(jnp.arange(length), jnp.arange(length), window=options.window)
    mask = mask if segments is None else mask & same_document_mask(segments, segments)
    return dot_product_attention(q, k, v, options, mask=mask, sinks=sinks, dropout_keys=dropout_keys)


def _default_query_block(options: AttentionOptions, length: int) -> int:
    """Queries that are computed at a time (benchmarks/RESULTS.md)."""
    if target_device().platform != "cpu":
        return 512
    return 64 if length <= options.max_kept else 128


def _attend_unrolled(
    inputs: AttentionInputs,
    options: AttentionOptions,
    *,
    size: int,
    segments: BT | None,
    dropout_keys: HeadDropoutKeys | None,
) -> BTHK:
    """Each block of queries reads only the keys that it can see, so half of the products are never computed."""
    length = inputs.q.shape[1]

    def attend_block(
        first: int, inputs: AttentionInputs, segments: BT | None, dropout_keys: HeadDropoutKeys | None
    ) -> Any:
        start, end = _find_key_range(first, length, size=size, window=options.window)
        queries, keys = slice(first, end), slice(start, end)
        mask = causal_mask(jnp.arange(first, end), jnp.arange(start, end), window=options.window)
        if segments is not None:
            mask = mask & same_document_mask(segments[:, queries], segments[:, keys])
        q, k, v, sinks = inputs
        sinks = None if sinks is None else sinks._replace(queries=sinks.queries[:, queries])
        block_dropout_keys = None if dropout_keys is None else _fold_in_heads(dropout_keys, first)
        return dot_product_attention(
            q[:, queries], k[:, keys], v[:, keys], options, mask=mask, sinks=sinks, dropout_keys=block_dropout_keys
        )

    rematerialized = jax.checkpoint(attend_block, policy=SAVE_SMALL_ARRAYS, static_argnums=0)
    run_block = rematerialized if length > options.max_kept else attend_block
    blocks = [run_block(first, inputs, segments, dropout_keys) for first in range(0, length, size)]
    return jnp.concatenate(blocks, axis=1)


def _find_key_range(first: int, length: int, *, size: int, window: int | None) -> tuple[int, int]:
    """The keys (start, end) that a block of queries from `first` on can see."""
    start = 0 if window is None else max(0, first - window + 1)
    return start, min(first + size, length)


def _fold_in_heads(dropout_keys: HeadDropoutKeys, data: int | Array) -> HeadDropoutKeys:
    return jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(dropout_keys, data)


def _attend_mapped(
    inputs: AttentionInputs,
    options: AttentionOptions,
    *,
    size: int,
    segments: BT | None,
    dropout_keys: HeadDropoutKeys | None,
) -> BTHK:
    """One program for all blocks of queries: every block reads as many keys as the last one."""
    q, k, v, sinks = inputs
    # The gradients of keys and values are summed over the blocks, hence in float32.
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)
    length = q.shape[1]
    reach = length if options.window is None else min(length, options.window + size)
    # Queries are mapped over in blocks, not sliced inside: the gradient of a slice is a whole row, for each block.
    # Keys are sliced, for blocks of them would overlap and be several times as large.
    split = partial(split_into_blocks, size=size)
    blocks = jax.tree.map(split, (q, segments, None if sinks is None else sinks.queries))

    def attend_block(block: Any) -> BTHK:
        first, (block_q, block_segments, sink_queries) = block
        start = jnp.clip(first + size - reach, 0, length - reach)
        in_reach = lambda x: jax.lax.dynamic_slice_in_dim(x, start, reach, axis=1)
        positions = jnp.minimum(first + jnp.arange(size), length - 1)
        mask = causal_mask(positions, start + jnp.arange(reach), window=options.window)
        mask = mask if segments is None else mask & same_document_mask(block_segments, in_reach(segments))
        block_sinks = None if sinks is None else sinks._replace(queries=sink_queries)
        block_dropout_keys = None if dropout_keys is None else _fold_in_heads(dropout_keys, first)
        return dot_product_attention(
            block_q, in_reach(k), in_reach(v), options, mask=mask, sinks=block_sinks, dropout_keys=block_dropout_keys
        )

    y = jax.lax.map(jax.checkpoint(attend_block, policy=SAVE_SMALL_ARRAYS), (jnp.arange(0, length, size), blocks))
    return jnp.moveaxis(y, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :length]


def split_into_blocks(x: Shaped[Array, "B T ..."], *, size: int) -> Shaped[Array, "blocks B block ..."]:
    """Rows in blocks of `size` tokens. The last block is filled with copies of the last token, which see something:
    a softmax over nothing would be 0 / 0."""
    filled = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *[(0, 0)] * (x.ndim - 2)), mode="edge")
    return jnp.moveaxis(filled.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def dot_product_attention(
    q: BTHK,
    k: BSJK,
    v: BSJK,
    options: AttentionOptions,
    *,
    mask: Bool[Array, "#B T S"],
    sinks: Sinks | None = None,
    dropout_keys: HeadDropoutKeys | None = None,
    product: Callable[..., Array] = multiply,
) -> BTHK:
    """softmax(scale · q kᵀ) v over the keys in the mask, and the sinks. The softmax is float32."""
    rows, length, heads, width = q.shape
    shared, dtype = k.shape[2], options.dtype
    # R query heads share a key head. Their queries are the rows of one matrix.
    grouped = lambda x: x.reshape(rows, length, shared, -1, width).transpose(0, 2, 3, 1, 4)
    stacked = lambda x: x.reshape(rows, shared, -1, x.shape[-1])
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = product(stacked(grouped(q)) * options.scale, keys, dtype=dtype, transposed=True)
    scores = jnp.where(mask[:, None, None], scores.reshape(rows, shared, -1, length, k.shape[1]), -jnp.inf)
    if sinks is not None:
        extra = jnp.einsum("BJRTK,IJK->BJRTI", grouped(sinks.queries).astype(jnp.float32), sinks.keys)
        scores = jnp.concatenate([extra * options.scale, scores], axis=-1)
    # The softmax divides after the product with the values, which has fewer columns and keeps the backward pass free of
    # sums over keys.
    largest = checkpoint_name(jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)), SAVED)
    weights = jnp.exp(scores - largest)
    total = checkpoint_name(weights.sum(axis=-1, keepdims=True), SAVED)
    if dropout_keys is not None:
        draw = lambda key: jax.random.bernoulli(key, 1.0 - options.dropout, weights.shape[3:])
        kept = jax.vmap(jax.vmap(draw))(dropout_keys).reshape(weights.shape)
        weights = jnp.where(kept, weights / (1.0 - options.dropout), 0.0)
    count = 0 if sinks is None else sinks.keys.shape[0]
    y = product(stacked(weights[..., count:]), values, dtype=dtype).reshape(rows, shared, -1, length, width)
    if sinks is not None:
        y += jnp.einsum("BJRTI,IJK->BJRTK", weights[..., :count], sinks.values)
    y = checkpoint_name(y, SAVED)
    return (y / total).transpose(0, 3, 1, 2, 4).reshape(rows, length, heads, width).astype(q.dtype)
