"""Recipes: the name of a data set stands for its source, tokenizer and validation split, with the sizes to expect.

    python -m data_pipelines.recipes                      lists them
    python -m data_pipelines.prepare --source=openwebtext --output=data/openwebtext

`openwebtext` is split as nanoGPT splits it; the order here is that of the files. The FineWeb sets keep 1 %, about as
much as the published validation shard; `python -m data_pipelines.fetch fineweb_10b` fetches the published shards.
"""

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The defaults of `prepare` for one data set; each can be overridden by its option.

    `split` and `validation_source` exclude each other. `sizes` are about the bytes to fetch, and the training and
    validation tokens with `tokenizer`. `shards` names a repository of published token shards.
    """

    source: str
    about: str
    sizes: tuple[str, str, str]
    tokenizer: str = "gpt2"
    split: str | None = None
    validation_source: str | None = None
    shards: str | None = None


def _wikitext(directory: str, sizes: tuple[str, str, str]) -> Recipe:
    files = f"wikitext:hf:Salesforce/wikitext:{directory}"
    about = "Wikipedia's good and featured articles, raw (no <unk>), lines joined into articles"
    return Recipe(f"{files}/train-*.parquet", about, sizes, validation_source=f"{files}/validation-*.parquet")


RECIPES = {
    "openwebtext": Recipe(
        "hf:Skylion007/openwebtext:plain_text/train-*.parquet",
        "pages linked from Reddit, GPT-2's kind of text; 8,013,769 documents",
        ("24.2 GB", "9.04 G", "4.4 M"),
        split="random:4007/8013769/2357",
    ),
    "fineweb_10b": Recipe(
        "hf:HuggingFaceFW/fineweb:sample/10BT/*.parquet",
        "filtered web pages, the sample of ten billion tokens",
        ("30.6 GB", "10.2 G", "100 M"),
        split="hash:0.01",
        shards="hf:kjj0/fineweb10B-gpt2",
    ),
    "fineweb_edu_10b": Recipe(
        "hf:HuggingFaceFW/fineweb-edu:sample/10BT/*.parquet",
        "web pages chosen for educational value, the sample of ten billion tokens",
        ("28.5 GB", "9.85 G", "100 M"),
        split="hash:0.01",
        shards="hf:kjj0/finewebedu10B-gpt2",
    ),
    "tinystories": Recipe(
        "hf:roneneldan/TinyStories:data/train-*.parquet",
        "2,119,719 short stories in the words of a small child",
        ("1 GB", "474 M", "4.8 M"),
        validation_source="hf:roneneldan/TinyStories:data/validation-*.parquet",
    ),
    "wikitext2": _wikitext("wikitext-2-raw-v1", ("7 MB", "2.4 M", "250 k")),
    "wikitext103": _wikitext("wikitext-103-raw-v1", ("314 MB", "118 M", "250 k")),
    "wikipedia": Recipe(
        "hf:wikimedia/wikipedia:20231101.en/train-*.parquet",
        "English Wikipedia of November 2023 as plain text; 6,407,814 articles",
        ("11.7 GB", "4.6 G", "23 M"),
        split="hash:0.005",
    ),
    "shakespeare": Recipe(
        "shakespeare", "tiny Shakespeare in GPT-2 tokens", ("1.1 MB", "302 k", "36 k"), split="tail:0.1"
    ),
    "shakespeare_char": Recipe(
        "shakespeare", "tiny Shakespeare in characters", ("1.1 MB", "1.0 M", "112 k"), "chars", split="tail:0.1"
    ),
    "python_stdlib": Recipe(
        "stdlib", "sources of this Python; needs no network", ("0", "4.5 M", "90 k"), "bpe:1024", split="hash:0.02"
    ),
}


def show_recipes() -> None:
    """Print a table of all recipes."""
    from rich.console import Console  # slow to import
    from rich.table import Table

    table = Table("recipe", "to fetch", "training tokens", "validation", "tokenizer", "what it is")
    for name, recipe in RECIPES.items():
        fetch, train, val = recipe.sizes
        table.add_row(name, fetch, train, f"{val}, {recipe.split or 'its own files'}", recipe.tokenizer, recipe.about)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    show_recipes()
