"""Reading and writing texts, for tests of any format."""

import gzip

import pyarrow

from data_pipelines.readers.documents import iter_documents


def documents_in(source, context):
    """All documents of a source, blocks read here."""
    return iter_documents(source.chunks(context), context)


def documents_by(read, path, context):
    """All documents of a file, by the reader of its kind."""
    return iter_documents(read(path, context), context)


def write_compressed(path, content):
    """Write a file in the form that the end of its name says: .gz, .zst or plain; returns its path."""
    if path.suffix == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
    else:
        path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path
