"""Text and JSON lines, plain and compressed: the same bytes come out."""

import gzip
import json
import tracemalloc

import pyarrow
import pytest
from texts import documents_by

from data_pipelines.readers.documents import INVALID, REPLACED, ReadContext
from data_pipelines.readers.json_lines import read_json_lines
from data_pipelines.readers.text_files import read_text
from gptjax.errors import UserError

ENDS = ["", ".gz", ".zst"]


def write(path, content):
    if path.suffix == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
    else:
        path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbfone\r\ntwo\rthree\n\0", b"x" * 3_000_000], ids=len)
def test_a_text_file_is_one_document(tmp_path, end, content):
    path = write(tmp_path / f"x.txt{end}", content)
    assert list(documents_by(read_text, path, ReadContext(strict=True))) == [content]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("last", ["", "\n"])
def test_a_line_is_a_document(tmp_path, end, last):
    texts = ["one", "", "é☕\u2028\x85\r\n", "long " * 200_000, "last"]
    lines = "\r\n\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts) + last
    path = write(tmp_path / f"x.jsonl{end}", lines.encode())
    assert list(documents_by(read_json_lines, path, ReadContext(strict=True))) == [text.encode() for text in texts]


def test_broken_lines_are_left_out_or_named_by_number(tmp_path):
    path = write(tmp_path / "x.jsonl", b'{"text": "a"}\n\n{"text": \n{}\n{"text": "b"}\n{"text": "c')
    context = ReadContext()
    assert list(documents_by(read_json_lines, path, context)) == [b"a", b"b"]
    assert context.notes == {INVALID: 3}
    with pytest.raises(UserError, match=r"x\.jsonl:3: "):
        list(documents_by(read_json_lines, path, ReadContext(strict=True)))


@pytest.mark.parametrize("frames", [1, 3])
def test_files_that_were_joined(tmp_path, frames):
    for end in (".gz", ".zst"):
        part = write(tmp_path / f"part.jsonl{end}", b'{"text": "x"}\n' * 10).read_bytes()
        (tmp_path / f"x.jsonl{end}").write_bytes(part * frames)
        assert (
            list(documents_by(read_json_lines, tmp_path / f"x.jsonl{end}", ReadContext(strict=True)))
            == [b"x"] * 10 * frames
        )


def test_bytes_that_are_not_utf8_are_replaced_or_named_by_their_place(tmp_path):
    context = ReadContext()
    path = write(tmp_path / "x.txt", "é".encode() * 600_000 + b"caf\xe9 \xff")
    assert list(documents_by(read_text, path, context)) == [("é" * 600_000 + "caf\ufffd \ufffd").encode()]
    assert context.notes == {REPLACED: 1}
    with pytest.raises(UserError, match=r"x\.txt: byte 1200003 \(0xe9\) is not UTF-8"):
        list(documents_by(read_text, path, ReadContext(strict=True)))


@pytest.mark.parametrize("character", ["a", "π", "\N{GRINNING FACE}"])
@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "x.txt.zst", "x.jsonl", "escaped.jsonl", "x.jsonl.gz"])
def test_a_large_document_is_in_memory_at_most_three_times(tmp_path, name, character):
    """Whatever its characters, and however JSON writes them: Python's own strings would take up to nine times it."""
    size = 20_000_000
    text = "All work and no play makes\r a long document " * (size // 44) + character
    text = text if character == "a" else text.replace("o", character)
    text = text[: size // 2]
    line = json.dumps({"text": text}, ensure_ascii="escaped" in name)
    path = write(tmp_path / name, (line if "json" in name else text).encode())
    read = read_json_lines if "json" in name else read_text
    tracemalloc.start()
    found = sum(map(len, read(path, ReadContext())))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == len(text.encode())
    assert peak < 3 * found + 16_000_000
