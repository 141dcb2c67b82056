"""Next-token cross-entropy that never holds the logits of a whole batch.

Tokens are taken in chunks. If gradients are wanted, they are formed in the forward pass while a chunk's logits are at
hand: the head is multiplied three times in all and nothing of size B · T · V is kept. Softmax and sums are float32. The
head may be sharded by vocabulary (tensor) and by width (fsdp); the communication is written out below.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from gptjax.core.constants import IGNORE_INDEX
from gptjax.model.config import GPTConfig
from gptjax.model.layers import apply_softcap
from gptjax.model.products import finish_product
from gptjax.sharding.axes import BT, BTD, Count, Scalar
from gptjax.sharding.devices import target_device
from gptjax.sharding.mesh import MeshConfig

FLOAT16_FACTOR = 2.0**10
"""Factor on gradients of logits while they are operands in float16. They lie within (-1, 1), or little more."""


class OutputHead(NamedTuple):
    """The output head (V, D) and its bias (V,): stored arrays, their gradients, their specs, or one device's part."""

    weight: Any
    bias: Any = None


@dataclass(frozen=True)
class LossOptions:
    """Static options of the loss."""

    vocab_size: int
    chunk_tokens: int
    """Tokens of one device whose logits exist at the same time. `from_config` limits them on CPUs."""
    dtype: str
    """Type of the products' operands. Sums are float32."""
    mesh: MeshConfig
    logit_softcap: float | None = None
    logit_softcap_curve: str = "tanh"
    skip_unscored: bool = False
    """Take tokens with a target first, and end with the last of them. It costs a copy of the hidden states, which pays
    where many tokens have no target, as in chats."""
    z_loss: float = 0.0
    """The gradient is that of nats + z_loss · (log Σ exp logits)², which keeps logits near 0 (PaLM, arXiv:2204.02311,
    §5). The value stays the cross-entropy, so losses can be compared."""

    @classmethod
    def from_config(
        cls,
        config: GPTConfig,
        *,
        chunk_tokens: int,
        mesh: MeshConfig,
        skip_unscored: bool = False,
        z_loss: float = 0.0,
    ) -> "LossOptions":
        return cls(
            vocab_size=config.resolved_vocab_size,
            chunk_tokens=min(chunk_tokens, _most_chunk_tokens(config.padded_vocab_size)),
            dtype=config.compute.head_dtype or config.compute.dtype,
            mesh=mesh,
            logit_softcap=config.logit_softcap,
            logit_softcap_curve=config.logit_softcap_curve,
            skip_unscored=skip_unscored,
            z_loss=z_loss,
        )

    def sum_over(self, x: Array, *axes: str) -> Array:
        """Sum over these mesh axes, inside shard_map."""
        present = tuple(axis for axis in axes if self.mesh.axis_sizes[axis] > 1)
        return jax.lax.psum(x, present) if present else x

    def largest(self, x: Array, *axes: str) -> Array:
        """Largest over these mesh axes, inside shard_map."""
        present = tuple(axis for axis in axes if self.mesh.axis_sizes[axis] > 1)
        return jax.lax.pmax(x, present) if present else x

    def head_specs(self, head: OutputHead) -> Any:
        """How the head is sharded."""
        return OutputHead(self.mesh.weight_spec("VD"), None if head.bias is None else self.mesh.weight_spec("V"))


