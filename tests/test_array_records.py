"""Raw ArrayRecord files: JSON objects or text."""

import json

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from texts import documents_by

from data_pipelines.readers.documents import INVALID, REPLACED_RECORDS, ReadContext
from data_pipelines.readers.formats.array_records import read_array_records
from gptjax.core.errors import UserError

TEXTS = ["one", "é☕\r\n", "", *(f"document {i}" for i in range(700))]


def write(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def read(path, context=None):
    return list(documents_by(read_array_records, path, context or ReadContext(strict=True)))


def test_first_record_decides_between_json_and_text(tmp_path):
    plain = write(tmp_path / "a.array_record", [text.encode() for text in TEXTS])
    as_json = write(tmp_path / "b.array_record", [json.dumps({"text": text}).encode() for text in TEXTS])
    other = write(tmp_path / "c.array_record", [b"{no JSON}", b'{"text": "x"}'])
    for size in (1, 2**20):
        context = ReadContext(strict=True, block_bytes=size)
        assert read(plain, context) == read(as_json, context) == [text.encode() for text in TEXTS]
        assert read(other, context) == [b"{no JSON}", b'{"text": "x"}']
        assert context.notes == {}


def test_invalid_records_are_skipped_or_raised(tmp_path):
    context = ReadContext()
    path = write(tmp_path / "x.array_record", [b'{"text": "a"}', b'{"content": 1}', b"cut", b'{"text": "b"}'])
    assert read(path, context) == [b"a", b"b"]
    assert context.notes == {INVALID: 2}
    with pytest.raises(UserError, match=r"x\.array_record: record 2: wanted an object with a string .*got one with"):
        read(path)
    plain = write(tmp_path / "y.array_record", [b"caf\xe9", b"good", b"\x1b[1m\n"])
    context = ReadContext()
    assert read(plain, context) == ["caf\ufffd".encode(), b"good", b"\x1b[1m\n"]
    assert context.notes == {REPLACED_RECORDS: 1}
    with pytest.raises(UserError, match=r"y\.array_record: record 1: byte 3"):
        read(plain)


def test_binary_records_are_invalid(tmp_path):
    path = write(tmp_path / "x.array_record", [b"\n\x1f\n\x1d\n\x04text\x12\x15\n\x13..", b"\0"])
    context = ReadContext()
    assert read(path, context) == []
    assert context.notes == {INVALID: 2}
    with pytest.raises(UserError, match=r"record 1: wanted text or a JSON object, got binary data.*tfds:NAME"):
        read(path)


def test_damaged_file_is_refused(tmp_path):
    whole = write(tmp_path / "x.array_record", [text.encode() * 100 for text in TEXTS]).read_bytes()
    for name, content in [("cut", whole[: len(whole) // 2]), ("empty", b""), ("other", b"plain text" * 1000)]:
        (tmp_path / f"{name}.array_record").write_bytes(content)
        with pytest.raises(
            UserError, match=rf"{name}\.array_record: cannot be read as ArrayRecord: it is no ArrayRecord file"
        ):
            read(tmp_path / f"{name}.array_record")
    middle = len(whole) // 2
    (tmp_path / "altered.array_record").write_bytes(whole[:middle] + b"\xff" * 64 + whole[middle + 64 :])
    with pytest.raises(UserError, match=r"altered\.array_record: "):
        read(tmp_path / "altered.array_record")
