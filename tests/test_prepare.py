"""From text to shards: exact, the same on any number of processes, and complete or absent."""

import functools
import gzip
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pipelines import run_pipeline

from data_pipelines import prepare as prepare_module
from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.encode.encoder import Limits
from data_pipelines.prepare import Prepare, prepare, resolve_request
from data_pipelines.prepare_chat import PrepareChat
from data_pipelines.recipes import RECIPES
from data_pipelines.runtime.options import suggest_next, write_again
from data_pipelines.train_tokenizer import TrainTokenizer, train_tokenizer
from data_pipelines.verify import VerifyShards, verify_directory
from gptjax.config import load_config
from gptjax.core.errors import UserError
from gptjax.core.file_sums import ChangedFileError
from gptjax.data.checksums import verify_shards
from gptjax.data.fitting_flags import CHAT_FLAGS
from gptjax.data.manifest import MANIFEST_NAME, Counts, read_manifest
from gptjax.data.splits import open_split
from gptjax.evaluation.protocols import find_protocol
from gptjax.evaluation.texts import open_stored_text
from gptjax.tokenization.tokenizer import Chars, load_tokenizer

WORDS = ["the", "of", "and", "a", "to", "in", "is", "was", "he", "for", "it", "with", "as", "his", "on", "be", "at"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(prepare_module.__file__).parents[1])}
SMALL = Limits(batch_bytes=500, piece_bytes=300, pool_bytes=1000)


def make_texts(n=40, seed=0):
    rng = random.Random(seed)
    return [f"Document {i}.\r\n" + " ".join(rng.choices(WORDS, k=rng.randrange(5, 60))) + " é☕\n" for i in range(n)]


def write_jsonl(path, texts):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return str(path)


def write_files(directory, texts):
    """A file for each text, so that each is a block of its own."""
    directory.mkdir()
    for number, text in enumerate(texts):
        (directory / f"{number:04}.txt").write_text(text, newline="")
    return str(directory)


def run(source, output, tokenizer="bytes", limits=SMALL, **options):
    options = {"processes": 1, **options}
    return prepare(Prepare(source=str(source), tokenizer=str(tokenizer), output=output, **options), limits=limits)


def read_text(directory, split):
    stream = open_split(directory, split)
    return load_tokenizer(directory).decode(stream.read(0, len(stream)))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bpe")
    train_bpe(make_texts(), vocab_size=300).save(directory)
    return directory


@pytest.mark.parametrize("name", ["books.jsonl", "books.jsonl.gz"])
def test_prepare_keeps_every_text(tmp_path, bpe, capsys, name):
    texts = make_texts()
    source = write_jsonl(tmp_path / name, [*texts[:3], "", " \n", *texts[3:]])
    manifest = run(source, tmp_path / "out", bpe, split="hash:0.2", shard_tokens=400)
    assert verify_shards(tmp_path / "out") == manifest
    assert "note: 2 empty documents skipped" in capsys.readouterr().out
    tok = load_tokenizer(tmp_path / "out")
    assert tok.fingerprint == manifest.fingerprint == load_tokenizer(bpe).fingerprint
    found = {split: read_text(tmp_path / "out", split).split("<|endoftext|>") for split in ("train", "val")}
    assert found["train"][0] == found["val"][0] == ""
    for split, parts in found.items():
        assert parts[1:] == [text for text in texts if text in parts], "in the order of the source"
        counts = manifest.splits[split]
        assert counts.documents == len(parts) - 1
        assert counts.bytes == sum(len(text.encode()) for text in parts)
        assert counts.tokens == counts.documents + sum(len(tok.encode(text)) for text in parts)
    assert sorted(found["train"][1:] + found["val"][1:]) == sorted(texts)
    sizes = [file.tokens for file in manifest.files_of("train").values()]
    assert len(sizes) > 2
    assert set(sizes[:-1]) == {400}


