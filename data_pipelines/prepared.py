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
from data_pipelines.readers.documents import TEXT_FIELD
from data_pipelines.readers.downloads import cache_directory
from data_pipelines.readers.sources import open_source
from gptjax.data import TokenShards


@dataclass(frozen=True)
class Prepared(TokenShards):
    """Token shards that are prepared on first use into `$GPTJAX_CACHE` (`~/.cache/gptjax`), and found there afterwards.

    With `path` given, those shards are used and nothing is prepared. Several processes may start at once: one prepares,
    the others wait for it.
    """

    source: str = "stdlib"
    """Whatever `data_pipelines.prepare` takes, such as a file, a directory, a pattern, `stdlib` or `hf:OWNER/NAME`."""
    tokenizer: str = "bpe:1024"
    """`gpt2`, `bytes`, a tokenizer.json; or learnt from this text: `chars`, `bpe:SIZE` (its training part)."""
    validation: str = "documents:0.02"
    """Which part is kept for it: `documents:F` (by hash of the text, but the last tenth of a single text or of few),
    `tail:F` (the last characters), `drawn:K/N/SEED` (K of N documents), or `none`."""
    text_field: str = TEXT_FIELD
    """The field of a record that holds its text."""

    def resolve(self) -> TokenShards:
        """The plain shards; prepares them if need be, which takes seconds for small sources and prints what it does."""
        plain = TokenShards(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TokenShards)})
        path = self.path or str(_prepared(self._request()))
        return dataclasses.replace(plain, path=path, tokenizer=None)

    def _request(self) -> Prepare:
        asked = Prepare(self.source, cache_directory(), self.tokenizer, self.validation, text_field=self.text_field)
        return completed(asked)


@functools.cache
def _prepared(request: Prepare) -> Path:
    """Where it lies in the directory that the request names as its output."""
    assert request.tokenizer is not None
    record = json.dumps(describe(request, open_corpus(request), known_tokenizer(request.tokenizer)), sort_keys=True)
    name = f"{open_source(request.source).name}-{Path(request.tokenizer).name}"
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name)
    output = request.output / f"{readable}-{hashlib.sha256(record.encode()).hexdigest()[:12]}"
    if not output.exists():
        print(f"preparing {request.source} with {request.tokenizer} into {output}", file=sys.stderr, flush=True)
    prepare(dataclasses.replace(request, output=output))
    return output
