"""Files, directories and patterns: every format by its name, always in the same order."""

import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from texts import documents_in, write_compressed

from data_pipelines.readers.documents import ReadContext
from data_pipelines.readers.files import AS_LINES, AS_MARKUP, AS_TEXT, LEFT_OUT, find_reader, open_files
from data_pipelines.readers.formats.array_records import read_array_records
from data_pipelines.readers.formats.json_lines import read_json
from data_pipelines.readers.formats.text_files import read_text
from data_pipelines.readers.paths import BESIDE
from gptjax.core.errors import UserError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text("from a")
    (folder / "b" / "c.MD").write_bytes(b"caf\xe9")
    (folder / "b" / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "from d"}\n{"text": "again"}\n'))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["from e", "and"], "other": ["E", "F"]}), folder / "e.parquet")
    writer = ArrayRecordWriter(str(folder / "f.array_record"), "group_size:1")
    writer.write(json.dumps({"text": "from f", "other": "G"}).encode())
    writer.close()
    write_compressed(folder / "g.ndjson.zst", b'{"text": "from g", "other": "H"}')
    for name in ("image.png", "photo.jpg", "train.bin"):
        (folder / name).write_bytes(b"\x89")
    return folder


def read(spec, context=None):
    documents = documents_in(open_files(str(spec)), context or ReadContext())
    return [str(document, "utf-8") for document in documents]


def test_directory_is_read_in_the_order_of_names(folder):
    texts = ["from a", "caf\ufffd", "from d", "again", "from e", "and", "from f", "from g"]
    assert read(folder) == read(folder) == texts
    assert open_files(str(folder)).name == "corpus"


def test_patterns_and_single_files(folder):
    assert read(f"{folder}/**/*.MD") == ["caf\ufffd"]
    assert read(f"{folder}/[ae].*") == ["from a", "from e", "and"]
    assert read(folder / "photo.jpg") == ["\ufffd"], "a named file of an unknown format is text"
    assert read(folder / "b" / "d.jsonl.gz") == ["from d", "again"]
    with pytest.raises(UserError, match=r"no such file, directory or pattern.*data_pipelines.recipes"):
        read(folder / "*.zip")


def test_files_left_out_or_unknown_are_counted(folder):
    def count(spec):
        context = ReadContext()
        assert read(spec, context)
        return context.notes[LEFT_OUT], context.notes[AS_TEXT]

    assert count(folder) == (3, 0)
    assert count(folder / "b") == count(folder / "a.txt") == (0, 0)
    assert count(f"{folder}/*.[pj]*[gn]") == (0, 2)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["README.md", "LICENSE.txt", "a.jsonl"], ["a.jsonl"]),
        (["README.md", "a.json"], ["a.json"]),
        (["README.md", "notes.md", "settings.json"], ["README.md", "notes.md"]),
        (["readme.txt"], ["readme.txt"]),
        (["README_zh.md", "citation.txt", "license.md", "a.jsonl"], ["a.jsonl"]),
        (["a.jsonl", "licensed_texts.txt", "readmes.txt"], ["a.jsonl", "licensed_texts.txt", "readmes.txt"]),
    ],
)
def test_a_readme_beside_records_is_not_read(names, expected, tmp_path):
    for name in names:
        (tmp_path / name).write_text(json.dumps([{"text": name}]) if "json" in name else name)
    files, beside = open_files(str(tmp_path)), len(names) - len(expected)
    assert [path.name for path in files.paths] == expected
    context = ReadContext()
    list(files.chunks(context))
    assert (context.notes[BESIDE], context.notes[LEFT_OUT]) == (beside, 0)


@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        ("a.txt,b.txt", "a directory that holds these files"),
        ("a.txt b.txt", "a directory that holds these files"),
        ("roneneldan/TinyStories", "--source=hf:roneneldan/TinyStories"),
        ("TinyStories", "--source=tinystories"),
        ("openwebtxt", "--source=openwebtext"),
        ("tiny_shakespeare", "--source=shakespeare or --source=shakespeare_char"),
        ("data\\a.txt", "--source=data/a.txt"),
        ("nothing.txt", "hf:OWNER/NAME"),
        ("t", "hf:OWNER/NAME"),
        ("tiny", "hf:OWNER/NAME"),
    ],
)
def test_a_mistyped_source_shows_the_right_one(spec, advice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"no such file, directory or pattern\. Or use .*{advice}"):
        open_files(spec)


