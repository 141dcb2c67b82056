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

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Recipe:
    """The defaults of `prepare` for one data set; each can be overridden by its option.

    `split` and `validation_source` exclude each other. Sizes are approximate: bytes to fetch, and tokens with the
    recipe's own tokenizer, `<|endoftext|>` included. `shards` names a repository where tokens are already published.
    """

    name: str
    source: str
    about: str
    download_bytes: float
    train_tokens: float
    val_tokens: float
    tokenizer: str = "gpt2"
    split: str | None = None
    validation_source: str | None = None
    shards: str | None = None

    def compare(self, train_tokens: int) -> str:
        """A sentence where training tokens are a tenth more or fewer than expected; else empty."""
        if abs(train_tokens - self.train_tokens) <= 0.1 * self.train_tokens:
            return ""
        return f"{self.name}: {train_tokens:,} training tokens, though about {self.train_tokens:,.0f} were expected."


def _wikitext(name: str, directory: str, *, download_bytes: float, train_tokens: float) -> Recipe:
    files = f"wikitext:hf:Salesforce/wikitext:{directory}"
    return Recipe(
        name,
        f"{files}/train-*.parquet",
        "Wikipedia's good and featured articles, raw (no <unk>), lines joined into articles",
        validation_source=f"{files}/validation-*.parquet",
        download_bytes=download_bytes,
        train_tokens=train_tokens,
        val_tokens=250e3,
    )


_ALL = (
    Recipe(
        "openwebtext",
        "hf:Skylion007/openwebtext:plain_text/train-*.parquet",
        "pages linked from Reddit, GPT-2's kind of text; 8,013,769 documents",
        download_bytes=24.2e9,
        train_tokens=9.036e9,
        val_tokens=4.4e6,
        split="drawn:4007/8013769/2357",
    ),
    Recipe(
        "fineweb_10b",
        "hf:HuggingFaceFW/fineweb:sample/10BT/*.parquet",
        "filtered web pages, the sample of ten billion tokens",
        download_bytes=30.6e9,
        train_tokens=10.25e9,
        val_tokens=100e6,
        split="documents:0.01",
        shards="hf:kjj0/fineweb10B-gpt2",
    ),
    Recipe(
        "fineweb_edu_10b",
        "hf:HuggingFaceFW/fineweb-edu:sample/10BT/*.parquet",
        "web pages chosen for educational value, the sample of ten billion tokens",
        download_bytes=28.5e9,
        train_tokens=9.85e9,
        val_tokens=100e6,
        split="documents:0.01",
        shards="hf:kjj0/finewebedu10B-gpt2",
    ),
    Recipe(
        "tinystories",
        "hf:roneneldan/TinyStories:data/train-*.parquet",
        "2,119,719 short stories in the words of a small child",
        download_bytes=1.0e9,
        train_tokens=474e6,
        val_tokens=4.8e6,
        validation_source="hf:roneneldan/TinyStories:data/validation-*.parquet",
    ),
    _wikitext("wikitext2", "wikitext-2-raw-v1", download_bytes=7e6, train_tokens=2.4e6),
    _wikitext("wikitext103", "wikitext-103-raw-v1", download_bytes=314e6, train_tokens=118e6),
    Recipe(
        "wikipedia",
        "hf:wikimedia/wikipedia:20231101.en/train-*.parquet",
        "English Wikipedia of November 2023 as plain text; 6,407,814 articles",
        download_bytes=11.7e9,
        train_tokens=4.6e9,
        val_tokens=23e6,
        split="documents:0.005",
    ),
    Recipe(
        "shakespeare",
        "shakespeare",
        "tiny Shakespeare in GPT-2 tokens",
        download_bytes=1.1e6,
        train_tokens=301_967,
        val_tokens=36_060,
        split="tail:0.1",
    ),
    Recipe(
        "shakespeare_char",
        "shakespeare",
        "tiny Shakespeare, a token for each character",
        download_bytes=1.1e6,
        train_tokens=1_003_854,
        val_tokens=111_540,
        tokenizer="chars",
        split="tail:0.1",
    ),
    Recipe(
        "python_stdlib",
        "stdlib",
        "the sources of this Python's standard library; needs no network, differs between versions",
        download_bytes=0,
        train_tokens=4.5e6,
        val_tokens=90e3,
        tokenizer="bpe:1024",
        split="documents:0.02",
    ),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}


def show_recipes() -> None:
    """Print a table of all recipes."""
    table = Table("recipe", "to fetch", "training tokens", "validation", "tokenizer", "what it is")
    for recipe in RECIPES.values():
        split = recipe.split or "its own files"
        sizes = (_format(recipe.download_bytes, "B"), _format(recipe.train_tokens))
        table.add_row(recipe.name, *sizes, f"{_format(recipe.val_tokens)}, {split}", recipe.tokenizer, recipe.about)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _format(number: float, unit: str = "") -> str:
    name = next((name for limit, name in ((1e3, ""), (1e6, "k"), (1e9, "M")) if number < limit), "G")
    return f"{number / {'': 1, 'k': 1e3, 'M': 1e6, 'G': 1e9}[name]:.3g} {name}{unit}".strip()


if __name__ == "__main__":
    show_recipes()
