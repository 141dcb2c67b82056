import pytest
from test_hlo_scopes import PROGRAM

from gptjax.benchmark.breakdown import Event, join_events
from gptjax.benchmark.hlo_scopes import parse_program


def test_join_events_adds_up_and_counts_nested_time_once() -> None:
    line = [
        Event("while.1", "while.1", 0, 100e6),  # not exclusive
        Event("linear_fusion", "linear_fusion", 0, 40e6),
        Event("exp_fusion", "exp_fusion", 10e6, 15e6),  # inside the one before, as on a thread that helps
        Event("adam", "adam", 50e6, 20e6),
        Event("", "MemcpyD2D", 70e6, 5e6),
    ]
    other = [Event("adam", "adam", 0, 30e6)]
    found = join_events([line, other], parse_program(PROGRAM), steps=2, passed=0.1)
    rows = {(row.category, row.direction): row.milliseconds for row in found.rows}
    assert rows == {
        ("attention", "backward"): 7.5,
        ("linears", "forward"): 12.5,
        ("optimizer", "update"): 25.0,
        ("copies", "update"): 2.5,
    }
    assert found.total == pytest.approx(sum(rows.values()))
    assert found.passed == 50.0
    assert found.operations[0].name == "adam"
    assert found.unscoped_share == 0.0
