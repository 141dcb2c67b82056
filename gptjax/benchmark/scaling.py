"""Fits loss against parameters and tokens (Chinchilla, arXiv:2203.15556, approach 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize
from scipy.special import huber, logsumexp

from gptjax.core.errors import UserError

HUBER_DELTA = 1e-3
"""Residuals of the log loss beyond this count linearly, so that a failed run does not decide the fit."""


@dataclass(frozen=True)
class ScalingLaw:
    """loss(N, D) = E + A / N^alpha + B / D^beta for N parameters and D tokens, in nats per token."""

    E: float
    """Loss of an endless model with endless tokens."""
    A: float
    alpha: float
    B: float
    beta: float

    def predict_loss(self, parameters: float, tokens: float) -> float:
        """The loss of a model of this size after so many tokens."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def choose_size(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) with the least loss for this much compute, which is 6 · parameters · tokens."""
        total = self.alpha + self.beta
        factor = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        parameters = factor * (flops / 6) ** (self.beta / total)
        return parameters, flops / 6 / parameters


CHINCHILLA = ScalingLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
"""The fit that the paper publishes (equation 10)."""


def fit_scaling_law(parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float]) -> ScalingLaw:
    """The law whose log losses are nearest to those measured, from the best of several starts.

    Raises:
        UserError: there are fewer than five runs, or they have less than two sizes or two numbers of tokens.
    """
    if len(losses) < 5 or len(set(parameters)) < 2 or len(set(tokens)) < 2:
        raise UserError(
            f"a scaling law has five numbers; {len(losses)} runs of {len(set(parameters))} sizes and "
            f"{len(set(tokens))} numbers of tokens do not determine it. Train five or more, of several of both."
        )
    log_n, log_d, log_loss = (np.log(np.asarray(values, float)) for values in (parameters, tokens, losses))

    def compute_error(theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The sum of Huber losses, and its gradient."""
        a, b, e, alpha, beta = theta
        terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
        predicted = logsumexp(terms, axis=0)
        residual = predicted - log_loss
        by_n, by_d, by_e = np.exp(terms - predicted) * np.clip(residual, -HUBER_DELTA, HUBER_DELTA)
        gradient = [by_n.sum(), by_d.sum(), by_e.sum(), -(by_n @ log_n), -(by_d @ log_d)]
        # Divided by delta, for the optimizer stops at small gradients.
        return float(huber(HUBER_DELTA, residual).sum()) / HUBER_DELTA, np.array(gradient) / HUBER_DELTA

    # The logarithms of A and B, and the exponents, start from a grid as in the paper (appendix D.3), a coarser one.
    starts = product((0.0, 5.0, 10.0), (0.0, 5.0, 10.0), (float(log_loss.min()) - 0.5,), (0.2, 0.6), (0.2, 0.6))
    fits = [minimize(compute_error, start, jac=True, method="BFGS") for start in starts]
    a, b, e, alpha, beta = min(fits, key=lambda fit: fit.fun).x
    return ScalingLaw(E=float(np.exp(e)), A=float(np.exp(a)), alpha=float(alpha), B=float(np.exp(b)), beta=float(beta))
