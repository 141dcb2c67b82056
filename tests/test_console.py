"""Numbers and durations read as a person writes them; the lines themselves are tested through the logbook."""

import pytest

from gptjax.metrics.console import format_columns, format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (99.94, "99.9 s"), (100.0, "1 min 40 s"), (119.6, "2 min 00 s"), (6000.0, "1 h 40 min")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_columns_are_wide_and_sentences_are_not():
    values = {"loss": 2.5, "tokens_per_second": 1234.5, "new": 0.12345}
    assert format_columns(values) == "loss  2.5000        1,234 tokens/s  new 0.1235"
    assert format_columns(values, ", ") == "loss 2.5000, 1,234 tokens/s, new 0.1235"
