"""Law: the method itself does not drift; the smoke config's losses on a text made by a formula are those kept here.

A change of initial weights, data order, model, loss, optimizer or schedule shows here. If it is meant, run this file as
a program to print the new curve, and give the reason for changing it in a line of LAB.md.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from gptjax.core.settings import load_config
from tiny import SINGLE, read_lines, write_text_shards

from gptjax.config import TrainConfig
from gptjax.data.config import TokenShards
from gptjax.train import train

CURVE = [
    3.881666,
    3.750874,
    3.463161,
    3.112302,
    2.761436,
    2.429486,
    2.207637,
    2.244664,
    2.133993,
    1.959672,
    1.928959,
    1.828838,
    1.838619,
    1.836745,
    1.79196,
    1.690712,
    1.76193,
    1.590534,
    1.641117,
    1.640899,
]
"""Training losses of the first steps, in nats per token."""
VALIDATION = [3.884558, 1.7355]
"""Validation losses before the first step and after the last."""


def run(directory: Path) -> tuple[list[float], list[float]]:
    """Train `configs/smoke.py` for twenty steps on the formula's text: (training losses, validation losses)."""
    config = replace(
        load_config("smoke", TrainConfig),
        output_dir=str(directory),
        steps=20,
        data=TokenShards(path=str(write_text_shards(directory / "shards", lines=300))),
        mesh=SINGLE,
    )
    assert train(config) == 0
    found = (dict(read_lines(config.directory, name)) for name in ("loss", "val_loss"))
    losses, validation = (list(values.values()) for values in found)
    return losses, validation


def test_the_curve_is_the_one_that_was_kept(tmp_path):
    losses, validation = run(tmp_path)
    np.testing.assert_allclose(losses, CURVE, rtol=1e-4)
    np.testing.assert_allclose(validation, VALIDATION, rtol=1e-4)


def test_the_curve_is_one_of_learning():
    assert len(CURVE) == 20
    assert CURVE[0] - CURVE[-1] > 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for name, values in zip(("CURVE", "VALIDATION"), run(Path(scratch)), strict=True):
            print(f"{name} = {[round(value, 6) for value in values]}")
