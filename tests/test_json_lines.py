"""Lines of JSON keep their place, whatever kind of file they come from."""

import gzip

import pytest

from data_pipelines.json_lines import json_lines
from gptjax.errors import UserError


def test_files_directories_and_patterns(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.jsonl").write_bytes(b'{"n": 1}\r\n\n \n{"n": 2}')
    (tmp_path / "sub/c.JSONL.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"n": 3}\n'))
    (tmp_path / "readme.md").write_text("not data")
    found = [(line.where, line.record()["n"]) for line in json_lines(str(tmp_path))]
    assert found == [(f"{tmp_path}/b.jsonl:1", 1), (f"{tmp_path}/b.jsonl:4", 2), (f"{tmp_path}/sub/c.JSONL.gz:1", 3)]
    for spec, wanted in [("b.jsonl", [1, 2]), ("*.jsonl", [1, 2]), ("**/*.gz", [3])]:
        assert [line.record()["n"] for line in json_lines(f"{tmp_path}/{spec}")] == wanted


def test_what_cannot_be_read(tmp_path):
    whole = gzip.compress(b'{"n": 1}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "plain.jsonl.gz").write_bytes(b"plain")
    for name in ("cut.jsonl.gz", "plain.jsonl.gz"):
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            list(json_lines(str(tmp_path / name)))
    (tmp_path / "empty").mkdir()
    for spec in ("empty", "absent", "*.json"):
        with pytest.raises(UserError, match=r"no \.jsonl or \.jsonl\.gz file"):
            list(json_lines(f"{tmp_path}/{spec}"))


def test_what_is_no_record(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "caf\xe9"}\n7\n{"a": \n')
    messages = ["not a line of JSON in UTF-8", "wanted a JSON object, got 7", "not a line of JSON"]
    for number, (line, message) in enumerate(zip(json_lines(str(tmp_path / "x.jsonl")), messages, strict=True), 1):
        with pytest.raises(UserError, match=rf"x\.jsonl:{number}: {message}"):
            line.record()
