"""Texts on their way to tokens, for tests that do not care who reads them, or want a few bytes to be much."""

from data_pipelines import batching, encoding, pieces
from data_pipelines.readers import array_records, json_lines
from data_pipelines.readers.documents import documents_of


def documents_in(source, reading):
    """All documents of a source, blocks read here."""
    return documents_of(source.chunks(reading), reading)


def documents_by(read, path, reading):
    """All documents of a file, by the reader of its kind."""
    return documents_of(read(path, reading), reading)


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