@pytest.mark.parametrize(
    ("name", "text", "command"),
    [
        ("chats.jsonl", '{"messages": [{"role": "user", "content": "x"}]}', "prepare_chat"),
        ("chats.json", '[{"instruction": "x", "input": "", "output": "y"}]', "prepare_chat"),
        ("pairs.jsonl", '{"chosen": "x", "rejected": "y"}', "prepare_preferences"),
        ("chats.csv", "question,answer\nx,y\n", "prepare_chat"),
    ],
)
def test_prepare_of_chats_and_pairs_names_their_command(tmp_path, name, text, command):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"are for python -m data_pipelines\.{command}[.,]"):
        run(tmp_path / name, tmp_path / "out")


def test_prepare_without_text_says_why(tmp_path):
    always = replace(SMALL, record_seconds=0)
    with pytest.raises(UserError, match="holds no text"):
        run(write_jsonl(tmp_path / "blank.jsonl", ["", " "]), tmp_path / "out", split="none", limits=always)
    assert not (tmp_path / ".out.partial").exists(), "to continue would end alike"
    (tmp_path / "x.jsonl").write_text('{"content": "a"}\n{"content": "b"}\n')
    why = r'holds no text\. 2 invalid records skipped; the first: .*x\.jsonl:1: .* "text", got one with "content"'
    with pytest.raises(UserError, match=why):
        run(tmp_path / "x.jsonl", tmp_path / "out", split="none")
    with pytest.raises(UserError, match=why):
        run(tmp_path / "x.jsonl", tmp_path / "out", tokenizer="bpe:300", split="none")
    manifest = run(tmp_path / "x.jsonl", tmp_path / "out", split="none", text_field="content")
    assert manifest.splits["train"].documents == 2
    with pytest.raises(UserError, match="text_field differ"):
        run(tmp_path / "x.jsonl", tmp_path / "out", split="none")


def test_prepare_on_two_processes_writes_the_same_bytes(tmp_path, bpe):
    """Also of documents in pieces, which have the tokens of the whole."""
    texts = [*make_texts(100), " ".join(make_texts(60)), "x", "".join(make_texts(30, seed=1))]
    source = write_files(tmp_path / "source", texts)
    for name, processes in [("one", 1), ("two", 2)]:
        run(source, tmp_path / name, bpe, split="hash:0.1", processes=processes)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    shards, sidecars = ["train_000000.bin", "val_000000.bin"], ["train.documents", "val.documents"]
    assert names == sorted(["manifest.json", "tokenizer.json", *shards, *sidecars])
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    run(source, tmp_path / "none", bpe, split="none")
    stream, tokenizer = open_split(tmp_path / "none", "train"), load_tokenizer(bpe)
    expected = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in texts]
    np.testing.assert_array_equal(stream.read(0, len(stream)), np.concatenate(expected))
    assert stream.document_starts.tolist() == np.cumsum([0, *map(len, expected[:-1])]).tolist()


def test_prepare_raises_errors_of_workers(tmp_path):
    Chars.from_text(make_texts(200)).save(tmp_path / "chars")
    source = write_files(tmp_path / "source", [*make_texts(50), "π"])
    with pytest.raises(UserError, match=r"'π' \(U\+03C0\) is not among"):
        run(source, tmp_path / "out", tmp_path / "chars", processes=2)
    assert not (tmp_path / "out").exists()


def test_prepare_notices_a_changing_source(tmp_path, monkeypatch):
    source = tmp_path / "x.jsonl"
    write_jsonl(source, make_texts(20))
    encode_batches = prepare_module.encode_batches

    def change_and_encode(*args, **kwargs):
        with source.open("a") as file:
            file.write('{"text": "more"}\n')
        return encode_batches(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "encode_batches", change_and_encode)
        with pytest.raises(UserError, match="was changed while it was read"):
            run(source, tmp_path / "out")
    run(source, tmp_path / "out")
    assert "".join(read_text(tmp_path / "out", split) for split in ("train", "val")).count("more") == 1


def test_prepare_notes_a_split_of_few_tokens(tmp_path, capsys):
    write_files(tmp_path / "source", ["All the words of a book. " * 100, "read me"])
    run(tmp_path / "source", tmp_path / "out", split="tail:0.001")
    counts = read_manifest(tmp_path / "out").splits
    assert (counts["train"].tokens, counts["val"].tokens) == (2504, 3)
    printed = capsys.readouterr().out
    assert "note: val has only 3 tokens: its loss says little. " in printed
    assert "such as --split=tail:0.05 --overwrite." in printed
    assert "train has only" not in printed


