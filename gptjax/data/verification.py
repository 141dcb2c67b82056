"""Compares every byte of prepared data with its manifest and its tokenizer."""

from pathlib import Path

from gptjax.core.errors import UserError
from gptjax.core.files import file_sha256
from gptjax.data.checksums import check_bytes, check_documents, verify_shards
from gptjax.data.config import TokenShards
from gptjax.data.manifest import PREPARE_AGAIN, Manifest
from gptjax.data.splits import open_split


def verify_prepared(directory: Path) -> Manifest:
    """Check shards, sidecars and tokenizer.json of a directory; raises `UserError` at the first difference."""
    manifest = verify_shards(directory)
    for name, wanted in manifest.tokenizer_files.items():
        file = directory / name
        if not file.is_file():
            raise UserError(f"{file} is missing. {PREPARE_AGAIN}")
        if file_sha256(file) != wanted:
            raise UserError(f"{file} has changed since it was written: its SHA-256 differs. {PREPARE_AGAIN}")
    tokenizer = TokenShards(path=str(directory)).load_tokenizer()
    assert tokenizer is not None
    for split, counts in manifest.splits.items():
        stream = open_split(directory, split)
        check_documents(stream, tokenizer.end_of_text)
        check_bytes(stream, tokenizer.bytes_per_token, counts.bytes)
    return manifest
