"""Recipes: the name of a data set stands for its source, tokenizer and validation split, with the sizes to expect.

    python -m data_pipelines.recipes                      lists them
    python -m data_pipelines.prepare --source=openwebtext --output=data/openwebtext

`openwebtext` is split as nanoGPT splits it: 4,007 of its 8,013,769 documents, drawn by Hugging Face's
`train_test_split` with seed 2357; their order here is that of the files. The FineWeb sets keep 1 %, about as much as
the published validation shard, which is the first of the stream; `python -m data_pipelines.fetch fineweb_10b` fetches
the published shards. `tinystories` and `wikitext` have validation files of their own.
"""

import sys
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Sizes(NamedTuple):
    """Approximate bytes to fetch, and tokens with the recipe's tokenizer, `<|endoftext|>` included."""

    download_bytes: float
    train_tokens: float
    val_tokens: float


@dataclass(frozen=True)
class Recipe:
    """The defaults of `prepare` for one data set; each can be overridden by its option.

    `split` and `validation_source` exclude each other. `shards` names a repository of published token shards.
    """

    name: str
    source: str
    about: str
    sizes: Sizes
    tokenizer: str = "gpt2"
    split: str | None = None
    validation_source: str | None = None
    shards: str | None = None


def _wikitext(name: str, directory: str, sizes: Sizes) -> Recipe:
    files = f"wikitext:hf:Salesforce/wikitext:{directory}"
    about = "Wikipedia's good and featured articles, raw (no <unk>), lines joined into articles"
    source, validation = f"{files}/train-*.parquet", f"{files}/validation-*.parquet"
    return Recipe(name, source, about, sizes, validation_source=validation)


_ALL = (
    Recipe(
        "openwebtext",
        "hf:Skylion007/openwebtext:plain_text/train-*.parquet",
        "pages linked from Reddit, GPT-2's kind of text; 8,013,769 documents",
        Sizes(download_bytes=24.2e9, train_tokens=9.036e9, val_tokens=4.4e6),
        split="random:4007/8013769/2357",
    ),
    Recipe(
        "fineweb_10b",
        "hf:HuggingFaceFW/fineweb:sample/10BT/*.parquet",
        "filtered web pages, the sample of ten billion tokens",
        Sizes(download_bytes=30.6e9, train_tokens=10.25e9, val_tokens=100e6),
        split="hash:0.01",
        shards="hf:kjj0/fineweb10B-gpt2",
    ),
    Recipe(
        "fineweb_edu_10b",
        "hf:HuggingFaceFW/fineweb-edu:sample/10BT/*.parquet",
        "web pages chosen for educational value, the sample of ten billion tokens",
        Sizes(download_bytes=28.5e9, train_tokens=9.85e9, val_tokens=100e6),
        split="hash:0.01",
        shards="hf:kjj0/finewebedu10B-gpt2",
    ),
    Recipe(
        "tinystories",
        "hf:roneneldan/TinyStories:data/train-*.parquet",
        "2,119,719 short stories in the words of a small child",
        Sizes(download_bytes=1.0e9, train_tokens=474e6, val_tokens=4.8e6),
        validation_source="hf:roneneldan/TinyStories:data/validation-*.parquet",
    ),
    _wikitext("wikitext2", "wikitext-2-raw-v1", Sizes(7e6, 2.4e6, 250e3)),
    _wikitext("wikitext103", "wikitext-103-raw-v1", Sizes(314e6, 118e6, 250e3)),
    Recipe(
        "wikipedia",
        "hf:wikimedia/wikipedia:20231101.en/train-*.parquet",
        "English Wikipedia of November 2023 as plain text; 6,407,814 articles",
        Sizes(download_bytes=11.7e9, train_tokens=4.6e9, val_tokens=23e6),
        split="hash:0.005",
    ),
    Recipe(
        "shakespeare",
        "shakespeare",
        "tiny Shakespeare in GPT-2 tokens",
        Sizes(download_bytes=1.1e6, train_tokens=301_967, val_tokens=36_060),
        split="tail:0.1",
    ),
    Recipe(
        "shakespeare_char",
        "shakespeare",
        "tiny Shakespeare, a token for each character",
        Sizes(download_bytes=1.1e6, train_tokens=1_003_854, val_tokens=111_540),
        tokenizer="chars",
        split="tail:0.1",
    ),
    Recipe(
        "python_stdlib",
        "stdlib",
        "the sources of this Python's standard library; needs no network, differs between versions",
        Sizes(download_bytes=0, train_tokens=4.5e6, val_tokens=90e3),
        tokenizer="bpe:1024",
        split="hash:0.02",
    ),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}


def show_recipes() -> None:
    """Print a table of all recipes."""
    table = Table("recipe", "to fetch", "training tokens", "validation", "tokenizer", "what it is")
    for recipe in RECIPES.values():
        fetch, train, val = map(_format, recipe.sizes)
        validation = f"{val}, {recipe.split or 'its own files'}"
        table.add_row(recipe.name, f"{fetch}B", train, validation, recipe.tokenizer, recipe.about)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _format(number: float) -> str:
    size, prefix = next((pair for pair in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if number >= pair[0]), (1, ""))
    return f"{number / size:.3g} {prefix}"


if __name__ == "__main__":
    show_recipes()
