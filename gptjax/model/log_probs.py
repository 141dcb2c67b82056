"""Log-probabilities of tokens, chunk by chunk: nothing of the size of a batch's logits is kept."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gptjax.model.loss import LossOptions, OutputHead, accumulate_gradients, gather_head, score_chunk, split_into_chunks
from gptjax.sharding.axes import BT, BTD


@jax.named_scope("loss")
def token_log_probs(hidden: BTD, head: OutputHead, targets: BT, *, options: LossOptions) -> Float[Array, "B T"]:
    """The log-probability of each target in nats; 0 where the target is `IGNORE_INDEX`.

    The backward pass computes the logits of a chunk once more.
    """
    return _log_probs(options, hidden, head, targets)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probs(options: LossOptions, hidden: BTD, head: OutputHead, targets: BT) -> Float[Array, "B T"]:
    mesh = options.mesh
    in_specs = (mesh.activation_spec("BTD"), options.head_specs(head), mesh.activation_spec("BT"))
    local = mesh.shard_map(partial(_local_log_probs, options), in_specs, mesh.activation_spec("BT"))
    return local(hidden, head, targets)


def _local_log_probs(options: LossOptions, hidden: BTD, head: OutputHead, targets: BT) -> Float[Array, "B T"]:
    """The log-probabilities of this device's rows."""
    gathered, chunks = gather_head(options, head), split_into_chunks(options, targets, hidden)

    def add_chunk(i: Array, found: Array) -> Array:
        y, h = chunks.take(i)
        return found.at[i].set(-score_chunk(options, h, y, gathered)[0])

    found = jnp.zeros(chunks.arrays[0].shape, jnp.float32)
    return chunks.join(jax.lax.fori_loop(0, chunks.number, add_chunk, found))


def _log_probs_forward(
    options: LossOptions, hidden: BTD, head: OutputHead, targets: BT
) -> tuple[Float[Array, "B T"], tuple[BTD, OutputHead, BT]]:
    return _log_probs(options, hidden, head, targets), (hidden, head, targets)


def _log_probs_backward(
    options: LossOptions, saved: tuple[BTD, OutputHead, BT], d_log_probs: Float[Array, "B T"]
) -> tuple[BTD, OutputHead, None]:
    mesh, head_specs = options.mesh, options.head_specs(saved[1])
    rows = mesh.activation_spec("BT")

    def local(hidden: BTD, head: OutputHead, targets: BT, weights: Float[Array, "B T"]) -> tuple[BTD, OutputHead]:
        def score(h: Array, y: Array, weight: Array, *, head: OutputHead) -> tuple[tuple[()], Array]:
            return (), -weight[:, None] * score_chunk(options, h, y, head)[1]

        return accumulate_gradients(options, score, hidden, head, rows=(targets, weights))[1:]

    in_specs = (mesh.activation_spec("BTD"), head_specs, rows, rows)
    out_specs = (mesh.activation_spec("BTD"), head_specs)
    return *mesh.shard_map(local, in_specs, out_specs)(*saved, d_log_probs), None


_log_probs.defvjp(_log_probs_forward, _log_probs_backward)
