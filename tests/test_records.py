"""Records of every format, in blocks, with their places."""

import json
import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines.readers import records
from data_pipelines.readers.documents import ReadContext, iter_documents
from data_pipelines.readers.records import NamedRecord, find_record_files, iter_blocks
from data_pipelines.readers.sources import open_source
from gptjax.core.errors import UserError
from gptjax.core.json_names import explain_names, parse_fields, parse_record


def read(*paths: Path, block_bytes: int = 2**20) -> list[NamedRecord]:
    """All records, read as another process would."""
    blocks = [block for path in paths for block in iter_blocks(path, fields=("n", "m"), block_bytes=block_bytes)]
    return [record for block in blocks for record in pickle.loads(pickle.dumps(block)).read()]


def test_rows_of_parquet_and_tables_have_their_numbers(tmp_path):
    rows = [{"n": f"a {i}", "other": i} for i in range(2500)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=2200)
    assert read(tmp_path / "x.parquet") == [
        (f"{tmp_path}/x.parquet: row {i + 1}", {"n": row["n"]}) for i, row in enumerate(rows)
    ]
    assert len(list(iter_blocks(tmp_path / "x.parquet", fields=("n",)))) == 4
    (tmp_path / "x.tsv").write_text('n\tm\nа\t"b\tc"\n')
    assert read(tmp_path / "x.tsv") == [(f"{tmp_path}/x.tsv: row 1", {"n": "а", "m": "b\tc"})]


def test_json_is_an_array_or_lines(tmp_path):
    lists = [[{"n": 1}], [{"n": 2}]]
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, lists)))
    (tmp_path / "array.json").write_text(json.dumps(lists))
    for name in ("lines", "array"):
        assert [record for _, record in read(tmp_path / f"{name}.json")] == lists


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_name_with_two_values_is_an_error_in_its_place(tmp_path, name):
    rows = ['{"n": 1, "m": [{"n": 1, "n": 1}]}', '{"n": 1, "id": {"m": 1, "m": 2}, "i": 1, "i": 2}', '{"n": 3}']
    values = (("1", "true"), ("1", "1.0"), ('{"a": [1]}', '{"a": [true]}'), ('{"a": 1, "a": 2}', '"several values"'))
    rows += [f'{{"m": [{{"n": {first}, "n": {second}, "n": {first}}}]}}' for first, second in values]
    (tmp_path / name).write_text("\n".join(rows) if name == "x.jsonl" else f"[{','.join(rows)}]")
    (_, first), (_, unread), (_, third), *wrong = read(tmp_path / name)
    assert (first, unread, third) == ({"n": 1, "m": [{"n": 1}]}, {"n": 1}, {"n": 3})
    for where, error in wrong:
        assert str(error).startswith(f'{where}: "n" stands twice in one object, with different values. Keep the one')
    rows = ['{"text": "a", "n": 1, "n": 2}', '{"text": "b", "text": "c"}']
    (tmp_path / name).write_text("\n".join(rows) if name == "x.jsonl" else f"[{','.join(rows)}]")
    texts, context = list[bytes](), ReadContext()
    for chunk in open_source(str(tmp_path / name)).chunks(context):
        texts += map(bytes, iter_documents([chunk], context))
    assert texts == [b"a"], "only the field that is read matters"
    assert '"text" stands twice in one object' in str(context.notes.lines())


def test_equal_values_of_a_name_are_one_and_a_deep_value_is_looked_through():
    twice = '{"n": NaN, "n": NaN, "m": {"a": 1, "b": 2}, "m": {"b": 2, "a": 1}}'
    assert repr(parse_record(twice)) == "{'n': nan, 'm': {'a': 1, 'b': 2}}"
    value = parse_fields('{"n": 1, "n": 2}')
    for _ in range(10_000):
        value = [value]
    assert '"n" stands twice' in str(explain_names(value))


def test_blocks_of_lines_hold_all_lines(tmp_path):
    (tmp_path / "x.jsonl").write_text("".join(f'{{"n": {i}}}\n' for i in range(100)))
    whole = read(tmp_path / "x.jsonl")
    assert read(tmp_path / "x.jsonl", block_bytes=50) == whole
    assert [record["n"] for _, record in whole] == list(range(100))
    assert len(list(iter_blocks(tmp_path / "x.jsonl", fields=(), block_bytes=50))) > 10


def test_blocks_of_large_items_hold_few(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"n": "long " * 20}] * 50))
    blocks = list(iter_blocks(tmp_path / "x.json", fields=(), block_bytes=500))
    assert [len(list(block.read())) for block in blocks] == [5] * 10


def test_a_name_of_the_hub_without_its_prefix_is_suggested():
    with pytest.raises(UserError, match=r"'a/b': no such file.*--source=hf:a/b"):
        find_record_files("a/b")


def test_settings_beside_records_are_not_read_and_told(tmp_path, capsys):
    for name in ("a.jsonl", "settings.json"):
        (tmp_path / name).write_text("{}")
    assert [path.name for path in find_record_files(str(tmp_path)).paths] == ["a.jsonl"]
    assert "1 file beside the data" in (told := capsys.readouterr().err)
    assert told.endswith("the first: settings.json\n")


def test_array_records_are_records(tmp_path):
    path = tmp_path / "a.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in (b'{"text": "a"}', b"no JSON", b'{"text": "b"}'):
        writer.write(record)
    writer.close()
    assert find_record_files(str(tmp_path)).paths == (path,)
    one, (_, wrong), other = read(path)
    assert (one, other) == ((f"{path}: record 1", {"text": "a"}), (f"{path}: record 3", {"text": "b"}))
    assert isinstance(wrong, UserError)


@pytest.mark.parametrize(
    ("start", "holds"),
    [
        (b"", True),
        (b'{"a": 1,, }\n{"a": 2}\n', True),
        (b'[{"a": 1}\n,{"a": 2}]\n', True),
        (b'[\n{"a": 1}]', True),
        (b"[12:01] Ann: Hi\n[12:02] Bo: Hello\n", False),
        (b"# Notes\n- one\n", False),
    ],
)
def test_file_of_any_name_holds_records_if_one_of_its_first_lines_is_json(start: bytes, holds: bool) -> None:
    assert records._begins_as_json(start) is holds
