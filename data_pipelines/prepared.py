"""Shards that are prepared on first use: `data=Prepared(source="stdlib", tokenizer="bpe:1024")` in a config."""

import dataclasses
import functools
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from data_pipelines.readers.documents import TEXT_FIELD
from gptjax.core.errors import UserError
from gptjax.core.files import cache_directory, expand_path, hash_json
from gptjax.data.config import TokenShards
from gptjax.data.shards import load_shard_tokenizer
from gptjax.data.source import Mismatch
from gptjax.tokenization.difference import explain_difference
from gptjax.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from data_pipelines.prepare import Prepare


@dataclass(frozen=True)
class Prepared(TokenShards):
    """Token shards that are prepared on first use into `$GPTJAX_CACHE` (`~/.cache/gptjax`), and found there afterwards.

    With `path` given, those shards are used and nothing is prepared. Several processes may start at once: one prepares,
    the others wait for it.
    """

    source: str = "stdlib"
    """A source of `data_pipelines.prepare`, such as a file, a directory, a pattern, `stdlib` or `hf:OWNER/NAME`."""
    tokenizer: str = "bpe:1024"
    """`gpt2`, `bytes`, a tokenizer.json; or learned from this text: `chars`, `bpe:SIZE` (its training part)."""
    split: str = "hash:0.02"
    """Validation split as for `data_pipelines.prepare`: `hash:F`, `tail:F`, `random:K/N/SEED` or `none`."""
    text_field: str = TEXT_FIELD
    """The field of a record that holds its text."""
    separator: str | None = None
    """Cut text files into documents here, such as `<|endoftext|>` or `\\n\\n`. By default a file is one document."""
    end_of_text: str | None = None
    """The special token that begins documents, for a tokenizer whose files do not say it."""

    unread_with_path: ClassVar[tuple[str, ...]] = (
        "source",
        "tokenizer",
        "split",
        "text_field",
        "separator",
        "end_of_text",
    )

    def resolve(self) -> TokenShards:
        """Return the plain shards; prepares them if need be, which takes seconds for small sources."""
        if self.path is not None and expand_path(self.path).is_file():
            advice = f"--data.source={shlex.quote(self.path)} reads a text"
            raise UserError(f"data.path is {self.path}, a file; wanted a directory of shards. {advice}.")
        names = {field.name for field in dataclasses.fields(TokenShards)}
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Prepared)}
        plain = TokenShards(**{name: value for name, value in values.items() if name in names})
        options = {name: value for name, value in values.items() if name == "tokenizer" or name not in names}
        path = self.path or str(_prepare_in_cache(**options))
        return dataclasses.replace(plain, path=path, tokenizer=None)

    def foresee_mismatch(self, tokenizer: Tokenizer) -> Mismatch | None:
        if self.path is not None:
            return None
        problem = None
        size = self.tokenizer.removeprefix("bpe:")
        if self.tokenizer == "chars" or size.isdecimal():
            kind, most = ("chars", sys.maxunicode) if self.tokenizer == "chars" else ("bpe", int(size))
            if tokenizer.kind != kind or tokenizer.vocab_size - len(tokenizer.specials) > most:
                problem = "learned from its text"
        else:
            given = load_shard_tokenizer(self.tokenizer, end_of_text=self.end_of_text)
            is_alike = given.fingerprint == tokenizer.fingerprint or given.extends(tokenizer)
            if not is_alike and not tokenizer.extends(given):
                problem = explain_difference(given, tokenizer)
        return None if problem is None else Mismatch("tokenizer", self.tokenizer, problem)


@functools.cache
def _prepare_in_cache(source: str, **options: str | None) -> Path:
    from data_pipelines.prepare import PrepareForRun  # slow to import

    request = PrepareForRun(source=source, output=Path(), **options)  # pyright: ignore[reportArgumentType]
    try:
        return _find_or_prepare(request)
    except UserError as error:
        raise UserError(request.spell_flags(str(error))) from None


def _find_or_prepare(options: "Prepare") -> Path:
    from data_pipelines.prepare import prepare, resolve_request

    request, source = resolve_request(options), options.source
    tokenizer = str(request.options.tokenizer)
    digest = hash_json(request.identity())
    readable = re.sub(r"[^A-Za-z0-9]+", "-", f"{request.corpus.source.name}-{Path(tokenizer).name}")
    output = cache_directory() / f"{readable}-{digest[:12]}"
    if not output.exists():
        print(f"preparing {source} with {tokenizer} into {output}", file=sys.stderr, flush=True)
    prepare(dataclasses.replace(request, options=dataclasses.replace(request.options, output=output)))
    return output
