"""A file beside the command that has the name of a module is named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptjax.cli.config_files import run_file
from gptjax.process.broken_import import find_shadow


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("random.py", ""),  # before the entry point runs
        ("socket.py", "open_plot()"),  # a script of one's own, which fails
        pytest.param("jax.py", "", marks=pytest.mark.slow),
        pytest.param("numpy/__init__.py", "", marks=pytest.mark.slow),
        pytest.param("logging.py", "", marks=pytest.mark.slow),
        pytest.param("token.py", "", marks=pytest.mark.slow),
    ],
)
def test_file_with_the_name_of_a_module_is_one_line(name: str, content: str, tmp_path: Path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "gptjax.train", "--config=smoke", f"--output-dir={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"error: {path} has the name of a module")
    assert "Rename it, or start in another directory." in first
    assert done.returncode == 2
    assert len(rest) <= 1, "the file of the traceback"


def test_config_with_the_name_of_a_module_stands_in_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "profile.py"
    path.write_text("def measure(): 1 / 0")
    with pytest.raises(ZeroDivisionError) as failed:
        run_file(path).measure()
    assert find_shadow(failed.value) is None


def test_error_in_a_deleted_directory_has_no_shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert find_shadow(ImportError("no")) is None
    monkeypatch.chdir(tmp_path)
