"""Parquet: the strings of one column, in order, a few rows at a time."""

import os
import subprocess
import sys
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from texts import documents_by

from data_pipelines.readers import parquet
from data_pipelines.readers.documents import INVALID, REPLACED_RECORDS, ReadContext
from data_pipelines.readers.parquet import read_parquet
from gptjax.errors import UserError

TEXTS = ["one", "", "é☕ 😀\r\n", "long " * 1000, *(f"document {i}" for i in range(100))]


def write(path, texts, kind=None, **options):
    columns = {"id": pyarrow.array(range(len(texts))), "text": pyarrow.array(texts, kind)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def read(path, **options):
    context = ReadContext(strict=True, **options)
    return [str(document, "utf-8") for document in documents_by(read_parquet, path, context)]


KINDS = [
    None,
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.binary(),
    pyarrow.large_binary(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("options", [{}, {"row_group_size": 7, "compression": "zstd"}, {"use_dictionary": False}])
def test_all_rows_in_order(tmp_path, kind, options):
    texts = TEXTS if kind not in (pyarrow.binary(), pyarrow.large_binary()) else [text.encode() for text in TEXTS]
    assert read(write(tmp_path / "x.parquet", texts, kind, **options)) == TEXTS


def test_rows_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    """By their size: a row group of many long rows is never in memory whole."""
    monkeypatch.setattr(parquet, "ROWS_BYTES", 100_000)
    path = write(tmp_path / "x.parquet", ["x" * 10_000 + str(i) for i in range(200)], use_dictionary=False)
    sizes, original = [], pyarrow.parquet.ParquetFile.iter_batches

    def iter_batches(self, size, **options):
        sizes.append(size)
        return original(self, size, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", iter_batches)
    assert [text[10_000:] for text in read(path)] == [str(i) for i in range(200)]
    assert len(sizes) == 1
    assert 2 <= sizes[0] <= 10


def test_rows_without_text_and_bytes_that_are_not_utf8(tmp_path):
    context = ReadContext()
    path = write(tmp_path / "x.parquet", [b"caf\xe9", None, b"good"], pyarrow.binary())
    assert list(documents_by(read_parquet, path, context)) == ["caf\ufffd".encode(), b"good"]
    assert context.notes == {REPLACED_RECORDS: 1, INVALID: 1}
    with pytest.raises(UserError, match=r"x\.parquet: row 1: byte 3 \(0xe9\) is not UTF-8"):
        read(path)
    with pytest.raises(UserError, match="row 2: 'text' is null"):
        read(write(tmp_path / "y.parquet", [b"good", None], pyarrow.binary()))


def test_no_rows_at_all(tmp_path):
    assert read(write(tmp_path / "x.parquet", [], pyarrow.string())) == []
    assert read(write(tmp_path / "y.parquet", ["", ""], pyarrow.string())) == ["", ""]


def test_what_cannot_be_read_is_said(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"], "url": ["y"]}), tmp_path / "named.parquet")
    with pytest.raises(UserError, match="no column 'text'; it has content, url"):
        read(tmp_path / "named.parquet")
    assert read(tmp_path / "named.parquet", text_field="content") == ["x"]
    with pytest.raises(UserError, match=r"no column 'body'; it has content, url \(--text-field chooses another\)"):
        read(tmp_path / "named.parquet", text_field="body")
    with pytest.raises(UserError, match="holds int64, wanted strings"):
        read(write(tmp_path / "numbers.parquet", [1, 2]))
    whole = write(tmp_path / "x.parquet", TEXTS).read_bytes()
    for name, content in [("cut", whole[: len(whole) // 2]), ("empty", b""), ("other", b"plain text" * 100)]:
        (tmp_path / f"{name}.parquet").write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}\.parquet: cannot be read as Parquet"):
            read(tmp_path / f"{name}.parquet")


def test_the_same_text_many_times(tmp_path):
    """The file has it once, and says so of its size; a column of whole values of a dictionary is never spread out."""
    text = "ab c " * 200_000
    for kind in (None, pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        path = write(tmp_path / "x.parquet", [text, None] * 300, kind)
        assert path.stat().st_size < 2e6
        context, found = ReadContext(), 0
        tracemalloc.start()
        before = pyarrow.total_allocated_bytes()
        for document in documents_by(read_parquet, path, context):
            assert len(document) == len(text)
            found += 1
            assert pyarrow.total_allocated_bytes() - before < (200e6 if kind is None else 20e6)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == 300
        assert context.notes == {INVALID: 300}
        assert peak < 5e6


@pytest.mark.parametrize("size", [1_000, 3_000_000, 12_000_000])
def test_few_rows_at_once_where_long_texts_are_repeated(tmp_path, size):
    """As many as the dictionary of the file allows, of which each row may be all."""
    path = write(tmp_path / "x.parquet", ["ab c " * (size // 5)] * 40)
    context, before, most = ReadContext(), pyarrow.total_allocated_bytes(), 0
    for document in documents_by(read_parquet, path, context):
        assert len(document) == size
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert most < 2**25 + 5 * size


def test_the_allocator_is_the_one_that_gives_large_pages_back(tmp_path):
    """It is settled when pyarrow is first imported, by whichever reader; a person's own choice is kept."""
    write(tmp_path / "x.parquet", ["text"])
    with pyarrow.CompressedOutputStream(str(tmp_path / "a.txt.zst"), "zstd") as file:
        file.write(b"text")
    script = f"""
from data_pipelines.readers.documents import ReadContext, iter_documents
from data_pipelines.readers.files import open_files
assert len(list(iter_documents(open_files({str(tmp_path)!r}).chunks(ReadContext()), ReadContext()))) == 2
import pyarrow
print(pyarrow.default_memory_pool().backend_name)
"""
    environment = {key: value for key, value in os.environ.items() if key != "ARROW_DEFAULT_MEMORY_POOL"}
    for own, wanted in [({}, "system"), ({"ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}, "mimalloc")]:
        command = [sys.executable, "-c", script]
        assert subprocess.check_output(command, env=environment | own).split() == [wanted.encode()]


def test_a_page_that_was_altered_is_named(tmp_path):
    """Where the writer has put a checksum beside it."""
    path = tmp_path / "x.parquet"
    options = {"use_dictionary": False, "compression": "NONE", "write_statistics": False}
    write(path, ["some text"] * 10 + ["other"], write_page_checksum=True, **options)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"other", b"0ther", 1))
    with pytest.raises(UserError, match=r"x\.parquet: cannot be read: could not verify page integrity"):
        read(path)


def test_thousands_of_groups_are_read_in_the_time_of_their_rows(tmp_path, monkeypatch):
    """The footer, which lists them all, is parsed once for a file in one state."""
    parsed, original = [], pyarrow.parquet.read_metadata
    monkeypatch.setattr(pyarrow.parquet, "read_metadata", lambda path: parsed.append(path) or original(path))
    path = write(tmp_path / "x.parquet", [str(i) for i in range(500)], row_group_size=1)
    assert read(path) == [str(i) for i in range(500)]
    assert len(parsed) == 1
    write(path, ["another"])
    assert read(path) == ["another"]
    assert len(parsed) == 2


def test_two_columns_of_one_name(tmp_path):
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="several columns 'text'; it has text, text"):
        read(tmp_path / "x.parquet")
