"""From text to shards: exact, the same on any number of processes, and whole or not there at all."""

import functools
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from texts import make_small

from data_pipelines import encoding
from data_pipelines import prepare as door
from data_pipelines.prepare import Prepare, completed, prepare
from data_pipelines.readers.documents import Reading
from data_pipelines.recipes import open_recipe
from data_pipelines.sources import open_source
from data_pipelines.splits import Divided, Split, divided
from data_pipelines.train_tokenizer import TrainTokenizer, train, train_bpe
from data_pipelines.verify import Verify, verify_directory
from gptjax.core.errors import UserError
from gptjax.data.checksums import verify_shards
from gptjax.data.manifest import MANIFEST_NAME, read_manifest
from gptjax.data.splits import open_split
from gptjax.tokenization.tokenizer import Chars, load_tokenizer

WORDS = [
    "the",
    "of",
    "and",
    "a",
    "to",
    "in",
    "is",
    "was",
    "he",
    "for",
    "it",
    "with",
    "as",
    "his",
    "on",
    "be",
    "at",
    "by",
    "I",
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(encoding.__file__).parents[1])}


def documents(n=40, seed=0):
    rng = random.Random(seed)
    return [f"Document {i}.\r\n" + " ".join(rng.choices(WORDS, k=rng.randrange(5, 60))) + " é☕\n" for i in range(n)]


def write_jsonl(path, texts):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return str(path)


def run(source, output, tokenizer="bytes", **options):
    options = {"processes": 1, **options}
    return prepare(Prepare(source=str(source), tokenizer=str(tokenizer), output=output, **options))


def text_of(directory, split):
    stream = open_split(directory, split)
    return load_tokenizer(directory).decode(stream.read(0, len(stream)))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bpe")
    train_bpe(documents(), vocab_size=300).save(directory)
    return directory


@pytest.mark.parametrize("name", ["books.jsonl", "books.jsonl.gz"])
def test_what_goes_in_comes_out(tmp_path, bpe, name):
    texts = documents()
    source = write_jsonl(tmp_path / name, [*texts[:3], "", " \n", *texts[3:]])
    manifest = run(source, tmp_path / "out", bpe, split="documents:0.2", shard_tokens=400)
    assert verify_shards(tmp_path / "out") == manifest
    tok = load_tokenizer(tmp_path / "out")
    assert tok.fingerprint == manifest.fingerprint == load_tokenizer(bpe).fingerprint
    found = {split: text_of(tmp_path / "out", split).split("<|endoftext|>") for split in ("train", "val")}
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


def test_blank_documents_are_counted(tmp_path, capsys):
    run(write_jsonl(tmp_path / "x.jsonl", ["a", "", "b", "\n"]), tmp_path / "out", split="none")
    assert "note: 2 empty documents skipped" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no text"):
        run(write_jsonl(tmp_path / "y.jsonl", ["", " "]), tmp_path / "none", split="none")
    assert not (tmp_path / "none").exists()


def test_why_there_is_no_text_is_told(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"content": "a"}\n{"content": "b"}\n')
    why = r'holds no text\. 2 broken records left out; the first: .*x\.jsonl:1: .* "text", got one with content'
    with pytest.raises(UserError, match=why):
        run(tmp_path / "x.jsonl", tmp_path / "out", split="none")
    assert (
        run(tmp_path / "x.jsonl", tmp_path / "out", split="none", text_field="content").splits["train"].documents == 2
    )
    with pytest.raises(UserError, match="text_field differ"):
        run(tmp_path / "x.jsonl", tmp_path / "out", split="none")


