"""Compiled programs are kept between runs by default, where that is safe."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from gptjax.core import compile_cache
from gptjax.core.compile_cache import describe_cpu, enable_compile_cache, name_machine, prune

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def _default_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GPTJAX_COMPILE_CACHE")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    before = {name: jax.config.values[name] for name in SETTINGS}
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def enabled_directory() -> str | None:
    enable_compile_cache()
    return jax.config.values["jax_compilation_cache_dir"]


def test_cache_is_on_by_default_and_only_its_owner_may_write(tmp_path: Path) -> None:
    directory = tmp_path / "cache" / "compiled" / name_machine()
    assert enabled_directory() == str(directory)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_cache_is_off_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("GPTJAX_COMPILE_CACHE", "0")
        assert enabled_directory() is None
    jax.config.update("jax_enable_compilation_cache", False)
    assert enabled_directory() is None
    assert not (tmp_path / "cache").exists()


def test_directory_that_is_set_stays(tmp_path: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert enabled_directory() == str(tmp_path / "mine")
    assert jax.config.values["jax_enable_compilation_cache"]
    assert not (tmp_path / "cache").exists()


def test_directory_that_is_set_and_cannot_be_made_is_one_note(capsys: pytest.CaptureFixture[str]) -> None:
    jax.config.update("jax_compilation_cache_dir", "/proc/none")
    enable_compile_cache()
    assert capsys.readouterr().err == "note: compiled programs are not kept: /proc/none: No such file or directory.\n"
    assert not jax.config.values["jax_enable_compilation_cache"]


def test_directory_that_cannot_be_written_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file")
    assert enabled_directory() is None
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"note: compiled programs are not kept: {tmp_path}/cache")
    assert "Set GPTJAX_CACHE" in printed.err


def test_entries_that_cannot_be_read_are_a_note_and_are_removed(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        directory = Path(str(enabled_directory()))
        (directory / "jit_f-12-cache").write_bytes(b"half")
        (directory / "jit_ff-12-cache").write_bytes(b"whole")
        for program in ("jit_f", "jit_g"):
            text = f"Error reading persistent compilation cache entry for '{program}': zlib.error: incorrect data check"
            warnings.warn(text, stacklevel=1)
    assert [path.name for path in directory.iterdir()] == ["jit_ff-12-cache"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: compiled programs that cannot be read are compiled anew")


def test_entries_in_a_directory_that_the_user_gave_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        enable_compile_cache()
        (tmp_path / "jit_f-12-cache").write_bytes(b"of another project")
        text = "Error reading persistent compilation cache entry for 'jit_f': zlib.error: incorrect data check"
        warnings.warn(text, stacklevel=1)
    assert [path.name for path in tmp_path.iterdir()] == ["jit_f-12-cache"]
    assert "are compiled anew" in capsys.readouterr().err


def test_directory_of_another_user_is_a_note(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    enabled_directory()
    name, user = name_machine(), os.getuid()
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(compile_cache, "name_machine", lambda: name)
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert enabled_directory() is None
    assert "Permission denied" in capsys.readouterr().err


CPUINFO = "processor\t: 0\nmodel name\t: One\ncpu MHz\t\t: {mhz}\nflags\t\t: sse2 {flags}\n\n"


def test_machine_is_named_by_what_code_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(**values: str) -> str:
        (tmp_path / "cpuinfo").write_text(CPUINFO.format(**{"mhz": "1000", "flags": "avx2"} | values) * 2)
        return describe_cpu(tmp_path / "cpuinfo")

    assert describe(mhz="2000") == describe() != describe(flags="avx512f")
    assert describe_cpu(tmp_path / "missing") != ""
    names = {name_machine()}
    monkeypatch.setattr(compile_cache, "describe_cpu", lambda: "another")
    names.add(name_machine())
    monkeypatch.setattr("importlib.metadata.version", lambda package: "9.9")
    assert len(names | {name_machine()}) == 3


def test_prune_deletes_what_was_not_used_for_longest(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "older", "oldest"]):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    (tmp_path / "empty").touch()
    prune(tmp_path, max_bytes=250)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "older"}


def test_kept_program_computes_the_same_bits(tmp_path: Path) -> None:
    def step(x: jax.Array) -> Any:
        return jax.value_and_grad(lambda w: jnp.log1p(jnp.exp(w @ w.T / 7)).sum())(x)

    x = jax.random.normal(jax.random.key(0), (64, 64))
    fresh = jax.jit(step)(x)
    enabled_directory()
    hits: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    try:
        for _ in range(2):
            jax.clear_caches()
            kept = jax.jit(step)(x)
            jax.tree.map(np.testing.assert_array_equal, kept, fresh)
    finally:
        jax.monitoring.clear_event_listeners()
    assert "/jax/compilation_cache/cache_hits" in hits
    assert list((tmp_path / "cache").rglob("jit_step-*-cache"))


HEAVY = {
    *("flax", "orbax", "tensorstore", "grain", "matplotlib", "wandb", "tensorboardX", "transformers", "torch"),
    *("tensorflow", "tensorflow_datasets", "huggingface_hub", "pyarrow", "tokenizers", "IPython"),
}
RUN = """
import runpy, sys
for command in sys.argv[1:]:
    sys.argv = command.split()
    try:
        runpy.run_module(sys.argv[0], run_name="__main__")
    except SystemExit:
        print("imported", *sys.modules, file=sys.stderr)
"""
COMMANDS = {
    "gptjax.train --help": {"jax", "numpy"},
    "gptjax.train --config=nowhere.py": {"jax", "numpy"},
    "gptjax.train --config=smoke --help": set(),
    "gptjax.sample --help": set(),
    "gptjax.evaluate --help": set(),
    "gptjax.convert from-hf --help": set(),
}
"""Commands, one after another in one process, and what is not imported until then besides `HEAVY`."""


def test_help_and_mistakes_import_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", RUN, *COMMANDS], capture_output=True, text=True, timeout=300)
    imported = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("imported ")]
    for (command, absent), modules in zip(COMMANDS.items(), imported, strict=True):
        assert "gptjax" in modules, done.stderr
        assert not (HEAVY | absent) & set(modules), command
    assert "quickstart" in done.stdout
    assert "There is no config file nowhere.py" in done.stderr
    assert "Traceback" not in done.stderr
