"""Notebooks run from the first cell to the last, and are stored without output."""

import json
import tomllib
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def run_notebook(path: Path, directory: Path, *, shorter: dict[str, str]) -> str:
    """Run a notebook with `shorter` settings, as a person who has only a CPU; return the output of all cells."""
    environment = {"GPTJAX_CACHE": directory / "cache", "IPYTHONDIR": directory / "ipython", "TMPDIR": directory}
    source = path.read_text(encoding="utf-8")
    for setting, short in shorter.items():
        assert source.count(setting) == 1, setting
        source = source.replace(setting, short)
    notebook = nbformat.reads(source, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment.items():
            patch.setenv(variable, str(value))
        nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": directory}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    errors = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    assert "Warning" not in errors.replace("TqdmWarning", "")  # transformers' progress bars miss ipywidgets
    return "".join(output.get("text") or json.dumps(output.get("data")) for output in outputs)


@pytest.mark.slow
def test_tour_trains_samples_and_exports(tmp_path: Path) -> None:
    output = run_notebook(NOTEBOOKS / "tour.ipynb", tmp_path, shorter={"steps=300": "steps=20"})
    for text in (
        "step 20/20  loss",
        "image/png",
        "blocks.attention.qkv        NDCHK  (2, 64, 3, 4, 16)",
        "NDCHK  P(None, 'fsdp', None, None, None)",
        "}def ",  # a sample, after the last picture
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ):
        assert text in output, text


SHORTER = {
    "sizing": {"MICROBATCHES = (1, 2)": "MICROBATCHES = (1,)"},
    "scaling_laws": {"WIDTHS = (16, 32, 64, 96)": "WIDTHS = (16, 32)", "(100, 200, 400, 800)": "(4, 8, 12)"},
    "compare_runs": {"steps=300": "steps=50"},
}
EXPECTED = {
    "sizing": (
        "124,337,664",
        "forward and backward  875,",
        "ratio 0.9999",
        "3.46 days",
        "checkpoint     1.492 GB",
        "  1 rows: ",
    ),
    "scaling_laws": ("image/png", "ScalingLaw(E=", "to the power 0.50", "to the power 0.49", "predicted loss 2."),
    "compare_runs": ("model.positions: 'learned' → 'rotary'", "image/png", "| rotary | 115,", "--- learned\ndef "),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTER)
def test_notebook_runs_from_the_first_cell_to_the_last(name: str, tmp_path: Path) -> None:
    output = run_notebook(NOTEBOOKS / f"{name}.ipynb", tmp_path, shorter=SHORTER[name])
    for text in EXPECTED[name]:
        assert text in output, (text, output)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook_is_stored_without_output(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook_begins_with_a_badge_and_installs_itself(path: Path) -> None:
    first, second = nbformat.read(path, as_version=4).cells[:2]
    repository = tomllib.loads((NOTEBOOKS.parent / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    owner_and_name = repository.removeprefix("https://github.com/")
    address = f"https://colab.research.google.com/github/{owner_and_name}/blob/main/notebooks/{path.name}"
    assert f"]({address})" in first.source
    assert f'SOURCE = "git+{repository}"' in second.source
    assert "%pip install -q $SOURCE" in second.source
