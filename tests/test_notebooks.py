"""Notebooks run from the first cell to the last, and are stored without output."""

import json
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def run_notebook(path: Path, directory: Path, *, steps: int) -> str:
    """Run a notebook of 300 steps with fewer, as a person who has only a CPU; return the output of all cells."""
    environment = {"GPTJAX_CACHE": directory / "cache", "IPYTHONDIR": directory / "ipython", "TMPDIR": directory}
    source = path.read_text(encoding="utf-8")
    assert source.count("steps=300") == 1
    notebook = nbformat.reads(source.replace("steps=300", f"steps={steps}"), as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment.items():
            patch.setenv(variable, str(value))
        nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": directory}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    errors = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    assert "Warning" not in errors.replace("TqdmWarning", "")  # transformers' progress bars miss ipywidgets
    return "".join(output.get("text") or json.dumps(output.get("data")) for output in outputs)


def test_tour_trains_samples_and_exports(tmp_path: Path) -> None:
    output = run_notebook(NOTEBOOKS / "tour.ipynb", tmp_path, steps=20)
    for text in (
        "step 20/20  loss",
        "image/png",
        "blocks.attention.qkv        NDCHK  (2, 64, 3, 4, 16)",
        "NDCHK  P(None, 'fsdp', None, None, None)",
        "\ndef ",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ):
        assert text in output, text


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook_is_stored_without_output(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
