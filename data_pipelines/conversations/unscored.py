"""Which answers of a conversation are context: the model reads them and is not trained on them."""

from typing import Any

from gptjax.core.errors import quote
from gptjax.tokenization.messages import InvalidRecord, as_message

SWITCHES = ("weight", "train", "training", "loss")
"""Fields of a message that are 0 or false: of OpenAI and Mistral, of axolotl (two), of ms-swift."""


def is_unscored(item: Any, *, where: str) -> bool:
    """Whether a message, in any form, is context by its own words. Raises `InvalidRecord` for a weight like 0.5."""
    message = as_message(item) or {}
    values = [message[name] for name in SWITCHES if isinstance(message.get(name), int | float | str)]
    if (weight := message.get("weight")) is not None and _read_switch(weight) is None:
        raise InvalidRecord(
            f"{where}: the weight of a message is {quote(repr(weight), limit=20)}. Wanted 1, or 0 for an answer that "
            "is context."
        )
    return any(_read_switch(value) is False for value in values)


def _read_switch(value: Any) -> bool | None:
    """Other programs write switches as numbers and words, too; None for what is neither on nor off."""
    return {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}.get(str(value).lower())
