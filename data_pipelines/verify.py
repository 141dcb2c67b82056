"""Compare prepared data with its manifest: `python -m data_pipelines.verify --help`.

    python -m data_pipelines.verify data/books
    python -m gptjax.verify data/books data/chat runs/quickstart

Reads every byte. Prints a line for each split and the notes of the preparation, and exits with 2 if files are
cut short, altered, or of another tokenizer. It names each file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data_pipelines.output.build import print_splits
from data_pipelines.runtime.options import run_command
from gptjax.core.errors import UserError
from gptjax.core.files import expand_path, suggest_neighbour
from gptjax.data.manifest import Manifest
from gptjax.data.verification import verify_prepared


@dataclass(frozen=True)
class VerifyShards:
    """Compare every byte of prepared data with its manifest."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Directory with manifest.json."""


def verify_directory(request: VerifyShards) -> Manifest:
    """Check shards, sidecars and tokenizer.json and print a summary; a `UserError` names what differs."""
    directory = expand_path(request.directory)
    if not directory.exists():
        raise UserError(f"{directory} does not exist.{suggest_neighbour(directory)}")
    manifest = verify_prepared(directory)
    print_splits(directory, manifest)
    print(f"{directory}: complete, {manifest.tokenizer}, {manifest.dtype}")
    return manifest


if __name__ == "__main__":
    run_command(verify_directory, VerifyShards)
