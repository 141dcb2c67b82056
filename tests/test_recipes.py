"""Recipes name sources, tokenizers and splits that exist."""

import io

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import Hub, serving
from pipelines import run_pipeline
from texts import documents_in

from data_pipelines.encode.splits import parse_split
from data_pipelines.readers.documents import ReadContext
from data_pipelines.readers.sources import open_source
from data_pipelines.recipes import RECIPES

NAMES = [
    "fineweb_10b",
    "fineweb_edu_10b",
    "openwebtext",
    "python_stdlib",
    "shakespeare",
    "shakespeare_char",
    "tinystories",
    "wikipedia",
    "wikitext103",
    "wikitext2",
]


def test_recipes_have_the_documented_names():
    assert sorted(RECIPES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_recipe_parts_are_valid(name):
    recipe = RECIPES[name]
    assert open_source(name).name == open_source(recipe.source).name
    assert (recipe.split is None) != (recipe.validation_source is None)
    if recipe.split is not None:
        parse_split(recipe.split)
    else:
        assert open_source(recipe.validation_source).name == open_source(recipe.source).name  # pyright: ignore[reportArgumentType]
        assert recipe.validation_source != recipe.source
    assert recipe.tokenizer in ("gpt2", "chars", "bpe:1024")


LAYOUTS = {
    "openwebtext": ("Skylion007/openwebtext", ["plain_text/train-00001-of-00080", "plain_text/train-00000-of-00080"]),
    "fineweb_10b": ("HuggingFaceFW/fineweb", ["sample/10BT/000_00000", "data/CC-MAIN-2013-20/000", "sample/100BT/x"]),
    "tinystories": ("roneneldan/TinyStories", ["data/train-00000-of-00004-2d5a1467fff1081b", "data/validation-0-of-1"]),
    "wikitext2": (
        "Salesforce/wikitext",
        ["wikitext-2-raw-v1/train-00000-of-00001", "wikitext-2-v1/train-0", "wikitext-2-raw-v1/validation-0-of-1"],
    ),
    "wikipedia": ("wikimedia/wikipedia", ["20231101.en/train-00000-of-00041", "20231101.de/train-00000-of-00020"]),
}
"""Files of these repositories, also some that the recipe must not read."""
CHOSEN = {"openwebtext": [1, 0], "tinystories": [0], "wikitext2": [0], "fineweb_10b": [0], "wikipedia": [0]}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_recipe_reads_the_right_files(name, tmp_path, monkeypatch):
    repository, paths = LAYOUTS[name]
    files = {}
    for path in paths:
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"text": [f"{path}\n"], "url": ["x"]}), buffer)
        files[f"{path}.parquet"] = buffer.getvalue()
    with serving(Hub(repository, {"README.md": b"", **files}), tmp_path, monkeypatch):
        texts = [str(document, "utf-8") for document in documents_in(open_source(name), ReadContext())]
        assert texts == [f"{paths[i]}\n" for i in CHOSEN[name]]
        if validation := RECIPES[name].validation_source:
            only = next(documents_in(open_source(validation), ReadContext()))
            assert bytes(only).split(b"/")[1].startswith(b"validation")


def test_command_without_arguments_lists_recipes(capsys):
    assert run_pipeline("recipes") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert "9.04 G" in printed
    assert "4.4 M, random:4007/8013769/2357" in printed
