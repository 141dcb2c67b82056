"""A run ends early by a signal, when its time is over, or when its loss no longer falls."""

import math

import pytest

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.supervision.signals import GracefulShutdown
from gptjax.supervision.stopping import StopRules, list_losses


def test_time_counts_from_the_start_of_the_command():
    now = iter([10.0, 109.0, 111.0])
    rules = StopRules(GracefulShutdown(), max_seconds=100.0, began_at=11.0, clock=lambda: next(now))
    assert rules.check(1) is None
    assert rules.check(2) is None
    stop = rules.check(3)
    assert stop is not None
    assert (stop.status, stop.reason) == (75, "max_time is over")
    assert rules.check(3, is_first=True) is None, "a start makes a step at least"


def test_patience_counts_evaluations_without_a_lower_loss():
    rules = StopRules(GracefulShutdown(), patience=2, history=[3.0, 2.0, math.nan])
    assert rules.check_loss(None) is None
    assert rules.check_loss(1.9) is None
    assert rules.check_loss(1.9) is None
    stop = rules.check_loss(math.nan)
    assert stop is not None
    assert (stop.status, stop.reason) == (0, "2 evaluations in a row without a loss below 1.9000")
    assert StopRules(GracefulShutdown()).check_loss(5.0) is None


def test_losses_of_earlier_starts_count():
    records = [{"step": 0, "val_loss": 4.0}, {"step": 5, "loss": 1.0}, {"step": 5, "val_loss": None}]
    losses = list_losses([*records, {"step": 9, "val_loss": 1.0}], "val_loss", before=9)
    assert losses[0] == 4.0
    assert math.isnan(losses[1])
    assert len(losses) == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400), ("9:30", 570), ("01:00:01", 3601)]
)
def test_max_time_has_a_unit(text: str, seconds: float):
    assert TrainConfig(max_time=text).max_seconds == seconds


@pytest.mark.parametrize("text", ["", "90", "-5m", "1:2:3:4", "nanh", "soon"])
def test_max_time_of_another_form_is_refused(text: str):
    with pytest.raises(UserError, match=r"max_time is .*wanted a time such as 90m"):
        TrainConfig(max_time=text)
