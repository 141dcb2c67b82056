"""Causal attention: one function, and the kernel that runs it is named in the log.

`cudnn` is NVIDIA's flash attention (16-bit only, nothing of size T×S in memory), `xla` is the textbook
formula with a float32 softmax and runs everywhere. Attention is always an island (`Layout.island`): rows and heads are
independent, and a custom kernel cannot be partitioned by the compiler.
"""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key, Shaped

from gptjax.core.errors import UserError
from gptjax.model.config import GPTConfig
from gptjax.sharding.axes import BS, BSJK, BT, BTHK, BTJK, DropoutKeys
from gptjax.sharding.mesh import MeshConfig

QUERY_BLOCK = 512
"""Queries that the textbook formula takes at a time where the keys they may see are fewer than the whole row's, or
where the row is long: nothing of size T×S exists then."""

MIN_COMPUTE_CAPABILITY = 8.0
"""The compute capability that the flash kernel needs: NVIDIA's Ampere."""

Kernel = Literal["cudnn", "xla"]


class Sinks(NamedTuple):
    """Learned keys and values that every token sees beside the text, as attention biases (arXiv:2402.17762, §4.2).

    They give the softmax somewhere to go when nothing in the text matters: what the first tokens of a text do otherwise
    (StreamingLLM, arXiv:2309.17453). They have no place in the text, so queries meet them as they are before
    they are turned by their positions: however long the text, a sink is as near as in training.
    """

    queries: BTHK
    keys: Float[Array, "I J K"]
    values: Float[Array, "I J K"]


class AttentionInputs(NamedTuple):
    """What attention is given by a block."""

    q: BTHK
    k: BTJK
    v: BTJK
    sinks: Sinks | None


def select_kernel(config: GPTConfig, *, backend: str) -> Kernel:
    """The kernel that will run, or a UserError if the one asked for by name cannot."""
    reason = why_not_flash(config, backend=backend)
    if config.compute.attention_impl == "cudnn" and reason:
        raise UserError(
            f"model.compute.attention_impl=cudnn cannot run: {reason}. Use --model.compute.attention_impl=auto."
        )
    return "cudnn" if config.compute.attention_impl != "xla" and reason is None else "xla"


def why_not_flash(config: GPTConfig, *, backend: str) -> str | None:
    """Why the flash kernel cannot run here; None if nothing is in its way."""
    if backend not in ("gpu", "cuda"):
        return f"the backend is {backend}, not an NVIDIA GPU"
    if (found := gpu_compute_capability()) is not None and found < MIN_COMPUTE_CAPABILITY:
        what = f"has compute capability {found:g}" if found else "is not NVIDIA's"
        return f"the GPU {what} and the kernel needs compute capability {MIN_COMPUTE_CAPABILITY:g}"
    if config.compute.dtype == "float32":
        return "model.compute.dtype is float32 and the kernel computes in 16 bits"
    if config.dropout > 0:
        return f"model.dropout is {config.dropout} and the kernel has no dropout of probabilities"
    if config.intra_document_mask:
        return "model.intra_document_mask is on and the kernel knows no documents"
    if config.num_sinks and any(config.window(layer) for layer in range(config.num_layers)):
        return "model.num_sinks would lie outside of the kernel's windows"
    width = config.head_dim * (2 if config.num_sinks else 1)
    if width % 8 or width > 128:
        note = " with room for the sinks" if config.num_sinks else ""
        return f"heads are {width} wide{note} and the kernel takes multiples of 8 up to 128"
    return None


def gpu_compute_capability() -> float | None:
    """The compute capability of the GPU that is here, 0 for one that is not NVIDIA's; None without a GPU."""
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda"):
        return None
    try:
        return float(device.compute_capability)
    except ValueError:  # AMD's are called gfx90a, say
        return 0.0