@pytest.mark.parametrize(("size", "note"), [(1, "says little"), (9_999, "says little"), (10_000, None)])
def test_prepare_notes_a_validation_of_few_tokens(tmp_path, capsys, size, note):
    write_files(tmp_path / "source", ["a" * 20_000])
    write_files(tmp_path / "val", ["b" * size])
    run(tmp_path / "source", tmp_path / "out", validation_source=str(tmp_path / "val"), tokenizer="bytes")
    printed = capsys.readouterr().out
    assert ("note: val has only" in printed) == (note is not None)
    assert note is None or note in printed


def test_next_command_is_shown_for_splits_that_fill_a_row(tmp_path):
    options = Prepare(source="a.txt", output=tmp_path / "my data", tokenizer="bytes")
    splits = {"train": Counts(documents=1, tokens=500, bytes=500), "val": Counts(documents=1, tokens=257, bytes=257)}
    assert suggest_next(options, splits).endswith(
        f"own_text_cpu --steps=300 --data.path='{tmp_path}/my data' --name='my data'"
    )
    enough = {"train": Counts(documents=1, tokens=100_000, bytes=9)}
    assert f"own_text_cpu --data.path='{tmp_path}/my data' --name=" in suggest_next(options, enough)
    (tmp_path / "my hf").mkdir()
    of_tokenizer = replace(options, tokenizer=str(tmp_path / "my hf"))
    (tmp_path / "my hf/config.json").write_text("{}")
    assert "--config=own_text_cpu --steps=300 --data" in suggest_next(of_tokenizer, splits), "it has no weights"
    (tmp_path / "my hf/model.safetensors").touch()
    of_model = f"--config=own_finetune_cpu --init-from='{tmp_path}/my hf' --data.path="
    assert of_model in suggest_next(of_tokenizer, splits)
    same_name = replace(of_tokenizer, output=Path("data/my hf"))
    assert suggest_next(same_name, splits).endswith(" --name='my hf-tuned'"), "the model is not overwritten"
    few, many = ({"train": Counts(documents=9, tokens=tokens, bytes=9)} for tokens in (300, 8_000_000))
    chats = PrepareChat(source="a.jsonl", output=tmp_path, tokenizer="gpt2")
    assert "--config=own_chats_cpu --data" in suggest_next(chats, few)
    assert "--config=own_chats_cpu --batch-size=16 --steps=1000 --data" in suggest_next(chats, many)
    (tmp_path / "own_x/checkpoints/1/model").mkdir(parents=True)
    (tmp_path / "own_x/checkpoints/1/model/weights").write_bytes(bytes(2**26))
    of_run = replace(chats, tokenizer=str(tmp_path / "own_x"))
    start = f"--config=modern_253m_sft --steps=1953 --init-from={tmp_path}/own_x"
    assert f"{start} --no-require-validation --data" in suggest_next(of_run, many)
    assert f"{start} --data" in suggest_next(of_run, many | {"val": few["train"]})
    three_epochs = "--config=own_chats_cpu --optimizer.learning-rate=1e-5 --batch-size=12 --steps=73"
    assert CHAT_FLAGS.choose(300_000, weight_bytes=2**26) == three_epochs
    assert load_config("own_text_cpu").model.context_length + 1 == options.least_tokens


