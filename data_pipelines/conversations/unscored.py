"""Which answers of a conversation are context: the model reads them and is not trained on them."""

from typing import Any

from gptjax.core.errors import quote
from gptjax.tokenization.messages import InvalidRecord, as_message

SWITCHES = ("weight", "train", "training")
"""Fields of a message that are 0 or false for context: of OpenAI and Mistral, and of axolotl (two)."""
_READ = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
"""Switches in small letters: other programs write them as numbers and words, too."""


def is_unscored(item: Any, *, where: str) -> bool:
    """Whether a message, in any form, is context by its own words. Raises `InvalidRecord` for a weight like 0.5."""
    message = as_message(item) or {}
    given = {name: message[name] for name in SWITCHES if message.get(name) is not None}
    for name, value in given.items():
        if str(value).lower() not in _READ:
            raise InvalidRecord(
                f"{where}: {quote(repr(name))} of a message is {quote(repr(value), limit=20)}. Wanted 1 or true, or 0 "
                "or false for an answer that is context."
            )
    loss = str(message.get("loss")).lower()  # of ms-swift; a number may be a logged loss
    return loss == "false" or any(not _READ[str(value).lower()] for value in given.values())
