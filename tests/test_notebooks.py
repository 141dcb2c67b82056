"""The notebooks run from the first cell to the last, and are kept without what they printed."""

import json
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Runs a notebook as a person does who has only a CPU; gives what all its cells showed."""
    room = tmp_path_factory.mktemp("notebook")
    own = {"GPTJAX_CACHE": str(room / "cache"), "IPYTHONDIR": str(room / "ipython"), "TMPDIR": str(room)}

    def run(name: str) -> str:
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        with pytest.MonkeyPatch.context_length() as patch:
            for variable, value in own.items():
                patch.setenv(variable, value)
            nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": room}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert "Warning" not in "".join(output["text"] for output in outputs if output.get("name") == "stderr")
        return "".join(output.get("text") or json.dumps(output.get("data")) for output in outputs)

    return run


def test_the_tour(printed):
    shown = printed("tour.ipynb")
    assert "step 300/300  loss" in shown
    assert "image/png" in shown
    assert "blocks.attention.qkv        NDCHK  (2, 64, 3, 4, 16)" in shown
    assert "NDCHK  P(None, 'fsdp', None, None, None)" in shown
    assert "\ndef " in shown
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert file in shown


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_it_is_kept_without_output(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
