"""Killed anywhere, the same command continues, and the bytes are those of a run that was not killed."""

import contextlib
import errno
import functools
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from data_pipelines import prepare as prepare_module
from data_pipelines.encode.encoder import Limits, encode_batches
from data_pipelines.output.journal import Journal, Progress
from data_pipelines.output.shard_writer import SplitWriter
from data_pipelines.prepare import Prepare, ResolvedRequest, prepare
from data_pipelines.readers.documents import Notes
from gptjax.core.errors import UserError
from gptjax.data.checksums import verify_shards
from gptjax.data.manifest import Manifest
from gptjax.data.shards import HEADER_BYTES
from gptjax.tokenization.tokenizer import Bytes

WORDS = ["the", "of", "and", "a", "to", "in", "is", "was", "he", "for", "it", "with", "as", "his", "on", "be", "at"]
SMALL = Limits(batch_bytes=2000, piece_bytes=1000, pool_bytes=4000, record_seconds=0.0)
CHILD = """
import json, signal, sys, time
from pathlib import Path
from data_pipelines import prepare as prepare_module
from data_pipelines.encode.encoder import encode_batches
from gptjax.core.errors import exit_on_user_error
from test_journal import SMALL

def encode_slowly(*args, **kwargs):  # so that there is something left to be killed
    for number, batch in enumerate(encode_batches(*args, **kwargs)):
        if number == int(sys.argv[3]):
            Path(sys.argv[4]).touch()
            time.sleep(600)
        time.sleep(float(sys.argv[2]))
        yield batch

options = json.loads(sys.argv[1])
options["output"] = Path(options["output"])
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
prepare_module.encode_batches = encode_slowly
with exit_on_user_error():
    prepare_module.prepare(prepare_module.Prepare(**options), limits=SMALL)
"""
WORKER = """
import pathlib, sys
if "-c" in sys.orig_argv:
    pathlib.Path({path!r}).touch()
"""
"""A module that every interpreter imports first; a worker leaves a file."""
HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent)))}


def make_texts(n, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(5, 300))) + " é☕\r\n" for _ in range(n)]


def write_files(directory, texts):
    directory.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (directory / f"{number:03}.txt").write_text(text)
    (directory / "invalid.txt").write_bytes(b"caf\xe9")


@pytest.fixture
def source(tmp_path):
    """Small texts, blank ones, invalid records, and a large text, which a compressed file does not give as a block."""
    write_files(tmp_path / "source", ["", " \n", *make_texts(60)])
    large = " ".join(random.Random(0).choices(WORDS, k=20_000))
    (tmp_path / "source" / "030.txt.gz").write_bytes(gzip.compress(large.encode()))
    (tmp_path / "source" / "x.jsonl").write_text('broken\n{"text": "\\ud800"}\n')
    return str(tmp_path / "source")


def read_all(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def make_options(source, tokenizer="bpe:300", processes=1):
    sizes = {"shard_tokens": 3000, "processes": processes}
    return {"source": source, "tokenizer": tokenizer, "split": "hash:0.2", **sizes}


def run(output, options):
    return prepare(Prepare(**options, output=output), limits=SMALL)


def start(tmp_path, options, output, *, last=-1, **process_options):
    """A process that prepares, with a delay before each batch is written.

    Before batch number `last` it makes the file "waiting", and waits until it is killed.
    """
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    words = [json.dumps({**options, "output": str(output)}), "0.005", str(last), str(tmp_path / "waiting")]
    command = [sys.executable, str(script), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=pipe, stdout=pipe, text=True, **process_options)


def kill_until_done(tmp_path, source, *, kills, processes):
    """Kill after a few records, again and again; then let it end. Returns how often it continued from a record."""
    out, rng = tmp_path / "killed", random.Random(kills)
    record = tmp_path / ".killed.partial" / "progress.json"
    resumed = 0
    for turn in range(kills + 1):
        seen, wanted = set(), rng.randrange(1, 7)
        last = 10 * wanted if turn < kills else -1  # it does not end before it is killed
        process = start(tmp_path, make_options(source, processes=processes), out, last=last)
        while turn < kills and len(seen) < wanted and process.poll() is None and not (tmp_path / "waiting").exists():
            with contextlib.suppress(FileNotFoundError):
                seen.add(record.stat().st_mtime_ns)
            time.sleep(0.002)
        if turn < kills:
            time.sleep(rng.random() * 0.03)
            process.kill()
        errors = process.communicate(timeout=300)[1]  # ends when the workers have ended, too
        (tmp_path / "waiting").unlink(missing_ok=True)
        resumed += "continuing after" in errors
        assert process.returncode in ((0, -signal.SIGKILL) if turn < kills else (0,)), errors
        if process.returncode == 0:
            break
        assert not out.exists()
    return resumed


def check_kills(tmp_path, source, *, kills, processes):
    run(tmp_path / "whole", make_options(source))
    assert kill_until_done(tmp_path, source, kills=kills, processes=processes) >= kills / 3
    assert read_all(tmp_path / "killed") == read_all(tmp_path / "whole")
    assert len(verify_shards(tmp_path / "killed").files) > 3
    left = {"source", "child.py", "whole", "killed"}
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.parametrize(("kills", "processes"), [pytest.param(2, 1, marks=pytest.mark.slow), (1, 2)])
def test_prepare_after_kills_writes_the_same_bytes(tmp_path, source, kills, processes):
    check_kills(tmp_path, source, kills=kills, processes=processes)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_prepare_after_ten_kills_writes_the_same_bytes(tmp_path, source, processes):
    write_files(Path(source), make_texts(300))
    check_kills(tmp_path, source, kills=10, processes=processes)


def test_ctrl_c_while_a_worker_starts_prints_one_line(tmp_path, source, monkeypatch):
    """The terminal sends it to every process."""
    options = make_options(source, "bytes", processes=2)
    (tmp_path / "sitecustomize.py").write_text(WORKER.format(path=str(tmp_path / "worker")))
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]]))
    process = start(tmp_path, options, tmp_path / "out", last=0, start_new_session=True)
    while not (tmp_path / "worker").exists() and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=300)[1]
    assert (process.returncode, errors) == (130, "interrupted\n")


