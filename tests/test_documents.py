"""Documents are valid UTF-8; every problem is counted, or raised."""

import pytest

from data_pipelines.readers.documents import REPLACED, Notes, ReadContext, is_blank, iter_text, validate_utf8
from gptjax.core.errors import UserError


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_invalid_utf8_is_replaced_or_raised(kind):
    context, content = ReadContext(), kind("☕é😀 ".encode() + b"caf\xe9\r\n\xef\xbb\xbf\xf0\x9f")
    assert validate_utf8(content, context, where="x", note=REPLACED) == "☕é😀 caf\ufffd\r\n\ufeff\ufffd".encode()
    assert context.notes == {REPLACED: 1}
    with pytest.raises(UserError, match=r"^x: byte 13 \(0xe9\) is not UTF-8"):
        validate_utf8(content, ReadContext(strict=True), where="x")
    assert validate_utf8(kind("☕é😀".encode()), ReadContext(strict=True), where="x") == "☕é😀".encode()


def test_notes_keep_the_first_place():
    context = ReadContext()
    context.skip_record("x:1: \ud800")
    later = context.fresh_copy()
    later.skip_record("x:2: wrong")
    context.notes.add(later.notes)
    assert context.notes.lines() == ["2 invalid records skipped; the first: x:1: \ufffd"]
    assert Notes(**context.notes.as_json()).lines() == context.notes.take().lines()
    assert context.notes.lines() == []


@pytest.mark.parametrize("size", [4, 5, 9, 100])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_iter_text_cuts_before_spaces_or_between_characters(size, kind):
    for text in ["", "short", "one two three four five six", "é" * 35, " " * 25, "a " * 20 + "😀" * 30]:
        found = list(iter_text(kind(text.encode()), size=size))
        assert "".join(found) == text
        assert all(0 < len(piece.encode()) <= size for piece in found)
    assert list(iter_text(b"one two three four", size=10)) == ["one two", " three", " four"]


def test_blank_is_what_python_says():
    for text in ["", " \r\n", "\u00a0\u3000", "\ufeff", " x", "x"]:
        assert is_blank(text.encode()) == (not text or text.isspace())
    assert not is_blank(b" " * 3_000_000 + b"x")
