"""A user's own class of documents: the example of docs/extending.md, and what is wrong in words."""

import mailbox
from pathlib import Path

import pytest
from test_extending import read_example

from data_pipelines.encode.encoder import Limits
from data_pipelines.prepare import Prepare, prepare
from data_pipelines.readers.documents import INVALID, REPLACED_RECORDS, ReadContext, iter_documents
from data_pipelines.readers.sources import open_source
from gptjax.core.errors import UserError
from gptjax.data.splits import open_split

BLOCKS = """
import functools
from dataclasses import dataclass
from data_pipelines.readers.documents import DocumentBlock

@dataclass(frozen=True)
class Squares:
    count: int = 40
    name: str = "squares"

    def chunks(self, context):
        for begin in range(0, self.count, 10):
            yield DocumentBlock(10, functools.partial(read, begin))

    def identity(self):
        return {"count": self.count}

def read(begin, context):
    for number in range(begin, begin + 10):
        yield b"%d\\n" % number**2
"""


def write_source(path: Path, body: str) -> str:
    """Write a file with a source whose `chunks` has this body; returns its spec."""
    path.write_text(
        "from data_pipelines.readers.documents import DocumentBlock\n\n"
        "class Own:\n    name = 'own'\n    def identity(self):\n        return {}\n"
        f"    def chunks(self, context):\n        {body}\n"
    )
    return f"{path}:Own"


def test_example_reads_the_mails_of_a_mailbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reader.py").write_text(read_example("my_reader.py"))
    for name, text in (("archive.mbox", "first"), ("other.mbox", "second")):
        box = mailbox.mbox(name)
        box.add(f"Subject: x\n\n{text} mail\n")
        box.add(f"Content-Type: multipart/mixed; boundary=b\n\n--b\n\n{text} part\n--b--\n")
        box.close()
    context = ReadContext()
    assert list(iter_documents(open_source("my_reader.py:Mails").chunks(context), context)) == [b"first mail\n"]
    assert context.notes == {INVALID: 1}
    with pytest.raises(UserError, match="mail 1 has several parts"):
        list(open_source("my_reader.py:Mails").chunks(ReadContext(strict=True)))
    source, other, output = "my_reader.py:Mails", "my_reader.py:other", tmp_path / "shards"
    prepare(Prepare(source=source, validation_source=other, tokenizer="bytes", output=output))
    val = open_split(tmp_path / "shards", "val")
    assert bytes(val.read(0, len(val)).astype("u1")) == b"second mail\n"


def test_blocks_are_read_by_other_processes_to_the_same_tokens(tmp_path: Path) -> None:
    (tmp_path / "blocks.py").write_text(BLOCKS)
    source, limits = f"{tmp_path}/blocks.py:Squares", Limits(batch_bytes=300, pool_bytes=1)
    for processes in (1, 2):
        output = tmp_path / f"{processes}"
        prepare(
            Prepare(source=source, split="none", tokenizer="bytes", output=output, processes=processes), limits=limits
        )
    one, two = (open_split(tmp_path / name, "train") for name in ("1", "2"))
    assert one.fingerprint == two.fingerprint
    assert len(one) == sum(len(f"{number**2}\n") for number in range(40))


def test_edit_of_the_file_makes_another_request(tmp_path: Path) -> None:
    spec = write_source(tmp_path / "own.py", "yield b'a'")
    prepare(Prepare(source=spec, split="none", tokenizer="bytes", output=tmp_path / "shards"))
    write_source(tmp_path / "own.py", "yield b'b'")
    with pytest.raises(UserError, match="--overwrite"):
        prepare(Prepare(source=spec, split="none", tokenizer="bytes", output=tmp_path / "shards"))


def test_bytes_that_are_not_utf8_are_replaced_and_counted(tmp_path: Path) -> None:
    spec, context = write_source(tmp_path / "own.py", r"yield b'\xff'"), ReadContext()
    assert list(open_source(spec).chunks(context)) == ["\ufffd".encode()]
    assert context.notes == {REPLACED_RECORDS: 1}


@pytest.mark.parametrize(
    ("content", "name", "problem"),
    [
        ("", "Own", r"the file has no Own; its sources: none\."),
        ("class Other:\n    def chunks(self): ...", "Own", r"has no Own; its sources: \['Other'\]"),
        ("class Own:\n    name = 'own'", "Own", r"it has no chunks and no identity\. .*docs/extending\.md"),
        (
            "class Own:\n    def __init__(self, path): ...",
            "Own",
            r"missing 1 required .*'path'\. Give every field a default",
        ),
        ("1 / 0", "Own", r"own\.py, line 1: ZeroDivisionError"),
    ],
)
def test_file_without_a_source_is_refused_in_words(tmp_path: Path, content: str, name: str, problem: str) -> None:
    (tmp_path / "own.py").write_text(content)
    with pytest.raises(UserError, match=problem):
        open_source(f"{tmp_path}/own.py:{name}")


def test_absent_file_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*absent\.py\. Give FILE\.py:NAME"):
        open_source(f"{tmp_path}/absent.py:Own")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (
            "yield 'text'",
            r"chunk 0: is of type str, wanted bytes .* or a DocumentBlock\. Encode it: text\.encode\(\)",
        ),
        (
            "yield DocumentBlock(1, lambda context: iter([b'a']))",
            r"cannot be sent to .*functools\.partial",
        ),
    ],
)
def test_wrong_chunk_is_refused_in_words(tmp_path: Path, body: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        list(open_source(write_source(tmp_path / "own.py", body)).chunks(ReadContext()))
