"""Fetch published token shards, or prepare a set of TFDS: `python -m data_pipelines.fetch --help`.

    python -m data_pipelines.fetch fineweb_10b --output=data/fineweb --shards=10
    python -m data_pipelines.fetch hf:kjj0/fineweb100B-gpt2 --output=data/fineweb
    python -m data_pipelines.fetch tfds:lm1b

Validation shards come first, then training shards in the order of their names, at last a manifest. The same command
continues after an interruption, and a larger `--shards` adds to what is there.
"""

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import tyro

from data_pipelines.index_shards import check_foreign, choose_tokenizer, index_shards, is_indexed
from data_pipelines.readers import tfds_sets
from data_pipelines.readers.hub import HubFiles, RemoteFile, open_hub
from data_pipelines.recipes import RECIPES
from data_pipelines.runtime.options import require_at_least, run_command
from gptjax.core.errors import UserError, count_of
from gptjax.core.files import expand_path, file_sha256
from gptjax.data.shards import open_shard
from gptjax.data.splits import is_of_split

PARTIAL = ".partial"
"""A directory beside the shards for the one that is being fetched."""


@dataclass(frozen=True)
class Fetch:
    """Fetch published token shards, or prepare a set of TFDS."""

    source: tyro.conf.Positional[str]
    """A recipe whose shards are published (fineweb_10b, fineweb_edu_10b), hf:OWNER/NAME[:PATTERN], or tfds:NAME."""
    output: Path | None = None
    """Directory for the shards; a set of TFDS lies under TFDS_DATA_DIR instead."""
    shards: int | None = None
    """At most so many training shards (100 million tokens each in the FineWeb sets); by default all."""
    tokenizer: str | None = None
    """Whose ids the shards hold: `gpt2` (the default without a tokenizer.json beside them), or a tokenizer.json."""

    def __post_init__(self) -> None:
        require_at_least(0, shards=self.shards)


def fetch(request: Fetch) -> Path:
    """Fetch what is missing; returns the directory and prints what lies there."""
    if request.source.startswith(tfds_sets.PREFIX):
        directory = tfds_sets.prepare_tfds(request.source)
        print(f"{directory}: prepared; now python -m data_pipelines.prepare --source={request.source} …")
        return directory
    if request.output is None:
        raise UserError(f"{request.source}: --output=DIR is missing, the directory for the shards.")
    published = {name: recipe.shards for name, recipe in RECIPES.items() if recipe.shards}
    repository = open_hub(published.get(request.source, request.source))
    if repository is None:
        raise UserError(f"{request.source!r}: wanted {', '.join(published)}, hf:OWNER/NAME or tfds:NAME.")
    repository = dataclasses.replace(repository, pattern=repository.pattern or "*.bin")
    chosen, output = _choose_shards(repository, request.shards), expand_path(request.output)
    check_foreign(output)
    tokenizer = choose_tokenizer(output, request.tokenizer)  # it may be missing, so before hours of fetching
    tokens = sum(len(open_shard(_fetch_shard(repository, file, output))) for file in chosen)
    shutil.rmtree(output / PARTIAL, ignore_errors=True)
    if not is_indexed(output):
        index_shards(output, tokenizer)
    print(f"{output}: {count_of(len(chosen), 'shards')}, {tokens:,} tokens")
    return output


def _choose_shards(repository: HubFiles, most: int | None) -> list[RemoteFile]:
    """The validation shards, then at most so many training shards; raises `UserError` where there is none."""
    files = [file for file in repository.match() if file.path.endswith(".bin")]
    val, train = ([file for file in files if is_of_split(Path(file.path).stem, split)] for split in ("val", "train"))
    chosen = val + train[:most]
    if not chosen:
        raise UserError(
            f"{repository.spec}: holds no token shards (.bin files with train or val in their names). "
            f"Text is tokenised by python -m data_pipelines.prepare --source={repository.spec}."
        )
    names = [Path(file.path).name for file in chosen]
    if len(set(names)) < len(names):
        raise UserError(f"{repository.spec}: several folders hold shards of one name. Choose one: {repository.spec}/*.")
    return chosen


def _fetch_shard(repository: HubFiles, file: RemoteFile, output: Path) -> Path:
    """Bring a shard to `output`, unless it is there; either way its SHA-256 is checked."""
    path = output / Path(file.path).name
    found = path if path.exists() else repository.fetch(file, output / PARTIAL)
    if len(file.digest) == 64 and (digest := file_sha256(found)) != file.digest:
        raise UserError(f"{found}: its SHA-256 is {digest}, wanted {file.digest}. Remove it, or choose another place.")
    os.replace(found, path)
    return path


if __name__ == "__main__":
    run_command(fetch, Fetch)
