"""Records the versions and the git commit that a run was made with."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PACKAGES = ("gptjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_VARIABLES = (
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_DEFAULT_PRNG_IMPL",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_EXEC_TIME_OPTIMIZATION_EFFORT",
    "JAX_OPTIMIZATION_LEVEL",
    "JAX_RANDOM_SEED_OFFSET",
    "JAX_SOFTMAX_CUSTOM_JVP",
    "JAX_THREEFRY_PARTITIONABLE",
    "JAX_USE_SHARDY_PARTITIONER",
    "NVIDIA_TF32_OVERRIDE",
    "XLA_FLAGS",
)
"""Environment variables with which a run computes other numbers."""


def collect_environment(devices: Sequence[str] = ()) -> dict[str, Any]:
    """Return the git commit of this source tree (None outside one), package versions, platform and devices, as JSON."""
    return {
        "git": read_git_state(Path(__file__)),
        "python": platform.python_version(),
        "packages": collect_versions(),
        "platform": platform.platform(),
        "cores": count_cores(),
        "variables": collect_variables(),
        "devices": list(devices),
    }


def collect_versions() -> dict[str, str | None]:
    """Versions of the packages that numbers depend on."""
    return {name: find_version(name) for name in _PACKAGES}


def collect_variables() -> dict[str, str]:
    """The environment variables that are set and on which numbers depend."""
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def count_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_environment_change(path: Path, devices: Sequence[str]) -> str | None:
    """How versions, cores, variables and devices differ from an environment.json, in words; None if they do not."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        packages = dict(old["packages"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    new = collect_versions()
    changes = [f"{name} {packages[name]} → {new[name]}" for name in new if packages.get(name) not in (None, new[name])]
    for name, now in (("cores", count_cores()), ("devices", list(devices))):
        if old.get(name) not in (None, now):
            changes.append(f"{name} {_shorten(old[name])} → {_shorten(now)}")
    if isinstance(before := old.get("variables"), dict):
        now = collect_variables()
        pairs = {name: (before.get(name, "unset"), now.get(name, "unset")) for name in _VARIABLES}
        changes += [f"{name} {was} → {found}" for name, (was, found) in pairs.items() if was != found]
    return ", ".join(changes) or None


def _shorten(value: Any) -> str:
    return f"{len(value)} × {value[0]}" if isinstance(value, list) and value else str(value)


def print_versions() -> None:
    """Print the versions of gptjax, Python, the main packages and, last, the devices that JAX finds."""
    print(f"gptjax {find_version('gptjax') or '(not installed; this is its source tree)'}")
    print(f"python {platform.python_version()}")
    for name in _PACKAGES[1:]:
        print(f"{name} {find_version(name) or '(not installed)'}")
    import jax  # starts a backend

    kinds = Counter(device.device_kind for device in jax.devices())
    print(f"devices {', '.join(f'{count} x {kind}' for kind, count in kinds.items())} ({jax.default_backend()})")


def read_git_state(file: Path) -> dict[str, Any] | None:
    """Return the commit that `file` belongs to and whether tracked files differ from it; None if it is not tracked."""
    # An installed copy may lie inside another project's work tree, whose commit says nothing about this source.
    tracked = _run_git(file, "ls-files", "--error-unmatch", file.name)
    commit = _run_git(file, "rev-parse", "HEAD")
    if tracked is None or commit is None:
        return None
    return {"commit": commit, "dirty": bool(_run_git(file, "status", "--porcelain", "--untracked-files=no"))}


def find_version(package: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run_git(file: Path, *arguments: str) -> str | None:
    """Return what git prints for the directory of `file`; None if git fails or is missing."""
    command = ["git", "--no-optional-locks", "-C", str(file.parent), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
