"""Reading, truncating and writing metrics.jsonl."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.metrics.metrics_file import MetricsFileWriter, read_metrics, to_scalar, truncate_after


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_read_metrics_names_an_invalid_line(path: Path):
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is not a record"):
        read_metrics(path)
    with pytest.raises(UserError, match="There is no file"):
        read_metrics(path.with_name("other.jsonl"))


def test_truncate_after_keeps_bytes_of_earlier_steps(path: Path):
    path.write_text('{"step": 1,  "loss": 2.50}\n{"step": 3}\n{"step":2}\n{"step": 2, "lo')
    assert truncate_after(path, 2) == [{"step": 1, "loss": 2.5}, {"step": 2}]
    assert path.read_text() == '{"step": 1,  "loss": 2.50}\n{"step":2}\n'
    assert truncate_after(path.with_name("none.jsonl"), 2) == []


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.float32(0.1), 0.1),
        (np.float64(0.1), 0.1),
        (np.int32(3), 3),
        (np.bool_(True), 1),
        ("Once", "Once"),
        (2, 2),
        (np.inf, None),
    ],
)
def test_writer_writes_short_json_numbers(path: Path, value: Any, wanted: Any):
    writer = MetricsFileWriter(path)
    writer.write({"step": 1, "value": to_scalar(value)})
    writer.close()
    assert json.loads(path.read_text()) == {"step": 1, "value": wanted}
