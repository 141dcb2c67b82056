"""All architectures in which a model can leave or enter, in the order of preference, and which one a config takes."""

import math
from typing import Any, Literal

from gptjax.core.errors import UserError, quote
from gptjax.huggingface.architectures.architecture import Architecture
from gptjax.huggingface.architectures.custom import CUSTOM
from gptjax.huggingface.architectures.gpt2 import GPT2
from gptjax.huggingface.architectures.llama import LLAMA
from gptjax.huggingface.architectures.nanochat import NANOCHAT
from gptjax.huggingface.architectures.qwen3 import QWEN3
from gptjax.model.config import GPTConfig

ARCHITECTURES = {each.model_type: each for each in (GPT2, LLAMA, QWEN3, NANOCHAT, CUSTOM)}
ArchitectureName = Literal["auto", "gpt2", "llama", "qwen3", "nanochat", "gptjax"]
"""`auto` takes the first architecture that can express the model."""


def choose_architecture(config: GPTConfig, name: ArchitectureName = "auto") -> Architecture:
    """The architecture of this name. Raises `UserError` with the fields of the config that it cannot express."""
    if name != "auto":
        ARCHITECTURES[name].check(config)
        return ARCHITECTURES[name]
    for architecture in ARCHITECTURES.values():
        if not architecture.list_refused(config):
            return architecture
    lacking = "; ".join(f"{each.hf_class}: {', '.join(each.list_refused(config))}" for each in ARCHITECTURES.values())
    raise UserError(f"no architecture can express the model, so it stays a run directory. Refused are, by {lacking}.")


def find_architecture(content: dict[str, Any], *, where: object) -> Architecture:
    """The architecture of a config.json. Raises `UserError` for a model type that is not known."""
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(f"{where}: model_type is {quote(repr(kind))}; wanted: {', '.join(ARCHITECTURES)}.")
    _check_common_fields(content, where=where)
    return ARCHITECTURES[kind]


def _check_common_fields(content: dict[str, Any], *, where: object) -> None:
    """Raise for values that no model can mean, in fields that every architecture has and no weight depends on."""
    if content.get("quantization_config"):
        raise UserError(f"{where}: its weights are quantized (quantization_config). Save the model with plain weights.")
    vocab = content.get("vocab_size")
    limit, wanted = (vocab, f"an id below {vocab}") if type(vocab) is int else (math.inf, "an id, which is 0 or more")
    for name in ("bos_token_id", "eos_token_id"):
        ids = content.get(name)
        for number in ids if isinstance(ids, list) else [ids]:
            if number is not None and not (type(number) is int and 0 <= number < limit):
                raise UserError(
                    f"{where}: {name} is {quote(repr(number))}; wanted {wanted}. Correct it, or set it to null."
                )
    names = content.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{where}: architectures is {quote(repr(names))}; wanted a list of class names.")
