"""Flash attention: scores are never in memory. Operands have 16 bits, the softmax is float32.

The kernels are cuDNN's on NVIDIA's GPUs and JAX's splash attention on TPUs. `kernels.py` says which one takes what.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

from gptjax.model.attention_inputs import AttentionInputs, AttentionOptions, causal_mask, same_document_mask
from gptjax.sharding.axes import BT, BTHK

MIN_PACKED_DOCUMENTS = 32
TOKENS_OF_A_DOCUMENT = 256
"""cuDNN's packed layout has room for a document every so many tokens of a row, and at least for the number above.

The statistics of the softmax take as many times the memory.
"""
SPLASH_BLOCKS = (512, 256, 128)
"""Queries and keys that splash attention reads at a time: the first that divides a row."""

_SPLASH_SIZES = (
    *("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"),
    *("block_q_dq", "block_kv_dq"),
)
_CUDNN_MODULE = "jax._src.cudnn.fused_attention_stablehlo"
_PACKED_ARGUMENTS = {"q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "scale", "mask_type", "sliding_window_length"}


def cudnn_attention(inputs: AttentionInputs, options: AttentionOptions) -> BTHK:
    """NVIDIA's kernel. Sinks are tokens before the text, with channels in which only they have keys."""
    q, k, v, sinks = inputs
    run = partial(jax.nn.dot_product_attention, scale=options.scale, is_causal=True, implementation="cudnn")
    if sinks is None:
        return run(q, k, v, local_window_size=None if options.window is None else (options.window - 1, 0))
    count, (rows, width) = sinks.keys.shape[0], (q.shape[0], q.shape[-1])
    repeat = lambda x: jnp.broadcast_to(x[None], (rows, *x.shape))
    join_channels = lambda x, y: jnp.concatenate([x, y], axis=-1)
    join_tokens = lambda sink, text: jnp.concatenate([sink, text], axis=1)
    sink_keys, sink_values = repeat(sinks.keys), repeat(sinks.values)
    queries = jnp.pad(join_channels(q, sinks.queries), ((0, 0), (count, 0), (0, 0), (0, 0)))
    keys = join_tokens(
        join_channels(jnp.zeros_like(sink_keys), sink_keys),
        join_channels(k, jnp.zeros_like(k)),
    )
    values = jnp.pad(join_tokens(sink_values, v), ((0, 0), (0, 0), (0, 0), (0, width)))
    return run(queries, keys, values)[:, count:, :, :width]


def cudnn_bias_attention(inputs: AttentionInputs, options: AttentionOptions, *, segments: BT) -> BTHK:
    """NVIDIA's kernel within documents. The mask is an array (B, 1, T, T) that it adds to the scores."""
    positions = jnp.arange(inputs.q.shape[1])
    mask = same_document_mask(segments, segments) & causal_mask(positions, positions, window=options.window)
    run = partial(jax.nn.dot_product_attention, scale=options.scale, is_causal=True, implementation="cudnn")
    return run(inputs.q, inputs.k, inputs.v, mask=mask[:, None])


class DocumentPacking(NamedTuple):
    """Where the documents of rows are, as cuDNN's packed layout takes them. Entries beyond the last one are -1."""

    lengths: Int[Array, "B M"]
    offsets: Int[Array, "B M+1"]
    """First token of each document in its row."""
    fits: Bool[Array, ""]
    """No row has more than M documents."""


def pack_documents(segments: BT, *, max_documents: int) -> DocumentPacking:
    """The documents of each row: runs of tokens with the same number, of which M = `max_documents` have room."""
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    number = jnp.cumsum(begins, axis=1, dtype=jnp.int32)
    count = number[:, -1:] + 1
    slots = jnp.arange(max_documents + 1, dtype=jnp.int32)
    starts = jax.vmap(lambda row: jnp.searchsorted(row, slots))(number).astype(jnp.int32)  # T beyond the last
    is_used = slots[None] < jnp.minimum(count, max_documents)
    lengths = jnp.where(is_used[:, :-1], jnp.diff(starts, axis=1), -1)
    return DocumentPacking(lengths, jnp.where(is_used, starts, -1), jnp.all(count <= max_documents))