def test_processes_do_not_change_a_byte(tmp_path, bpe, monkeypatch):
    make_small(monkeypatch, batch=500, piece=1000)
    source = write_jsonl(tmp_path / "x.jsonl", documents(200))
    for name, processes in [("one", 1), ("two", 2)]:
        run(source, tmp_path / name, bpe, split="documents:0.1", processes=processes)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    shards, companions = ["train_000000.bin", "val_000000.bin"], ["train.documents", "val.documents"]
    assert sorted(names) == sorted(["manifest.json", "tokenizer.json", *shards, *companions])
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_error_in_a_worker_is_told(tmp_path, monkeypatch):
    make_small(monkeypatch, batch=500, piece=1000)
    Chars.from_text(documents(200)).save(tmp_path / "chars")
    source = write_jsonl(tmp_path / "x.jsonl", [*documents(200), "π"])
    with pytest.raises(UserError, match=r"'π' \(U\+03C0\) is not among"):
        run(source, tmp_path / "out", tmp_path / "chars", processes=2)
    assert not (tmp_path / "out").exists()


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path, monkeypatch):
    source = tmp_path / "x.jsonl"
    write_jsonl(source, documents(20))
    encode_all = door.encode_all

    def changing(*args, **kwargs):
        with source.open("a") as file:
            file.write('{"text": "more"}\n')
        return encode_all(*args, **kwargs)

    monkeypatch.setattr(door, "encode_all", changing)
    with pytest.raises(UserError, match="was changed while it was read"):
        run(source, tmp_path / "out", "bytes", processes=1)
    monkeypatch.setattr(door, "encode_all", encode_all)
    run(source, tmp_path / "out", "bytes", processes=1)
    assert text_of(tmp_path / "out", "train").count("more") + text_of(tmp_path / "out", "val").count("more") == 1


def test_a_split_of_a_few_tokens_is_told(tmp_path, capsys):
    """Which hashing may leave to validation, where there are few documents."""
    for name, text in (("book.txt", "All the words of a book. " * 100), ("readme.txt", "read me")):
        (tmp_path / name).write_text(text)
    run(f"{tmp_path}/*.txt", tmp_path / "out", "bytes", split="documents:0.5")
    counts = read_manifest(tmp_path / "out").splits
    assert (counts["train"].tokens, counts["val"].tokens) == (2500, 7)
    printed = capsys.readouterr().out
    assert "note: val has only 7 tokens, not a row of 1,024" in printed
    assert "train has only" not in printed


def test_a_recipe_says_what_is_left_open(tmp_path):
    def of(**options):
        request = completed(Prepare(output=tmp_path, **options))
        return request.source, request.tokenizer, request.split, request.validation_source

    web, wikitext = open_recipe("openwebtext"), open_recipe("wikitext2")
    assert of(source="openwebtext") == (web.source, "gpt2", "drawn:4007/8013769/2357", None)
    assert of(source="openwebtext", tokenizer="bytes", split="none") == (web.source, "bytes", "none", None)
    assert of(source="wikitext2") == (wikitext.source, "gpt2", None, wikitext.validation_source)
    assert of(source="wikitext2", split="tail:0.1") == (wikitext.source, "gpt2", "tail:0.1", None)
    assert of(source="x.txt", tokenizer="bytes") == ("x.txt", "bytes", "documents:0.005", None)
    with pytest.raises(UserError, match="--tokenizer is not given"):
        of(source="x.txt")


@pytest.mark.parametrize("processes", [1, 2])
def test_large_documents_in_pieces(tmp_path, bpe, monkeypatch, processes):
    """Encoded in pieces, on one process or on two, a document is what it is encoded whole."""
    make_small(monkeypatch, batch=500, piece=300)
    texts = ["short\n", " ".join(documents(60)), "x", "".join(documents(30, seed=1))]
    manifest = run(write_jsonl(tmp_path / "x.jsonl", texts), tmp_path / "out", bpe, split="none", processes=processes)
    tokenizer, stream = load_tokenizer(bpe), open_split(tmp_path / "out", "train")
    expected = [tokenizer.encode(text) for text in texts]
    assert stream.document_starts.tolist() == np.cumsum([0, *(len(ids) + 1 for ids in expected[:-1])]).tolist()
    np.testing.assert_array_equal(
        stream.read(0, len(stream)), np.concatenate([[tokenizer.end_of_text, *ids] for ids in expected])
    )
    assert manifest.splits["train"].bytes == sum(len(text.encode()) for text in texts)


