"""Text files, plain and compressed."""

import os
import sys

import pytest
from texts import documents_by, write_compressed

from data_pipelines.readers import zstandard
from data_pipelines.readers.documents import REPLACED, ReadContext
from data_pipelines.readers.formats.text_files import explain_errors, read_text
from data_pipelines.readers.zstandard import read_window
from gptjax.core.errors import UserError


def read(path, **options):
    return list(documents_by(read_text, path, ReadContext(**options)))


@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbfone\r\ntwo\rthree\n\0", b"x" * 3_000_000], ids=len)
def test_text_file_is_one_document(tmp_path, end, content):
    assert read(write_compressed(tmp_path / f"x.txt{end}", content), strict=True) == [content]


def test_invalid_utf8_in_a_file_is_replaced_or_raised(tmp_path):
    context = ReadContext()
    path = write_compressed(tmp_path / "x.txt", "é".encode() * 600_000 + b"caf\xe9 \xff")
    assert list(documents_by(read_text, path, context)) == [("é" * 600_000 + "caf\ufffd \ufffd").encode()]
    assert context.notes == {REPLACED: 1}
    with pytest.raises(UserError, match=r"x\.txt: byte 1200003 \(0xe9\) is not UTF-8"):
        read(path, strict=True)


def test_text_in_utf16_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is UTF-16, wanted UTF-8.*iconv"):
        read(write_compressed(tmp_path / "x.txt", "text".encode("utf-16")))
    with pytest.raises(
        UserError, match=r"Convert it: gzip -dc \S*x\.txt\.gz \| iconv -f UTF-16 -t UTF-8 > \S*x\.utf8\.txt$"
    ):
        read(write_compressed(tmp_path / "x.txt.gz", "text".encode("utf-16")))


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_damaged_compressed_file_is_refused(tmp_path, end):
    whole = write_compressed(tmp_path / f"whole.txt{end}", os.urandom(100_000)).read_bytes()
    path = tmp_path / f"x.txt{end}"
    altered = [whole[:20] + b"\xff" * 8 + whole[28:]] if end == ".gz" else []  # .zst need not have a checksum
    for content in (whole[:50_000], b"plain", *altered):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"x\.txt{end}: cannot be read"):
            read(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=rf"x\.txt{end}: cannot be read: it is empty, so it is no compressed file"):
        read(path)


def write_long_window(path, content):
    """As `zstd --long=31` writes from a pipe: a window of 2 GiB, and no size."""
    zstd = pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
    options = {zstd.CompressionParameter.window_log: 31, zstd.CompressionParameter.enable_long_distance_matching: 1}
    compressor = zstd.ZstdCompressor(options=options)
    path.write_bytes(compressor.compress(content) + compressor.flush())
    return path


def test_a_long_window_is_read_and_its_memory_told(tmp_path, capsys, monkeypatch):
    path = write_long_window(tmp_path / "x.txt.zst", b"a text")
    assert read_window(path) == 2**31
    assert read(path) == [b"a text"]
    assert "reading takes up to 2,048 MiB of memory" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"x\.txt\.zst: cannot be read: Compressed file ended"):
        read(path)
    monkeypatch.setattr(zstandard, "_find_library", lambda: None)
    with pytest.raises(UserError, match=r"pip install backports\.zstd, .* zstd -d --long=31 x\.txt\.zst"):
        read(path)


def test_error_of_the_system_is_told_without_its_number(tmp_path):
    with (
        pytest.raises(UserError, match=r"x\.txt: cannot be read: Permission denied\.$"),
        explain_errors(tmp_path / "x.txt"),
    ):
        raise PermissionError(13, "Permission denied", tmp_path / "x.txt")