@pytest.mark.parametrize(
    ("train", "val", "flag", "next_command"),
    [
        (256, 9, None, "--config=own_text_cpu --steps=300 --model.context-length=128 --data"),
        (257, 9, None, "--config=own_text_cpu --steps=300 --data"),
        (33, 1, "--split=none", "--model.context-length=32 --data"),
        (32, 9, None, "prepare more text. Training needs 33 tokens, and there are 32."),
        (6000, 256, "--split=tail:0.1", "--config=own_text_cpu --steps=300 --data"),
        (6000, 257, None, "--config=own_text_cpu --steps=300 --data"),
    ],
)
def test_advice_for_few_tokens_fits_their_number(tmp_path, train, val, flag, next_command):
    splits = {"train": Counts(1, train, train), "val": Counts(1, val, val)}
    options = Prepare(source="a.txt", output=tmp_path, tokenizer="bytes")
    manifest = run(write_jsonl(tmp_path / "x.jsonl", make_texts(2)), tmp_path / "out", split="none")
    assert options.suggest_flag(replace(manifest, splits=splits)) == flag
    assert next_command in suggest_next(options, splits)


@pytest.mark.parametrize("given", [(), ("--separator", ";")])
def test_learnt_separators_are_answered_with_the_whole_command(tmp_path, capsys, given):
    (tmp_path / "tales.txt").write_text("\n<|endoftext|>\n".join(make_texts(200)))
    words = [f"--source={tmp_path}/tales.txt", "--tokenizer=bytes", "--split", "none", f"--output={tmp_path}/out"]
    assert run_pipeline("prepare", *words, *given) == 0
    command = "next: python -m data_pipelines.prepare " + shlex.join(words)
    lines = capsys.readouterr().out.splitlines()
    again = [line for line in lines if line == f"{command} --separator='<|endoftext|>' --overwrite"]
    assert len(again) == (not given)
    if again:
        assert run_pipeline("prepare", *shlex.split(again[0])[4:]) == 0
        printed = capsys.readouterr().out
        assert "200 documents" in printed
        assert "is learnt as text" not in printed


@pytest.mark.parametrize(
    ("marks", "flag"),
    [
        ("<|endoftext|>" * 199 + "</s>", "--separator='<|endoftext|>'"),
        ("<|endoftext|>" + "</s>" * 1200, "--separator='</s>'"),
        ("<p>now 5 <s>9</s></p>", None),
    ],
)
def test_the_commonest_separator_is_advised_unless_it_is_rare(tmp_path, marks, flag):
    (tmp_path / "page.html").write_text(marks.replace(">", ">some words\n"))
    options = Prepare(source=f"{tmp_path}/page.html", output=tmp_path / "out", tokenizer="bytes", split="none")
    assert options.suggest_flag(prepare(options)) == flag


@pytest.mark.parametrize("overwrite", ["--overwrite", "--overwrite True", "--no-overwrite"])
def test_command_with_another_value_of_a_flag_has_it_once(overwrite):
    words = ["--source=my text", "--split", "tail:0.01", *overwrite.split(), "--split=none", "--output=o"]
    made = "python -m data_pipelines.prepare '--source=my text' --output=o --split=tail:0.1 --overwrite"
    assert write_again("prepare", words, "--split=tail:0.1") == made


def test_resolve_request_fills_in_a_recipe(tmp_path):
    def resolve(**options):
        request = resolve_request(Prepare(output=tmp_path, **options))
        found = request.options
        assert request.tokenizer is None or request.tokenizer.name == found.tokenizer
        return found.source, found.tokenizer, found.effective_split, found.validation_source

    stdlib, wikitext = RECIPES["python_stdlib"], RECIPES["wikitext2"]
    assert resolve(source="python_stdlib") == (stdlib.source, "bpe:1024", "hash:0.02", None)
    assert resolve(source="python_stdlib", tokenizer="bytes", split="none") == (stdlib.source, "bytes", "none", None)
    sources = (wikitext.source, "bytes", "none", wikitext.validation_source)
    assert resolve(source="wikitext2", tokenizer="bytes") == sources
    assert resolve(source="wikitext2", tokenizer="bytes", split="tail:0.1")[2:] == ("tail:0.1", None)
    assert resolve(source="stdlib", tokenizer="bytes") == ("stdlib", "bytes", "hash:0.005", None)
    for tokenizer, message in ((None, "--tokenizer is not given"), ("bpe:many", "such as bpe:8192")):
        with pytest.raises(UserError, match=message):
            resolve(source="stdlib", tokenizer=tokenizer)


