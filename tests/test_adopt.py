"""Foreign shards, once adopted, are checked like our own."""

import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.adopt import adopt, is_adopted, tokenizer_of
from data_pipelines.prepare import Prepare, prepare
from data_pipelines.train_tokenizer import train_bpe
from data_pipelines.verify import Verify, verify_directory
from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.data.manifest import read_manifest
from gptjax.data.shards import HEADER_BYTES, shard_header
from gptjax.data.splits import open_split
from gptjax.tokenization.tokenizer import Bytes

TEXTS = ["the end of the end\n", "and the rest, naïve\n", "x"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the end of the end, and the rest\n" * 9], vocab_size=270)


@pytest.fixture
def foreign(tmp_path, tokenizer):
    """Two files of training tokens, the second beginning inside of a document, and one of validation."""
    documents = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in TEXTS]
    train = np.concatenate(documents)
    for name, tokens in (("x_train_001", train[:12]), ("x_train_002", train[12:]), ("x_val_000", documents[1])):
        content = np.array(tokens, "<u2")
        (tmp_path / f"{name}.bin").write_bytes(shard_header(len(content), content.dtype) + content.tobytes())
    return tmp_path


def test_counts_documents_and_bytes(foreign, tokenizer, capsys):
    before = {path.name: path.read_bytes() for path in foreign.iterdir()}
    manifest = adopt(foreign, tokenizer)
    assert "3 documents" in capsys.readouterr().out
    assert manifest.splits["train"].documents == 3
    assert manifest.splits["train"].bytes == sum(len(text.encode()) for text in TEXTS)
    assert manifest == read_manifest(foreign)
    stream = open_split(foreign, "train")
    assert (stream.take(np.asarray(stream.document_starts)) == tokenizer.end_of_text).all()
    assert TokenShards(path=str(foreign)).load_tokenizer().fingerprint == tokenizer.fingerprint
    assert verify_directory(Verify(foreign)) == manifest
    assert before == {name: (foreign / name).read_bytes() for name in before}, "the shards are as they were"


def test_an_altered_file_is_named_when_a_run_opens_it(foreign, tokenizer):
    adopt(foreign, tokenizer)
    path = foreign / "x_train_002.bin"
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES + 4] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x_train_002\.bin: its SHA-256 differs"):
        TokenShards(path=str(foreign)).open_stream("train")
    adopt(foreign, tokenizer)  # on purpose, it is what the shards hold now
    TokenShards(path=str(foreign)).open_stream("train")


def test_a_split_that_begins_inside_a_document_has_no_index(foreign, tokenizer, capsys):
    (foreign / "x_train_001.bin").unlink()
    manifest = adopt(foreign, tokenizer)
    assert "train" in capsys.readouterr().out
    assert manifest.splits["train"].documents == 0
    assert "train.documents" not in manifest.sidecars
    assert verify_directory(Verify(foreign)) == manifest


def test_adopting_anew_leaves_nothing_old_behind(foreign, tokenizer):
    first = adopt(foreign, tokenizer)
    tokens = np.array([1, 2, 3], "<u2")
    (foreign / "a_train_000.bin").write_bytes(shard_header(3, tokens.dtype) + tokens.tobytes())
    assert not is_adopted(foreign)
    with pytest.raises(UserError, match=r"not listed a_train_000\.bin.*adopt them"):
        open_split(foreign, "train")
    second = adopt(foreign, tokenizer)
    assert is_adopted(foreign)
    assert "train.documents" in first.sidecars
    assert "train.documents" not in second.sidecars
    assert len(open_split(foreign, "train")) == 3 + first.splits["train"].tokens


def test_the_tokenizer_that_lies_there_is_the_one(foreign, tokenizer):
    path = tokenizer.save(foreign)
    before = path.read_bytes()
    assert tokenizer_of(foreign, None).fingerprint == tokenizer.fingerprint
    assert tokenizer_of(foreign, str(path)).fingerprint == tokenizer.fingerprint
    with pytest.raises(UserError, match="is another tokenizer"):
        tokenizer_of(foreign, "bytes")
    assert path.read_bytes() == before


def test_a_failed_adoption_takes_nothing_away(foreign, tokenizer):
    manifest = adopt(foreign, tokenizer)
    with pytest.raises(UserError, match="outside"):
        adopt(foreign, Bytes())
    assert read_manifest(foreign) == manifest
    TokenShards(path=str(foreign)).open_stream("train")
    # A file more of training, and one of validation that is not of this tokenizer, which is read after the other.
    more = {foreign / f"{name}_009.bin": np.array([first, 1], "<u2") for name, first in (("train", 1), ("val", 999))}
    for path, tokens in more.items():
        path.write_bytes(shard_header(len(tokens), tokens.dtype) + tokens.tobytes())
    with pytest.raises(UserError, match="999, outside"):
        adopt(foreign, tokenizer)
    for path in more:
        path.unlink()
    assert verify_directory(Verify(foreign)) == manifest
    assert not list(foreign.glob(".adopt*"))


def test_a_file_of_another_tokenizer_among_others_is_named(foreign, tokenizer):
    """Its ids are all in the vocabulary, but next to none ends a text."""
    many = np.tile(np.array([tokenizer.end_of_text, 1, 2, 3], "<u2"), 50)
    files = {"train_a": many, "train_b": many, "train_c": np.full(200, 7, "<u2")}
    for name, tokens in files.items():
        (foreign / f"{name}.bin").write_bytes(shard_header(len(tokens), tokens.dtype) + tokens.tobytes())
    with pytest.raises(UserError, match=r"train_c\.bin: 0 documents begin in it.*about 4\d\."):
        adopt(foreign, tokenizer)
    (foreign / "train_c.bin").unlink()
    adopt(foreign, tokenizer)


def test_what_cannot_be_adopted(foreign, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"x_train_001\.bin: token 0 is \d+, outside .* of bytes.*--tokenizer"):
        adopt(foreign, Bytes())
    with pytest.raises(UserError, match=r"no \.bin files with train or val"):
        adopt(tmp_path / "absent", tokenizer)
    text = tmp_path / "text.txt"
    text.write_text("some text")
    prepare(Prepare(str(text), tmp_path / "own", tokenizer="bytes", split="none", processes=1))
    with pytest.raises(UserError, match="was prepared here"):
        adopt(tmp_path / "own", tokenizer)


def test_the_command(foreign, tokenizer):
    command = [sys.executable, "-m", "data_pipelines.adopt", str(foreign)]
    where = tokenizer.save(foreign / "tokenizer")
    done = subprocess.run([*command, f"--tokenizer={where}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("train ")
    assert read_manifest(foreign) is not None