def test_the_name_of_the_special_token_is_ordinary_text(tmp_path, bpe):
    texts = ["<|endoftext|>", "a<|endoftext|><|endoftext|> b\r\n", "\ufeff<|endoftext|"]
    run(write_jsonl(tmp_path / "x.jsonl", texts), tmp_path / "out", bpe, split="none")
    stream, tokenizer = open_split(tmp_path / "out", "train"), load_tokenizer(bpe)
    ids = stream.read(0, len(stream))
    assert np.flatnonzero(ids == tokenizer.end_of_text).tolist() == stream.document_starts.tolist()
    ends = [*stream.document_starts[1:], len(ids)]
    assert [tokenizer.decode(ids[a + 1 : b]) for a, b in zip(stream.document_starts, ends, strict=True)] == texts


def test_documents_no_longer_than(tmp_path, bpe, monkeypatch):
    make_small(monkeypatch, batch=500, piece=1000)
    texts = documents(50)
    source = write_jsonl(tmp_path / "x.jsonl", texts)
    run(source, tmp_path / "whole", bpe, split="none")
    manifest = run(source, tmp_path / "out", bpe, split="none", max_document_tokens=20)
    whole, cut = open_split(tmp_path / "whole", "train"), open_split(tmp_path / "out", "train")
    ids, end = cut.read(0, len(cut)), load_tokenizer(bpe).end_of_text
    assert np.diff(cut.documents, append=len(cut)).max() == 20
    assert (ids[cut.documents] == end).all()
    everything = whole.read(0, len(whole))
    np.testing.assert_array_equal(ids[ids != end], everything[everything != end])
    assert verify_shards(tmp_path / "out") == manifest
    assert manifest.splits["train"].documents == len(cut.documents) > len(texts)
    with pytest.raises(UserError, match="max_document_tokens differ"):
        run(source, tmp_path / "out", bpe, split="none", max_document_tokens=21)
    with pytest.raises(UserError, match="wanted at least 2"):
        Prepare(source=source, tokenizer="bytes", output=tmp_path, max_document_tokens=1)


def test_splitting_by_documents_ignores_their_order(tmp_path):
    texts = documents(2000)
    shuffled = random.Random(1).sample(texts, len(texts))
    split = Split.parse("documents:0.1")

    def val(some):
        source = open_source(write_jsonl(tmp_path / "x.jsonl", some))
        return {str(text, "utf-8") for name, text in divided(Divided(source, split), Reading()) if name == "val"}

    assert val(texts) == val(shuffled) == val(texts + texts)
    assert val(texts[:500]) == val(texts) & set(texts[:500])
    assert 150 < len(val(texts)) < 250


def test_the_tail_of_one_text_is_cut_as_nanogpt_does(tmp_path):
    text = "".join(random.Random(0).choices("abcdefgh é\r\n", k=1003))
    (tmp_path / "input.txt").write_text(text, newline="")
    manifest = run(tmp_path / "input.txt", tmp_path / "out", "chars", split="tail:0.1")
    cut = int(0.9 * len(text))
    assert text_of(tmp_path / "out", "train") == text[:cut]
    assert text_of(tmp_path / "out", "val") == text[cut:]
    assert (manifest.splits["train"].tokens, manifest.splits["val"].tokens) == (902, 101)
    assert manifest.tokenizer == "chars-12"
    assert manifest.dtype == "uint16"


def test_the_tail_of_several_texts_is_whole_documents(tmp_path):
    source = write_jsonl(tmp_path / "x.jsonl", ["a" * 60, "b" * 35, "c" * 3, "d" * 2])
    run(source, tmp_path / "out", split="tail:0.1")
    assert text_of(tmp_path / "out", "train") == "a" * 60 + "b" * 35
    assert text_of(tmp_path / "out", "val") == "cccdd"
    run(source, tmp_path / "least", split="tail:0.01")
    assert text_of(tmp_path / "least", "val") == "dd"


