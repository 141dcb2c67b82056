"""Compares every byte of prepared data with its manifest and its tokenizer."""

from pathlib import Path

from gptjax.data.checksums import check_bytes, check_documents, find_first_tokens, verify_shards
from gptjax.data.config import TokenShards
from gptjax.data.manifest import Manifest
from gptjax.data.splits import open_split


def verify_prepared(directory: Path) -> Manifest:
    """Check shards, sidecars and tokenizer.json of a directory.

    Raises a `UserError` with a line for each damaged file, or at the first other difference.
    """
    manifest = verify_shards(directory)
    tokenizer = TokenShards(path=str(directory)).load_tokenizer()
    assert tokenizer is not None
    for split, counts in manifest.splits.items():
        stream = open_split(directory, split)
        check_documents(stream, tokenizer.end_of_text, first_tokens=find_first_tokens(tokenizer))
        if tokenizer.keeps_text:  # another's tokens are not decoded to the bytes that were counted
            check_bytes(stream, tokenizer.bytes_per_token, counts.bytes)
    return manifest