def cudnn_packed_attention(
    inputs: AttentionInputs, options: AttentionOptions, *, segments: BT, otherwise: Callable[[], BTHK]
) -> BTHK:
    """NVIDIA's kernel within documents, each a sequence of its own.

    Where a row has more documents than there is room for, `otherwise` runs in its place. The backward pass computes
    the forward pass again: a choice at run time would keep what either side needs.
    """
    _, length, heads, _ = inputs.q.shape
    max_documents = max(MIN_PACKED_DOCUMENTS, length // TOKENS_OF_A_DOCUMENT)
    # Up to jax 0.10 the offsets of keys are counted in heads of queries, so there must be as many.
    k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (inputs.k, inputs.v))

    @jax.checkpoint
    def run(q: Array, k: Array, v: Array) -> Array:
        packing = pack_documents(segments, max_documents=max_documents)
        cudnn: Any = importlib.import_module(_CUDNN_MODULE)
        packed = lambda: cudnn.dot_product_attention(
            q,
            k,
            v,
            q_seqlen=packing.lengths,
            kv_seqlen=packing.lengths,
            q_offsets=packing.offsets,
            kv_offsets=packing.offsets,
            scale=options.scale,
            mask_type=cudnn.MaskType.PADDING_CAUSAL,
            sliding_window_length=options.window,
        )
        return jax.lax.cond(packing.fits, packed, otherwise)

    return run(inputs.q, k, v)


@functools.cache
def why_not_packed() -> str | None:
    """The reason why the installed JAX has no packed layout of cuDNN, which is internal to it; None if it has."""
    try:
        function = importlib.import_module(_CUDNN_MODULE).dot_product_attention
    except (ImportError, AttributeError):
        return f"jax {jax.__version__} has no {_CUDNN_MODULE}.dot_product_attention"
    missing = sorted(_PACKED_ARGUMENTS - set(inspect.signature(function).parameters))
    return f"jax {jax.__version__}: {_CUDNN_MODULE} does not take {', '.join(missing)}" if missing else None


def splash_attention(
    inputs: AttentionInputs, options: AttentionOptions, *, segments: BT | None, interpret: bool = False
) -> BTHK:
    """JAX's kernel for TPUs, in Pallas. `interpret` runs it on a CPU, slowly."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import

    q, k, v, _ = inputs
    (_, length, heads, _), window = q.shape, options.window
    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    sizes: dict[str, Any] = dict.fromkeys(_SPLASH_SIZES, block)
    shape = (length, length)
    mask = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), offset=0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(**sizes),
        interpret=interpret,
    )
    ids = None if segments is None else splash.SegmentIds(segments, segments)
    heads_first = lambda x: x.transpose(0, 2, 1, 3)
    run = lambda q, k, v, ids: jax.vmap(kernel)(q, k, v, ids)
    y = _at_default_precision(run, heads_first(q * options.scale), heads_first(k), heads_first(v), ids)
    return heads_first(y).astype(q.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _at_default_precision(run: Callable[..., Array], q: Array, k: Array, v: Array, ids: Any) -> Array:
    """`run(q, k, v, ids)`, traced without the float32 precision of `MeshConfig.activate`, and its derivative, too.

    Of 16-bit operands a Pallas kernel for TPUs has no product at that precision. Sums are float32 in any case.
    """
    with jax.default_matmul_precision("default"):
        return run(q, k, v, ids)


def _default_precision_forward(run: Callable[..., Array], q: Array, k: Array, v: Array, ids: Any) -> tuple[Array, Any]:
    with jax.default_matmul_precision("default"):
        return jax.vjp(partial(run, ids=ids), q, k, v)


def _default_precision_backward(run: Callable[..., Array], vjp: Any, d_y: Array) -> tuple[Array, Array, Array, None]:
    with jax.default_matmul_precision("default"):
        return (*vjp(d_y), None)


_at_default_precision.defvjp(_default_precision_forward, _default_precision_backward)
