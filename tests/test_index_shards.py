"""Shards of other projects, once indexed, are checked like our own."""

import numpy as np
import pytest
from pipelines import run_pipeline

from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.index_shards import choose_tokenizer, index_shards, is_indexed
from data_pipelines.prepare import Prepare, prepare
from data_pipelines.verify import VerifyShards, verify_directory
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


def test_index_counts_documents_and_bytes(foreign, tokenizer, capsys):
    before = {path.name: path.read_bytes() for path in foreign.iterdir()}
    manifest = index_shards(foreign, tokenizer)
    assert "3 documents" in capsys.readouterr().out
    assert manifest.splits["train"].documents == 3
    assert manifest.splits["train"].bytes == sum(len(text.encode()) for text in TEXTS)
    assert manifest == read_manifest(foreign)
    stream = open_split(foreign, "train")
    assert (stream.take(np.asarray(stream.document_starts)) == tokenizer.end_of_text).all()
    assert TokenShards(path=str(foreign)).load_tokenizer().fingerprint == tokenizer.fingerprint
    assert verify_directory(VerifyShards(foreign)) == manifest
    assert before == {name: (foreign / name).read_bytes() for name in before}, "the shards are as they were"


def test_altered_file_is_named_when_it_is_opened(foreign, tokenizer):
    index_shards(foreign, tokenizer)
    path = foreign / "x_train_002.bin"
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES + 4] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x_train_002\.bin: its SHA-256 differs"):
        TokenShards(path=str(foreign)).open_stream("train")
    index_shards(foreign, tokenizer)  # on purpose, it is what the shards hold now
    TokenShards(path=str(foreign)).open_stream("train")


def test_split_that_begins_inside_a_document_has_no_index(foreign, tokenizer, capsys):
    (foreign / "x_train_001.bin").unlink()
    manifest = index_shards(foreign, tokenizer)
    assert "train" in capsys.readouterr().out
    assert manifest.splits["train"].documents == 0
    assert "train.documents" not in manifest.sidecars
    assert verify_directory(VerifyShards(foreign)) == manifest


def test_indexing_again_replaces_the_old_index(foreign, tokenizer):
    first = index_shards(foreign, tokenizer)
    tokens = np.array([1, 2, 3], "<u2")
    (foreign / "a_train_000.bin").write_bytes(shard_header(3, tokens.dtype) + tokens.tobytes())
    assert not is_indexed(foreign)
    with pytest.raises(UserError, match=r"not listed a_train_000\.bin"):
        open_split(foreign, "train")
    second = index_shards(foreign, tokenizer)
    assert is_indexed(foreign)
    assert "train.documents" in first.sidecars
    assert "train.documents" not in second.sidecars
    assert len(open_split(foreign, "train")) == 3 + first.splits["train"].tokens


def test_choose_tokenizer_prefers_the_one_beside(foreign, tokenizer):
    path = tokenizer.save(foreign)
    before = path.read_bytes()
    assert choose_tokenizer(foreign, None).fingerprint == tokenizer.fingerprint
    assert choose_tokenizer(foreign, str(path)).fingerprint == tokenizer.fingerprint
    with pytest.raises(UserError, match="is another tokenizer"):
        choose_tokenizer(foreign, "bytes")
    assert path.read_bytes() == before


def test_failed_indexing_changes_nothing(foreign, tokenizer):
    manifest = index_shards(foreign, tokenizer)
    with pytest.raises(UserError, match="outside"):
        index_shards(foreign, Bytes())
    assert read_manifest(foreign) == manifest
    TokenShards(path=str(foreign)).open_stream("train")
    # A file more of training, and one of validation that is not of this tokenizer, which is read after the other.
    more = {foreign / f"{name}_009.bin": np.array([first, 1], "<u2") for name, first in (("train", 1), ("val", 999))}
    for path, tokens in more.items():
        path.write_bytes(shard_header(len(tokens), tokens.dtype) + tokens.tobytes())
    with pytest.raises(UserError, match="999, outside"):
        index_shards(foreign, tokenizer)
    for path in more:
        path.unlink()
    assert verify_directory(VerifyShards(foreign)) == manifest
    assert not list(foreign.glob(".index*"))


def test_index_shards_refuses_other_directories(foreign, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"x_train_001\.bin: token 0 is \d+, outside .* of bytes.*--tokenizer"):
        index_shards(foreign, Bytes())
    with pytest.raises(UserError, match=r"no \.bin files with train or val"):
        index_shards(tmp_path / "absent", tokenizer)
    text = tmp_path / "text.txt"
    text.write_text("some text")
    prepare(Prepare(source=str(text), output=tmp_path / "own", tokenizer="bytes", split="none", processes=1))
    with pytest.raises(UserError, match="was prepared here"):
        index_shards(tmp_path / "own", tokenizer)


def test_index_shards_command_writes_a_manifest(foreign, tokenizer, capsys):
    where = tokenizer.save(foreign / "tokenizer")
    assert run_pipeline("index_shards", foreign, f"--tokenizer={where}") == 0
    assert capsys.readouterr().out.startswith("train ")
    assert read_manifest(foreign) is not None


def test_small_ids_are_told_in_place_though_the_end_of_text_is_large(tokenizer, tmp_path, capsys):
    tokens = np.array([tokenizer.end_of_text, 1, 5] * 9, "<u2")
    (tmp_path / "train.bin").write_bytes(shard_header(len(tokens), tokens.dtype) + tokens.tobytes())
    index_shards(tmp_path, tokenizer)
    assert "the largest id is 5, of 270." in capsys.readouterr().out
