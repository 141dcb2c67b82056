"""Drawing the losses of a run."""

import json
from pathlib import Path

import pytest

from gptjax.core.errors import UserError
from gptjax.metrics.plots import list_evaluations, plot_losses


def test_plot_losses_writes_an_image_and_keeps_settings(tmp_path: Path):
    import matplotlib

    settings = dict(matplotlib.rcParams)
    records = [{"step": step, "loss": None if step == 5 else 11.0 / step} for step in range(1, 11)]
    records += [{"step": step, "val_loss": 12.0 / step} for step in range(1, 11)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    image = plot_losses(tmp_path, references={"GPT-2": 3.1})
    assert image == tmp_path / "loss.png"
    assert image.read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == settings


def test_evaluations_of_texts_and_tasks_have_panels(tmp_path: Path):
    records = [{"step": n, "eval_text_bits_per_byte": 1.0 / (n + 1), "eval_x_error": "no"} for n in range(4)]
    assert list_evaluations(records) == ["eval_text_bits_per_byte"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert plot_losses(tmp_path).exists()


@pytest.mark.parametrize("text", ["", '{"step": 0, "val_loss": 9.0}\n', '{"step": 1, "loss": null}\n'])
def test_plot_losses_accepts_few_records(tmp_path: Path, text: str):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert plot_losses(tmp_path).exists()


def test_plot_losses_without_a_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"no file .*metrics\.jsonl"):
        plot_losses(tmp_path)


def test_first_validation_loss_is_in_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from matplotlib.axes import Axes

    limits: list[float] = []
    monkeypatch.setattr(Axes, "set_ylim", lambda axes, low, high: limits.extend((low, high)))
    records = [{"step": 0, "val_loss": 7.0}, {"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    plot_losses(tmp_path)
    assert limits[0] < 4.0
    assert limits[1] > 7.0
