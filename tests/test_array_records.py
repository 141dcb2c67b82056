"""Raw ArrayRecord files: text or JSON, and never protocol buffers taken for text."""

import json

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from texts import documents_by

from data_pipelines.readers.array_records import READ_AS_JSON, READ_AS_TEXT, read_array_records
from data_pipelines.readers.documents import INVALID, REPLACED_RECORDS, ReadContext
from gptjax.errors import UserError

TEXTS = ["one", "é☕\r\n", "", *(f"document {i}" for i in range(700))]


def write(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def test_text_or_json_is_decided_by_the_first_record(tmp_path):
    context = ReadContext(strict=True)
    plain = write(tmp_path / "a.array_record", [text.encode() for text in TEXTS])
    as_json = write(tmp_path / "b.array_record", [json.dumps({"text": text}).encode() for text in TEXTS])
    other = write(tmp_path / "c.array_record", [b"{no JSON}", b'{"text": "x"}'])
    assert list(documents_by(read_array_records, plain, context)) == [text.encode() for text in TEXTS]
    assert list(documents_by(read_array_records, as_json, context)) == [text.encode() for text in TEXTS]
    assert list(documents_by(read_array_records, other, context)) == [b"{no JSON}", b'{"text": "x"}']
    assert context.notes == {READ_AS_TEXT: 2, READ_AS_JSON: 1}


def test_objects_without_the_text_are_not_text(tmp_path):
    path = write(tmp_path / "x.array_record", [b'{"content": "a"}', b'{"content": "b", "text": "x"}'])
    assert list(documents_by(read_array_records, path, ReadContext("content"))) == [b"a", b"b"]
    context = ReadContext()
    assert list(documents_by(read_array_records, path, context)) == [b"x"]
    assert context.notes == {READ_AS_JSON: 1, INVALID: 1}
    with pytest.raises(UserError, match=r'record 1: wanted an object with a string "text", got one with content'):
        list(documents_by(read_array_records, path, ReadContext(strict=True)))


def test_broken_records(tmp_path):
    context = ReadContext()
    path = write(tmp_path / "x.array_record", [b'{"text": "a"}', b'{"text": 1}', b"broken", b'{"text": "b"}'])
    assert list(documents_by(read_array_records, path, context)) == [b"a", b"b"]
    assert context.notes[INVALID] == 2
    with pytest.raises(UserError, match=r"x\.array_record: record 2: wanted an object"):
        list(documents_by(read_array_records, path, ReadContext(strict=True)))
    plain = write(tmp_path / "y.array_record", [b"caf\xe9"])
    assert list(documents_by(read_array_records, plain, context)) == ["caf\ufffd".encode()]
    assert context.notes[REPLACED_RECORDS] == 1
    with pytest.raises(UserError, match=r"y\.array_record: record 1: byte 3"):
        list(documents_by(read_array_records, plain, ReadContext(strict=True)))


def test_a_large_record(tmp_path):
    texts = ["large é☕ " * 300_000, "small"]
    path = write(tmp_path / "x.array_record", [json.dumps({"text": text}).encode() for text in texts])
    assert list(documents_by(read_array_records, path, ReadContext(strict=True))) == [text.encode() for text in texts]


@pytest.mark.parametrize("length", [5, 300])
def test_protocol_buffers_are_not_text(tmp_path, length):
    size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
    path = write(tmp_path / "x.array_record", [b"\n" + size + b"x" * length])
    with pytest.raises(UserError, match=r"protocol buffers.*tfds:NAME"):
        list(documents_by(read_array_records, path, ReadContext()))
    text = write(tmp_path / "y.array_record", [b"\n" + size + b"x" * (length + 1), b"\n"])
    assert len(list(documents_by(read_array_records, text, ReadContext()))) == 2


def test_damaged_files_are_errors(tmp_path):
    whole = write(tmp_path / "x.array_record", [text.encode() * 100 for text in TEXTS]).read_bytes()
    for name, content in [("cut", whole[: len(whole) // 2]), ("empty", b""), ("other", b"plain text" * 1000)]:
        (tmp_path / f"{name}.array_record").write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}\.array_record: is no ArrayRecord file, or is cut off"):
            list(documents_by(read_array_records, tmp_path / f"{name}.array_record", ReadContext()))
    middle = len(whole) // 2
    (tmp_path / "altered.array_record").write_bytes(whole[:middle] + b"\xff" * 64 + whole[middle + 64 :])
    with pytest.raises(UserError, match=r"altered\.array_record: "):
        list(documents_by(read_array_records, tmp_path / "altered.array_record", ReadContext()))