def test_special_tokens_in_the_text_stay_text(tmp_path, bpe):
    texts = ["<|endoftext|>", "a<|endoftext|><|endoftext|> b\r\n", "\ufeff<|endoftext|"]
    run(write_jsonl(tmp_path / "x.jsonl", texts), tmp_path / "out", bpe, split="none")
    stream, tokenizer = open_split(tmp_path / "out", "train"), load_tokenizer(bpe)
    ids = stream.read(0, len(stream))
    assert np.flatnonzero(ids == tokenizer.end_of_text).tolist() == stream.document_starts.tolist()
    ends = [*stream.document_starts[1:], len(ids)]
    assert [tokenizer.decode(ids[a + 1 : b]) for a, b in zip(stream.document_starts, ends, strict=True)] == texts  # pyright: ignore[reportArgumentType]


def test_documents_begin_with_the_end_of_text_whatever_the_tokenizer_names(tmp_path, bpe):
    """A run on them begins its texts in the same way, though the model of others began with a token of its own."""
    load_tokenizer(bpe).with_special_tokens(["<s>", "</s>"]).save(tmp_path / "tok")
    (tmp_path / "tok/tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    write_jsonl(tmp_path / "a.jsonl", make_texts())
    run(tmp_path / "a.jsonl", tmp_path / "out", tokenizer=str(tmp_path / "tok"))
    written = load_tokenizer(tmp_path / "out")
    stream = open_split(tmp_path / "out", "train")
    first = stream.read(0, 1)[0]
    assert written.begin_of_text == written.end_of_text == first == written.specials["</s>"]
    text = open_stored_text(stream, load_tokenizer(tmp_path / "tok"), find_protocol("harness"))
    assert {int(document[0]) for document in text.documents} == {int(first)}  # also for a model that begins otherwise


def test_max_document_tokens_splits_documents(tmp_path, bpe):
    texts = make_texts(50)
    source = write_files(tmp_path / "source", texts)
    run(source, tmp_path / "whole", bpe, split="none")
    manifest = run(source, tmp_path / "out", bpe, split="none", max_document_tokens=20)
    whole, cut = open_split(tmp_path / "whole", "train"), open_split(tmp_path / "out", "train")
    ids, end = cut.read(0, len(cut)), load_tokenizer(bpe).end_of_text
    assert np.diff(cut.document_starts, append=len(cut)).max() == 20  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert (ids[cut.document_starts] == end).all()
    everything = whole.read(0, len(whole))
    np.testing.assert_array_equal(ids[ids != end], everything[everything != end])
    assert verify_shards(tmp_path / "out") == manifest
    assert manifest.splits["train"].documents == len(cut.document_starts) > len(texts)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="max_document_tokens differ"):
        run(source, tmp_path / "out", bpe, split="none", max_document_tokens=21)


def test_tail_of_one_text_is_nanogpts(tmp_path):
    text = "".join(random.Random(0).choices("abcdefgh é\r\n", k=1003))
    (tmp_path / "input.txt").write_text(text, newline="")
    manifest = run(tmp_path / "input.txt", tmp_path / "out", "chars", split="tail:0.1")
    cut = int(0.9 * len(text))
    assert read_text(tmp_path / "out", "train") == text[:cut]
    assert read_text(tmp_path / "out", "val") == text[cut:]
    assert (manifest.splits["train"].tokens, manifest.splits["val"].tokens) == (902, 101)
    assert manifest.tokenizer == "chars-12"
    assert manifest.dtype == "uint16"


def test_single_text_is_split_and_its_beginning_learned_from(tmp_path, capsys):
    """By `prepare` and by `train_tokenizer` alike."""
    text = "".join(make_texts(80))
    (tmp_path / "book.txt").write_text(text, newline="")
    run(tmp_path / "book.txt", tmp_path / "out", "bpe:300")
    assert "note: 1 document, too few for hash:0.005: split by tail:0.1 instead" in capsys.readouterr().out
    cut = int(0.9 * len(text))
    assert read_text(tmp_path / "out", "train") == "<|endoftext|>" + text[:cut]
    assert read_text(tmp_path / "out", "val") == "<|endoftext|>" + text[cut:]
    alone = train_tokenizer(TrainTokenizer(source=str(tmp_path / "book.txt"), vocab_size=300, output=tmp_path / "tok"))
    assert alone.fingerprint == load_tokenizer(tmp_path / "out").fingerprint


