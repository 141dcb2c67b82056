"""Next-token cross-entropy without ever holding the logits of a whole batch.

Tokens are taken in chunks; where gradients are wanted they are formed in the forward pass, while a chunk's logits
are at hand, so that the head is multiplied three times in all and nothing of size B·T·V is kept. Softmax and sums are
float32. The head may be sharded by vocabulary (tensor) and by width (fsdp); the communication is written out below.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from gptjax.core.constants import IGNORE_INDEX
from gptjax.sharding.axes import BT, BTD, VD, Count, Scalar, V
from gptjax.sharding.mesh import MeshConfig


def next_token_loss(
    hidden: BTD,
    head: VD,
    targets: BT,
    *,
    bias: V | None = None,
    vocab_size: int,
    chunk_tokens: int,
    dtype: str,
    logit_softcap: float | None = None,
    logit_softcap_curve: str = "tanh",
    z_loss: float = 0.0,
    mesh: MeshConfig,
) -> tuple[Scalar, Count]:
    """(summed cross-entropy in nats, number of scored targets); divide where all devices' sums are known.

    Args:
        hidden: what the head reads.
        head: the output head as stored: float32, V padded beyond `vocab_size`, sharded by `mesh.weights("VD")`.
        bias: the head's bias as stored: float32, padded as the head is.
        targets: the ids that follow; `IGNORED` is not scored.
        chunk_tokens: tokens of one device whose logits exist at the same time.
        dtype: type of the products' operands; sums are float32.
        softcap: draw logits into (-softcap, softcap) first, along a curve (`ops.softcapped`).
        z_loss: the gradient is that of nats + z_loss · (log Σ exp logits)², which holds the logits near a softmax's own
            scale (PaLM, arXiv:2204.02311, §5). The value stays the cross-entropy, so losses can be compared.
    """
    static = _Setting(
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        dtype=dtype,
        logit_softcap=logit_softcap,
        logit_softcap_curve=logit_softcap_curve,
        z_loss=z_loss,
        mesh=mesh,
    )
    return _summed_nats(static, hidden, Head(head, bias), targets), jnp.sum(targets != IGNORE_INDEX)


class Head(NamedTuple):
    """The output head: as stored, as sharded, its gradients, or one device's part (its share of V, and of D)."""

    weight: Any
    bias: Any = None

    @classmethod
    def sharding(cls, head: "Head", mesh: MeshConfig) -> "Head":
        return cls(mesh.weight_spec("VD"), None if head.bias is None else mesh.weight_spec("V"))


@dataclass(frozen=True)
class _Setting:
    """What is known while tracing."""

    vocab_size: int
    chunk_tokens: int
    dtype: str
    logit_softcap: float | None
    logit_softcap_curve: str
    z_loss: float
    mesh: MeshConfig


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed_nats(setting: _Setting, hidden: BTD, head: Head, targets: BT) -> Scalar:
    mesh = setting.mesh
    ins = (mesh.activation_spec("BTD"), Head.sharding(head, mesh), mesh.activation_spec("BT"))
    return mesh.shard_map(partial(_local_nats, setting), ins, mesh.activation_spec(""))(hidden, head, targets)


def _forward(setting: _Setting, hidden: BTD, head: Head, targets: BT) -> tuple[Scalar, tuple[BTD, Head]]:
    mesh = setting.mesh
    sharding = Head.sharding(head, mesh)
    ins = (mesh.activation_spec("BTD"), sharding, mesh.activation_spec("BT"))
    outs = (mesh.activation_spec(""), mesh.activation_spec("BTD"), sharding)
    nats, d_hidden, d_head = mesh.shard_map(partial(_local_gradients, setting), ins, outs)(hidden, head, targets)
    return nats, (d_hidden, d_head)


def _backward(setting: _Setting, saved: tuple[BTD, Head], d_nats: Scalar) -> tuple[BTD, Head, None]:
    d_hidden, d_head = saved
    return (d_hidden * d_nats).astype(d_hidden.dtype), jax.tree.map(lambda d: d * d_nats, d_head), None


_summed_nats.defvjp(_forward, _backward)


def _local_nats(setting: _Setting, hidden: BTD, head: Head, targets: BT) -> Scalar:
    """The sum over all devices, seen from one of them."""
    whole = _gathered(setting, head)

    def add(total: Scalar, chunk: tuple[Array, Array]) -> tuple[Scalar, None]:
        h, y = chunk
        return total + _chunk_nats(setting, h, y, whole)[0], None

    total, _ = jax.lax.scan(add, jnp.float32(0), _chunks(setting, hidden, targets))
    return _sum_over(total, "data", "fsdp", setting=setting)


