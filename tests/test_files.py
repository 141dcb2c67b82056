"""Files, directories and patterns: every kind by its name, always in the same order."""

import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from texts import documents_in

from data_pipelines.readers.array_records import read_array_records
from data_pipelines.readers.documents import ReadContext
from data_pipelines.readers.files import AS_TEXT, LEFT_OUT, open_files, reader_of
from data_pipelines.readers.json_lines import read_json_lines
from data_pipelines.readers.text_files import NO_FIELDS, read_text
from gptjax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text("from a")
    (folder / "b" / "c.MD").write_bytes(b"caf\xe9")
    (folder / "b" / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "from d"}\n{"text": "again"}\n'))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["from e", "and"]}), folder / "e.parquet")
    writer = ArrayRecordWriter(str(folder / "f.array_record"), "group_size:1")
    writer.write(json.dumps({"text": "from f"}).encode())
    writer.close()
    with pyarrow.CompressedOutputStream(str(folder / "g.ndjson.zst"), "zstd") as file:
        file.write(b'{"text": "from g"}')
    for name in ("image.png", "config.json", "train.bin"):
        (folder / name).write_bytes(b"\x89")
    return folder


def read(spec, **options):
    context = ReadContext(**{"strict": True, **options})
    return [str(document, "utf-8") for document in documents_in(open_files(str(spec)), context)]


def test_all_kinds_in_a_directory_in_the_order_of_their_names(folder):
    texts = ["from a", "caf\ufffd", "from d", "again", "from e", "and", "from f", "from g"]
    assert read(folder, strict=False) == texts
    source = open_files(str(folder))
    assert source.name == "corpus"
    for _ in range(2):
        assert [str(document, "utf-8") for document in documents_in(source, ReadContext())] == texts


def test_patterns_and_single_files(folder):
    assert read(f"{folder}/**/*.MD", strict=False) == ["caf\ufffd"]
    assert read(f"{folder}/[ae].*") == ["from a", "from e", "and"]
    assert read(folder / "config.json", strict=False) == ["\ufffd"], (
        "a file that is named is read as text, whatever its kind"
    )
    assert read(folder / "b" / "d.jsonl.gz") == ["from d", "again"]


def test_what_is_left_out_or_not_known_is_counted(folder):
    def notes_of(spec):
        context = ReadContext()
        assert list(documents_in(open_files(str(spec)), context))
        return context.notes[LEFT_OUT], context.notes[AS_TEXT]

    assert notes_of(folder) == (3, 0)
    assert notes_of(folder / "b") == notes_of(folder / "a.txt") == (0, 0)
    assert notes_of(f"{folder}/*.[pj]*[gn]") == (0, 2)


def test_another_field_in_every_kind(folder):
    """What has no fields is read as before, and the report says so."""
    (folder / "b" / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "no", "content": "from d"}\n'))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["no"], "content": ["from e"]}), folder / "e.parquet")
    writer = ArrayRecordWriter(str(folder / "f.array_record"), "group_size:1")
    writer.write(json.dumps({"content": "from f", "text": "no"}).encode())
    writer.close()
    (folder / "g.ndjson.zst").unlink()
    context = ReadContext("content")
    found = [str(document, "utf-8") for document in documents_in(open_files(str(folder)), context)]
    assert found == ["from a", "caf\ufffd", "from d", "from e", "from f"]
    assert context.notes[NO_FIELDS] == 2


def test_kinds():
    assert reader_of("C4-train.00000-of-01024.JSON.gz") is read_json_lines
    assert reader_of("readme.md") is read_text
    assert reader_of("x.array_record-00000-of-00010") is reader_of("x.arrayrecord") is read_array_records
    assert reader_of("package.json") is reader_of("x.zip") is reader_of("parquet") is None


def test_identity_notices_changes(folder, monkeypatch):
    def identity():
        return open_files(str(folder)).identity()

    first = identity()
    assert first["source"] == str(folder)
    assert first["files"] == 6
    monkeypatch.chdir(folder.parent)
    assert open_files("corpus/").identity() == first, "by whichever path"
    assert identity() == first
    os.utime(folder / "a.txt", ns=(1, 1))
    second = identity()
    (folder / "b").rename(folder / "z")
    third = identity()
    (folder / "h.txt").write_text("")
    assert len({json.dumps(one) for one in (first, second, third, identity())}) == 4


def test_what_cannot_be_read(tmp_path):
    whole = gzip.compress(b'{"text": "x"}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "altered.jsonl.gz").write_bytes(whole[:20] + b"\xff" * 8 + whole[28:])
    (tmp_path / "not.txt.gz").write_bytes(b"plain")
    (tmp_path / "not.txt.zst").write_bytes(b"plain")
    with pyarrow.CompressedOutputStream(str(tmp_path / "whole.zst"), "zstd") as file:
        file.write(os.urandom(100_000))
    (tmp_path / "cut.txt.zst").write_bytes((tmp_path / "whole.zst").read_bytes()[:50_000])
    (tmp_path / "none.jsonl.gz").touch()
    (tmp_path / "none.txt.zst").touch()
    for name in ("none.jsonl.gz", "none.txt.zst"):
        with pytest.raises(UserError, match=f"{name}: is empty, which no packed file is"):
            read(tmp_path / name, strict=False)
    for name in ("cut.jsonl.gz", "altered.jsonl.gz", "not.txt.gz", "not.txt.zst", "cut.txt.zst"):
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            read(tmp_path / name, strict=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no"):
        read(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no such file, directory or pattern.*data_pipelines.recipes"):
        read(tmp_path / "*.md")