def test_bpe_of_more_tokens_than_a_text_has_merges_for_is_as_large_as_it_can_be(tmp_path, capsys):
    (tmp_path / "rose.txt").write_text("A rose is a rose is a rose.\n" * 20)
    manifest = run(tmp_path / "rose.txt", tmp_path / "out", "bpe:4096")
    found = manifest.vocab_size
    assert 257 < found == load_tokenizer(tmp_path / "out").vocab_size < 300
    assert manifest.tokenizer == f"bpe-{found}"
    note = f"note: the text has merges for {found} tokens, not 4,096: the tokenizer has {found}\n"
    assert note in capsys.readouterr().out
    assert run(tmp_path / "rose.txt", tmp_path / "out", "bpe:4096") == manifest
    assert "already prepared by the same request" in capsys.readouterr().out
    options = {"source": str(tmp_path / "rose.txt"), "output": tmp_path / "tok"}
    assert train_tokenizer(TrainTokenizer(vocab_size=4096, **options)).vocab_size == found
    assert note in capsys.readouterr().out
    for size in (0, 5, 10**9):
        with pytest.raises(UserError, match=f"vocabulary of {size}: wanted at least 258 .*, at most 1048576"):
            run(tmp_path / "rose.txt", tmp_path / "other", f"bpe:{size}")


def test_small_files_of_many_documents_keep_a_tenth_by_default(tmp_path, capsys):
    """Equal for the tokenizer that is learned; one long document of them changes nothing."""
    texts = make_texts(200)
    source = write_jsonl(tmp_path / "x.jsonl", texts)
    manifest = run(source, tmp_path / "out", "bpe:300")
    assert manifest.request["split"] == "hash:0.1"
    assert 10 <= manifest.splits["val"].documents <= 40
    alone = train_tokenizer(TrainTokenizer(source=str(source), vocab_size=300, output=tmp_path / "tok"))
    assert alone.fingerprint == load_tokenizer(tmp_path / "out").fingerprint
    run(source, tmp_path / "former", "bytes", split="hash:0.005")
    capsys.readouterr()
    run(source, tmp_path / "former", "bytes")
    assert "already prepared by the same request" in capsys.readouterr().out, "by the default of before"
    uneven = write_jsonl(tmp_path / "uneven.jsonl", ["a" * 9 * sum(map(len, texts)), *texts])
    assert run(uneven, tmp_path / "uneven", "bytes").request["split"] == "hash:0.005"


def test_split_without_text_is_refused(tmp_path):
    few = r"leaves no text for train \(of 1 document\)\. The source has only 1 token: use more text\."
    with pytest.raises(UserError, match=few):
        run(write_jsonl(tmp_path / "x.jsonl", ["x"]), tmp_path / "out")
    blank_end = r"leaves no text for val \(of 1 document\)\. The source has only 2 tokens: use more text\.$"
    with pytest.raises(UserError, match=blank_end):
        run(write_jsonl(tmp_path / "x.jsonl", ["hi\n"]), tmp_path / "out", split="tail:0.1")
    with pytest.raises(UserError, match=r"for val .* Use --split=tail:0\.05 or --split=none\.$"):
        run(write_jsonl(tmp_path / "x.jsonl", ["hi" * 200 + "\n"]), tmp_path / "out", split="tail:0.0001")
    assert not (tmp_path / "out").exists()


def test_validation_may_be_another_source(tmp_path):
    train, val = make_texts(30), ["said elsewhere", " ", "and more"]
    source, other = write_jsonl(tmp_path / "train.jsonl", train), write_jsonl(tmp_path / "val.jsonl", val)
    manifest = run(source, tmp_path / "out", validation_source=other)
    assert read_text(tmp_path / "out", "train") == "".join(train)
    assert read_text(tmp_path / "out", "val") == "said elsewhereand more"
    assert manifest.splits["val"].documents == 2
    write_jsonl(tmp_path / "val.jsonl", val[:1])
    with pytest.raises(UserError, match="validation differ"):
        run(source, tmp_path / "out", validation_source=other)