@pytest.mark.parametrize("spec", ["documents", "tail:0", "tail:1.5", "head:0.1", "documents:x", ""])
def test_wrong_splits_are_refused(spec):
    with pytest.raises(UserError, match="wanted documents:F or tail:F"):
        Split.parse(spec)


def test_a_single_text_needs_no_word_of_its_split(tmp_path, capsys):
    """Its last tenth is for validation, and a tokenizer is learnt from the rest of it, by whichever command."""
    text = "".join(documents(80))
    (tmp_path / "book.txt").write_text(text, newline="")
    run(tmp_path / "book.txt", tmp_path / "out", "bpe:300")
    assert "note: 1 documents, too few for documents:0.005: cut by tail:0.1 instead" in capsys.readouterr().out
    cut = int(0.9 * len(text))
    assert text_of(tmp_path / "out", "train") == "<|endoftext|>" + text[:cut]
    assert text_of(tmp_path / "out", "val") == "<|endoftext|>" + text[cut:]
    alone = train(TrainTokenizer(source=str(tmp_path / "book.txt"), vocab_size=300, output=tmp_path / "tok"))
    assert alone.fingerprint == load_tokenizer(tmp_path / "out").fingerprint


def test_a_split_without_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no text for train \(of 1 documents\).*or none"):
        run(write_jsonl(tmp_path / "x.jsonl", ["x"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_validation_may_come_from_another_source(tmp_path):
    train, val = documents(30), ["said elsewhere", " ", "and more"]
    source, other = write_jsonl(tmp_path / "train.jsonl", train), write_jsonl(tmp_path / "val.jsonl", val)
    manifest = run(source, tmp_path / "out", validation_source=other)
    assert text_of(tmp_path / "out", "train") == "".join(train)
    assert text_of(tmp_path / "out", "val") == "said elsewhereand more"
    assert manifest.splits["val"].documents == 2
    write_jsonl(tmp_path / "val.jsonl", val[:1])
    with pytest.raises(UserError, match="validation differ"):
        run(source, tmp_path / "out", validation_source=other)
    with pytest.raises(UserError, match="choose one"):
        Prepare(source=source, tokenizer="bytes", output=tmp_path, split="none", validation_source=other)
    blank = write_jsonl(tmp_path / "blank.jsonl", [" "])
    with pytest.raises(UserError, match=r"blank\.jsonl: holds no text"):
        run(source, tmp_path / "other", validation_source=blank)


def test_files_keep_their_bytes(tmp_path, capsys):
    """Line ends, a byte-order mark and NUL stay; bytes that are not UTF-8 are replaced and counted."""
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\0")
    (folder / "b" / "c.md").write_bytes(b"caf\xe9 \xff")
    (folder / "b" / "z.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (folder / "ignored.png").write_bytes(b"\x89PNG")
    run(folder, tmp_path / "out", split="none")
    assert text_of(tmp_path / "out", "train") == "\ufeffone\r\ntwo\rthree\n\0" + "caf\ufffd \ufffd" + "zipped"
    assert "note: 1 files had bytes that are not UTF-8" in capsys.readouterr().out
    run(f"{folder}/**/*.md", tmp_path / "pattern", split="none")
    assert text_of(tmp_path / "pattern", "train") == "caf\ufffd \ufffd"


def test_a_vocabulary_is_learnt_from_training_text_only(tmp_path):
    texts = documents()
    for name, last in [("a", "zyzzyva " * 40), ("b", "quixotry " * 36)]:
        run(write_jsonl(tmp_path / f"{name}.jsonl", [*texts, last]), tmp_path / name, "bpe:300", split="tail:0.01")
        assert text_of(tmp_path / name, "val").endswith(last)
    first, second = (load_tokenizer(tmp_path / name) for name in "ab")
    assert first.fingerprint == second.fingerprint
    assert first.vocab_size == 300
    assert first.end_of_text == 299
    run(write_jsonl(tmp_path / "c.jsonl", [*texts, "zyzzyva " * 40]), tmp_path / "c", "bpe:300", split="none")
    assert load_tokenizer(tmp_path / "c").fingerprint != first.fingerprint


def test_a_vocabulary_is_learnt_from_so_much_and_no_more(tmp_path, monkeypatch):
    """What comes behind the first bytes of the training part teaches nothing."""
    early, late = documents(60), documents(60, seed=1)
    monkeypatch.setattr(door, "MOST_BYTES", sum(len(text.encode()) for text in early))
    made = []
    for name, texts in [("early", early), ("both", early + late)]:
        source = write_jsonl(tmp_path / f"{name}.jsonl", texts)
        made.append(run(source, tmp_path / name, "bpe:300", split="none").fingerprint)
    assert made[0] == made[1] == train_bpe(early, vocab_size=300).fingerprint
    monkeypatch.setattr(door, "MOST_BYTES", 10**9)
    assert run(source, tmp_path / "all", "bpe:300", split="none").fingerprint != made[0]


def test_training_a_tokenizer(tmp_path):
    source = write_jsonl(tmp_path / "x.jsonl", documents())
    made = train(TrainTokenizer(source=source, vocab_size=280, output=tmp_path / "tok", pattern="gpt4"))
    assert load_tokenizer(tmp_path / "tok").fingerprint == made.fingerprint
    assert made.encode("12345").tolist() != made.encode("54321").tolist()
    with pytest.raises(UserError, match=r"yields only \d+ tokens, not 50000"):
        train_bpe(documents(), vocab_size=50_000)
    with pytest.raises(UserError, match="at least 258"):
        train_bpe(documents(), vocab_size=257)
    with pytest.raises(UserError, match="such as bpe:1024"):
        run(source, tmp_path / "out", "bpe:many")


def test_what_was_wrong_stays_with_the_data(tmp_path, capsys):
    source, out = write_jsonl(tmp_path / "x.jsonl", documents()), tmp_path / "out"
    with Path(source).open("a") as file:
        file.write("broken\n")
    (note,) = notes = run(source, out, split="none").notes
    assert note.startswith(f"1 broken records left out; the first: {source}:41: ")
    for again in (lambda: run(source, out, split="none"), lambda: verify_directory(Verify(out))):
        capsys.readouterr()
        assert again().notes == notes
        assert f"note: {note}\n" in capsys.readouterr().out
    manifest = json.loads((out / MANIFEST_NAME).read_text())
    (out / MANIFEST_NAME).write_text(json.dumps(manifest | {"notes": "all well"}))
    with pytest.raises(UserError, match=r"manifest\.json: notes: wanted list"):
        read_manifest(out)
    del manifest["notes"]
    (out / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert run(source, out, split="none").notes == [], "made before there were any"


def test_done_once_is_done(tmp_path, capsys):
    source = write_jsonl(tmp_path / "x.jsonl", documents())
    out = tmp_path / "out"
    first = run(source, out, split="tail:0.1")
    made = (out / "train_000000.bin").stat().st_mtime_ns
    assert run(source, out, split="tail:0.1", processes=2) == first
    assert (out / "train_000000.bin").stat().st_mtime_ns == made
    assert "already prepared" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another request \(split differ\).*--overwrite"):
        run(source, out, split="tail:0.2")
    second = run(source, out, split="tail:0.2", overwrite=True)
    assert second.splits["val"].tokens > first.splits["val"].tokens
    assert verify_shards(out) == second
    write_jsonl(tmp_path / "x.jsonl", documents(41))
    with pytest.raises(UserError, match="names_sizes_times differ"):
        run(source, out, split="tail:0.2")


def test_strict_is_not_content_with_what_was_made_without(tmp_path):
    source = tmp_path / "x.txt"
    source.write_bytes(b"caf\xe9")
    run(source, tmp_path / "out", split="none")
    with pytest.raises(UserError, match="strict differ"):
        run(source, tmp_path / "out", split="none", strict=True)
    with pytest.raises(UserError, match=r"x\.txt: byte 3 \(0xe9\) is not UTF-8"):
        run(source, tmp_path / "other", split="none", strict=True)


def test_damage_to_what_exists_is_noticed(tmp_path):
    source = write_jsonl(tmp_path / "x.jsonl", documents())
    run(source, tmp_path / "out", split="none")
    (tmp_path / "out" / "train_000000.bin").write_bytes(b"")
    with pytest.raises(UserError, match="0 bytes, but"):
        run(source, tmp_path / "out", split="none")
    verify_again = run(source, tmp_path / "out", split="none", overwrite=True)
    assert verify_shards(tmp_path / "out") == verify_again


def test_what_is_not_ours_is_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    source = write_jsonl(tmp_path / "x.jsonl", documents())
    run(source, tmp_path / "out", split="none")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="will not be replaced"):
        run(source, tmp_path / "home", split="none", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_a_killed_run_leaves_nothing_that_looks_whole(tmp_path):
    out, source = tmp_path / "out", write_jsonl(tmp_path / "long.jsonl", ["x" * 2**20] * 10)
    options = ["--tokenizer=bytes", "--split=none", "--shard-tokens=1000", "--processes=1"]  # ten thousand files
    command = [sys.executable, "-m", "data_pipelines.prepare", f"--source={source}", f"--output={out}", *options]
    process = subprocess.Popen(command, env=ENVIRONMENT)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / ".out.partial" / "train_000012.bin").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    assert not out.exists()
    assert read_manifest(tmp_path / ".out.partial") is None
    source = write_jsonl(tmp_path / "x.jsonl", documents())
    run(source, out, split="none")
    verify_shards(out)
    assert not (tmp_path / ".out.partial").exists()


def test_the_command_explains_itself(tmp_path):
    command = [sys.executable, "-m", "data_pipelines.prepare", "--source=absent", "--tokenizer=bytes"]
    result = subprocess.run(
        [*command, f"--output={tmp_path}/out"], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: source 'absent': no such file")


def test_a_script_without_a_guard_is_told_so(tmp_path):
    """Spawned workers import the script again; without care they would wait for the lock of their own parent."""
    source = write_jsonl(tmp_path / "x.jsonl", ["x" * 2**20] * 4)
    script = f"""
from pathlib import Path
from data_pipelines.prepare import Prepare, completed, prepare
prepare(Prepare(source={source!r}, tokenizer="bytes", split="none", processes=2, output=Path({str(tmp_path)!r}, "out")))
"""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=ENVIRONMENT)
    assert result.returncode == 1
    assert "UserError: a worker process died: for want of memory (use fewer than --processes=2)" in result.stderr
    assert "ran again in every worker" in result.stderr
    assert not (tmp_path / "out").exists()


def test_two_at_once_prepare_once(tmp_path, monkeypatch):
    source, calls = write_jsonl(tmp_path / "x.jsonl", documents()), []
    encode = encoding.encode_all

    def slow(*args, **kwargs):
        calls.append(1)
        time.sleep(0.2)
        return encode(*args, **kwargs)

    monkeypatch.setattr("data_pipelines.prepare.encode_all", slow)
    job = functools.partial(run, source, tmp_path / "out", split="none")
    threads = [threading.Thread(target=job) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    verify_shards(tmp_path / "out")


def test_nothing_below_one(tmp_path):
    with pytest.raises(UserError, match="shard-tokens"):
        Prepare(source="x", tokenizer="bytes", output=tmp_path, shard_tokens=0)
    with pytest.raises(UserError, match="processes"):
        Prepare(source="x", tokenizer="bytes", output=tmp_path, processes=0)
