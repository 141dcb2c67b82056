"""Objectives that learn from pairs of answers, a chosen and a rejected one: DPO, IPO, SimPO and ORPO.

A row holds several pairs, each a chosen document and the rejected one after it, which do not see each other. The
log-probability of an answer is the sum over its scored tokens, its end included. The loss is the mean over the pairs of
the whole batch, and so are the logged metrics:

- `reward_chosen`, `reward_rejected`: what the policy has learned about an answer, by the formula of the objective.
- `reward_margin`: their difference. `reward_accuracy`: the share of pairs in which it is positive.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gptjax.core.constants import IGNORE_INDEX
from gptjax.core.errors import UserError
from gptjax.core.lazy import LazyModule
from gptjax.data.source import RowKind
from gptjax.model.log_probs import token_log_probs
from gptjax.model.loss import LossOptions
from gptjax.objectives.objective import LossSums, MicroBatch, run_rows
from gptjax.sharding.axes import BT, DropoutKeys
from gptjax.sharding.mesh import MeshConfig

if TYPE_CHECKING:
    from gptjax.model import gpt
else:
    gpt = LazyModule("gptjax.model.gpt")  # imports flax

Pairs = Float[Array, "B P"]
"""A number for each pair of a row; the last ones of a row may not exist."""


class PairSide(NamedTuple):
    """One side of the pairs of some rows."""

    log_probs: Pairs
    """Summed log-probability of the scored tokens, in nats; minus the reference's, if there is one."""
    lengths: Pairs
    """Scored tokens."""

    @property
    def means(self) -> Pairs:
        """The log-probability of a token, on average."""
        return self.log_probs / jnp.maximum(self.lengths, 1)


class PairLosses(NamedTuple):
    """The loss of each pair, and the rewards of its answers."""

    loss: Pairs
    reward_chosen: Pairs
    reward_rejected: Pairs


@dataclass(frozen=True)
class PairObjective(abc.ABC):
    """What the objectives over pairs share. Dropout is not used: it would hide the difference between two answers."""

    beta: float = 0.1
    """How fast a reward grows with the log-probability."""
    chunk_tokens: int = 8192
    """Tokens of one device whose logits are in memory at a time."""

    row_kind: ClassVar[RowKind] = "pairs"

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise UserError(f"objective.beta is {self.beta}; it must be above 0 and finite.")
        if self.chunk_tokens < 1:
            raise UserError(f"objective.chunk_tokens is {self.chunk_tokens}; it must be at least 1.")

    @abc.abstractmethod
    def compare(self, chosen: PairSide, rejected: PairSide) -> PairLosses:
        """Loss and rewards of each pair."""

    def sum_loss(self, model: "gpt.GPT", batch: MicroBatch, dropout_keys: DropoutKeys | None = None) -> LossSums:
        """Sums over all pairs on all devices."""
        return self.sum_pairs(batch, compute_log_probs(model, batch, chunk_tokens=self.chunk_tokens), mesh=model.mesh)

    def sum_pairs(self, batch: MicroBatch, log_probs: Float[Array, "B T"], *, mesh: MeshConfig) -> LossSums:
        """Sums over the pairs of rows, from the (relative) log-probability of each target."""
        scored = (batch["targets"] != IGNORE_INDEX).astype(jnp.float32)
        totals = sum_documents(jnp.stack([log_probs, scored], axis=-1), batch["segments"], mesh=mesh)
        chosen, rejected = (PairSide(totals[..., side, 0], totals[..., side, 1]) for side in (0, 1))
        exists = (chosen.lengths > 0) & (rejected.lengths > 0)
        found = self.compare(chosen, rejected)
        margin = found.reward_chosen - found.reward_rejected
        metrics = {
            "reward_chosen": found.reward_chosen,
            "reward_rejected": found.reward_rejected,
            "reward_margin": margin,
            "reward_accuracy": (margin > 0).astype(jnp.float32),
        }
        total = lambda values: jnp.sum(jnp.where(exists, values, 0.0))
        return LossSums(total(found.loss), jnp.sum(exists), {name: total(values) for name, values in metrics.items()})


