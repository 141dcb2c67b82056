"""Texts on their way to tokens, for tests that do not care who reads them, or want a few bytes to be much."""

import gzip

import pyarrow

from data_pipelines.encode import batching, pieces
from data_pipelines.encode import encoder as encoding
from data_pipelines.readers import array_records, json_lines
from data_pipelines.readers.documents import iter_documents


def documents_in(source, context):
    """All documents of a source, blocks read here."""
    return iter_documents(source.chunks(context), context)


def documents_by(read, path, context):
    """All documents of a file, by the reader of its kind."""
    return iter_documents(read(path, context), context)


def make_small(monkeypatch, *, batch, piece):
    """Blocks and batches of so few bytes that a few sentences are many; two batches are worth a pool."""
    for module, name, value in (
        (json_lines, "BLOCK_BYTES", batch),
        (array_records, "BLOCK_BYTES", batch),
        (batching, "BATCH_BYTES", batch),
        (encoding, "BYTES_WORTH_A_POOL", 2 * batch),
        (batching, "PIECE_BYTES", piece),
        (pieces, "PIECE_BYTES", piece),
    ):
        monkeypatch.setattr(module, name, value)


def write_compressed(path, content):
    """Write a file in the form that the end of its name says: .gz, .zst or plain; returns its path."""
    if path.suffix == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
    else:
        path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path