class Stop(Exception):
    """Stands for any unexpected end."""


def run_and_stop(monkeypatch, output, options, *, after):
    """Prepare, but raise once so many batches have been written."""

    def encode_and_stop(*args, **kwargs):
        for number, batch in enumerate(encode_batches(*args, **kwargs)):
            if number == after:
                raise Stop
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "encode_batches", encode_and_stop)
        with pytest.raises(Stop):
            run(output, options)


def find_notes(report):
    return [line for line in report.splitlines() if line.startswith("note:")]


@pytest.mark.parametrize("after", [0, 14])
def test_prepare_continues_after_any_batch(tmp_path, source, monkeypatch, capsys, after):
    """In this process, so at exact places: the middle of a document is one of them."""
    options = make_options(source, "bytes")
    run(tmp_path / "whole", options)
    wanted = find_notes(capsys.readouterr().out)
    assert len(wanted) == 6, "four of the texts, few tokens of validation, no end of text"
    run_and_stop(monkeypatch, tmp_path / "out", options, after=after)
    partial = tmp_path / ".out.partial"
    assert partial.exists() == (after > 0), "nothing is left where nothing was done"
    if after:
        (partial / "train_000099.bin").write_text("whatever else a kill leaves")
    run(tmp_path / "out", options)
    printed = capsys.readouterr()
    assert ("continuing after" in printed.err) == (after > 0)
    assert find_notes(printed.out) == wanted, "those of the earlier run, too"
    assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")


def write_parquet(path, texts):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is in the extras `data` and `dev`")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": [*texts, None]}), path / "x.parquet", row_group_size=3)


def write_array_record(path, texts):
    module = pytest.importorskip("array_record.python.array_record_module", reason="in the extras `data` and `dev`")
    writer = module.ArrayRecordWriter(str(path / "x.array_record"), "group_size:1")
    for text in texts:
        writer.write(text.encode())
    writer.write(b"caf\xe9")
    writer.close()


def write_gz(path, texts):
    lines = [json.dumps({"text": text}) for text in texts]
    (path / "x.jsonl.gz").write_bytes(gzip.compress("\n".join([*lines, "broken"]).encode()))


KINDS = {"groups": write_parquet, "records": write_array_record, "packed": write_gz, "files": write_files}


@pytest.mark.parametrize("kind", KINDS)
def test_prepare_continues_in_any_kind_of_source(tmp_path, monkeypatch, capsys, kind):
    texts = make_texts(40)
    (tmp_path / "source").mkdir()
    KINDS[kind](tmp_path / "source", [*texts, "", *texts[:20] * 3])
    options = make_options(str(tmp_path / "source"), "bytes")
    run(tmp_path / "whole", options)
    wanted = find_notes(capsys.readouterr().out)
    assert any("empty document" in line for line in wanted)
    assert any("the first: " in line for line in wanted)
    run_and_stop(monkeypatch, tmp_path / "out", options, after=7)
    run(tmp_path / "out", options)
    printed = capsys.readouterr()
    assert "continuing after" in printed.err
    assert find_notes(printed.out) == wanted
    assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")


