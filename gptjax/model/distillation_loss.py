"""Cross-entropy and divergence from a teacher, chunk by chunk: no logits of a whole batch, neither model's.

As in `loss.py`, gradients are formed in the forward pass while the logits of a chunk are at hand. The teacher's logits
are computed once, and nothing is differentiated through them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gptjax.core.constants import IGNORE_INDEX
from gptjax.model.loss import (
    LossOptions,
    OutputHead,
    accumulate_gradients,
    compute_logits,
    gather_head,
    normalize,
    score_chunk,
)
from gptjax.sharding.axes import BT, BTD, Scalar

TeacherHidden = Float[Array, "B T W"]
"""Hidden states of a teacher, which may have another width than the student."""


@dataclass(frozen=True)
class DistillationOptions:
    """Static options: those of both heads, and how the two terms are weighed."""

    student: LossOptions
    teacher: LossOptions
    temperature: float
    kl_weight: float
    """Of temperature² · KL(teacher ‖ student), both at the temperature."""
    cross_entropy_weight: float


class DistillationSums(NamedTuple):
    """Sums over all scored tokens, in nats."""

    loss: Scalar
    """What is minimised: the weighted terms."""
    cross_entropy: Scalar
    kl: Scalar
    """The divergence itself, without weight and temperature²."""


@jax.named_scope("loss")
def distillation_loss(
    hidden: BTD,
    head: OutputHead,
    targets: BT,
    *,
    teacher_hidden: TeacherHidden,
    teacher_head: OutputHead,
    options: DistillationOptions,
) -> DistillationSums:
    """The summed loss and its terms. Only `loss` has a gradient, for `hidden` and `head`."""
    result: Any = _sum_loss(options, hidden, head, targets, teacher_hidden, teacher_head)
    loss, terms = result
    return DistillationSums(loss, *terms)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_loss(
    options: DistillationOptions,
    hidden: BTD,
    head: OutputHead,
    targets: BT,
    teacher_hidden: TeacherHidden,
    teacher_head: OutputHead,
) -> tuple[Scalar, tuple[Scalar, Scalar]]:
    return _forward(options, hidden, head, targets, teacher_hidden, teacher_head)[0]


def _forward(
    options: DistillationOptions,
    hidden: BTD,
    head: OutputHead,
    targets: BT,
    teacher_hidden: TeacherHidden,
    teacher_head: OutputHead,
) -> tuple[tuple[Scalar, tuple[Scalar, Scalar]], tuple[BTD, OutputHead, Any]]:
    student, mesh = options.student, options.student.mesh
    rows, scalar = mesh.activation_spec("BTD"), mesh.activation_spec("")
    head_specs = student.head_specs(head)
    in_specs = (rows, head_specs, mesh.activation_spec("BT"), rows, options.teacher.head_specs(teacher_head))
    out_specs = (scalar, scalar, rows, head_specs)
    local = mesh.shard_map(partial(_local_gradients, options), in_specs, out_specs)
    cross_entropy, kl, d_hidden, d_head = local(hidden, head, targets, teacher_hidden, teacher_head)
    loss = options.cross_entropy_weight * cross_entropy + options.kl_weight * options.temperature**2 * kl
    zeros = jax.tree.map(jnp.zeros_like, (teacher_hidden, teacher_head))
    return (loss, (cross_entropy, kl)), (d_hidden, d_head, zeros)


def _backward(options: DistillationOptions, saved: tuple[BTD, OutputHead, Any], d_out: Any) -> tuple[Any, ...]:
    d_hidden, d_head, (d_teacher_hidden, d_teacher_head) = saved
    d_loss = d_out[0]
    d_student = (d_hidden * d_loss).astype(d_hidden.dtype), jax.tree.map(lambda d: d * d_loss, d_head)
    return *d_student, None, d_teacher_hidden, d_teacher_head


_sum_loss.defvjp(_forward, _backward)


def _local_gradients(
    options: DistillationOptions,
    hidden: BTD,
    head: OutputHead,
    targets: BT,
    teacher_hidden: TeacherHidden,
    teacher_head: OutputHead,
) -> tuple[Scalar, Scalar, BTD, OutputHead]:
    """Both sums over all devices; the weighted loss's gradients for this one's rows and its part of the head."""
    student = options.student
    teacher = gather_head(options.teacher, teacher_head)

    def score(h: Array, y: Array, teacher_h: Array, *, head: OutputHead) -> tuple[tuple[Scalar, Scalar], Array]:
        scored = (y != IGNORE_INDEX).astype(jnp.float32)
        nats, d_nats = score_chunk(student, h, y, head)
        divergence, d_kl = _compare_chunk(options, h, teacher_h, head=head, teacher_head=teacher)
        d_kl = options.kl_weight * options.temperature**2 * scored[:, None] * d_kl
        sums = nats.sum(), (divergence * scored).sum()
        return sums, options.cross_entropy_weight * d_nats + d_kl

    rows = (targets, teacher_hidden)
    sums, d_hidden, d_head = accumulate_gradients(student, score, hidden, head, rows=rows)
    cross_entropy, kl = (student.sum_over(total, "data", "fsdp") for total in sums)
    return cross_entropy, kl, d_hidden, d_head


def _compare_chunk(
    options: DistillationOptions, h: Array, teacher_h: Array, *, head: OutputHead, teacher_head: OutputHead
) -> tuple[Array, Array]:
    """KL(teacher ‖ student) of each token at the temperature, and its gradient for the student's products."""
    student, teacher = (
        compute_logits(options.student, h, head),
        compute_logits(options.teacher, teacher_h, teacher_head),
    )
    z, target = student.logits / options.temperature, teacher.logits / options.temperature
    q_exponentials, q_sum, q_log = normalize(options.student, z)
    p_exponentials, p_sum, p_log = normalize(options.teacher, target)
    q, p = q_exponentials / q_sum[:, None], p_exponentials / p_sum[:, None]
    difference = jnp.where(student.column < options.student.vocab_size, target - z, 0.0)
    kl = options.student.sum_over((p * difference).sum(axis=1), "tensor") - p_log + q_log
    return kl, student.softcap_vjp((q - p) / options.temperature)[0]
