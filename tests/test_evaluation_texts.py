"""Texts that are scored or continued are read as `prepare` reads them."""

import json
from pathlib import Path

import pytest

from data_pipelines.prepare import Prepare, prepare
from data_pipelines.readers.paths import BESIDE
from gptjax.core.errors import UserError
from gptjax.data.splits import open_split
from gptjax.evaluation.protocols import EvalProtocol
from gptjax.evaluation.texts import encode_text, read_documents
from gptjax.serving.sampler import Sample, read_prompts
from gptjax.tokenization.tokenizer import Bytes

LINES = b'{"text": "one"}\n{"text": "two"}\n'
READ = {
    "an ending in capitals": ("a.JSONL", LINES, ["one", "two"], ""),
    "a byte-order mark": ("a.jsonl", b"\xef\xbb\xbf" + LINES, ["one", "two"], ""),
    "a list of strings": ("a.jsonl", b'{"text": ["one", "two"]}\n', ["one\n\ntwo"], ""),
    "a record that is null": ("a.jsonl", b"null\n" + LINES, ["one", "two"], "1 invalid record skipped; the first: "),
    "an array": ("a.json", b'[{"text": "one"}]', ["one"], ""),
    "a table": ("a.CSV", b"id,text\n1,one\n", ["one"], ""),
    "NUL bytes": ("a.txt", b"one\0", ["one\0"], "1 file has NUL bytes, which were kept"),
    "Latin-1": ("a.txt", b"caf\xe9", ["caf\ufffd"], "1 file had bytes that are not UTF-8 (replaced by U+FFFD)"),
    "an unknown ending": ("a.raw", b"one", ["one"], "1 file of an unknown format read as plain text"),
}
REFUSED = {
    "a field inside another": ("a.jsonl", b'{"content": {"text": "one"}}\n', r'"content\.text" \(--text-field'),
    "nothing": ("a.jsonl", b"", "holds no text"),
    "UTF-16": ("a.txt", "one".encode("utf-16"), r"is UTF-16, wanted UTF-8\. Convert it: iconv"),
    "Parquet by another name": ("a.txt", b"PAR1", "it is Parquet"),
    "a packed file": ("a.xz", b"one", "Unpack it first: xz -dk .*a.xz"),
    "NUL bytes in an unknown format": ("a.raw", b"one\0", "holds NUL bytes, so it is not text"),
}


def prepare_text(source: Path) -> str:
    output = source.with_name("prepared")
    prepare(Prepare(source=str(source), tokenizer="bytes", output=output, split="none", processes=1))
    stream = open_split(output, "train")
    return Bytes().decode(stream.read(0, len(stream)))


def read_prompt_file(path: Path) -> list[str]:
    return list(read_prompts(Sample(checkpoint="any", prompt_file=str(path))))


@pytest.mark.parametrize(("name", "content", "documents", "note"), READ.values(), ids=READ)
def test_a_file_is_read_alike_by_every_command(
    name: str, content: bytes, documents: list[str], note: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (path := tmp_path / name).write_bytes(content)
    assert prepare_text(path) == "".join(documents)
    assert note in capsys.readouterr().out
    for read in (read_documents, read_prompt_file):
        assert read(path) == documents
        assert (f"note: {note}" in capsys.readouterr().err) == bool(note)


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_is_refused_alike_by_every_command(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (path := tmp_path / name).write_bytes(content)
    for read in (prepare_text, read_documents, read_prompt_file):
        with pytest.raises(UserError, match=message):
            read(path)


def test_rows_are_the_lines_of_any_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n \ntwo")
    (tmp_path / "a.jsonl").write_text('{"text": "one\\n"}\n{"text": ""}\n{"text": "two"}\n')
    for name in ("a.txt", "a.jsonl"):
        assert read_documents(tmp_path / name, rows=True) == ["one\n", "two"]


def test_evaluate_takes_a_directory_and_no_source_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    folder = tmp_path / "shakespeare"
    folder.mkdir()
    (folder / "a.txt").write_text("mine")
    (folder / "b.csv").write_text("text\nalso mine\n")
    (folder / "c.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert read_documents(Path("shakespeare")) == ["mine", "also mine"]
    assert BESIDE[5:30] in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_evaluate_reads_the_field_that_is_named(kind: str, tmp_path: Path):
    path, row = tmp_path / f"a.{kind}", {"text": "no", "content": "yes"}
    path.write_text({"json": json.dumps([row]), "jsonl": json.dumps(row), "csv": "text,content\nno,yes\n"}[kind])
    assert read_documents(path) == ["no"]
    assert read_documents(path, text_field="content") == ["yes"]


def test_evaluate_cuts_at_ends_of_text_or_tells_them(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "a.txt"
    path.write_text("one<|endoftext|>\ntwo\n\nthree")
    before: set[str] = set()
    for _ in ("one checkpoint", "another"):
        assert len(encode_text(path, Bytes(), EvalProtocol(), told=before).documents) == 1
    told = "note: 1 time <|endoftext|> stands in text and is scored as text; --separator='<|endoftext|>' cuts text"
    assert capsys.readouterr().err.count(told) == 1
    assert read_documents(path, separator="<|endoftext|>") == ["one", "two\n\nthree"]
    assert read_documents(path, separator=r"\n\n") == ["one<|endoftext|>\ntwo", "three"]
    for wrong, rows in (("x", True), ("", False)):
        with pytest.raises(UserError, match=r"--separator=.*wanted a text, and a protocol"):
            read_documents(path, rows=rows, separator=wrong)
