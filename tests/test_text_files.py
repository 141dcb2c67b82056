"""Text and JSON lines, plain and compressed: the same bytes come out."""

import gzip
import json
import tracemalloc
from collections import Counter

import pyarrow
import pytest

from data_pipelines.documents import BROKEN
from data_pipelines.json_lines import read_json_lines
from data_pipelines.text_files import read_text
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
    assert list(read_text(path, Counter(), strict=True)) == [content.decode()]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("last", ["", "\n"])
def test_a_line_is_a_document(tmp_path, end, last):
    texts = ["one", "", "é☕\u2028\x85\r\n", "long " * 200_000, "last"]
    lines = "\r\n\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts) + last
    path = write(tmp_path / f"x.jsonl{end}", lines.encode())
    assert list(read_json_lines(path, Counter(), strict=True)) == texts


def test_broken_lines_are_left_out_or_named_by_number(tmp_path):
    path = write(tmp_path / "x.jsonl", b'{"text": "a"}\n\n{"text": \n{}\n{"text": "b"}\n{"text": "c')
    notes = Counter()
    assert list(read_json_lines(path, notes, strict=False)) == ["a", "b"]
    assert notes == {BROKEN: 3}
    with pytest.raises(UserError, match=r"x\.jsonl:3: "):
        list(read_json_lines(path, notes, strict=True))


@pytest.mark.parametrize("frames", [1, 3])
def test_files_that_were_joined(tmp_path, frames):
    for end in (".gz", ".zst"):
        part = write(tmp_path / f"part.jsonl{end}", b'{"text": "x"}\n' * 10).read_bytes()
        (tmp_path / f"x.jsonl{end}").write_bytes(part * frames)
        assert list(read_json_lines(tmp_path / f"x.jsonl{end}", Counter(), strict=True)) == ["x"] * 10 * frames


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.txt", "x.txt.gz"])
def test_a_large_document_is_in_memory_at_most_three_times(tmp_path, name):
    size = 20_000_000
    text = "All work and no play makes\r a long document " * (size // 44)
    path = write(tmp_path / name, (json.dumps({"text": text}) if "json" in name else text).encode())
    read = read_json_lines if "json" in name else read_text
    tracemalloc.start()
    assert sum(map(len, read(path, Counter(), strict=False))) == len(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size + 3_000_000
