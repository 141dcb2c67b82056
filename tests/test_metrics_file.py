"""metrics.jsonl is read as far as it is whole, and drawn whatever is in it."""

import io
import json

import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.metrics.metrics_file import plot_losses, read_metrics, to_scalar, truncate_after, write_record


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_broken_line_in_the_middle_is_named(path):
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is not a record"):
        read_metrics(path)
    with pytest.raises(UserError, match="There is no file"):
        read_metrics(path.with_name("other.jsonl"))


def test_cutting_back_keeps_the_bytes_of_what_it_keeps(path):
    path.write_text('{"step": 1,  "loss": 2.50}\n{"step": 3}\n{"step":2}\n{"step": 2, "lo')
    assert truncate_after(path, 2) == [{"step": 1, "loss": 2.5}, {"step": 2}]
    assert path.read_text() == '{"step": 1,  "loss": 2.50}\n{"step":2}\n'
    assert truncate_after(path.with_name("none.jsonl"), 2) == []


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(np.float32(0.1), 0.1), (np.float64(0.1), 0.1), (np.int32(3), 3), (np.bool_(True), 1), ("Once", "Once"), (2, 2)],
)
def test_numbers_are_written_short_and_in_jsons_own_types(value, wanted):
    file = io.StringIO()
    write_record(file, {"step": 1, "value": to_scalar(value)})
    assert json.loads(file.getvalue()) == {"step": 1, "value": wanted}


def test_drawing_writes_a_picture_and_leaves_matplotlib_alone(path, tmp_path):
    import matplotlib

    settings = dict(matplotlib.rcParams)
    with path.open("w") as file:
        for step in range(1, 11):
            write_record(file, {"step": step, "loss": float("nan") if step == 5 else 11.0 / step})
            write_record(file, {"step": step, "val_loss": 12.0 / step})
    picture = plot_losses(tmp_path, references={"GPT-2": 3.1})
    assert picture == tmp_path / "loss.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("text", ["", '{"step": 0, "val_loss": 9.0}\n', '{"step": 1, "loss": null}\n'])
def test_a_record_with_little_in_it_can_be_drawn(path, tmp_path, text):
    path.write_text(text)
    assert plot_losses(tmp_path).exists()


def test_drawing_without_a_record_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no file .*metrics\.jsonl"):
        plot_losses(tmp_path)
