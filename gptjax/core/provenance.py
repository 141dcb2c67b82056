"""What a run was made with, written beside it so that it can be made again."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = ("gptjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def environment() -> dict[str, Any]:
    """What a run was made with: the git commit of this source tree (if it is one), versions, platform."""
    return {
        "git": _git_state(Path(__file__)),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(file: Path) -> dict[str, Any] | None:
    """The commit that `file` belongs to and whether tracked files differ from it; None outside a work tree."""
    # Installed into somebody else's work tree, the file is not tracked there, and that commit says nothing.
    tracked = _git(file, "ls-files", "--error-unmatch", file.name)
    commit = _git(file, "rev-parse", "HEAD")
    if tracked is None or commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git(file, "status", "--porcelain", "--untracked-files=no"))}


def _git(file: Path, *words: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(file.parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
