"""Shapes of text that people bring: arrays, tables, nested fields, Arrow, separators, splits in names."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from texts import documents_in

from data_pipelines.prepare import Prepare, prepare
from data_pipelines.prepare_chat import PrepareChat, prepare_chat
from data_pipelines.readers.documents import INVALID, REPLACED_RECORDS, ReadContext
from data_pipelines.readers.files import open_files
from data_pipelines.readers.formats.tables import LACKING
from data_pipelines.readers.paths import find_split
from data_pipelines.readers.records import iter_blocks
from gptjax.core.errors import UserError

RECORDS = [
    {
        "id": i,
        "content": {"title": f"t{i}", "text": f"nested {i}"},
        "parts": [f"one {i}", f"two {i}"],
        "text": f"text {i}",
        "title": None if i == 1 else f"title {i}",
        "blank": " ",
    }
    for i in range(3)
]


def read(path: Path, context: ReadContext | None = None) -> list[str]:
    return [str(document, "utf-8") for document in documents_in(open_files(str(path)), context or ReadContext())]


def write_records(path: Path, records: list[dict[str, Any]] = RECORDS) -> Path:
    """The records in the format that the name says."""
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        case ".json":
            path.write_text(json.dumps(records, indent=1))
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
        case ".arrow":
            table = pyarrow.Table.from_pylist(records)
            with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
        case ".feather":
            table = pyarrow.Table.from_pylist(records)
            with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "arrow", "feather"])
@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("text", "text 1"),
        ("content.text", "nested 1"),
        ("parts", "one 1\n\ntwo 1"),
        ("title, blank,content.text", "nested 1"),
        ("text,parts", "text 1\n\none 1\n\ntwo 1"),
    ],
)
def test_the_text_of_a_record_is_found_in_every_format(kind: str, field: str, expected: str, tmp_path: Path):
    path = write_records(tmp_path / f"records.{kind}")
    assert read(path, ReadContext(field))[1:2] == [expected]
    if field.startswith("title"):
        assert len(read(path, ReadContext("title"))) == 2, "a null alone is no text"


NULLS = [
    {"a": {"b": None}, "c": "1"},
    {"a": None, "c": "2"},
    {"c": "3"},
    {"a": {}, "c": "4"},
    {"a": {"b": "5"}},
    {"a": None},
]
"""A table has null for what a record of JSON lacks."""


@pytest.mark.parametrize(("kind", "lacking"), [("jsonl", 3), ("json", 3), ("parquet", 0)])
def test_a_null_or_absent_field_leaves_the_text_of_others(kind: str, lacking: int, tmp_path: Path):
    context = ReadContext("a.b,c")
    assert read(write_records(tmp_path / f"records.{kind}", NULLS), context) == ["1", "2", "3", "4", "5"]
    assert (context.notes[LACKING], context.notes[INVALID]) == (lacking, 1)
    if lacking:
        assert context.notes.first[LACKING].endswith('3: has no "a.b"; it has "c".')
        wrong = [{"a": "x", "c": "1"}, {"a": {"b": 2}, "c": "2"}]
        assert read(write_records(tmp_path / f"wrong.{kind}", wrong), context) == []


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "arrow"])
@pytest.mark.parametrize("field", ["body", "content", "content.body", "id.text", "text,body"])
def test_a_field_without_text_is_told_with_those_that_have_it(kind: str, field: str, tmp_path: Path):
    path = write_records(tmp_path / f"records.{kind}")
    with pytest.raises(UserError, match=r"content\.title|content") as caught:
        read(path, ReadContext(field, strict=True))
    assert field.rpartition(",")[2] in str(caught.value)


def test_columns_of_a_table_are_joined_unless_one_has_that_name(tmp_path: Path):
    (tmp_path / "t.csv").write_text('title,body,"title,body"\nA,a b,both\n,c,x\n')
    assert read(tmp_path / "t.csv", ReadContext("title,body")) == ["both", "x"]
    assert read(tmp_path / "t.csv", ReadContext("body,title")) == ["a b\n\nA", "c"]
    context = ReadContext("body,titel")
    assert read(tmp_path / "t.csv", context) == []
    assert 'wanted the column "body,titel"; its first line names "title", "body"' in context.notes.lines()[0]


@pytest.mark.parametrize(("name", "mark"), [("t.csv", ","), ("t.tsv", "\t")])
def test_a_table_with_a_header_is_records(name: str, mark: str, tmp_path: Path):
    rows = [["id", "text"], ["1", f'"a ""quoted""{mark} text\nof two lines"'], ["2", "é"], ["3"]]
    (tmp_path / name).write_text("\ufeff" + "".join(mark.join(row) + "\r\n" for row in rows))
    context = ReadContext()
    assert read(tmp_path / name, context) == [f'a "quoted"{mark} text\nof two lines', "é", ""]
    with pytest.raises(UserError, match='row 1: wanted the column "body"; its first line names "id", "text"'):
        read(tmp_path / name, ReadContext("body", strict=True))


@pytest.mark.parametrize(
    "content",
    [
        "sep=;\r\ntext;id\r\na, b;1\r\n",
        '\ufeffsep=,\ntext,id\n"a, b",1\n',
        'v1,text,,\nham,"a, b",,\n',
        'id, text\n1, "a, b"\n',
    ],
)
def test_headers_of_excel_and_of_pandas_are_read(content: str, tmp_path: Path):
    (tmp_path / "a.csv").write_text(content)
    assert read(tmp_path / "a.csv", ReadContext(strict=True)) == ["a, b"]
    assert read(tmp_path / "a.csv", ReadContext(" text", strict=True)) == ["a, b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n"a": 1}', r"holds one object \(a\); wanted an array of objects"),
        ('["a", "b"]', r"holds no array of objects.*jq -c '\.\[\] \| \{text: .\}' .*x\.json > .*x\.jsonl"),
        ('{"a": {"text": "b"}}', r"Write each object in a line: jq -c '\.\[\]' .*x\.json > .*x\.jsonl"),
        ('{"text": {"0": "b"}}', r"It holds columns.*pandas\.read_json.*orient=.records., lines=True"),
        ('{"text": ["a", "b"]}', r"It holds columns.*pandas\.read_json.*orient=.records., lines=True"),
        ('[{"text": "a"},]', "no comma before . or }: remove them"),
        ('// a\n[{"text": "a"}]', "has no comments"),
        ("3", "holds 3; wanted an array of objects"),
        ('{"text": "a"}', "holds one object"),
        ('{"data": [{"text": "a"}]}', r"Take the array out of it: jq -c '\.data\[\]' .*x\.json > .*x\.jsonl"),
        ('{\n"a": 1}\n{\n"a": 2}', r"jq -c \. \S*x\.json > \S*x\.jsonl"),
        ("[", "is neither JSON nor JSON lines"),
        ("", "is neither JSON nor JSON lines"),
    ],
)
def test_other_json_is_refused(content: str, message: str, tmp_path: Path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x.json")


def test_json_lines_are_read_under_the_name_json(tmp_path: Path):
    (tmp_path / "x.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert read(tmp_path / "x.json") == ["a", "b"]


def test_json_beside_other_formats_is_left_out(tmp_path: Path):
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "a.txt").write_text("a")
    assert read(tmp_path) == ["a"]
    (tmp_path / "a.txt").unlink()
    (tmp_path / "settings.json").write_text('[{"text": "b"}]')
    assert read(tmp_path) == ["b"]


def test_a_separator_cuts_text_files_and_is_counted_without(tmp_path: Path):
    (tmp_path / "stories.txt").write_text("one\n<|endoftext|>\ntwo\n\nlines\n<|endoftext|>\n")
    assert read(tmp_path / "stories.txt", ReadContext(separator="<|endoftext|>")) == ["one", "two\n\nlines"]
    request = Prepare(
        source=str(tmp_path / "stories.txt"),
        tokenizer="bytes",
        output=tmp_path / "out",
        separator=r"\n\n",
        split="none",
    )
    assert prepare(request).splits["train"].documents == 2
    told = prepare(replace(request, separator="@", overwrite=True)).notes
    assert told[0] == "1 file has no separator '@': a document each"
    assert told[1].startswith("2 times <|endoftext|> stands in text and is learnt as text; --separator='<|endoftext|>'")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("c4-train.00000-of-01024.json.gz", "train"),
        ("data/validation/part.jsonl", "validation"),
        ("dev.jsonl", "validation"),
        ("test/train.jsonl", "train"),
        ("corpusTest.txt", "test"),
        ("trains.txt", None),
        ("train_test.txt", None),
        ("book.txt", None),
    ],
)
def test_the_split_is_read_from_the_name(name: str, split: str | None):
    assert find_split(name) == split


@pytest.mark.parametrize("spec", ["", "*.txt"])
def test_splits_in_one_directory_are_not_mixed(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("train-0", "train-1", "validation-0", "test-0"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert read(tmp_path / spec) == ["train-0", "train-1"]
    told = capsys.readouterr().err
    assert "not read: 2 files of other splits" in told
    assert f" --validation-source={tmp_path}/validation-0.txt --overwrite" in told
    assert read(tmp_path / "validation*") == ["validation-0"]
    read(tmp_path / spec)
    assert "not read: 1 file of other splits, such as " in (told := capsys.readouterr().err), "the other is read now"
    assert "--validation-source" not in told
    assert read(tmp_path / "[vt][ae][ls][it]*.txt") == ["test-0", "validation-0"], "without training files all are read"
    assert "reads 2 files that their names call validation or test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "é".encode("utf-16"), "UTF-16, wanted UTF-8. Convert it: iconv"),
        ("a.jsonl", '{"text": "é"}'.encode("utf-16"), "UTF-16"),
        ("a.csv", "text\né".encode("utf-16"), "UTF-16"),
        ("a.jsonl.xz", b"\xfd7zXZ", "Unpack it first: xz -dk .*a.jsonl.xz"),
        ("a.tar.gz", b"\x1f\x8b", "Unpack it first: tar xzf .*a.tar.gz"),
        ("a.arrow", b"nothing", "cannot be read as Arrow"),
        ("a.feather", b"FEA1" * 9, "is Feather of version 1"),
        ("a.txt", "a text".encode("utf-16-le") * 3, "is UTF-16, wanted UTF-8. Convert it: iconv -f UTF-16LE"),
        ("a.jsonl", b"\x1f\x8b", "is gzip, so its name should end in .gz"),
        ("a.csv", b"PAR1", "is Parquet, so its name should end in .parquet"),
        ("a.md", b"%PDF-1.4", r"is PDF\. This makes text of it: pdftotext \S*a\.md \S*a\.txt"),
        ("a.docx", b"PK\x03\x04", r"This makes text of it: pandoc -t plain \S*a\.docx -o \S*a\.txt$"),
        ("a.doc", b"\xd0\xcf\x11\xe0", r"libreoffice --headless --convert-to txt:Text \S*a\.doc"),
        ("a.db", b"SQLite format 3\0", r"sqlite3 -json \S*a\.db 'SELECT \* FROM TABLE' > \S*a\.json"),
        ("a.txt", b"\x80\x04\x95", "is a pickle, which is not opened"),
        ("a.txt", bytes(257) + b"ustar", r"is a tar archive; unpack it first: tar xf \S*a\.txt"),
        ("a.jsonl", b'{\n"text": "a"\n}\n', "must be a line of its own: jq -c . .*a.jsonl > .*a.lines.jsonl"),
        ("a.jsonl", b'{"text": "a"}{"text": "b"}', "must be a line of its own: jq -c . .*a.jsonl > .*a.lines.jsonl"),
        ("a.jsonl", b'{"text": "a"}}\n', r"Extra data at character 14\.$"),
        ("a.json", b'{"text": "a"} # x', r"Extra data: .*char 14\)\.$"),
        ("a.jsonl", b'[{"role": "user", "content": "a"}]\n', "Conversations are for .*prepare_chat"),
        ("a.csv", b"Context,Response\na,b\n", "Conversations are for .*prepare_chat"),
        ("a.json", b'[[{"from": "human", "value": "a"}]]\n', "Conversations are for .*prepare_chat"),
        ("a.jsonl", b'[{"text": "a"}]\n', "An array is read from a file that is called .json"),
        (
            "a.csv",
            b"text\na, b\n",
            "row 1: has 2 cells, the header 1 .text.. A text with ',' in it needs double quotes",
        ),
        ("a.jsonl", b'[\n{"text": "a"},\n{"text": "b"}\n]\n', "It is read from a file that is called .json"),
        (
            "a.jsonl",
            b'{"text": "a"},\n{"text": "b"}\n',
            r"its lines end with commas.*sed -i 's/,\[\[:space:]]\*\$//' /.*a.jsonl",
        ),
        ("a.jsonl.gz", gzip.compress(b'{"a": "b"},\r\n', mtime=0), "gzip -d .*a.jsonl.gz && sed -i 's/,.* .*a.jsonl$"),
        ("a.jsonl.gz", gzip.compress(b'[\n{"text": "a"}\n]', mtime=0), "a file that is called .json.gz"),
        ("a.jsonl", b"{'text': 'a'}\n", "Python's json.dumps writes them"),
        ("a.jsonl", b'"a"\n', r"jq -c '\{text: .\}' .*a.jsonl > .*a.lines.jsonl"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS.*git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS.*git lfs pull"),
        ("a.arrow", b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS.*git lfs pull"),
        ("a.txt", "a text".encode("utf-32"), "is UTF-32, wanted UTF-8. Convert it: iconv -f UTF-32"),
        ("a.csv", b'text\n"an \\"a\\" b"\n', "row 1 .line 2.: its quotes do not fit.* is written twice"),
        ("a.csv", b'1,"a text"\n2,"b"\n', "If that line is data, write names above it: sed -i '1i column1,text' "),
        ("a.csv", b"1;a\n2;b, c\n", "sed -i '1i column1;text' "),
        ("a.csv", b'1, "a, text"\n2, b\n', "sed -i '1i column1, text' "),
        ("a.csv", b"sep=|\n1|a text\n2|b\n", r"sed -i '2i column1\|text' "),
        ("a.tsv", b"a text\t\t1\nb\t\t0\n", r"sed -i '1i text\\tcolumn2\\tcolumn3' "),
        (
            "a.csv.gz",
            gzip.compress(b"1,a text\n2,b\n", mtime=0),
            "gzip -d .*a.csv.gz && sed -i '1i column1,text' .*a.csv$",
        ),
        ("a.csv", b"text,text\n1,2\n", "its header names text twice"),
        ("a.tsv", b"", "is empty, or its first line is no header"),
        ("a.tsv.gz", gzip.compress(b"", mtime=0), "is empty, or its first line is no header"),
    ],
)
def test_what_is_not_read_is_refused_with_advice(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name, ReadContext(strict=True))


RAW_ROWS = ['"Well, said Ann', '"Yes," he said', '"No."', "plain", 'a "word" in it']


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        (RAW_ROWS, RAW_ROWS),
        (['"a ""word"" in it"', '"No."', "plain"], ['a "word" in it', "No.", "plain"]),
        (['"two', 'lines"', "b"], None),
        (["plain"] * 40_000 + RAW_ROWS[:2] + ['"No."'], ["plain"] * 40_000 + RAW_ROWS[:2] + ["No."]),
    ],
    ids=["without quoting", "quoted", "a cell of two lines", "beyond what is looked at"],
)
def test_quotes_of_a_tab_separated_table_are_text_unless_they_enclose_cells(
    rows: list[str], texts: list[str] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lines = [f"{number}\t{text}" if text != 'lines"' else text for number, text in enumerate(rows)]
    (tmp_path / "a.tsv").write_text("id\ttext\n" + "\n".join(lines) + "\n")
    assert read(tmp_path / "a.tsv", ReadContext(strict=True)) == (texts or ["two\nlines", "b"])
    assert ("row 1 is lines 2 to 3, for a quoted cell has line ends" in capsys.readouterr().err) == (texts is None)


@pytest.mark.parametrize(("first", "skipped"), [('"quoted"', 3), ("plain", 2)])
def test_a_torn_cell_beyond_what_is_looked_at_is_told(first: str, skipped: int, tmp_path: Path):
    lines = [f"0\t{first}", *["1\tplain"] * 40_000, '2\t"two', "middle", 'lines"', "3\tlast"]
    (tmp_path / "a.tsv").write_text("id\ttext\n" + "\n".join(lines) + "\n")
    context = ReadContext()
    texts = read(tmp_path / "a.tsv", context)
    assert context.notes == {INVALID: skipped}
    assert "a cell with line ends is read only in quotes" in context.notes.first[INVALID]
    assert texts[-1] == "last"
    assert len(texts) == len(lines) - skipped


def test_a_row_whose_quotes_do_not_fit_is_skipped_alone(tmp_path: Path):
    (tmp_path / "a.csv").write_text('id,text\n1,"a" b\n2,c\n3,"d\n4,e\n')
    context = ReadContext()
    assert read(tmp_path / "a.csv", context) == ["c"]
    assert context.notes == {INVALID: 2}
    assert "row 1 (line 2): its quotes do not fit: ',' expected after '\"'" in context.notes.first[INVALID]


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_a_table_may_have_another_separator(mark: str, tmp_path: Path):
    (tmp_path / "a.csv").write_text(f'id{mark}text\n1{mark}"a, b"\n')
    assert read(tmp_path / "a.csv") == ["a, b"]


def test_bytes_in_a_table_that_are_not_utf8_are_counted(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"text\ncaf\xe9\n")
    context = ReadContext()
    assert read(tmp_path / "a.csv", context) == ["caf\ufffd"]
    assert context.notes == {REPLACED_RECORDS: 1}
    [(_, record)] = [record for block in iter_blocks(tmp_path / "a.csv", fields=()) for record in block.read()]
    assert isinstance(record, UserError)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_text_in_the_objects_of_a_list_is_joined(kind: str, tmp_path: Path):
    rows = [{"page": {"parts": [{"text": f"one {i}"}, {"text": "two"}]}} for i in range(2)]
    path = tmp_path / f"rows.{kind}"
    table = pyarrow.Table.from_pylist(rows)
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match=r"page\.parts\.text"):
        read(path, ReadContext(strict=True))
    assert read(path, ReadContext("page.parts.text")) == ["one 0\n\ntwo", "one 1\n\ntwo"]
    blocks = [block for block in iter_blocks(path, fields=("page",)) if kind != "jsonl"]
    assert [record for block in blocks for _, record in block.read()] == (rows if blocks else [])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_texts_in_columns_that_are_not_utf8_are_single_records(kind: str, tmp_path: Path):
    latin1 = pyarrow.array([b"caf\xe9", b"ok", b"ok"]).view(pyarrow.string())
    lists = pyarrow.ListArray.from_arrays([0, 1, 3], latin1)
    structs = pyarrow.ListArray.from_arrays([0, 1, 3], pyarrow.StructArray.from_arrays([latin1], ["text"]))
    table = pyarrow.table({"text": lists, "messages": structs})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    for field in ("text", "messages.text"):
        context = ReadContext(field)
        assert read(path, context) == ["caf\ufffd", "ok\n\nok"]
        assert context.notes == {REPLACED_RECORDS: 1}
    [first, (_, second)] = [record for block in iter_blocks(path, fields=("messages",)) for record in block.read()]
    assert isinstance(first[1], UserError)
    assert "row 1: has a text that is not UTF-8" in str(first[1])
    assert second == {"messages": [{"text": "ok"}, {"text": "ok"}]}


def test_chats_are_read_from_an_array(tmp_path: Path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "chats.json").write_text(json.dumps([{"messages": turns}] * 3, indent=1))
    words = "the end of the end, and the rest"
    (tmp_path / "text.txt").write_text(words * 9)
    prepare(Prepare(source=str(tmp_path / "text.txt"), tokenizer="bpe:265", output=tmp_path / "text", split="none"))
    request = PrepareChat(
        source=str(tmp_path / "chats.json"), tokenizer=str(tmp_path / "text"), output=tmp_path / "out", split="none"
    )
    assert prepare_chat(request).splits["train"].documents == 3


def test_chats_are_read_from_a_table(tmp_path: Path):
    (tmp_path / "pairs.csv").write_text('prompt,completion\n"2+2?","4"\n"3+3?","6"\n')
    blocks = iter_blocks(tmp_path / "pairs.csv", fields=())
    records = [record for block in blocks for _, record in block.read()]
    assert records == [{"prompt": "2+2?", "completion": "4"}, {"prompt": "3+3?", "completion": "6"}]


@pytest.mark.parametrize("before", [0, 40_000])
def test_lines_of_a_tab_separated_table_may_lack_their_last_cells(
    before: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lines = [*["0\tplain\tx"] * before, "1\tshort", "2\twhole\ty", "3\ttorn", "cell\tz", "4\tlast\t"]
    (tmp_path / "a.tsv").write_text("id\ttext\tlabel\n" + "\n".join(lines) + "\n")
    context = ReadContext()
    assert read(tmp_path / "a.tsv", context)[before:] == ["short", "whole", "last"]
    assert context.notes == {INVALID: 2}
    assert "lines with fewer cells than the header's 3 are read with empty last cells" in capsys.readouterr().err


def test_records_are_not_told_to_be_cut(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a<|endoftext|>b"}\n')
    request = Prepare(source=str(tmp_path / "a.jsonl"), tokenizer="bytes", output=tmp_path / "out", split="none")
    assert prepare(request).notes == ["1 time <|endoftext|> stands in text and is learnt as text"]
