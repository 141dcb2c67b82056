"""Variables and limits with which no run can go well are refused before JAX is imported."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import jaxlib.xla_client
import pytest
from tiny import tiny_config, write_config, write_text_shards

from gptjax.core.environment import check_environment, describe_misspelt
from gptjax.core.errors import UserError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_ENABLE_X64", "True"),
        ("JAX_ENABLE_X64", "t"),
        ("JAX_DISABLE_JIT", "1"),
        ("JAX_NUMPY_DTYPE_PROMOTION", "strict"),
        ("JAX_THREEFRY_PARTITIONABLE", "false"),  # losses would follow from the mesh
        ("JAX_DEFAULT_PRNG_IMPL", "unsafe_rbg"),
    ],
)
def test_variable_of_jax_that_breaks_training_is_refused(name: str, value: str):
    with pytest.raises(UserError, match=f"{name} is set.*Unset it"):
        check_environment({name: value})
    check_environment(
        {
            "JAX_DEFAULT_PRNG_IMPL": "",
            "JAX_ENABLE_X64": "0",
            "JAX_DISABLE_JIT": "false",
            "JAX_THREEFRY_PARTITIONABLE": "1",
        }
    )


def test_misspelt_variable_is_noted():
    known = ["JAX_ENABLE_X64", "JAX_PLATFORMS"]
    assert describe_misspelt(known, dict.fromkeys([*known, "JAX_OF_MINE", "GPTJAX_CACHE", "SLURM_NTASK"], "1")) == []
    x64, cache = describe_misspelt(known, {"JAX_ENABEL_X64": "1", "GPTJAX_CAHCE": "1"})[::-1]
    assert x64.endswith("JAX_ENABEL_X64 may have no effect: none of this name is known. Did you mean JAX_ENABLE_X64?")
    assert cache.endswith("Did you mean GPTJAX_CACHE?")


def test_variable_that_jaxlib_reads_is_no_misspelling():
    source = Path(jaxlib.xla_client.__file__).read_text(encoding="utf-8")
    named = set(re.findall(r"""["'](XLA_[A-Z_]+)["']""", source))
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" in named
    assert describe_misspelt([], dict.fromkeys(named, "1")) == []


def test_small_address_space_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**31, resource.RLIM_INFINITY))
    with pytest.raises(UserError, match=r"may map 2\.0 GiB of memory.*ulimit -v unlimited"):
        check_environment({})


def read_environments() -> list[tuple[str, str, int]]:
    """(what comes before the command or behind it, words that are printed, status) of the page's table."""
    page = (Path(__file__).parents[1] / "docs/troubleshooting.md").read_text(encoding="utf-8")
    table = page.partition("## Wrong environments")[2].partition("## ")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines() if row.startswith("| `")]
    return [(re.findall("`(.*?)`", first)[0], said.strip("`"), int(status)) for first, said, status in rows]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("environment")
    config = tiny_config(write_text_shards(directory / "shards"), steps=1, model={"num_layers": 1})
    return write_config(directory / "config.py", config)


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "words", "status"), read_environments())
def test_wrong_environment_of_the_page_is_told_as_it_says(
    environment: str, words: str, status: int, config_file: Path, tmp_path: Path
):
    command = f"{sys.executable} -m gptjax.train --config={config_file}"
    command += f" {environment}" if environment.startswith("--") else f" --output-dir={tmp_path}"
    prefix = "" if environment.startswith("--") else environment
    prefix = f"{prefix};" if prefix.startswith("ulimit") else f"export {prefix or 'A=1'};"
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "GPTJAX_"))}
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        ["bash", "-c", f"{prefix} exec {command}"],
        env={"JAX_PLATFORMS": "cpu", "GPTJAX_CACHE": str(config_file.parent / "cache"), "PYTHONPATH": root} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "lacks" in words or words in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) <= 3
