"""A scaling law is recovered from the losses that it made."""

import numpy as np
import pytest

from gptjax.benchmark.scaling import CHINCHILLA, fit_scaling_law
from gptjax.core.errors import UserError


def test_fit_of_made_losses_finds_their_law() -> None:
    sizes, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 5)))
    losses = [CHINCHILLA.predict_loss(n, d) for n, d in zip(sizes, tokens, strict=True)]
    losses[3] *= 1.3  # one run that failed
    law = fit_scaling_law(sizes.tolist(), tokens.tolist(), losses)
    for name in ("E", "alpha", "beta"):
        assert getattr(law, name) == pytest.approx(getattr(CHINCHILLA, name), rel=0.02), name


def test_chosen_size_has_the_least_loss_of_its_compute() -> None:
    parameters, tokens = CHINCHILLA.choose_size(1e21)
    assert 6 * parameters * tokens == pytest.approx(1e21)
    best = CHINCHILLA.predict_loss(parameters, tokens)
    for factor in (0.9, 1.1):
        assert CHINCHILLA.predict_loss(parameters * factor, tokens / factor) > best


def test_fit_of_too_few_runs_is_refused() -> None:
    with pytest.raises(UserError, match="4 runs of 2 sizes"):
        fit_scaling_law([1.0, 2.0, 1.0, 2.0], [1.0, 1.0, 2.0, 2.0], [4.0, 3.0, 3.0, 2.0])
