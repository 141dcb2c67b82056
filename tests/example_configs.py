"""A small config class with a field of every kind, and config files for it, for the tests of gptjax.core."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

import pytest
import tyro

from gptjax.cli import config_files
from gptjax.core.errors import UserError


@runtime_checkable
class Evaluator(Protocol):
    """Anything that is due at some steps."""

    def is_due(self, step: int) -> bool: ...


@runtime_checkable
class Optimizer(Protocol):
    """Anything that maps a step to a learning rate."""

    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay."""

    learning_rate: float = 6e-4
    """The peak."""
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise UserError(f"AdamW.learning_rate is {self.learning_rate}: use 0 or more.")

    def __call__(self, step: int) -> float:
        return self.learning_rate


@dataclass(frozen=True)
class Muon:
    """Orthogonalised momentum."""

    learning_rate: float = 0.02
    momentum: float = 0.95

    def __call__(self, step: int) -> float:
        return self.learning_rate


@dataclass(frozen=True)
class Shards:
    """Tokens on disk."""

    path: str = "data"


@dataclass(frozen=True)
class WebShards(Shards):
    """Tokens of a web crawl."""

    source: str = "web"


@dataclass(frozen=True)
class Mesh:
    """Shape of the device mesh."""

    preset: Annotated[Literal["data", "fsdp"], tyro.conf.arg(name="")] = "data"
    fsdp: int | None = None


@dataclass(frozen=True)
class Loss:
    """An evaluator."""

    every: int = 100

    def is_due(self, step: int) -> bool:
        return step % self.every == 0


@dataclass(frozen=True)
class Stage:
    """A change at a step. It has no method."""

    begin: int
    batch_size: int | None = None


@dataclass(frozen=True)
class Config:
    """A run."""

    name: str = "run"
    """The name of the run."""
    steps: int = 10
    resume: bool = True
    data: Shards = field(default_factory=Shards)
    optimizer: Optimizer = field(default_factory=AdamW)
    warmup: AdamW | Muon | None = None
    mesh: Mesh = field(default_factory=Mesh)
    evaluators: tuple[Evaluator, ...] = ()
    stages: tuple[Stage, ...] = ()
    windows: tuple[int, ...] | None = None
    names: list[str] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)


IMPORTS = "from dataclasses import dataclass, replace\nfrom example_configs import *\n"
"""The first two lines of a config file."""


def write_config(path: str | Path, text: str) -> None:
    """Write a config file; line 3 is the first line of `text`."""
    Path(path).write_text(IMPORTS + text, encoding="utf-8")


def install_configs(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package `configs` with the files quickstart.py and large.py under a directory; returns its path."""
    package = directory / "configs"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    write_config(package / "quickstart.py", "config = Config('quick')\n")
    text = (package / "quickstart.py").read_text()
    (package / "quickstart.py").write_text(f'"""The smallest run.\n\nMore."""\n{text}')
    (package / "large.py").write_text(
        '"""A larger run."""\nfrom dataclasses import replace\nfrom configs.quickstart import config as base\n'
        "config = replace(base, name='large')\n"
    )
    monkeypatch.syspath_prepend(directory)
    monkeypatch.setattr(config_files, "PACKAGES", directory)
    return package
