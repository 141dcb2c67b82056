"""Data files that are damaged in random places are read, or refused by a `UserError`; nothing else happens."""

import gzip
import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from texts import write_compressed

from data_pipelines.index_shards import IndexShards, main
from data_pipelines.readers.documents import ReadContext, iter_documents
from data_pipelines.readers.files import open_files
from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.data.shards import shard_header

LINES = "".join(json.dumps({"text": f"number {i}", "more": {"text": ["a", "b"]}}) + "\n" for i in range(40)).encode()
TABLE = pyarrow.table({"text": [f"number {i}" for i in range(40)], "more": [["a", "b"]] * 40})


def write_arrow(path: Path) -> None:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, TABLE.schema) as writer:
        writer.write_table(TABLE)


def write_tokens(path: Path) -> None:
    tokens = np.random.RandomState(0).randint(0, 256, 300).astype("<u2")
    path.write_bytes(shard_header(len(tokens), np.dtype(np.uint16)) + tokens.tobytes())


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.jsonl.zst": lambda path: write_compressed(path, LINES),
    "a.json": lambda path: path.write_text(json.dumps([json.loads(line) for line in LINES.splitlines()])),
    "a.csv": lambda path: path.write_text("id,text\n" + "".join(f'{i},"number {i}"\n' for i in range(40))),
    "a.parquet": lambda path: pyarrow.parquet.write_table(TABLE, path),
    "a.arrow": write_arrow,
    "a.txt": lambda path: path.write_text("number\n" * 100),
    "train.bin": write_tokens,
    "train.npy": lambda path: np.save(path, np.arange(300, dtype=np.int32) % 256),
}

LINES_ALONE = ("a.jsonl", "a.csv", "a.txt")
"""Formats whose lines are read one by one: damage costs lines, and nothing before it."""


def damage(content: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(max(1, len(content)))
        kind = draw.choice(["flip", "cut", "repeat", "insert", "end"])
        if kind == "flip" and content:
            content[at] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[at : at + draw.randint(1, 50)]
        elif kind == "repeat":
            content[at:at] = content[at : at + draw.randint(1, 50)]
        elif kind == "insert":
            content[at:at] = draw.choice([b"\x1b[2J", b"null", b"[" * 3000, b"9" * 5000, b'"', b"\n", b"\xff\x00"])
        else:
            del content[at:]
    return content


def read(path: Path, output: Path) -> list[bytes]:
    """The texts of a file of documents; of tokens there are none."""
    if path.suffix in (".bin", ".npy"):
        main(IndexShards(path.parent, "bytes", output=output if path.suffix == ".npy" else None))
        TokenShards(path=str(output if path.suffix == ".npy" else path.parent)).open_stream("train")
        return []
    contexts = [ReadContext(field) for field in ("text", "more.text", "more")]
    found = [list(iter_documents(open_files(str(path)).chunks(context), context)) for context in contexts]
    return [bytes(text) for text in found[0]]


def begin_undamaged(name: str, texts: list[bytes], whole: bytes) -> bool:
    """Whether the texts of a file of lines begin with those of its undamaged beginning, `whole`."""
    if name == "a.txt":
        return b"".join(texts).startswith(whole)
    lines = max(0, whole.count(b"\n") - (name == "a.csv"))
    return texts[:lines] == [f"number {i}".encode() for i in range(lines)]


def try_damaged(name: str, seeds: range, tmp_path: Path) -> None:
    refused = lines = 0
    for seed in seeds:
        path = tmp_path / str(seed) / name
        path.parent.mkdir()
        WRITERS[name](path)
        written = path.read_bytes()
        path.write_bytes(content := damage(bytearray(written), random.Random(seed)))
        equal = [old == new for old, new in zip(written, content, strict=False)]
        whole = written[: [*equal, False].index(False)]
        try:
            with warnings.catch_warnings(action="error"):
                texts = read(path, tmp_path / f"{seed}-copied")
        except UserError as error:
            refused += 1
            lines += str(error).count("\n")
        else:
            assert name not in LINES_ALONE or begin_undamaged(name, texts, whole)
    assert name in LINES_ALONE or refused >= len(seeds) // 3
    assert lines == 0, "a message has several lines"


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path):
    try_damaged(name, range(12), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_many_damaged_files_are_read_or_refused(name: str, tmp_path: Path):
    try_damaged(name, range(100, 220), tmp_path)