def _most_chunk_tokens(vocab: int) -> int:
    """Tokens of a chunk that are worth having. CPUs are fastest with 256 k logits, or 256 tokens."""
    return max(256, 1 << max(1, 2**18 // vocab).bit_length() - 1) if target_device().platform == "cpu" else sys.maxsize


@jax.named_scope("loss")
def next_token_loss(hidden: BTD, head: OutputHead, targets: BT, *, options: LossOptions) -> tuple[Scalar, Count]:
    """(summed cross-entropy in nats, number of scored targets). Divide once the sums of all devices are known.

    Args:
        hidden: what the head reads.
        head: as stored: float32, V padded beyond `vocab_size`, sharded by `mesh.weight_spec`.
        targets: the ids that follow. `IGNORE_INDEX` is not scored.
    """
    return _sum_nats(options, hidden, head, targets), jnp.sum(targets != IGNORE_INDEX)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_nats(options: LossOptions, hidden: BTD, head: OutputHead, targets: BT) -> Scalar:
    mesh = options.mesh
    in_specs = (mesh.activation_spec("BTD"), options.head_specs(head), mesh.activation_spec("BT"))
    return mesh.shard_map(partial(_local_nats, options), in_specs, mesh.activation_spec(""))(hidden, head, targets)


def _forward(options: LossOptions, hidden: BTD, head: OutputHead, targets: BT) -> tuple[Scalar, tuple[BTD, OutputHead]]:
    mesh, head_specs = options.mesh, options.head_specs(head)
    in_specs = (mesh.activation_spec("BTD"), head_specs, mesh.activation_spec("BT"))
    out_specs = (mesh.activation_spec(""), mesh.activation_spec("BTD"), head_specs)
    nats, d_hidden, d_head = mesh.shard_map(partial(_local_gradients, options), in_specs, out_specs)(
        hidden, head, targets
    )
    return nats, (d_hidden, d_head)


def _backward(options: LossOptions, saved: tuple[BTD, OutputHead], d_nats: Scalar) -> tuple[BTD, OutputHead, None]:
    d_hidden, d_head = saved
    return (d_hidden * d_nats).astype(d_hidden.dtype), jax.tree.map(lambda d: d * d_nats, d_head), None


_sum_nats.defvjp(_forward, _backward)


def _local_nats(options: LossOptions, hidden: BTD, head: OutputHead, targets: BT) -> Scalar:
    """The sum over all devices, computed on one of them."""
    gathered, chunks = gather_head(options, head), split_into_chunks(options, targets, hidden)

    def add_chunk(i: Array, total: Scalar) -> Scalar:
        y, h = chunks.take(i)
        return total + score_chunk(options, h, y, gathered)[0].sum()

    return options.sum_over(jax.lax.fori_loop(0, chunks.number, add_chunk, jnp.float32(0)), "data", "fsdp")


def _local_gradients(
    options: LossOptions, hidden: BTD, head: OutputHead, targets: BT
) -> tuple[Scalar, BTD, OutputHead]:
    """The sum, and its gradients for this device's rows and its part of the head."""

    def score(h: Array, y: Array, *, head: OutputHead) -> tuple[Scalar, Array]:
        nats, d_logits = score_chunk(options, h, y, head)
        return nats.sum(), d_logits

    total, d_hidden, d_head = accumulate_gradients(options, score, hidden, head, rows=(targets,))
    return options.sum_over(total, "data", "fsdp"), d_hidden, d_head


def accumulate_gradients(
    options: LossOptions,
    score: Callable[..., tuple[Any, Array]],
    hidden: BTD,
    head: OutputHead,
    *,
    rows: tuple[Array, ...],
) -> tuple[Any, BTD, OutputHead]:
    """Sums over this device's tokens, and the gradients for its hidden states and its part of the head.

    Args:
        score: (hidden states (M, D), a chunk of each of the `rows`, head=gathered) → (sums, gradient of the logits).
        rows: targets (B, T) and other arrays (B, T, …).
    """
    gathered, chunks = gather_head(options, head), split_into_chunks(options, *rows, hidden)
    # Transposed once, before the loop: XLA on CPU multiplies a transposed operand at less than half its speed. The
    # head's gradient is summed transposed for the same reason. Other backends do not mind.
    transposed = chunks.arrays[-1].astype(options.dtype).mT
    # A probability of 1e-7 would be 0 in float16. The objective's own scale comes later, with the loss's gradient.
    factor = FLOAT16_FACTOR if options.dtype == "float16" else 1.0

    def score_number(i: Any) -> tuple[Any, Array]:
        *own, h = chunks.take(i)
        return score(h, *own, head=gathered)

    def add_chunk(i: Array, carry: tuple[Any, OutputHead, Array]) -> tuple[Any, OutputHead, Array]:
        total, d_head, d_chunks = carry
        sums, d_logits = score_number(i)
        d_bias = None if d_head.bias is None else d_head.bias + d_logits.sum(axis=0)
        d_logits = (d_logits * factor).astype(options.dtype)
        d_weight = d_head.weight + _multiply("dm,mv->dv", transposed[i], d_logits)
        d_h = options.sum_over(_multiply("mv,vd->md", d_logits, gathered.weight) / factor, "tensor")
        total = jax.tree.map(jnp.add, total, sums)
        return total, OutputHead(d_weight, d_bias), d_chunks.at[i].set(d_h.astype(d_chunks.dtype))

    sums = jax.eval_shape(lambda: score_number(0)[0])
    zeros = OutputHead(jnp.zeros(gathered.weight.shape[::-1], jnp.float32), jax.tree.map(jnp.zeros_like, head.bias))
    carry = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums), zeros, jnp.zeros_like(chunks.arrays[-1])
    total, d_head, d_chunks = jax.lax.fori_loop(0, chunks.number, add_chunk, carry)
    d_weight = d_head.weight.T / factor
    if options.mesh.axis_sizes["fsdp"] > 1:
        d_weight = jax.lax.psum_scatter(d_weight, "fsdp", scatter_dimension=1, tiled=True)
    d_weight = options.sum_over(d_weight, "data")
    d_bias = None if d_head.bias is None else options.sum_over(d_head.bias, "data", "fsdp")
    return total, chunks.join(d_chunks), OutputHead(d_weight, d_bias)


def _multiply(axis_names: str, x: Array, y: Array) -> Array:
    """The float32 product of two matrices. On CPUs nothing moves into it (`products.py` says why)."""
    return finish_product(jnp.einsum(axis_names, x, y, preferred_element_type=jnp.float32))


class ChunkLogits(NamedTuple):
    """The logits of a chunk of tokens, this device's columns of them, softcapped and masked beyond the vocabulary."""

    logits: Float[Array, "M V"]
    column: Int[Array, "M V"]
    """The id of each column."""
    first: Any
    """The id of the first column."""
    softcap_vjp: Callable[[Array], tuple[Array]]
    """From the gradient of the softcapped logits to that of the products."""


def compute_logits(options: LossOptions, h: Float[Array, "M D"], head: OutputHead) -> ChunkLogits:
    """The logits of M tokens from a gathered head."""
    rows = head.weight.shape[0]
    logits = _multiply("md,vd->mv", h.astype(options.dtype), head.weight)
    logits = logits if head.bias is None else logits + head.bias[None]
    first = jax.lax.axis_index("tensor") * rows if options.mesh.axis_sizes["tensor"] > 1 else 0
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) + first
    softcap = partial(apply_softcap, cap=options.logit_softcap, curve=options.logit_softcap_curve)
    logits, softcap_vjp = jax.vjp(softcap, logits)
    return ChunkLogits(jnp.where(column < options.vocab_size, logits, -jnp.inf), column, first, softcap_vjp)


