"""Tests run on eight CPU devices, so that a mesh can be real anywhere; no accelerator, no network.

Most of their time would be spent compiling, so programs are compiled in a hurry. Without optimizations, 129 s of
processor time became 67 s. Without XLA's fusion emitters, a training step compiles in 1.1 s instead of 2.6 s. In one
LLVM module instead of 32, it takes a fifth less. Each worker keeps its programs for its later tests and for the
processes that they start. Workers share none: JAX writes an entry in place, where another may read half of one. The
cache that entry points use by default is off.
"""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

SETTINGS = {
    "jax_platforms": "cpu",
    "jax_num_cpu_devices": 8,
    "jax_disable_most_optimizations": True,
    "jax_numpy_rank_promotion": "raise",
}
FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
XLA_FLAGS = FLAGS if jax.__version__.startswith("0.10.") else ""
"""XLA ends the process at a flag that it does not know, as jax 0.12's does at the first of these."""
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""For the processes that tests start. They also inherit XLA_FLAGS."""
MIN_COMPILE_SECONDS = 0.05
"""Programs that compile faster are not kept: to write them and to look for them takes about as long."""


def pytest_configure(config: pytest.Config) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "GPTJAX_COMPILE_CACHE": "0"}
    if wants_gpu(config):
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the workers share the device
        return
    os.environ |= ENVIRONMENT
    os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
    for name, value in SETTINGS.items():
        jax.config.update(name, value)


def wants_gpu(config: pytest.Config) -> bool:
    words = config.option.markexpr.split()
    return any(word == "gpu" and words[i - 1] != "not" for i, word in enumerate(words))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Imports and tests are a million objects that live as long as the process: no collection visits them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)  # tracing makes many more than the default of 700, and few are in a cycle


@pytest.fixture(scope="session", autouse=True)
def _compiled_programs(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> None:
    """A directory for this process, and another for those that tests start and kill, perhaps while they write to it."""
    if wants_gpu(pytestconfig):
        return
    compilation_cache.reset_cache()  # imports of tests have compiled without it
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled_in_processes"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(MIN_COMPILE_SECONDS)


@pytest.fixture(scope="module", autouse=True)
def _no_picture_of_losses(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empty pictures in place of drawn ones, which take longer than the steps of a tiny run; but for two files."""
    if request.path.name in ("test_report.py", "test_verify_bytes.py") or "gptjax.runs.report" not in sys.modules:
        yield
        return

    def touch_picture(run_directory: str | Path, **_: Any) -> Path:
        (path := Path(run_directory) / "loss.png").touch()
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptjax.runs.report.plot_losses", touch_picture)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first: at the end the other workers would wait for them."""
    items.sort(key=lambda item: item.path.name != "test_processes.py")


PRINTED_ONCE = {
    "gptjax.process.console": "warn_once",
    "gptjax.checkpoints.checkpoint_format": "_warn",
    "data_pipelines.readers.paths": "tell_once",
}
"""What a process prints once. Each test is a process of its own, whatever ran before it."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    for place, name in PRINTED_ONCE.items():
        if place in sys.modules:
            getattr(sys.modules[place], name).cache_clear()
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.skip("no GPU that JAX can use")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Which tests are left out, and why."""
    expression = config.option.markexpr
    kinds = [line for line in config.getini("markers") if line.startswith(("slow:", "gpu:", "parity:"))]
    return [f"left out: {line}" for line in kinds if f"not {line.partition(':')[0]}" in expression]
