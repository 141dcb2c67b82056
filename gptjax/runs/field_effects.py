"""Refuses what a command line sets although it changes nothing in this config."""

from collections.abc import Callable, Collection
from functools import reduce
from typing import Any

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards

SWITCHES: tuple[tuple[str, str, str, Callable[[TrainConfig], Any]], ...] = (
    ("lora.alpha", "lora.rank", "above 0", lambda c: c.lora.enabled),
    ("lora.targets", "lora.rank", "above 0", lambda c: c.lora.enabled),
    ("lora.new_tokens", "lora.rank", "above 0", lambda c: c.lora.enabled),
    ("ema.fraction", "ema.decay", "given", lambda c: c.ema.enabled),
    ("log.wandb_project", "log.wandb", "offline or online", lambda c: c.log.wandb != "off"),
    ("checkpoint.best_metric", "checkpoint.keep_best", "True", lambda c: c.checkpoint.keep_best or c.patience),
)
"""(field, the field that switches it on, what that must be, predicate). `REQUIREMENTS` are those within a model."""


def check_effects(config: TrainConfig, explicit_fields: Collection[str]) -> None:
    """Raise a `UserError` for a field that the command line has set and that has no effect.

    A command line that also sets the switch says what it wants: `--log.wandb=off` for one run among others.
    """
    for field, switch, wanted, has_effect in SWITCHES:
        if field in explicit_fields and switch not in explicit_fields and not has_effect(config):
            value = reduce(getattr, switch.split("."), config)
            given, needed = (f"--{name.replace('_', '-')}" for name in (field, switch))
            raise UserError(f"{given} has no effect: {switch} is {value!r}. Give {needed} ({wanted}), or leave it out.")
    data = config.data
    if isinstance(data, TokenShards) and data.path is not None:
        unread = [field for field in data.unread_with_path if f"data.{field}" in explicit_fields]
        if unread:
            flags = ", ".join(f"--data.{field.replace('_', '-')}" for field in unread)
            raise UserError(
                f"{flags}: no effect on the shards of data.path ({data.path}), which are prepared already. "
                "Leave this out, or data.path."
            )