def normalize(options: LossOptions, logits: Float[Array, "M V"]) -> tuple[Array, Array, Array]:
    """(exp(logits - largest), their sum over the whole vocabulary, log Σ exp logits)."""
    largest = options.largest(logits.max(axis=1), "tensor")
    exponentials = jnp.exp(logits - largest[:, None])
    partition = options.sum_over(exponentials.sum(axis=1), "tensor")
    return exponentials, partition, jnp.log(partition) + largest


def score_chunk(
    options: LossOptions, h: Float[Array, "M D"], y: Int[Array, " M"], head: OutputHead
) -> tuple[Float[Array, " M"], Float[Array, "M V"]]:
    """Cross-entropy of M tokens, 0 where nothing is scored, and its gradient for their logits."""
    logits, column, first, softcap_vjp = compute_logits(options, h, head)
    exponentials, partition, log_partition = normalize(options, logits)
    here = (y >= first) & (y < first + logits.shape[1])  # the label's column is one of this device's
    picked = jnp.take_along_axis(logits, jnp.where(here, y - first, 0)[:, None], axis=1)[:, 0]
    label = options.sum_over(jnp.where(here, picked, 0.0), "tensor")

    scored = (y != IGNORE_INDEX).astype(jnp.float32)
    nats = (log_partition - label) * scored
    weight = scored if options.z_loss == 0.0 else scored * (1.0 + 2.0 * options.z_loss * log_partition)
    d_logits = exponentials * (weight / partition)[:, None] - (column == y[:, None]) * scored[:, None]
    return nats, softcap_vjp(d_logits)[0]


class Chunks(NamedTuple):
    """A device's tokens in chunks of M."""

    arrays: tuple[Array, ...]
    """(chunks, M, …) each. The last chunk is filled with ignored targets and zeros."""
    number: Any
    """How many chunks count. In those behind them no token has a target."""
    order: Array | None
    """Where each token was; None if they stand where they were."""
    shape: tuple[int, ...]
    """(B, T)."""

    def take(self, i: Any) -> tuple[Array, ...]:
        """Chunk i of each array."""
        return tuple(array[i] for array in self.arrays)

    def join(self, array: Array) -> Array:
        """(chunks, M, …) → (B, T, …): each token where it was."""
        rows = array.reshape(-1, *array.shape[2:])
        rows = rows[: math.prod(self.shape)] if self.order is None else rows[jnp.argsort(self.order)]
        return rows.reshape(*self.shape, *array.shape[2:])


def split_into_chunks(options: LossOptions, targets: BT, *others: Array) -> Chunks:
    """Targets (B, T) and other arrays (B, T, …), cut into chunks."""
    flat = [array.reshape(-1, *array.shape[2:]) for array in (targets, *others)]
    size, order = min(options.chunk_tokens, targets.size), None
    number: Any = -(-targets.size // size)
    if options.skip_unscored:
        scored = flat[0] != IGNORE_INDEX
        order = jnp.argsort(~scored, stable=True)
        flat = [array[order] for array in flat]
        # Devices go round equally often, because they communicate.
        number = options.largest(-(-jnp.sum(scored) // size), "data", "fsdp")

    def cut(array: Array, *, fill: int) -> Array:
        missing = ((0, -len(array) % size), *((0, 0) for _ in array.shape[1:]))
        return jnp.pad(array, missing, constant_values=fill).reshape(-1, size, *array.shape[1:])

    arrays = tuple(cut(array, fill=0 if i else IGNORE_INDEX) for i, array in enumerate(flat))
    return Chunks(arrays, number, order, targets.shape)


def gather_head(options: LossOptions, head: OutputHead) -> OutputHead:
    """This device's rows of the head, whole in width. It is cast first, so that fewer bytes travel."""
    weight = head.weight.astype(options.dtype)
    is_sharded = options.mesh.axis_sizes["fsdp"] > 1
    return head._replace(weight=jax.lax.all_gather(weight, "fsdp", axis=1, tiled=True) if is_sharded else weight)