@dataclass(frozen=True)
class ReferenceObjective(PairObjective):
    """An objective that compares the policy with a frozen reference."""

    reference: str | None = None
    """Run, or a checkpoint of it (RUN@best), that is the reference. None: the weights that the run starts from."""
    store_reference: bool = True
    """Compute the reference's log-probabilities once, into the run directory. Otherwise in every step."""

    def load_frozen_model(self, load: Callable[[str | None], "gpt.GPT"]) -> "gpt.GPT | None":
        """The reference, if its log-probabilities are computed in every step."""
        return None if self.store_reference else load(self.reference)

    def sum_loss(
        self,
        model: "gpt.GPT",
        batch: MicroBatch,
        dropout_keys: DropoutKeys | None = None,
        *,
        frozen: "gpt.GPT | None" = None,
    ) -> LossSums:
        """Sums over all pairs on all devices. The batch has the reference's log-probabilities, or `frozen` is given."""
        compute = partial(compute_log_probs, batch=batch, chunk_tokens=self.chunk_tokens)
        reference = batch["reference"] if frozen is None else jax.lax.stop_gradient(compute(frozen))
        return self.sum_pairs(batch, compute(model) - reference, mesh=model.mesh)


@dataclass(frozen=True)
class DPO(ReferenceObjective):
    """Direct preference optimization (arXiv:2305.18290): -log σ(β (log-ratio of chosen - of rejected))."""

    label_smoothing: float = 0.0
    """Probability that a label is wrong (conservative DPO)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"objective.label_smoothing is {self.label_smoothing}; it must be in [0, 0.5).")

    def compare(self, chosen: PairSide, rejected: PairSide) -> PairLosses:
        rewards = self.beta * chosen.log_probs, self.beta * rejected.log_probs
        margin, wrong = rewards[0] - rewards[1], self.label_smoothing
        loss = -(1 - wrong) * jax.nn.log_sigmoid(margin) - wrong * jax.nn.log_sigmoid(-margin)
        return PairLosses(loss, *rewards)


@dataclass(frozen=True)
class IPO(ReferenceObjective):
    """Identity preference optimization (arXiv:2310.12036): (log-ratio of chosen - of rejected - 1 / 2β)².

    Log-ratios are means over tokens, as TRL takes them.
    """

    def compare(self, chosen: PairSide, rejected: PairSide) -> PairLosses:
        loss = (chosen.means - rejected.means - 1 / (2 * self.beta)) ** 2
        return PairLosses(loss, self.beta * chosen.means, self.beta * rejected.means)


@dataclass(frozen=True)
class SimPO(PairObjective):
    """SimPO (arXiv:2405.14734): -log σ(β (mean log-probability of chosen - of rejected) - margin); no reference."""

    beta: float = 2.0
    """How fast a reward grows with the mean log-probability of a token."""
    margin: float = 1.0
    """Wanted difference of the rewards (γ)."""

    def compare(self, chosen: PairSide, rejected: PairSide) -> PairLosses:
        rewards = self.beta * chosen.means, self.beta * rejected.means
        return PairLosses(-jax.nn.log_sigmoid(rewards[0] - rewards[1] - self.margin), *rewards)


@dataclass(frozen=True)
class ORPO(PairObjective):
    """ORPO (arXiv:2403.07691): nats of a chosen token - β log σ(log odds of chosen - of rejected); no reference.

    Odds are those of the mean log-probability of a token.
    """

    def compare(self, chosen: PairSide, rejected: PairSide) -> PairLosses:
        log_odds = _log_odds(chosen.means) - _log_odds(rejected.means)
        loss = -chosen.means - self.beta * jax.nn.log_sigmoid(log_odds)
        return PairLosses(loss, self.beta * chosen.means, self.beta * rejected.means)


def _log_odds(log_prob: Pairs) -> Pairs:
    """log(p / (1 - p)); p is taken to be at most 1 - 1e-6."""
    log_prob = jnp.minimum(log_prob, -1e-6)
    return log_prob - jnp.log(-jnp.expm1(log_prob))


def compute_log_probs(model: "gpt.GPT", batch: MicroBatch, *, chunk_tokens: int) -> Float[Array, "B T"]:
    """The log-probability of each scored target, in nats; 0 elsewhere."""
    options = LossOptions.from_config(model.config, chunk_tokens=chunk_tokens, mesh=model.mesh, skip_unscored=True)
    return token_log_probs(run_rows(model, batch), model.output_head, batch["targets"], options=options)


def sum_documents(values: Float[Array, "B T X"], segments: BT, *, mesh: MeshConfig) -> Float[Array, "B P 2 X"]:
    """Sums over the documents of each row, pair by pair: the chosen one, then the rejected one.

    A document has at least two tokens, so a row has at most T / 4 pairs.
    """
    pairs = max(1, values.shape[1] // 4)

    def sum_row(values: Array, segments: Array) -> Array:
        return jax.ops.segment_sum(values, segments, num_segments=2 * pairs + 1)[1:]

    def sum_rows(values: Array, segments: Array) -> Array:
        return jax.vmap(sum_row)(values, segments).reshape(len(values), pairs, 2, values.shape[-1])

    rows = mesh.activation_spec("B")
    return mesh.shard_map(sum_rows, (rows, rows), rows)(values, segments)