def attend(
    q: BTHK,
    k: BTJK,
    v: BTJK,
    *,
    kernel: Kernel,
    scale: float | None = None,
    window: int | None = None,
    segments: BT | None = None,
    sinks: Sinks | None = None,
    dropout: float = 0.0,
    keys: DropoutKeys | None = None,
    mesh: MeshConfig,
) -> BTHK:
    """softmax(scale · q kᵀ) v, each position seeing itself and the past.

    Args:
        scale: 1 / √K unless it is given.
        window: how many tokens each sees, its own included; None: all.
        segments: the number of the document that each token belongs to; it sees no other.
        keys: drop probabilities, by the row's key; None keeps all.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    head_keys = None
    if keys is not None and dropout > 0.0:
        head_keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(q.shape[2])))(keys)
        head_keys = jax.sharding.reshard(head_keys, mesh.activation_spec("BH")) if mesh.is_sharded else head_keys
    rows, shared, learned = mesh.activation_spec("BTHK"), mesh.activation_spec("BTJK"), mesh.unsharded_spec("IJK")
    optional = (
        None if segments is None else mesh.activation_spec("BT"),
        None if sinks is None else Sinks(rows, learned, learned),  # pyright: ignore[reportArgumentType]
        None if head_keys is None else mesh.activation_spec("BH"),
    )
    if kernel == "cudnn":
        inside = lambda q, k, v, _, sinks, __: cudnn_attention(q, k, v, scale=scale, window=window, sinks=sinks)
    else:
        inside = partial(causal_attention, scale=scale, window=window, dropout=dropout)
    return mesh.shard_map(inside, (rows, shared, shared, *optional), rows)(q, k, v, segments, sinks, head_keys)


def cudnn_attention(q: BTHK, k: BTJK, v: BTJK, *, scale: float, window: int | None, sinks: Sinks | None) -> BTHK:
    """NVIDIA's kernel. Sinks stand before the text, in channels of their own, where only they have keys."""
    run = partial(jax.nn.dot_product_attention, scale=scale, is_causal=True, implementation="cudnn")
    if sinks is None:
        return run(q, k, v, local_window_size=None if window is None else (window - 1, 0))
    count, (rows, width) = sinks.keys.shape[0], (q.shape[0], q.shape[-1])
    each_row = lambda x: jnp.broadcast_to(x[None], (rows, *x.shape))
    beside = lambda x, y: jnp.concatenate([x, y], axis=-1)
    before = lambda sink, text: jnp.concatenate([sink, text], axis=1)
    keys, values = each_row(sinks.keys), each_row(sinks.values)
    queries = jnp.pad(beside(q, sinks.queries), ((0, 0), (count, 0), (0, 0), (0, 0)))
    keys = before(beside(jnp.zeros_like(keys), keys), beside(k, jnp.zeros_like(k)))
    values = jnp.pad(before(values, v), ((0, 0), (0, 0), (0, 0), (0, width)))
    return run(queries, keys, values)[:, count:, :, :width]


def causal_attention(
    q: BTHK,
    k: BTJK,
    v: BTJK,
    segments: BT | None = None,
    sinks: Sinks | None = None,
    keys: Key[Array, "B H"] | None = None,
    *,
    scale: float,
    window: int | None = None,
    dropout: float = 0.0,
) -> BTHK:
    """The textbook formula over whole rows; a block of queries at a time, computed again for the gradient, where that
    saves much."""
    length = q.shape[1]
    reach = length if window is None else min(length, window + QUERY_BLOCK)
    if length <= QUERY_BLOCK:
        seen = causal_mask(jnp.arange(length), jnp.arange(length), window=window)
        seen = seen if segments is None else seen & same_document_mask(segments, segments)
        return dot_product_attention(q, k, v, seen=seen, scale=scale, sinks=sinks, dropout=dropout, keys=keys)

    # Queries are given to the map in blocks, not sliced inside: the gradient of a slice is a whole row, for each block.
    # Keys are sliced, for blocks of them would overlap and be several times as large.
    queries = jax.tree.map(split_into_blocks, (q, segments, None if sinks is None else sinks.queries))

    def block(given: Any) -> BTHK:
        first, (q_here, mine, turned) = given
        start = jnp.clip(first + QUERY_BLOCK - reach, 0, length - reach)
        asked = lambda x: jax.lax.dynamic_slice_in_dim(x, start, reach, axis=1)
        places = jnp.minimum(first + jnp.arange(QUERY_BLOCK), length - 1)
        seen = causal_mask(places, start + jnp.arange(reach), window=window)
        seen = seen if segments is None else seen & same_document_mask(mine, asked(segments))
        here = None if sinks is None else sinks._replace(queries=turned)
        drawn = None if keys is None else jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, first)
        return dot_product_attention(
            q_here, asked(k), asked(v), seen=seen, scale=scale, sinks=here, dropout=dropout, keys=drawn
        )

    blocks = jax.lax.map(jax.checkpoint(block), (jnp.arange(0, length, QUERY_BLOCK), queries))
    return jnp.moveaxis(blocks, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :length]