def test_files_keep_their_bytes(tmp_path, capsys):
    """Line ends, a byte-order mark and NUL stay; bytes that are not UTF-8 are replaced and counted."""
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\0")
    (folder / "b" / "c.md").write_bytes(b"caf\xe9 \xff")
    (folder / "b" / "z.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (folder / "ignored.png").write_bytes(b"\x89PNG")
    run(folder, tmp_path / "out", split="none")
    assert read_text(tmp_path / "out", "train") == "\ufeffone\r\ntwo\rthree\n\0" + "caf\ufffd \ufffd" + "zipped"
    assert "note: 1 file had bytes that are not UTF-8" in capsys.readouterr().out
    run(f"{folder}/**/*.md", tmp_path / "pattern", split="none")
    assert read_text(tmp_path / "pattern", "train") == "caf\ufffd \ufffd"


def test_vocabulary_is_learned_from_training_text(tmp_path):
    texts = make_texts()
    for name, last in [("a", "zyzzyva " * 45), ("b", "quixotry " * 40)]:
        run(write_jsonl(tmp_path / f"{name}.jsonl", [*texts, last]), tmp_path / name, "bpe:300", split="tail:0.3")
        assert read_text(tmp_path / name, "val").endswith(last)
    first, second = (load_tokenizer(tmp_path / name) for name in "ab")
    assert first.fingerprint == second.fingerprint
    assert first.vocab_size == 300
    assert first.end_of_text == 299
    run(write_jsonl(tmp_path / "c.jsonl", [*texts, "zyzzyva " * 45]), tmp_path / "c", "bpe:300", split="none")
    assert load_tokenizer(tmp_path / "c").fingerprint != first.fingerprint


def test_notes_stay_with_the_data(tmp_path, capsys):
    source, out = write_jsonl(tmp_path / "x.jsonl", make_texts()), tmp_path / "out"
    with Path(source).open("a") as file:
        file.write("broken\n")
    note, _ = notes = run(source, out, split="none").notes
    assert note.startswith(f"1 invalid record skipped; the first: {source}:41: ")
    again = (lambda: run(source, out, split="none"), False), (lambda: verify_directory(VerifyShards(out)), True)
    for read, is_told in again:
        capsys.readouterr()
        assert read().notes == notes
        assert (f"note: {note}\n" in capsys.readouterr().out) == is_told, "at a repetition nothing is new"
    manifest = json.loads((out / MANIFEST_NAME).read_text())
    for name in ("notes", "tokenizer_files", "sha256"):
        del manifest[name]
    (out / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert run(source, out, split="none").notes == [], "as data from before there were notes"


@pytest.mark.parametrize(
    ("tokenizer", "count", "split", "is_told"),
    [
        ("bytes", 3, "none", True),
        ("chars", 3, "none", True),
        ("bpe:265", 3, "none", False),
        ("bytes", 1, "tail:0.3", False),
    ],
)
def test_documents_that_run_together_are_told(tmp_path, capsys, tokenizer, count, split, is_told):
    run(write_jsonl(tmp_path / "x.jsonl", make_texts(count)), tmp_path / "out", tokenizer, split=split)
    assert ("names no end of text, so documents run together." in capsys.readouterr().out) == is_told


def test_same_request_finds_the_data(tmp_path, capsys):
    source, out = write_jsonl(tmp_path / "x.jsonl", make_texts()), tmp_path / "out"
    first = run(source, out, split="tail:0.1")
    made = (out / "train_000000.bin").stat().st_mtime_ns
    assert run(source, out, split="tail:0.1", processes=2) == first
    assert (out / "train_000000.bin").stat().st_mtime_ns == made
    assert "already prepared" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another request \(split, strict differ\).*--overwrite"):
        run(source, out, split="tail:0.2", strict=True)
    second = run(source, out, split="tail:0.2", overwrite=True)
    assert second.splits["val"].tokens > first.splits["val"].tokens
    assert verify_shards(out) == second
    (out / "tokenizer.json").write_bytes((out / "tokenizer.json").read_bytes().replace(b'"a": ', b'"a":  '))
    changed = r"tokenizer\.json has changed since it was written.*prepare the data again with --overwrite"
    for use in (lambda: run(source, out, split="tail:0.2"), lambda: load_tokenizer(out)):
        with pytest.raises(ChangedFileError, match=changed):
            use()
    write_jsonl(tmp_path / "x.jsonl", make_texts(41))
    with pytest.raises(UserError, match=r"another request \(names, sizes or times of the source's files differ\)"):
        run(source, out, split="tail:0.2")
    third = run(source, out, split="tail:0.2", overwrite=True)
    (out / "train_000000.bin").write_bytes(b"")
    with pytest.raises(UserError, match="0 bytes, but"):
        run(source, out, split="tail:0.2")
    assert run(source, out, split="tail:0.2", overwrite=True) == third == verify_shards(out)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="will not be replaced"):
        run(source, tmp_path / "home", split="none", overwrite=True)


def test_strict_stops_at_text_that_is_not_utf8(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"x\.txt: byte 3 \(0xe9\) is not UTF-8"):
        run(tmp_path / "x.txt", tmp_path / "out", split="none", strict=True)


KILLED = """
import os, runpy, signal, sys
def kill(event, arguments):
    if event == "open" and str(arguments[0]).endswith("train_000012.bin"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
runpy.run_module("data_pipelines.prepare", run_name="__main__", alter_sys=True)
"""


def test_killed_command_leaves_nothing_that_looks_complete(tmp_path):
    out, source = tmp_path / "out", write_jsonl(tmp_path / "long.jsonl", ["x" * 20_000])
    options = ["--tokenizer=bytes", "--split=none", "--shard-tokens=1000", "--processes=1"]  # twenty files
    command = [sys.executable, "-c", KILLED, f"--source={source}", f"--output={out}", *options]
    assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / ".out.partial" / "train_000011.bin").exists()
    assert not out.exists()
    assert read_manifest(tmp_path / ".out.partial") is None
    run(write_jsonl(tmp_path / "x.jsonl", make_texts()), out, split="none")
    verify_shards(out)
    assert not (tmp_path / ".out.partial").exists()


