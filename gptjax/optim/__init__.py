"""Optimizers, learning-rate schedules and the moving average of the weights."""

from gptjax.optim.adamw import AdamW
from gptjax.optim.ema import EMA
from gptjax.optim.muon import Muon
from gptjax.optim.optimizer import Optimizer
from gptjax.optim.param_groups import NamedGroup, ParamGroup
from gptjax.optim.schedules import Constant, Cosine, Linear, Schedule, WarmupStableDecay

__all__ = [
    "EMA",
    "AdamW",
    "Constant",
    "Cosine",
    "Linear",
    "Muon",
    "NamedGroup",
    "Optimizer",
    "ParamGroup",
    "Schedule",
    "WarmupStableDecay",
]
