"""JSON lines, as documents and as records."""

import gzip
import json
import re

import pyarrow
import pytest
from texts import documents_by, write_compressed

from data_pipelines.readers.documents import INVALID, REPLACED_RECORDS, SURROGATES, ReadContext
from data_pipelines.readers.formats.json_lines import parse_text, read_json, read_json_lines
from data_pipelines.readers.records import find_record_files, iter_blocks
from gptjax.core.errors import UserError

INVALID_LINES = [
    (b'{"text": "cut', "not a line of JSON"),
    (b'{"text": "a"\n', "not a line of JSON in UTF-8: Expecting ',' delimiter at character 14."),
    (b'{"c\\ud800": "x"}', 'wanted an object with a string "text", got one with'),
    (b'{"text": null}', 'wanted an object with a string "text"'),
    (b'["text"]', "wanted a JSON object"),
    (b"[" * 100_000, "not a line of JSON"),
    (b'{"text": "a"} b', "not a line of JSON"),
    (b"\0\0", "not a line of JSON"),
]


@pytest.mark.parametrize(("line", "message"), INVALID_LINES)
def test_invalid_line_is_counted_or_raised(line, message):
    context = ReadContext()
    assert parse_text(line, context, where="x:3") is None
    assert context.notes == {INVALID: 1}
    assert context.notes.lines()[0].encode().startswith(f"1 invalid record skipped; the first: x:3: {message}".encode())
    with pytest.raises(UserError, match=f"^x:3: {message}"):
        parse_text(line, ReadContext(strict=True), where="x:3")


def test_line_of_invalid_utf8_is_replaced_or_raised():
    context, line = ReadContext(), b'{"text": "caf\xe9 \xff"}'
    assert parse_text(line, context, where="") == "caf\ufffd \ufffd".encode()
    assert context.notes == {REPLACED_RECORDS: 1}
    with pytest.raises(UserError, match=r"x:1: byte 13 \(0xe9\) is not UTF-8"):
        parse_text(line, ReadContext(strict=True), where="x:1")
    context = ReadContext()
    assert parse_text(b'{"text": "caf\xe9', context, where="") is None
    assert context.notes == {INVALID: 1, REPLACED_RECORDS: 1}


@pytest.mark.parametrize(
    ("line", "text", "surrogates"),
    [
        (rb'{"text": "a\ud800b"}', "a\ufffdb", 1),
        (rb'{"text": "\udc00\ud800"}', "\ufffd\ufffd", 1),
        (rb'{"text": "\ud83d\ude00"}', "😀", 0),
        ('{"text": "\\ufffd \ufffd"}'.encode(), "\ufffd \ufffd", 0),
        (b'\xef\xbb\xbf{"text": "\\r\\n\\u0000\xe2\x80\xa8", "id": 1}\r\n', "\r\n\0\u2028", 0),
        (b'{"text": ""}', "", 0),
        (b" \r\n", None, 0),
    ],
)
def test_text_of_a_line_is_kept_as_it_is(line, text, surrogates):
    context, strict = ReadContext(), ReadContext(strict=True)
    assert parse_text(line, context, where="") == (None if text is None else text.encode())
    assert context.notes == ({SURROGATES: 1} if surrogates else {})
    if surrogates:
        with pytest.raises(UserError, match=r"^x:3: its text has a surrogate without a partner"):
            parse_text(line, strict, where="x:3")
    else:
        assert parse_text(line, strict, where="x:3") == (None if text is None else text.encode())


def test_any_field_may_hold_the_text():
    line = b'{"text": "no", "body": "yes \\u00e9", "half": "\\ud800", "n": null}'
    assert parse_text(line, ReadContext("body", strict=True), where="") == "yes é".encode()
    for field, message in [
        ("html", r'a string "html", got one with "text", "body", "half" \(--text-field chooses another\)'),
        ("n", r'a string "n", got None there, in one with "text", "body", "half"'),
    ]:
        with pytest.raises(UserError, match=f"^x:3: wanted an object with {message}"):
            parse_text(line, ReadContext(field, strict=True), where="x:3")