def test_another_request_starts_again(tmp_path, source, monkeypatch, capsys):
    options = make_options(source, "bytes")
    run_and_stop(monkeypatch, tmp_path / "out", options, after=9)
    changed = options | {"shard_tokens": 2000, "max_document_tokens": 700}
    run(tmp_path / "out", changed)
    printed = capsys.readouterr().err
    assert "of another request, incomplete or damaged. Starting again." in printed
    assert "continuing" not in printed
    run(tmp_path / "whole", changed)
    assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")


def test_vocabulary_is_learned_once(tmp_path, source, monkeypatch):
    run_and_stop(monkeypatch, tmp_path / "out", make_options(source), after=0)
    monkeypatch.setattr(prepare_module, "train_bpe_on_documents", None)
    assert run(tmp_path / "out", make_options(source)).tokenizer == "bpe-300"


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_preparation_ended_while_it_writes_its_manifest_only_writes_that_again(
    tmp_path, source, monkeypatch, capsys, end
):
    options = make_options(source, "bytes")
    run(tmp_path / "whole", options)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", Mock(side_effect=end))
        with pytest.raises(type(end) if isinstance(end, OSError) else end):
            run(tmp_path / "out", options)
    partial = tmp_path / ".out.partial"
    assert (partial / "tokenizer.json").is_file()
    (partial / "tokenizer.json").write_text("cut")
    documents = json.loads((partial / "progress.json").read_text())["documents"]
    run(tmp_path / "out", options)
    printed = capsys.readouterr().err
    assert f"continuing after {documents} documents" in printed
    assert "Starting again" not in printed
    assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")


def test_source_that_cannot_be_listed_for_a_moment_costs_nothing(tmp_path, source, monkeypatch, capsys):
    options = make_options(source, "bytes")
    run(tmp_path / "whole", options)
    compute, calls = ResolvedRequest.identity, iter(range(9))

    def fail_once_read(request):
        if next(calls) > 0:
            raise UserError("the share does not answer")
        return compute(request)

    with monkeypatch.context() as patch:
        patch.setattr(ResolvedRequest, "identity", fail_once_read)
        with pytest.raises(UserError, match="the share does not answer"):
            run(tmp_path / "out", options)
    capsys.readouterr()
    run(tmp_path / "out", options)
    assert "continuing after" in capsys.readouterr().err
    assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")


@pytest.mark.parametrize(
    "name", ["progress.json", "tokenizer.json", "train_000000.bin", "train_000001.bin", "train.documents"]
)
def test_preparation_does_not_go_on_from_a_flipped_byte(tmp_path: Path, name: str):
    journal = Journal(tmp_path, {})
    Bytes().save(tmp_path)
    writer = SplitWriter(tmp_path, "train", dtype=np.dtype(np.uint16), shard_tokens=10)
    writer.append(np.arange(14, dtype=np.uint16), np.array([0, 12]), size=20)
    progress = Progress(1, 9, {"train": writer.sync()})
    journal.record(progress)
    writer.close()
    there = read_all(tmp_path)
    first = HEADER_BYTES if name == "train_000001.bin" else 0  # its header is written again
    for place in range(first, len(there[name]), 7):
        for file, content in there.items():
            (tmp_path / file).write_bytes(content)
        assert Journal(tmp_path, {}).progress == progress
        (tmp_path / name).write_bytes(there[name][:place] + bytes([there[name][place] ^ 1]) + there[name][place + 1 :])
        assert Journal(tmp_path, {}).progress == Progress(), place


def test_journal_with_missing_files_starts_again(tmp_path, capsys):
    partial = tmp_path / "partial"
    open_journal = functools.partial(Journal, partial, {"source": "x", "sizes": (1, 2)})
    partial.mkdir()
    journal = open_journal()
    writer = SplitWriter(partial, "train", dtype=np.dtype(np.uint16), shard_tokens=10)
    writer.append(np.arange(14, dtype=np.uint16), np.array([0, 12]), size=20)
    notes = Notes({"invalid records skipped": 2}, {"invalid records skipped": "x:3"})
    progress = Progress(1, 9, {"train": writer.sync()}, notes)
    journal.record(progress)
    writer.close()
    assert open_journal().progress == progress
    assert open_journal().progress.notes.lines() == ["2 invalid records skipped; the first: x:3"]
    assert json.loads((partial / "progress.json").read_text())["version"] == 8, "increase it with the meaning of units"
    (partial / "train.documents").write_bytes(b"short")
    assert open_journal().progress == Progress()
    assert "incomplete or damaged. Starting again." in capsys.readouterr().err
    (partial / "progress.json").write_text("{")
    assert open_journal().progress == Progress()
    assert not list(partial.iterdir())
