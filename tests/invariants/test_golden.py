"""Invariant: training computes what it computed before. The losses of two short runs equal those recorded here.

A change of initial weights, data order, dropout, model, loss, optimizer or schedule shows here. If the change is meant,
run this file as a program to print the new curves, and give the reason in a line of LAB.md.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import SINGLE, read_lines, write_text_shards

from configs import smoke
from gptjax.config import TrainConfig
from gptjax.data.config import TokenShards
from gptjax.evaluators.validation import ValidationLoss
from gptjax.optim import AdamW, Cosine
from gptjax.runs.trainer import train

# fmt: off
CURVES = {
    "muon": [
        3.881666, 3.750874, 3.463161, 3.112302, 2.761436, 2.429486, 2.207637, 2.244664, 2.133993, 1.959672,
        1.928959, 1.828838, 1.838619, 1.836745, 1.79196, 1.690712, 1.76193, 1.590534, 1.641117, 1.640899,
    ],
    "adamw": [
        3.878884, 3.624457, 3.517932, 3.253199, 3.296845, 2.904618, 2.777742, 2.852881, 2.451741, 2.179873,
        2.107447, 1.928214, 1.927732, 1.834771, 1.796464, 1.74172, 1.747094, 1.626274, 1.695245, 1.671981,
    ],
}
# fmt: on
"""Training losses of the first steps, in nats per token."""
VALIDATION = {"muon": [3.884558, 1.7355], "adamw": [3.884558, 1.738793]}
"""Validation losses before the first step and after the last."""


def make_config(name: str, directory: Path) -> TrainConfig:
    """`configs/smoke.py` in float32 for twenty steps on the formula's text: Muon, or AdamW with biases and dropout."""
    model = replace(smoke.config.model, compute=replace(smoke.config.model.compute, dtype="float32"))
    config = replace(
        smoke.config,
        model=model,
        optimizer=replace(smoke.config.optimizer, ns_dtype="float32"),
        output_dir=str(directory),
        steps=20,
        epoch_seeds="added",  # as the curves were recorded: they go beyond an epoch
        data=TokenShards(path=str(write_text_shards(directory / "shards", lines=300))),
        mesh=SINGLE,
        evaluators=(ValidationLoss(every=20, tokens=8192),),
    )
    if name == "muon":
        return config
    optimizer = AdamW(learning_rate=1e-2, schedule=Cosine(warmup_steps=5))
    return replace(config, model=replace(config.model, bias=True, dropout=0.1), optimizer=optimizer)


def run(name: str, directory: Path) -> tuple[list[float], list[float]]:
    """Train: (training losses, validation losses)."""
    config = make_config(name, directory)
    assert train(config) == 0
    losses, validation = (list(dict(read_lines(config.directory, key)).values()) for key in ("loss", "val_loss"))
    return losses, validation


@pytest.mark.parametrize("name", CURVES)
def test_losses_equal_the_recorded_curve(tmp_path: Path, name: str):
    assert len(CURVES[name]) == 20
    assert CURVES[name][0] - CURVES[name][-1] > 1, "a curve without learning would prove little"
    losses, validation = run(name, tmp_path)
    np.testing.assert_allclose(losses, CURVES[name], rtol=1e-4)
    np.testing.assert_allclose(validation, VALIDATION[name], rtol=1e-4)


if __name__ == "__main__":
    for name in CURVES:
        with tempfile.TemporaryDirectory() as scratch:
            for values in run(name, Path(scratch)):
                print(name, [round(value, 6) for value in values])
