"""The training method does not drift: two tiny runs repeat losses that were recorded before.

A change of initial weights, data order, model, loss, optimizer or schedule shows here. If it is meant, run this file as
a program to print the new curves, and give the reason for the change in LAB.md.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import SINGLE, read_lines, write_text_shards

from gptjax.config import TrainConfig, load_config
from gptjax.data.config import TokenShards
from gptjax.optim import AdamW
from gptjax.optim.schedules import Cosine
from gptjax.train import train

CURVES = {
    "muon": [
        [3.881666, 3.750874, 3.463161, 3.112302, 2.761436, 2.429486, 2.207637, 2.244664, 2.133993, 1.959672],
        [1.928959, 1.828838, 1.838619, 1.836745, 1.79196, 1.690712, 1.76193, 1.590534, 1.641117, 1.640899],
    ],
    "adamw": [
        [3.878884, 3.624457, 3.517932, 3.253199, 3.296845, 2.904618, 2.777742, 2.852881, 2.451741, 2.179873],
        [2.107447, 1.928214, 1.927732, 1.834771, 1.796464, 1.74172, 1.747094, 1.626274, 1.695245, 1.671981],
    ],
}
"""Training losses of the first twenty steps, in nats a token."""
VALIDATION = {"muon": [3.884558, 1.7355], "adamw": [3.884558, 1.738793]}
"""Validation losses before the first step and after the last."""


def make_config(name: str) -> TrainConfig:
    """`configs/smoke.py`, which has Muon; or a GPT-2 with biases, dropout and light remat, trained by AdamW."""
    config = load_config("smoke")
    if name == "muon":
        return config
    compute = replace(config.model.compute, remat="light")
    model = replace(config.model, bias=True, dropout=0.1, compute=compute)
    return replace(config, model=model, optimizer=AdamW(learning_rate=0.01, schedule=Cosine(warmup_steps=5)))


def run(name: str, directory: Path) -> tuple[list[float], list[float]]:
    """Train for twenty steps on a text made by a formula: (training losses, validation losses)."""
    data = TokenShards(path=str(write_text_shards(directory / "shards", lines=300)))
    config = replace(make_config(name), output_dir=str(directory), steps=20, data=data, mesh=SINGLE)
    assert train(config) == 0
    losses, validation = (dict(read_lines(config.directory, key)) for key in ("loss", "val_loss"))
    return list(losses.values()), list(validation.values())


@pytest.mark.parametrize("name", CURVES)
def test_losses_equal_the_recorded_curve(tmp_path: Path, name: str) -> None:
    losses, validation = run(name, tmp_path)
    np.testing.assert_allclose(losses, sum(CURVES[name], []), rtol=1e-4)
    np.testing.assert_allclose(validation, VALIDATION[name], rtol=1e-4)


if __name__ == "__main__":
    for name in CURVES:
        with tempfile.TemporaryDirectory() as scratch:
            for kind, values in zip(("training", "validation"), run(name, Path(scratch)), strict=True):
                print(f"{name} {kind} {[round(value, 6) for value in values]}")
