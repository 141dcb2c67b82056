"""GPT pretraining in JAX and Flax NNX.

Importing gptjax imports nothing else, so that processes that only tokenise start at once. The names below are imported
when they are first used. Entry points are not among them: one that runs as `python -m` would exist twice.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gptjax.process import broken_import as _broken_import  # noqa: F401, its hook is for the imports after it
from gptjax.process.early_exit import install_early_handler, is_module_run
from gptjax.process.memory import keep_freed_memory

if TYPE_CHECKING:
    from gptjax.config import TrainConfig, load_config
    from gptjax.data.config import TokenShards
    from gptjax.generation.generate import generate
    from gptjax.huggingface.model_export import to_hf
    from gptjax.huggingface.model_import import from_hf
    from gptjax.model.config import GPTConfig
    from gptjax.model.gpt import GPT
    from gptjax.optim import AdamW, Muon
    from gptjax.runs.run_dir import RunDir
    from gptjax.training.state import TrainState

if is_module_run():
    install_early_handler()
    keep_freed_memory()  # before NumPy and JAX start threads

_MODULES = {
    "GPT": "model.gpt",
    "GPTConfig": "model.config",
    "TrainConfig": "config",
    "load_config": "config",
    "TokenShards": "data.config",
    "AdamW": "optim",
    "Muon": "optim",
    "TrainState": "training.state",
    "RunDir": "runs.run_dir",
    "generate": "generation.generate",
    "from_hf": "huggingface.model_import",
    "to_hf": "huggingface.model_export",
}

__all__ = [
    "GPT",
    "AdamW",
    "GPTConfig",
    "Muon",
    "RunDir",
    "TokenShards",
    "TrainConfig",
    "TrainState",
    "from_hf",
    "generate",
    "load_config",
    "to_hf",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'gptjax' has no attribute {name!r}")
    value = getattr(import_module(f"gptjax.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