def _local_gradients(setting: _Setting, hidden: BTD, head: Head, targets: BT) -> tuple[Scalar, BTD, Head]:
    """The sum and its gradients: of this device's rows, and of its share of the head."""
    whole = _gathered(setting, head)
    chunks, labels = _chunks(setting, hidden, targets)
    # Turned once, before the loop: XLA on CPU multiplies a transposed operand at less than half its speed, and has no
    # such operand if the head's gradient is summed transposed as well. Other backends don't mind.
    turned = chunks.astype(setting.dtype).mT

    def step(carry: tuple[Scalar, Head], chunk: tuple[Array, Array, Array]) -> tuple[tuple[Scalar, Head], Array]:
        total, d_head = carry
        h, h_turned, y = chunk
        nats, d_logits = _chunk_nats(setting, h, y, whole)
        d_bias = None if d_head.bias is None else d_head.bias + d_logits.sum(axis=0)
        d_logits = d_logits.astype(setting.dtype)
        d_weight = d_head.weight + jnp.einsum("dm,mv->dv", h_turned, d_logits, preferred_element_type=jnp.float32)
        d_h = jnp.einsum("mv,vd->md", d_logits, whole.weight, preferred_element_type=jnp.float32)
        return (total + nats, Head(d_weight, d_bias)), _sum_over(d_h, "tensor", setting=setting).astype(h.dtype)

    none = Head(jnp.zeros(whole.weight.shape[::-1], jnp.float32), jax.tree.map(jnp.zeros_like, head.bias))
    (total, d_head), d_chunks = jax.lax.scan(step, (jnp.float32(0), none), (chunks, turned, labels))
    d_weight = d_head.weight.T
    d_hidden = d_chunks.reshape(-1, hidden.shape[-1])[: targets.size].reshape(hidden.shape)
    if setting.mesh.axis_sizes["fsdp"] > 1:
        d_weight = jax.lax.psum_scatter(d_weight, "fsdp", scatter_dimension=1, tiled=True)
    d_weight = _sum_over(d_weight, "data", setting=setting)
    d_bias = None if d_head.bias is None else _sum_over(d_head.bias, "data", "fsdp", setting=setting)
    return _sum_over(total, "data", "fsdp", setting=setting), d_hidden, Head(d_weight, d_bias)


def _chunk_nats(
    setting: _Setting, h: Float[Array, "M D"], y: Int[Array, " M"], head: Head
) -> tuple[Scalar, Float[Array, "M V"]]:
    """Summed cross-entropy of M tokens and its gradient with respect to their logits (this device's columns)."""
    rows = head.weight.shape[0]
    logits = jnp.einsum("md,vd->mv", h.astype(setting.dtype), head.weight, preferred_element_type=jnp.float32)
    logits = logits if head.bias is None else logits + head.bias[None]
    tensor = setting.mesh.axis_sizes["tensor"]
    first = jax.lax.axis_index("tensor") * rows if tensor > 1 else 0
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) + first
    logits, slope = _capped(setting, logits)
    logits = jnp.where(column < setting.vocab_size, logits, -jnp.inf)

    largest = logits.max(axis=1)
    if tensor > 1:
        largest = jax.lax.pmax(largest, "tensor")
    exponentials = jnp.exp(logits - largest[:, None])
    partition = _sum_over(exponentials.sum(axis=1), "tensor", setting=setting)
    here = (y >= first) & (y < first + rows)  # the label's column is one of this device's
    picked = jnp.take_along_axis(logits, jnp.where(here, y - first, 0)[:, None], axis=1)[:, 0]
    label = _sum_over(jnp.where(here, picked, 0.0), "tensor", setting=setting)

    scored = (y != IGNORE_INDEX).astype(jnp.float32)
    log_partition = jnp.log(partition) + largest
    nats = (log_partition - label) * scored
    pull = scored if setting.z_loss == 0.0 else scored * (1.0 + 2.0 * setting.z_loss * log_partition)
    d_logits = exponentials * (pull / partition)[:, None] - (column == y[:, None]) * scored[:, None]
    return nats.sum(), d_logits if slope is None else d_logits * slope


def _capped(setting: _Setting, logits: Float[Array, "M V"]) -> tuple[Float[Array, "M V"], Float[Array, "M V"] | None]:
    """Logits after the softcap, and the slope of its curve there."""
    if (cap := setting.logit_softcap) is None:
        return logits, None
    if setting.logit_softcap_curve == "tanh":
        ratio = jnp.tanh(logits / cap)
        return cap * ratio, 1.0 - jnp.square(ratio)
    shrink = jax.lax.rsqrt(1.0 + jnp.square(logits / cap))
    return logits * shrink, shrink**3


def _chunks(setting: _Setting, hidden: BTD, targets: BT) -> tuple[Float[Array, "chunks M D"], Int[Array, "chunks M"]]:
    """Tokens in a row, cut into chunks of M; the last is filled up with ignored ones."""
    h, y = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    size = min(setting.chunk_tokens, y.size)
    if missing := -y.size % size:
        h = jnp.pad(h, ((0, missing), (0, 0)))
        y = jnp.pad(y, (0, missing), constant_values=IGNORE_INDEX)
    return h.reshape(-1, size, h.shape[-1]), y.reshape(-1, size)


def _gathered(setting: _Setting, head: Head) -> Head:
    """This device's rows of the head, whole in width; cast first, so that fewer bytes travel."""
    weight = head.weight.astype(setting.dtype)
    divided = setting.mesh.axis_sizes["fsdp"] > 1
    return head._replace(weight=jax.lax.all_gather(weight, "fsdp", axis=1, tiled=True) if divided else weight)


def _sum_over(x: Array, *axes: str, setting: _Setting) -> Array:
    present = tuple(axis for axis in axes if setting.mesh.axis_sizes[axis] > 1)
    return jax.lax.psum(x, present) if present else x
