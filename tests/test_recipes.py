"""Recipes name sources, tokenizers and cuts that exist, and say what to expect."""

import subprocess
import sys

import pytest

from data_pipelines.prepare import known_tokenizer
from data_pipelines.recipes import RECIPES, open_recipe
from data_pipelines.sources import open_source
from data_pipelines.splits import Split

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


def test_the_names():
    assert sorted(RECIPES) == NAMES
    assert open_recipe("stdlib") is None
    assert open_recipe("books.jsonl") is None


@pytest.mark.parametrize("name", NAMES)
def test_every_part_is_understood(name):
    recipe = open_recipe(name)
    assert recipe.name == name
    assert open_source(name).name == open_source(recipe.source).name
    assert (recipe.split is None) != (recipe.validation_source is None)
    if recipe.split is not None:
        assert str(Split.parse(recipe.split)) == recipe.split
    else:
        assert open_source(recipe.validation_source).name == open_source(recipe.source).name
        assert recipe.validation_source != recipe.source
    assert recipe.tokenizer == "gpt2" or known_tokenizer(recipe.tokenizer) is None
    assert 0 < recipe.val_tokens < recipe.train_tokens


@pytest.mark.parametrize("name", NAMES)
def test_the_cut_leaves_what_is_expected(name):
    """By hash or by characters, about the fraction of the tokens that the split says."""
    recipe = open_recipe(name)
    if recipe.split is not None:
        fraction = Split.parse(recipe.split).fraction
        share = recipe.val_tokens / (recipe.val_tokens + recipe.train_tokens)
        assert share == pytest.approx(fraction, rel=0.15)


def test_a_surprise_is_told():
    recipe = open_recipe("tinystories")
    assert recipe.surprise(470_000_000) == ""
    said = "tinystories: 100,000,000 training tokens, though about 474,000,000 were expected."
    assert recipe.surprise(100_000_000) == said
    assert "600,000,000" in recipe.surprise(600_000_000)


def test_the_list():
    command = [sys.executable, "-m", "data_pipelines.recipes"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(name in printed for name in NAMES)
    assert "9.04 G" in printed
    assert "4.4 M, documents:0.0005" in printed
