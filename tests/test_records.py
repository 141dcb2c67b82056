"""Records of every format, in blocks, with their places."""

import gzip
import json
import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from data_pipelines.readers.records import Record, find_record_files, iter_blocks
from gptjax.core.errors import UserError


def read(*paths: Path, block_bytes: int = 2**20) -> list[Record]:
    """All records, read as another process would."""
    blocks = [block for path in paths for block in iter_blocks(path, fields=("n", "m"), block_bytes=block_bytes)]
    return [record for block in blocks for record in pickle.loads(pickle.dumps(block)).read()]


def test_records_come_from_files_directories_and_patterns(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.jsonl").write_bytes(b'{"n": 1}\r\n\n \n{"n": 2}')
    (tmp_path / "sub/c.JSONL.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"n": 3}\n'))
    with pyarrow.CompressedOutputStream(str(tmp_path / "sub/d.ndjson.zst"), "zstd") as file:
        file.write(b'{"n": 4}\n{"n": 5}\n')
    for name in ("readme.md", "package.json"):
        (tmp_path / name).write_text("not data")
    found = [(where, record["n"]) for where, record in read(*find_record_files(str(tmp_path)))]
    places = ["b.jsonl:1", "b.jsonl:4", "sub/c.JSONL.gz:1", "sub/d.ndjson.zst:1", "sub/d.ndjson.zst:2"]
    assert found == [(f"{tmp_path}/{place}", number) for number, place in enumerate(places, start=1)]
    assert [path.name for path in find_record_files(f"{tmp_path}/**/*.gz")] == ["c.JSONL.gz"]
    (tmp_path / "empty").mkdir()
    for spec, message in [
        ("empty", "the directory holds no"),
        ("absent", "no such file"),
        ("*.json.gz", "no such file"),
    ]:
        with pytest.raises(UserError, match=rf"{message}.* \.jsonl, "):
            find_record_files(f"{tmp_path}/{spec}")


def test_damaged_file_is_explained(tmp_path):
    whole = gzip.compress(b'{"n": 1}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz: cannot be read"):
        read(tmp_path / "cut.jsonl.gz")


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


def test_blocks_of_lines_hold_all_lines(tmp_path):
    (tmp_path / "x.jsonl").write_text("".join(f'{{"n": {i}}}\n' for i in range(100)))
    whole = read(tmp_path / "x.jsonl")
    assert read(tmp_path / "x.jsonl", block_bytes=50) == whole
    assert [record["n"] for _, record in whole] == list(range(100))
    assert len(list(iter_blocks(tmp_path / "x.jsonl", fields=(), block_bytes=50))) > 10
