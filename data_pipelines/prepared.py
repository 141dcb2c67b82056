"""Shards that make themselves: `data=Prepared(source="stdlib", tokenizer="bpe:1024")` in a config is enough."""

import dataclasses
import functools
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.prepare import Prepare, completed, describe, known_tokenizer, open_corpus, prepare
from data_pipelines.sources import cache_directory, open_source
from gptjax.data import TokenShards


@dataclass(frozen=True)
class Prepared(TokenShards):
    """Token shards that are prepared on first use into `$GPTJAX_CACHE` (`~/.cache/gptjax`), and found there afterwards.

    With `path` given, those shards are used and nothing is prepared. Several processes may start at once: one prepares,
    the others wait for it.
    """

    source: str = "stdlib"
    """A text or .jsonl file, a directory, a pattern, `stdlib` or `shakespeare`."""
    tokenizer: str = "bpe:1024"
    """`gpt2`, `bytes`, a tokenizer.json; or learnt from this text: `chars`, `bpe:SIZE` (its training part)."""
    validation: str = "documents:0.02"
    """Which part is kept for it: `documents:F` (by hash of the text), `tail:F` (the last characters), or `none`."""

    def resolve(self) -> TokenShards:
        """The plain shards; prepares them if need be, which takes seconds for small sources and prints what it does."""
        plain = TokenShards(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TokenShards)})
        path = self.path or str(_prepared(self.source, self.tokenizer, self.validation))
        return dataclasses.replace(plain, path=path, tokenizer=None)


@functools.cache
def _prepared(source: str, tokenizer: str, validation: str) -> Path:
    request = completed(Prepare(source=source, tokenizer=tokenizer, split=validation, output=cache_directory()))
    record = json.dumps(describe(request, open_corpus(request), known_tokenizer(tokenizer)), sort_keys=True)
    readable = re.sub(r"[^A-Za-z0-9]+", "-", f"{open_source(source).name}-{Path(tokenizer).name}")
    output = cache_directory() / f"{readable}-{hashlib.sha256(record.encode()).hexdigest()[:12]}"
    if not output.exists():
        print(f"preparing {source} with {tokenizer} into {output}", file=sys.stderr, flush=True)
    prepare(dataclasses.replace(request, output=output))
    return output