def test_command_reports_a_missing_source(tmp_path, capsys):
    assert run_pipeline("prepare", "--source=absent", "--tokenizer=bytes", f"--output={tmp_path}/out") == 2
    assert capsys.readouterr().err.startswith("error: source 'absent': no such file")


def test_script_without_main_guard_prepares_once(tmp_path):
    """Workers that ran the script again would wait for the lock of their own parent."""
    source = write_files(tmp_path / "source", ["x" * 2**20] * 5)
    script = f"""
from pathlib import Path
from data_pipelines.prepare import Prepare, prepare
prepare(Prepare(source={source!r}, tokenizer="bytes", split="none", processes=2, output=Path({str(tmp_path)!r}, "out")))
"""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    said = result.stderr.splitlines()
    assert [line for line in said if not line.startswith("encoding: ")] == [], "what a slow machine adds"
    verify_shards(tmp_path / "out")


def test_several_at_once_prepare_once(tmp_path, monkeypatch):
    source, calls = write_jsonl(tmp_path / "x.jsonl", make_texts()), []
    encode_batches = prepare_module.encode_batches

    def encode_slowly(*args, **kwargs):
        calls.append(1)
        time.sleep(0.2)
        return encode_batches(*args, **kwargs)

    monkeypatch.setattr(prepare_module, "encode_batches", encode_slowly)
    threads = [
        threading.Thread(target=functools.partial(run, source, tmp_path / "out", split="none")) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    verify_shards(tmp_path / "out")


def test_processes_must_be_positive(tmp_path):
    request = Prepare(source="x", tokenizer="bytes", output=tmp_path)
    with pytest.raises(UserError, match="processes"):
        replace(request, processes=0)
