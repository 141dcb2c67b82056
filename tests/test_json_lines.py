"""Lines of JSON keep their place, whatever kind of file they come from."""

import gzip
import os

import pyarrow
import pytest

from data_pipelines.readers.json_lines import open_json_lines
from gptjax.errors import UserError


def test_files_directories_and_patterns(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.jsonl").write_bytes(b'{"n": 1}\r\n\n \n{"n": 2}')
    (tmp_path / "sub/c.JSONL.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"n": 3}\n'))
    with pyarrow.CompressedOutputStream(str(tmp_path / "sub/d.ndjson.zst"), "zstd") as file:
        file.write(b'{"n": 4}\n{"n": 5}\n')
    for name in ("readme.md", "package.json"):
        (tmp_path / name).write_text("not data")
    found = [(line.where, line.record()["n"]) for line in open_json_lines(str(tmp_path))]
    places = ["b.jsonl:1", "b.jsonl:4", "sub/c.JSONL.gz:1", "sub/d.ndjson.zst:1", "sub/d.ndjson.zst:2"]
    assert found == [(f"{tmp_path}/{place}", number) for number, place in enumerate(places, start=1)]
    for spec, wanted in [("b.jsonl", [1, 2]), ("*.jsonl", [1, 2]), ("**/*.gz", [3])]:
        assert [line.record()["n"] for line in open_json_lines(f"{tmp_path}/{spec}")] == wanted


def test_only_these_lines_decide_the_identity(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 1}\n')
    first = open_json_lines(str(tmp_path)).identity()
    assert (first["source"], first["files"]) == (str(tmp_path), 1)
    (tmp_path / "readme.md").write_text("beside the data")
    assert open_json_lines(str(tmp_path)).identity() == first
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    assert open_json_lines(str(tmp_path)).identity() != first


def test_what_cannot_be_read(tmp_path):
    whole = gzip.compress(b'{"n": 1}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("plain.jsonl.gz", "plain.jsonl.zst"):
        (tmp_path / name).write_bytes(b"plain")
    for name in ("cut.jsonl.gz", "plain.jsonl.gz", "plain.jsonl.zst"):
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            list(open_json_lines(str(tmp_path / name)))
    (tmp_path / "empty").mkdir()
    for spec, message in [("empty", "the directory holds no"), ("absent", "no such file"), ("*.json", "no such file")]:
        with pytest.raises(UserError, match=rf"{message}.* \.jsonl \(also \.gz, \.zst\)"):
            open_json_lines(f"{tmp_path}/{spec}")


def test_what_is_no_record(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "caf\xe9"}\n7\n{"a": \n')
    messages = ["not a line of JSON in UTF-8", "wanted a JSON object, got 7", "not a line of JSON"]
    for number, (line, message) in enumerate(zip(open_json_lines(str(tmp_path / "x.jsonl")), messages, strict=True), 1):
        with pytest.raises(UserError, match=rf"x\.jsonl:{number}: {message}"):
            line.record()
