"""The compression report counts what the tokenizers do, and compares them with the right one."""

import json
from pathlib import Path

import pytest
from pipelines import run_pipeline

from data_pipelines.compare_tokenizers import CompareTokenizers, compare_tokenizers
from data_pipelines.encode.bpe_trainer import train_bpe
from gptjax.core.errors import UserError
from gptjax.tokenization.tokenizer import load_tokenizer

TALES = ["once upon a time there was a cat", "once upon a time é☕", " \n"]


@pytest.fixture
def given(tmp_path):
    """Two texts and a tokenizer learned from one of them."""
    train_bpe(TALES * 5, vocab_size=280).save(tmp_path / "tok")
    (tmp_path / "tales.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TALES))
    (tmp_path / "noise.txt").write_text("zqx jvk <|endoftext|> 0123456789")
    return tmp_path


def request(given, **options):
    sources = (str(given / "tales.jsonl"), str(given / "noise.txt"))
    return CompareTokenizers(**{"tokenizer": (str(given / "tok"),), "source": sources, "baseline": "bytes", **options})


def test_measurements_are_those_of_the_tokenizers(given):
    own = load_tokenizer(given / "tok")
    rows = compare_tokenizers(request(given))
    names = [("tales.jsonl", "bytes"), ("tales.jsonl", "tok"), ("noise.txt", "bytes"), ("noise.txt", "tok")]
    assert [(Path(row.source).name, Path(row.tokenizer).name) for row in rows] == names
    size, tokens = sum(len(text.encode()) for text in TALES[:2]), sum(len(own.encode(text)) for text in TALES[:2])
    plain, learned = rows[:2]
    assert (plain.documents, plain.bytes, plain.tokens, plain.saved) == (2, size, size, 0)
    assert (learned.documents, learned.bytes, learned.tokens, learned.vocab_size) == (2, size, tokens, 280)
    assert learned.bytes_per_token == size / tokens > 2
    assert learned.tokens_per_document == tokens / 2
    assert learned.saved == 1 - tokens / size
    assert rows[3].saved < learned.saved, "it knows the tales better than the noise"


def test_baseline_is_measured_once_and_first(given):
    rows = compare_tokenizers(request(given, tokenizer=("bytes", str(given / "tok"), "bytes")))
    assert [Path(row.tokenizer).name for row in rows] == ["bytes", "tok"] * 2
    turned = compare_tokenizers(request(given, tokenizer=("bytes",), baseline=str(given / "tok")))
    assert [Path(row.tokenizer).name for row in turned] == ["tok", "bytes"] * 2
    assert turned[1].saved < 0


def test_max_bytes_limits_the_documents(given):
    assert [row.documents for row in compare_tokenizers(request(given, max_bytes=1))] == [1] * 4
    assert [row.documents for row in compare_tokenizers(request(given, max_bytes=33))] == [2, 2, 1, 1]


def test_wrong_options_are_refused(given):
    (given / "blank.txt").write_text(" ")
    for options, message in [
        ({"source": (str(given / "blank.txt"),)}, r"blank\.txt: holds no text"),
        ({"source": ()}, "at least one --tokenizer and one --source"),
        ({"tokenizer": ("absent",)}, "tokenizer 'absent'"),
        ({"max_bytes": 0}, "--max-bytes=0"),
    ]:
        with pytest.raises(UserError, match=message):
            compare_tokenizers(request(given, **options))


def test_command_prints_and_writes_json(given, capsys):
    words = [f"--tokenizer={given / 'tok'}", "--baseline=bytes", f"--json={given / 'report.json'}"]
    words += [f"--source={given / 'tales.jsonl'}", f"--source={given / 'noise.txt'}"]
    assert run_pipeline("compare_tokenizers", *words) == 0
    printed = capsys.readouterr().out
    assert "saved: share of tokens against bytes" in printed
    first = compare_tokenizers(request(given))[1]
    numbers = (first.vocab_size, first.bytes, first.tokens, f"{first.bytes_per_token:.3f}", f"{first.saved:+.1%}")
    assert all(f" {number} " in printed for number in numbers)
    report = json.loads((given / "report.json").read_text())
    assert [row["tokens"] for row in report] == [row.tokens for row in compare_tokenizers(request(given))]
    assert run_pipeline("compare_tokenizers", *words, f"--json={given}") == 2
    assert capsys.readouterr().err.startswith(f"error: {given}: Is a directory")