def test_json_lines_under_another_name_are_records(tmp_path):
    (tmp_path / "a.jsonlines").write_text('\n{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "part-00000").write_text('{"no JSON\n')
    context = ReadContext()
    assert read(tmp_path / "a.jsonlines", context) == ["one", "two"]
    assert read(tmp_path / "part-00000", context) == ['{"no JSON\n']
    assert (context.notes[AS_LINES], context.notes[AS_TEXT]) == (1, 1)
    (tmp_path / "a.txt").write_text('{"text": "one"}\n')
    assert read(tmp_path / "a.txt", context) == ['{"text": "one"}\n']
    assert (
        "1 file has a JSON object first, read as text for the name; named .jsonl, it is records"
        in context.notes.lines()
    )
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"As text, a pattern reads others: '.*/\*\*/\*\.jsonlines'"):
        read(tmp_path)
    (tmp_path / "a.jsonlines").unlink()
    with pytest.raises(UserError, match=r"As text, a pattern reads others: '.*/\*\*/\*'$"):
        read(tmp_path)


def test_a_pattern_reads_what_is_text_and_a_directory_of_documents_tells_the_command(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(UserError, match=r"files\. This makes text of the first: pdftotext \S*a\.pdf \S*a\.txt$"):
        read(tmp_path)
    write_compressed(tmp_path / "d.html.gz", b"<p>d</p>")
    (tmp_path / "c.ipynb").write_text('{"text": "one line"}')
    (tmp_path / "b.htm").write_text("<p>b</p>")
    with pytest.raises(UserError, match=r"As text, a pattern reads others: '.*/\*\*/\*\.(gz|htm|ipynb)'$"):
        read(tmp_path)
    context = ReadContext()
    assert read(tmp_path / "[b-d].*", context) == ["<p>b</p>", '{"text": "one line"}', "<p>d</p>"]
    assert (context.notes[AS_MARKUP], context.notes[AS_TEXT]) == (3, 0)
    with pytest.raises(UserError, match=r"is a \.pdf file, and no plain text"):
        read(tmp_path / "*")


@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1}\n' + "Prose.\n" * 3,
        '{"text": "a"}\nProse.',
        '{"text": "a"}\n' * 19 + "Prose.\n",
        '{"text": "' + "a" * 2**24 + '"}\n',
        "\n",
        "",
    ],
)
def test_a_text_that_begins_with_objects_stays_a_text(content, tmp_path):
    """All of the first lines are objects in JSON lines."""
    (tmp_path / "a.log").write_text(content)
    context = ReadContext()
    assert (read(tmp_path / "a.log", context), context.notes[AS_TEXT]) == ([content], 1)


def test_json_lines_of_an_unknown_name_may_have_records_without_text(tmp_path):
    (tmp_path / "a.raw").write_text('{"body": null}\n\r\n{"body": "b"}\n' * 20 + '{"body": "c"}')
    context = ReadContext("body")
    assert read(tmp_path / "a.raw", context) == ["b"] * 20 + ["c"]
    assert context.notes[AS_LINES] == 1
    assert read(tmp_path / "a.raw", context := ReadContext()) == [], "a dump whose texts have another name is no text"
    assert 'got one with "body" (--text-field chooses another)' in str(context.notes.lines())


def test_text_field_reaches_every_format(folder):
    (folder / "b" / "d.jsonl.gz").unlink()
    context = ReadContext("other")
    assert read(folder, context) == ["from a", "caf\ufffd", "E", "F", "G", "H"]


def test_reader_is_found_by_name():
    assert find_reader("C4-train.00000-of-01024.JSON.gz") is read_json
    assert find_reader("readme.md") is read_text
    assert find_reader("x.array_record-00000-of-00010") is find_reader("x.arrayrecord") is read_array_records
    assert find_reader("x.zip") is find_reader("parquet") is None


def test_binary_file_is_refused(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"text\0")
    with pytest.raises(UserError, match=r"x\.bin: holds NUL bytes.*Token shards need no preparation"):
        read(tmp_path / "x.bin")
    for content, message in (
        (bytes(range(1, 30)), "many control characters, so it is no text"),
        (b"\x7fELF", "a program"),
    ):
        (tmp_path / "x.txt").write_bytes(content)
        with pytest.raises(UserError, match=message):
            read(tmp_path / "x.txt")
    for text in ("a\x01b\x02c\x1b[1m\f", bytes(range(1, 32)).decode() + "a" * 470):
        (tmp_path / "x.txt").write_bytes(text.encode())
        assert read(tmp_path / "x.txt") == [text]


def test_compressed_file_of_an_unknown_format_is_text(tmp_path):
    for name in ("corpus.gz", "dump.log.zst"):
        write_compressed(tmp_path / name, b"a text")
        assert read(tmp_path / name) == ["a text"]
    write_compressed(tmp_path / "corpus.gz", b"PAR1")
    with pytest.raises(UserError, match="it is Parquet"):
        read(tmp_path / "corpus.gz")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv.gz", "a.parquet", "a.arrow", "a.dump", "a.txt", "a.jsonl"])
def test_identity_has_the_version_of_readers_that_changed(name, tmp_path):
    (tmp_path / name).write_text("")
    known = {"source", "files", "names_sizes_times"}
    is_changed = name not in ("a.txt", "a.jsonl")
    assert open_files(str(tmp_path / name)).identity().keys() == known | ({"readers"} if is_changed else set())


def test_identity_changes_with_the_files(folder, monkeypatch):
    def identity():
        return open_files(str(folder)).identity()

    first = identity()
    assert first["source"] == str(folder)
    assert first["files"] == 6
    monkeypatch.chdir(folder.parent)
    assert open_files("corpus/").identity() == identity() == first, "by whichever path"
    os.utime(folder / "a.txt", ns=(1, 1))
    second = identity()
    (folder / "b").rename(folder / "z")
    third = identity()
    (folder / "h.txt").write_text("")
    assert len({json.dumps(one) for one in (first, second, third, identity())}) == 4
