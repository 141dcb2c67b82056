"""Broken records are counted, or named: never silently lost."""

from collections import Counter

import pytest

from data_pipelines.documents import BROKEN, REPLACED, REPLACED_RECORDS, SURROGATES, decoded, text_of_json
from gptjax.errors import UserError

BROKEN_LINES = [
    (b'{"text": "cut', "not a line of JSON"),
    (b'{"content": "x"}', 'wanted an object with a string "text"'),
    (b'{"text": null}', 'wanted an object with a string "text"'),
    (b'["text"]', 'wanted an object with a string "text"'),
    (b"[" * 100_000, "not a line of JSON"),
    (b'{"text": ' + b"9" * 5000 + b"}", "not a line of JSON"),
    (b"\0\0", "not a line of JSON"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN_LINES)
def test_a_broken_record_is_counted_or_named(line, message):
    notes = Counter()
    assert text_of_json(line, notes, strict=False, where="x:3") is None
    assert notes == {BROKEN: 1}
    with pytest.raises(UserError, match=f"^x:3: {message}"):
        text_of_json(line, notes, strict=True, where="x:3")


def test_bytes_that_are_not_utf8():
    notes = Counter()
    assert decoded(b"caf\xe9\r\n\xef\xbb\xbf", notes) == "caf\ufffd\r\n\ufeff"
    line = b'{"text": "caf\xe9 \xff"}'
    assert text_of_json(line, notes, strict=False, where="") == "caf\ufffd \ufffd"
    assert notes == {REPLACED: 1, REPLACED_RECORDS: 1}
    with pytest.raises(UserError, match="x:1: not a line of JSON in UTF-8"):
        text_of_json(line, notes, strict=True, where="x:1")


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
    ],
)
def test_text_is_kept_as_it_is(line, text, halves):
    notes = Counter()
    for strict in (False, True):
        assert text_of_json(line, notes, strict=strict, where="") == text
    assert notes == ({SURROGATES: 2} if halves else {})
