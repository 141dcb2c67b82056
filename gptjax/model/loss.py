"""Next-token cross-entropy that never holds the logits of a whole batch.

Tokens are taken in chunks. If gradients are wanted, they are formed in the forward pass while a chunk's logits are at
hand: the head is multiplied three times in all and nothing of size B · T · V is kept. Softmax and sums are float32. The
head may be sharded by vocabulary (tensor) and by width (fsdp); the communication is written out below.
"""

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
from gptjax.sharding.axes import BT, BTD, Count, Scalar
from gptjax.sharding.mesh import MeshConfig

FLOAT16_FACTOR = 2.0**10
"""Factor on gradients of logits while they are operands in float16. They lie within (-1, 1), or little more."""


class Head(NamedTuple):
    """The output head (V, D) and its bias (V,): stored arrays, their gradients, their specs, or one device's part."""

    weight: Any
    bias: Any = None


@dataclass(frozen=True)
class LossOptions:
    """Static options of the loss."""

    vocab_size: int
    chunk_tokens: int
    """Tokens of one device whose logits exist at the same time."""
    dtype: str
    """Type of the products' operands. Sums are float32."""
    mesh: MeshConfig
    logit_softcap: float | None = None
    logit_softcap_curve: str = "tanh"
    z_loss: float = 0.0
    """The gradient is that of nats + z_loss · (log Σ exp logits)², which keeps logits near 0 (PaLM, arXiv:2204.02311,
    §5). The value stays the cross-entropy, so losses can be compared."""

    @classmethod
    def from_config(
        cls, config: GPTConfig, *, chunk_tokens: int, mesh: MeshConfig, z_loss: float = 0.0
    ) -> "LossOptions":
        return cls(
            vocab_size=config.resolved_vocab_size,
            chunk_tokens=chunk_tokens,
            dtype=config.compute.head_dtype or config.compute.dtype,
            mesh=mesh,
            logit_softcap=config.logit_softcap,
            logit_softcap_curve=config.logit_softcap_curve,
            z_loss=z_loss,
        )

    def sum_over(self, x: Array, *axes: str) -> Array:
        """Sum over these mesh axes, inside shard_map."""
        present = tuple(axis for axis in axes if self.mesh.axis_sizes[axis] > 1)
        return jax.lax.psum(x, present) if present else x

    def head_specs(self, head: Head) -> Any:
        """How the head is sharded."""
        return Head(self.mesh.weight_spec("VD"), None if head.bias is None else self.mesh.weight_spec("V"))


@jax.named_scope("loss")
def next_token_loss(hidden: BTD, head: Head, targets: BT, *, options: LossOptions) -> tuple[Scalar, Count]:
    """(summed cross-entropy in nats, number of scored targets). Divide once the sums of all devices are known.

    Args:
        hidden: what the head reads.
        head: as stored: float32, V padded beyond `vocab_size`, sharded by `mesh.weight_spec`.
        targets: the ids that follow. `IGNORE_INDEX` is not scored.
    """
    return _sum_nats(options, hidden, head, targets), jnp.sum(targets != IGNORE_INDEX)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_nats(options: LossOptions, hidden: BTD, head: Head, targets: BT) -> Scalar:
    mesh = options.mesh
    in_specs = (mesh.activation_spec("BTD"), options.head_specs(head), mesh.activation_spec("BT"))
    return mesh.shard_map(partial(_local_nats, options), in_specs, mesh.activation_spec(""))(hidden, head, targets)


def _forward(options: LossOptions, hidden: BTD, head: Head, targets: BT) -> tuple[Scalar, tuple[BTD, Head]]:
    mesh, head_specs = options.mesh, options.head_specs(head)
    in_specs = (mesh.activation_spec("BTD"), head_specs, mesh.activation_spec("BT"))
    out_specs = (mesh.activation_spec(""), mesh.activation_spec("BTD"), head_specs)
    nats, d_hidden, d_head = mesh.shard_map(partial(_local_gradients, options), in_specs, out_specs)(
        hidden, head, targets
    )
    return nats, (d_hidden, d_head)


def _backward(options: LossOptions, saved: tuple[BTD, Head], d_nats: Scalar) -> tuple[BTD, Head, None]:
    d_hidden, d_head = saved
    return (d_hidden * d_nats).astype(d_hidden.dtype), jax.tree.map(lambda d: d * d_nats, d_head), None


_sum_nats.defvjp(_forward, _backward)


def _local_nats(options: LossOptions, hidden: BTD, head: Head, targets: BT) -> Scalar:
    """The sum over all devices, computed on one of them."""
    gathered = _gather_head(options, head)

    def add_chunk(total: Scalar, chunk: tuple[Array, Array]) -> tuple[Scalar, None]:
        h, y = chunk
        return total + _chunk_nats(options, h, y, gathered)[0], None

    total, _ = jax.lax.scan(add_chunk, jnp.float32(0), _split_into_chunks(options, hidden, targets))
    return options.sum_over(total, "data", "fsdp")


