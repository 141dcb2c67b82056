"""The ingredients of the modern recipe that loss_per_token.py measures, each as a change of a config.

Add an ingredient here to measure it. This module has no command of its own.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.optim import Muon

Change = Callable[[TrainConfig], TrainConfig]


def change_model(**fields: Any) -> Change:
    return lambda config: replace(config, model=replace(config.model, **fields))


def change_init(**fields: Any) -> Change:
    return lambda config: replace(config, model=replace(config.model, init=replace(config.model.init, **fields)))


def change_muon(**fields: Any) -> Change:
    def change(config: TrainConfig) -> TrainConfig:
        if not isinstance(config.optimizer, Muon):
            raise UserError(f"{config.name} does not use Muon.")
        return replace(config, optimizer=replace(config.optimizer, **fields))

    return change


WITHOUT: dict[str, Change] = {
    "rotary positions (and 2.4 % larger)": change_model(positions="learned"),
    "RMSNorm without scale": change_model(norm="layer", norm_scale=True),
    "QK-norm": change_model(qk_norm=False),
    "squared ReLU": change_model(activation="gelu_tanh"),
    "zero-initialized projections": change_init(zero_projections=False),
}
"""Each replaces one ingredient of the modern recipe by GPT-2's."""
WITH: dict[str, Change] = {
    "U-Net skips": change_model(unet_skips="plain"),
    "x0 in every block": change_model(x0_mix=True),
    "value residual": change_model(value_residual=True),
    "logits capped at 15": change_model(logit_softcap=15.0),
    "RMSNorm of embeddings": change_model(embedding_norm=True),
    "4 attention sinks": change_model(num_sinks=4),
    "NorMuon": change_muon(normuon_beta2=0.95),
    "Polar Express": change_muon(ns_coefficients="polar_express"),
    "cautious decay 0.1": change_muon(weight_decay=0.1, cautious_decay=True),
}
"""Each adds one ingredient to the modern recipe."""
