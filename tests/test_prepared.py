"""Data that is prepared on first use: once, into the cache, and plain shards afterwards."""

import dataclasses
import json
import os

import pytest

from data_pipelines import prepared
from data_pipelines.prepared import Prepared
from gptjax.config import load_config
from gptjax.core.errors import UserError
from gptjax.data.checksums import verify_shards
from gptjax.data.config import TokenShards
from gptjax.data.manifest import read_manifest
from gptjax.runs.startup import prepare_config


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def make_texts(n=40):
    return [f"Document {i}. " + "the cat sat on the mat " * (i % 7 + 1) + "é☕\n" for i in range(n)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    prepared._prepare_in_cache.cache_clear()
    yield tmp_path / "cache"
    prepared._prepare_in_cache.cache_clear()


def test_prepared_is_prepared_once(tmp_path, cache, capsys):
    source = write_jsonl(tmp_path / "tales.jsonl", make_texts())
    data = Prepared(source=source, tokenizer="bpe:300", split="tail:0.1", prefetch=5)
    assert not cache.exists()
    plain = data.resolve()
    assert type(plain) is TokenShards
    assert plain.prefetch == 5
    assert plain.path.startswith(f"{cache}/tales-bpe-300-")
    assert verify_shards(plain.path).tokenizer == "bpe-300"  # pyright: ignore[reportArgumentType]
    assert read_manifest(data.resolve().path).splits == verify_shards(plain.path).splits  # pyright: ignore[reportArgumentType]
    assert capsys.readouterr().out.count("documents") == 2
    prepared._prepare_in_cache.cache_clear()
    assert data.resolve() == plain
    assert Prepared(source=source, tokenizer="bytes", split="tail:0.1").resolve().path != plain.path
    assert Prepared(path="elsewhere", source="absent").resolve() == TokenShards(path="elsewhere")


@pytest.mark.parametrize("name", ["quickstart", "gpt2_cpu", "modern_cpu"])
def test_config_has_as_many_tokens_as_its_text_has_merges_for(name, tmp_path, cache):
    config = load_config(name)
    data = dataclasses.replace(config.data, source=write_jsonl(tmp_path / "tales.jsonl", make_texts()))
    config, tokenizer = prepare_config(dataclasses.replace(config, data=data, output_dir=str(tmp_path / "runs")))
    assert tokenizer is not None
    assert config.model.vocab_size == tokenizer.vocab_size
    assert 257 < tokenizer.vocab_size < 1000


def test_prepared_from_a_changed_text_is_another(tmp_path, cache):
    source = write_jsonl(tmp_path / "tales.jsonl", make_texts())
    data = Prepared(source=source, tokenizer="bytes", split="none")
    first = data.resolve()
    write_jsonl(tmp_path / "tales.jsonl", make_texts(41))
    os.utime(source, ns=(5, 5))
    prepared._prepare_in_cache.cache_clear()
    second = data.resolve()
    assert second.path != first.path
    assert (
        verify_shards(second.path).splits["train"].documents == verify_shards(first.path).splits["train"].documents + 1  # pyright: ignore[reportArgumentType]
    )


def test_prepared_keeps_the_fields_of_shards(tmp_path, cache):
    """Every field of the plain shards but the path and the tokenizer."""
    source = write_jsonl(tmp_path / "tales.jsonl", make_texts())
    data = Prepared(source=source, tokenizer="bytes", split="tail:0.1", packing="best_fit", prefetch=7)
    plain = data.resolve()
    assert plain == dataclasses.replace(TokenShards(), path=plain.path, packing="best_fit", prefetch=7)
    assert plain.resolve() == plain


def test_prepared_cuts_at_a_separator(tmp_path, cache):
    (tmp_path / "tales.txt").write_text("one two\n<|endoftext|>\n" * 9)
    whole = Prepared(source=str(tmp_path / "tales.txt"), tokenizer="bytes", split="none")
    paths = [dataclasses.replace(whole, separator=mark).resolve().path for mark in (None, "<|endoftext|>")]
    assert [read_manifest(path).splits["train"].documents for path in paths] == [1, 9]  # pyright: ignore
    with pytest.raises(
        UserError, match=r"a file; wanted a directory of shards\. --data.source=.*tales\.txt reads a text"
    ):
        dataclasses.replace(whole, path=whole.source).resolve()
    with pytest.raises(UserError, match="</s>"):
        dataclasses.replace(whole, end_of_text="</s>").resolve()


@pytest.mark.parametrize(("field", "value"), [("source", "absent"), ("tokenizer", "absent"), ("split", "head:1")])
def test_prepared_with_wrong_fields_leaves_nothing(tmp_path, cache, field, value):
    source = write_jsonl(tmp_path / "tales.jsonl", make_texts())
    data = dataclasses.replace(Prepared(source=source, tokenizer="bytes", split="none"), **{field: value})
    with pytest.raises(UserError, match=value):
        data.resolve()
    assert not cache.exists()


def test_prepared_of_little_text_names_the_flags_of_a_config(tmp_path, cache):
    (path := tmp_path / "tiny.txt").write_text("hi\n")
    with pytest.raises(UserError, match=r"^--data\.split=hash:0\.02 leaves no .* only 2 tokens: use more text"):
        Prepared(source=str(path)).resolve()
    with pytest.raises(UserError, match=r"--data\.text-field chooses another"):
        Prepared(source=write_jsonl(tmp_path / "x.jsonl", ["a"]), text_field="b", tokenizer="bytes").resolve()