def _local_gradients(options: LossOptions, hidden: BTD, head: Head, targets: BT) -> tuple[Scalar, BTD, Head]:
    """The sum, and its gradients for this device's rows and its part of the head."""
    gathered = _gather_head(options, head)
    chunks, labels = _split_into_chunks(options, hidden, targets)
    # Transposed once, before the loop: XLA on CPU multiplies a transposed operand at less than half its speed. The
    # head's gradient is summed transposed for the same reason. Other backends do not mind.
    transposed = chunks.astype(options.dtype).mT
    # A probability of 1e-7 would be 0 in float16. The objective's own scale comes later, with the loss's gradient.
    factor = FLOAT16_FACTOR if options.dtype == "float16" else 1.0

    def add_chunk(carry: tuple[Scalar, Head], chunk: tuple[Array, Array, Array]) -> tuple[tuple[Scalar, Head], Array]:
        total, d_head = carry
        h, h_transposed, y = chunk
        nats, d_logits = _chunk_nats(options, h, y, gathered)
        d_bias = None if d_head.bias is None else d_head.bias + d_logits.sum(axis=0)
        d_logits = (d_logits * factor).astype(options.dtype)
        d_weight = d_head.weight + jnp.einsum("dm,mv->dv", h_transposed, d_logits, preferred_element_type=jnp.float32)
        d_h = jnp.einsum("mv,vd->md", d_logits, gathered.weight, preferred_element_type=jnp.float32)
        return (total + nats, Head(d_weight, d_bias)), options.sum_over(d_h / factor, "tensor").astype(h.dtype)

    zeros = Head(jnp.zeros(gathered.weight.shape[::-1], jnp.float32), jax.tree.map(jnp.zeros_like, head.bias))
    (total, d_head), d_chunks = jax.lax.scan(add_chunk, (jnp.float32(0), zeros), (chunks, transposed, labels))
    d_weight = d_head.weight.T / factor
    d_hidden = d_chunks.reshape(-1, hidden.shape[-1])[: targets.size].reshape(hidden.shape)
    if options.mesh.axis_sizes["fsdp"] > 1:
        d_weight = jax.lax.psum_scatter(d_weight, "fsdp", scatter_dimension=1, tiled=True)
    d_weight = options.sum_over(d_weight, "data")
    d_bias = None if d_head.bias is None else options.sum_over(d_head.bias, "data", "fsdp")
    return options.sum_over(total, "data", "fsdp"), d_hidden, Head(d_weight, d_bias)


def _chunk_nats(
    options: LossOptions, h: Float[Array, "M D"], y: Int[Array, " M"], head: Head
) -> tuple[Scalar, Float[Array, "M V"]]:
    """Summed cross-entropy of M tokens, and its gradient for their logits (this device's columns)."""
    rows = head.weight.shape[0]
    logits = jnp.einsum("md,vd->mv", h.astype(options.dtype), head.weight, preferred_element_type=jnp.float32)
    logits = logits if head.bias is None else logits + head.bias[None]
    tensor = options.mesh.axis_sizes["tensor"]
    first = jax.lax.axis_index("tensor") * rows if tensor > 1 else 0
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) + first
    softcap = partial(apply_softcap, cap=options.logit_softcap, curve=options.logit_softcap_curve)
    logits, softcap_vjp = jax.vjp(softcap, logits)
    logits = jnp.where(column < options.vocab_size, logits, -jnp.inf)

    largest = logits.max(axis=1)
    if tensor > 1:
        largest = jax.lax.pmax(largest, "tensor")
    exponentials = jnp.exp(logits - largest[:, None])
    partition = options.sum_over(exponentials.sum(axis=1), "tensor")
    here = (y >= first) & (y < first + rows)  # the label's column is one of this device's
    picked = jnp.take_along_axis(logits, jnp.where(here, y - first, 0)[:, None], axis=1)[:, 0]
    label = options.sum_over(jnp.where(here, picked, 0.0), "tensor")

    scored = (y != IGNORE_INDEX).astype(jnp.float32)
    log_partition = jnp.log(partition) + largest
    nats = (log_partition - label) * scored
    weight = scored if options.z_loss == 0.0 else scored * (1.0 + 2.0 * options.z_loss * log_partition)
    d_logits = exponentials * (weight / partition)[:, None] - (column == y[:, None]) * scored[:, None]
    return nats.sum(), softcap_vjp(d_logits)[0]


def _split_into_chunks(
    options: LossOptions, hidden: BTD, targets: BT
) -> tuple[Float[Array, "chunks M D"], Int[Array, "chunks M"]]:
    """Tokens in a row, cut into chunks of M. The last chunk is filled with ignored targets."""
    h, y = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    size = min(options.chunk_tokens, y.size)
    if missing := -y.size % size:
        h = jnp.pad(h, ((0, missing), (0, 0)))
        y = jnp.pad(y, (0, missing), constant_values=IGNORE_INDEX)
    return h.reshape(-1, size, h.shape[-1]), y.reshape(-1, size)


def _gather_head(options: LossOptions, head: Head) -> Head:
    """This device's rows of the head, whole in width. It is cast first, so that fewer bytes travel."""
    weight = head.weight.astype(options.dtype)
    is_sharded = options.mesh.axis_sizes["fsdp"] > 1
    return head._replace(weight=jax.lax.all_gather(weight, "fsdp", axis=1, tiled=True) if is_sharded else weight)
