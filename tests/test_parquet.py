"""Parquet: the strings of one column, in order."""

import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from texts import documents_by

from data_pipelines.readers.documents import INVALID, REPLACED_RECORDS, ReadContext
from data_pipelines.readers.formats import arrow_values, parquet
from data_pipelines.readers.formats.parquet import read_parquet
from gptjax.core.errors import UserError

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
def test_rows_are_read_in_order(tmp_path, kind, options):
    texts = TEXTS if kind not in (pyarrow.binary(), pyarrow.large_binary()) else [text.encode() for text in TEXTS]
    path = write(tmp_path / "x.parquet", texts, kind, **options)
    for size in (1, 2**20):
        assert read(path, block_bytes=size) == TEXTS


def test_nulls_and_invalid_utf8_are_counted_or_raised(tmp_path):
    context = ReadContext()
    path = write(tmp_path / "x.parquet", [b"caf\xe9", None, b"good"], pyarrow.binary())
    assert list(documents_by(read_parquet, path, context)) == ["caf\ufffd".encode(), b"good"]
    assert context.notes == {REPLACED_RECORDS: 1, INVALID: 1}
    with pytest.raises(UserError, match=r"x\.parquet: row 1: byte 3 \(0xe9\) is not UTF-8"):
        read(path)
    with pytest.raises(UserError, match="row 2: 'text' is null"):
        read(write(tmp_path / "y.parquet", [b"good", None], pyarrow.binary()))


def test_empty_file_and_empty_rows(tmp_path):
    assert read(write(tmp_path / "x.parquet", [], pyarrow.string())) == []
    assert read(write(tmp_path / "y.parquet", ["", ""], pyarrow.string())) == ["", ""]


def test_unusable_columns_are_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"], "url": ["y"]}), tmp_path / "named.parquet")
    assert read(tmp_path / "named.parquet", text_field="content") == ["x"]
    with pytest.raises(
        UserError, match=r"wanted one column 'text'. Text is in content, url \(--text-field chooses one\)"
    ):
        read(tmp_path / "named.parquet")
    with pytest.raises(UserError, match="holds int64, wanted strings"):
        read(write(tmp_path / "numbers.parquet", [1, 2]))
    twice = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(UserError, match=r"wanted one column 'text'. Text is in text, text"):
        read(tmp_path / "twice.parquet")


def test_damaged_file_is_refused(tmp_path):
    whole = write(tmp_path / "x.parquet", TEXTS).read_bytes()
    for name, content in [("cut", whole[: len(whole) // 2]), ("empty", b""), ("other", b"plain text" * 100)]:
        (tmp_path / f"{name}.parquet").write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}\.parquet: cannot be read as Parquet"):
            read(tmp_path / f"{name}.parquet")


@pytest.mark.parametrize(
    ("before", "after"), [(b"%\x02\x18\x04text", b"%\x03\x18\x04text"), (b"\x04text", b"\x04te\xe9t")]
)
def test_damaged_schema_is_refused(tmp_path, before, after):
    """The first alteration makes pyarrow end the process when the column is looked at before it is read."""
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(before, after))
    with pytest.raises(UserError, match=r"x\.parquet: "):
        read(path)


def test_altered_page_fails_its_checksum(tmp_path):
    path = tmp_path / "x.parquet"
    options = {"use_dictionary": False, "compression": "NONE", "write_statistics": False}
    write(path, ["some text"] * 10 + ["other"], write_page_checksum=True, **options)
    path.write_bytes(path.read_bytes().replace(b"other", b"0ther", 1))
    with pytest.raises(UserError, match=r"x\.parquet: cannot be read: could not verify page integrity"):
        read(path)


def test_memory_is_that_of_a_page_and_a_few_rows(tmp_path):
    """Also where a dictionary holds a long text once, and rows repeat it."""
    text, before = "ab c " * 200_000, pyarrow.total_allocated_bytes()
    path = write(tmp_path / "x.parquet", [text, None] * 100)
    context = ReadContext()
    for document in documents_by(read_parquet, path, context):
        assert len(document) == len(text)
        assert pyarrow.total_allocated_bytes() - before < 5 * parquet.ROWS * len(text)
    assert context.notes == {INVALID: 100}


def test_allocator_is_the_system_or_the_users(tmp_path):
    """It is chosen when pyarrow is first imported, whichever reader does it."""
    write(tmp_path / "x.parquet", ["text"])
    script = f"""
from data_pipelines.readers.documents import ReadContext, iter_documents
from data_pipelines.readers.files import open_files
assert len(list(iter_documents(open_files({str(tmp_path)!r}).chunks(ReadContext()), ReadContext()))) == 1
import pyarrow
print(pyarrow.default_memory_pool().backend_name)
"""
    environment = {key: value for key, value in os.environ.items() if key != "ARROW_DEFAULT_MEMORY_POOL"}
    for own, wanted in [({}, "system"), ({"ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}, "mimalloc")]:
        found = subprocess.check_output([sys.executable, "-c", script], env=environment | own)
        assert found.split() == [wanted.encode()]


def test_metadata_is_parsed_once_for_a_file(tmp_path, monkeypatch):
    """With thousands of row groups it would take most of the time."""
    parsed, original = [], pyarrow.parquet.read_metadata
    monkeypatch.setattr(pyarrow.parquet, "read_metadata", lambda path: parsed.append(path) or original(path))
    path = write(tmp_path / "x.parquet", [str(i) for i in range(50)], row_group_size=1)
    assert read(path) == [str(i) for i in range(50)]
    assert len(parsed) == 1
    write(path, ["another"])
    assert read(path) == ["another"]
    assert len(parsed) == 2


def test_lists_with_offsets_outside_of_their_structs_are_refused():
    structs = pyarrow.array([{"text": "a"}])
    offsets = pyarrow.array([0, 2**20, 1], pyarrow.int32()).buffers()[1]
    lists = pyarrow.ListArray.from_buffers(pyarrow.list_(structs.type), 2, [None, offsets], children=[structs])
    with pytest.raises(pyarrow.ArrowInvalid):
        arrow_values.find_column(pyarrow.record_batch({"list": lists}), "list.text")