def split_into_blocks(x: Shaped[Array, "B T ..."]) -> Shaped[Array, "blocks B block ..."]:
    """Rows in blocks of `BLOCK` tokens; the last is filled up with copies of the last token: one that saw nothing would
    be 0 / 0."""
    filled = jnp.pad(x, ((0, 0), (0, -x.shape[1] % QUERY_BLOCK), *[(0, 0)] * (x.ndim - 2)), mode="edge")
    return jnp.moveaxis(filled.reshape(x.shape[0], -1, QUERY_BLOCK, *x.shape[2:]), 1, 0)


def causal_mask(queries: Int[Array, " T"], keys: Int[Array, " S"], *, window: int | None) -> Bool[Array, "1 T S"]:
    """Which keys each query may see, by their positions in the text."""
    distance = queries[None, :, None] - keys[None, None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def same_document_mask(queries: BT, keys: BS) -> Bool[Array, "B T S"]:
    """Which keys are of the query's document."""
    return queries[:, :, None] == keys[:, None, :]


def dot_product_attention(
    q: BTHK,
    k: BSJK,
    v: BSJK,
    *,
    seen: Bool[Array, "#B T S"],
    scale: float,
    sinks: Sinks | None = None,
    dropout: float = 0.0,
    keys: Key[Array, "B H"] | None = None,
) -> BTHK:
    """softmax(scale · q kᵀ) v over the keys that each query has seen, and the sinks; float32 inside the softmax.

    Queries share the keys of their group: head h reads keys h // (H / J).
    """
    rows, length, heads, width = q.shape
    grouped = lambda x: x.reshape(*x.shape[:2], k.shape[2], -1, width)
    scores = jnp.einsum("BTJRK,BSJK->BJRTS", grouped(q), k, preferred_element_type=jnp.float32)
    scores = jnp.where(seen[:, None, None], scores * scale, -jnp.inf)
    if sinks is not None:
        extra = jnp.einsum("BTJRK,IJK->BJRTI", grouped(sinks.queries), sinks.keys, preferred_element_type=jnp.float32)
        scores = jnp.concatenate([extra * scale, scores], axis=-1)
    probabilities = jax.nn.softmax(scores, axis=-1)
    if keys is not None:
        draw = lambda key: jax.random.bernoulli(key, 1.0 - dropout, probabilities.shape[3:])
        kept = jax.vmap(jax.vmap(draw))(keys).reshape(probabilities.shape)
        probabilities = jnp.where(kept, probabilities / (1.0 - dropout), 0.0)
    probabilities = probabilities.astype(v.dtype)
    count = 0 if sinks is None else sinks.keys.shape[0]
    y = jnp.einsum("BJRTS,BSJK->BTJRK", probabilities[..., count:], v)
    if sinks is not None:
        y += jnp.einsum("BJRTI,IJK->BTJRK", probabilities[..., :count], sinks.values)
    return y.reshape(rows, length, heads, width)
