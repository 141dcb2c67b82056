"""The readers of data_pipelines, by which all commands understand a file alike."""

from importlib import import_module
from types import ModuleType


def import_reader(name: str) -> ModuleType:
    """A module of `data_pipelines.readers`.

    By name, for gptjax imports nothing of data_pipelines; both are installed together.
    """
    return import_module(f"data_pipelines.readers.{name}")
