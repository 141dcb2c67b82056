"""Broken records are counted, or named: never silently lost."""

import pytest

from data_pipelines.readers import documents, long_lines
from data_pipelines.readers.documents import (
    INVALID,
    REPLACED,
    REPLACED_RECORDS,
    SURROGATES,
    ReadContext,
    is_blank,
    iter_text,
    parse_json_line,
    validate_utf8,
)
from data_pipelines.readers.long_lines import document_of_long_line
from gptjax.errors import UserError

BROKEN_LINES = [
    (b'{"text": "cut', "not a line of JSON"),
    (b'{"c\\ud800": "x"}', 'wanted an object with a string "text", got one with'),
    (b'{"text": null}', 'wanted an object with a string "text"'),
    (b'["text"]', 'wanted an object with a string "text"'),
    (b"[" * 100_000, "not a line of JSON"),
    (b'{"text": ' + b"9" * 5000 + b"}", 'wanted an object with a string "text"'),
    (b'{"text": "\\x"}', "not a line of JSON"),
    (b'{"text": "\\u12"}', "not a line of JSON"),
    (b'{"text": "a\nb"}', "not a line of JSON"),
    (b'{"text": "a"} b', "not a line of JSON"),
    (b"\0\0", "not a line of JSON"),
]


def in_blocks(size):
    def read(line, context, **options):
        blocks = (line[i : i + size] for i in range(0, len(line), size))
        return document_of_long_line(blocks, context, **options)

    return read


# A long line is read in blocks; what comes out of it is the same, wherever they end.
READERS = {"whole": parse_json_line, **{f"in blocks of {size}": in_blocks(size) for size in (1, 2, 3, 7, 100)}}


@pytest.fixture(autouse=True)
def short_is_long(monkeypatch):
    monkeypatch.setattr(long_lines, "LONG_BYTES", len('"text"'))


readers = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


@readers
@pytest.mark.parametrize(("line", "message"), BROKEN_LINES)
def test_a_broken_record_is_counted_or_named(read, line, message):
    context = ReadContext()
    assert read(line, context, where="x:3") is None
    assert context.notes == {INVALID: 1}
    assert context.notes.lines()[0].encode().startswith(f"1 {INVALID}; the first: x:3: {message}".encode())
    with pytest.raises(UserError, match=f"^x:3: {message}"):
        read(line, ReadContext(strict=True), where="x:3")


@readers
def test_json_in_bytes_that_are_not_utf8(read):
    context, line = ReadContext(), b'{"text": "caf\xe9 \xff"}'
    assert read(line, context, where="") == "caf\ufffd \ufffd".encode()
    assert context.notes == {REPLACED_RECORDS: 1}
    with pytest.raises(UserError, match="x:1: not a line of JSON in UTF-8"):
        read(line, ReadContext(strict=True), where="x:1")
    context = context.fresh_copy()
    assert read(b'{"text": "caf\xe9', context, where="") is None
    assert context.notes == {INVALID: 1}, "what is left out has nothing replaced"


@pytest.mark.parametrize("block", [4, 5, 6, 2**20])
def test_bytes_that_are_not_utf8(monkeypatch, block):
    monkeypatch.setattr(documents, "TEXT_BYTES", block)
    context, content = ReadContext(), "☕é😀 ".encode() + b"caf\xe9\r\n\xef\xbb\xbf\xf0\x9f"
    assert validate_utf8(content, context, where="x", note=REPLACED) == "☕é😀 caf\ufffd\r\n\ufeff\ufffd".encode()
    assert context.notes == {REPLACED: 1}
    with pytest.raises(UserError, match=r"^x: byte 13 \(0xe9\) is not UTF-8"):
        validate_utf8(content, ReadContext(strict=True), where="x")
    with pytest.raises(UserError, match=r"^y: byte 4 \(0xf0\) is not UTF-8"):
        validate_utf8(memoryview(b"long\xf0\x9f"), ReadContext(strict=True), where="y")
    assert validate_utf8("☕é😀".encode(), ReadContext(strict=True), where="x") == "☕é😀".encode()


@pytest.mark.parametrize("size", [4, 5, 9, 100])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_texts_are_cut_before_spaces_or_between_characters(size, kind):
    for text in ["", "short", "one two three four five six", "é" * 35, " " * 25, "a " * 20 + "😀" * 30]:
        found = list(iter_text(kind(text.encode()), size=size))
        assert "".join(found) == text
        assert all(0 < len(piece.encode()) <= size for piece in found)
    assert list(iter_text(b"one two three four", size=10)) == ["one two", " three", " four"]


def test_blank_is_what_python_says():
    for text in ["", " \r\n", "\u00a0\u3000", "\ufeff", " x", "x"]:
        assert is_blank(text.encode()) == (not text or text.isspace())
    assert not is_blank(b" " * 3_000_000 + b"x")


@readers
@pytest.mark.parametrize(
    ("line", "text", "halves"),
    [
        (rb'{"text": "a\ud800b"}', "a\ufffdb", 1),
        (rb'{"text": "\udc00\ud800"}', "\ufffd\ufffd", 1),
        (rb'{"text": "\ud83d\ude00"}', "😀", 0),
        ('{"text": "\\ufffd \ufffd"}'.encode(), "\ufffd \ufffd", 0),
        (b'\xef\xbb\xbf{"text": "\\r\\n\\u0000\xe2\x80\xa8", "id": 1}\r\n', "\r\n\0\u2028", 0),
        (b'{"text": ""}', "", 0),
        (b" \r\n", None, 0),
        (b'{"text": "a", "text": "b", "n": 1e400}', "b", 0),
        (b'{"text": "x", "n": ' + b"9" * 5000 + b', "m": [{"text": "inner"}]}', "x", 0),
        (rb'{"text": "\\\"\/\b\f\n\r\t \\u0041", "\\": "\""}', '\\"/\b\f\n\r\t \\u0041', 0),
        (rb'{"text": "\ud83d\ud83d\ude00\ude00"}', "\ufffd😀\ufffd", 1),
    ],
)
def test_text_is_kept_as_it_is(read, line, text, halves):
    context = ReadContext()
    assert read(line, context, where="") == (None if text is None else text.encode())
    assert context.notes == ({SURROGATES: 1} if halves else {})
    strict = ReadContext(strict=True)
    if halves:
        with pytest.raises(UserError, match=r"^x:3: its text has a surrogate without a partner"):
            read(line, strict, where="x:3")
    else:
        assert read(line, strict, where="x:3") == (None if text is None else text.encode())


@readers
def test_any_field_may_hold_the_text(read):
    line = b'{"text": "no", "body": "yes \\u00e9", "half": "\\ud800", "n": null}'
    for strict in (False, True):
        assert read(line, ReadContext("body", strict), where="") == "yes é".encode()
    for field, message in [
        ("html", r'a string "html", got one with text, body, half, n \(--text-field chooses another\)'),
        ("n", r'a string "n", got \{'),
    ]:
        with pytest.raises(UserError, match=f"^x:3: wanted an object with {message}"):
            read(line, ReadContext(field, strict=True), where="x:3")