@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_every_line_is_a_document_in_any_blocks(tmp_path, end, last):
    texts = ["one", "", "é☕\u2028\x85\r\n", "long " * 2000, "last"]
    lines = "\r\n\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts) + last
    path = write_compressed(tmp_path / f"x.jsonl{end}", lines.encode())
    for size in (1, 10, 2**20):
        found = list(documents_by(read_json_lines, path, ReadContext(strict=True, block_bytes=size)))
        assert found == [text.encode() for text in texts]


@pytest.mark.parametrize("size", [10, 2**20])
def test_invalid_lines_are_named_by_number(tmp_path, size):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{"text": \n{}\n{"text": "b"}\n{"text": "c')
    context = ReadContext(block_bytes=size)
    assert list(documents_by(read_json_lines, path, context)) == [b"a", b"b"]
    assert context.notes == {INVALID: 3}
    with pytest.raises(UserError, match=r"x\.jsonl:3: "):
        list(documents_by(read_json_lines, path, ReadContext(strict=True, block_bytes=size)))


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_concatenated_files_are_read_whole(tmp_path, end):
    path = write_compressed(tmp_path / f"x.jsonl{end}", b'{"text": "x"}\n' * 10)
    path.write_bytes(path.read_bytes() * 3)
    assert list(documents_by(read_json_lines, path, ReadContext(strict=True))) == [b"x"] * 30


def test_records_come_from_files_directories_and_patterns(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.jsonl").write_bytes(b'{"n": 1}\r\n\n \n{"n": 2}')
    (tmp_path / "sub/c.JSONL.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"n": 3}\n'))
    with pyarrow.CompressedOutputStream(str(tmp_path / "sub/d.ndjson.zst"), "zstd") as file:
        file.write(b'{"n": 4}\n{"n": 5}\n')
    (tmp_path / "readme.md").write_text("not data")
    blocks = [block for path in find_record_files(str(tmp_path)).paths for block in iter_blocks(path, fields=())]
    found = [(where, record["n"]) for block in blocks for where, record in block.read()]
    places = ["b.jsonl:1", "b.jsonl:4", "sub/c.JSONL.gz:1", "sub/d.ndjson.zst:1", "sub/d.ndjson.zst:2"]
    assert found == [(f"{tmp_path}/{place}", number) for number, place in enumerate(places, start=1)]
    assert [path.name for path in find_record_files(f"{tmp_path}/**/*.gz").paths] == ["c.JSONL.gz"]
    (tmp_path / "empty").mkdir()
    for spec, message in [
        ("empty", "the directory holds no"),
        ("absent", "no such file"),
        ("*.json.gz", "no such file"),
    ]:
        with pytest.raises(UserError, match=rf"{message}.* \.jsonl, "):
            find_record_files(f"{tmp_path}/{spec}")


def test_damaged_file_is_explained(tmp_path):
    whole = gzip.compress(b'{"n": 1}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz: cannot be read"):
        list(documents_by(read_json_lines, tmp_path / "cut.jsonl.gz", ReadContext()))


@pytest.mark.parametrize(
    ("content", "command"),
    [
        ('["a", "b"]', "jq -c '.[] | {text: .}'"),
        ('{"data": [{"text": "a"}]}', "jq -c '.data[]'"),
        ('{\n"a": 1}\n{\n"a": 2}', "jq -c ."),
    ],
)
def test_a_compressed_file_is_unpacked_for_jq(content, command, tmp_path):
    (path := tmp_path / "x.json.gz").write_bytes(gzip.compress(content.encode()))
    with pytest.raises(UserError, match=re.escape(f"gzip -dc {path} | {command} > {tmp_path}/x.jsonl")):
        list(read_json(path, ReadContext()))
