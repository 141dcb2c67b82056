"""Ready recipes: a data set's name stands for its source, tokenizer and validation cut, and says what to expect.

    python -m data_pipelines.recipes                      lists them
    python -m data_pipelines.prepare --source=openwebtext --output=data/openwebtext

**Validation cuts.** `openwebtext` is cut as nanoGPT cuts it: 4,007 of its 8,013,769 documents, drawn by Hugging Face's
`train_test_split` with seed 2357; only their order differs, which here is that of the files. The FineWeb sets keep 1 %,
about the 100 million tokens of the published validation shard, which however is the first of the stream;
`python -m data_pipelines.fetch fineweb_10b` brings the published shards themselves. `tinystories` and `wikitext` have
validation files of their own. Shakespeare's last tenth is nanoGPT's cut.
"""

import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Recipe:
    """What `prepare` does when nothing else is said; every part can be overridden by its option.

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

    def surprise(self, train_tokens: int) -> str:
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


def open_recipe(name: str) -> Recipe | None:
    """The recipe of that name, or None."""
    return RECIPES.get(name)


def show_recipes() -> None:
    """Print a table of all recipes: what they are, how much there is to fetch, and how many tokens come out."""
    table = Table("recipe", "to fetch", "training tokens", "validation", "tokenizer", "what it is")
    for recipe in RECIPES.values():
        cut = recipe.split or "its own files"
        numbers = (_size(recipe.download_bytes, "B"), _size(recipe.train_tokens), f"{_size(recipe.val_tokens)}, {cut}")
        table.add_row(recipe.name, *numbers, recipe.tokenizer, recipe.about)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _size(number: float, unit: str = "") -> str:
    for name in ("", "k", "M", "G"):
        if number < 999.5 or name == "G":
            return f"{number:.3g} {name}{unit}".strip()
        number /= 1000
    raise AssertionError("unreachable")


if __name__ == "__main__":
    show_recipes()
