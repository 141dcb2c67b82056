"""A GPT to read, train and take apart, in JAX.

These names are found when they are first used. Importing gptjax itself imports nothing, so that the processes which
only tokenise start at once; and it imports no door, for a door that runs as `python -m` would then exist twice.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptjax.config import TrainConfig, load_config
    from gptjax.data.config import TokenShards
    from gptjax.huggingface.gpt2 import from_hf, to_hf
    from gptjax.model.config import GPTConfig
    from gptjax.model.generation import generate
    from gptjax.model.gpt import GPT
    from gptjax.optim import AdamW, Muon
    from gptjax.run_dir import RunDir
    from gptjax.training.state import TrainState

_HOMES = {
    "GPT": "model",
    "GPTConfig": "gpt_config",
    "TrainConfig": "config",
    "load_config": "config",
    "TokenShards": "data",
    "AdamW": "optim",
    "Muon": "optim",
    "TrainState": "state",
    "Run": "run",
    "generate": "generation",
    "from_hf": "hf",
    "to_hf": "hf",
}

__all__ = [
    "GPT",
    "AdamW",
    "GPTConfig",
    "Muon",
    "Run",
    "TokenShards",
    "TrainConfig",
    "TrainState",
    "from_hf",
    "generate",
    "load_config",
    "to_hf",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gptjax' has no attribute {name!r}")
    value = getattr(import_module(f"gptjax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
