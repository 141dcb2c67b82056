"""Killed anywhere, the same command goes on, and the bytes are those of a run that nobody killed."""

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

import numpy as np
import pytest
from texts import make_small

from data_pipelines import prepare as door
from data_pipelines.encode import encoder as encoding
from data_pipelines.encode.batching import Position
from data_pipelines.output import journal as resuming
from data_pipelines.output.journal import Journal, Reached
from data_pipelines.output.shard_writer import SplitWriter
from data_pipelines.prepare import Prepare, prepare
from data_pipelines.readers.documents import Notes
from gptjax.errors import UserError
from gptjax.integrity import verify

WORDS = ["the", "of", "and", "a", "to", "in", "is", "was", "he", "for", "it", "with", "as", "his", "on", "be", "at"]
CHILD = """
import json, sys, time
from pathlib import Path
import pytest
from texts import make_small
from data_pipelines.encode import encoder as encoding
from data_pipelines import prepare as door
from data_pipelines.output import journal as resuming
from data_pipelines.prepare import Prepare, prepare
from gptjax.errors import explained

def slowly(*args, **kwargs):  # so that there is something left to be killed
    for step in encoding.encode_all(*args, **kwargs):
        time.sleep(0.005)
        yield step

if __name__ == "__main__":
    make_small(pytest.MonkeyPatch(), batch=2000, piece=1000)
    resuming.SECONDS_BETWEEN_RECORDS, door.encode_all = 0, slowly
    options = json.loads(sys.argv[1])
    with explained():
        prepare(Prepare(**options | {"output": Path(options["output"])}))
else:  # in a worker that starts
    Path(json.loads(sys.argv[1])["output"] + ".worker").touch()
"""
HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent)))}


@pytest.fixture
def small(monkeypatch):
    """Many small pieces and batches, with a record after each."""
    make_small(monkeypatch, batch=2000, piece=1000)
    monkeypatch.setattr(resuming, "SECONDS_BETWEEN_RECORDS", 0)


@pytest.fixture
def source(tmp_path):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(5, 300))) + " é☕\r\n" for _ in range(60)]
    texts[3:3], texts[90:90] = ["", " \n"], [" ".join(rng.choices(WORDS, k=20_000))]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def options_of(source, tokenizer="bpe:300", processes=1):
    sizes = {"shard_tokens": 3000, "max_document_tokens": 700, "processes": processes}
    return {"source": source, "tokenizer": tokenizer, "split": "documents:0.2", **sizes}


def killed_until_done(tmp_path, source, *, kills, processes):
    """Kill after a few records, again and again; then let it end. Returns how often it went on from a record."""
    script, out, rng = tmp_path / "child.py", tmp_path / "killed", random.Random(kills)
    record = tmp_path / ".killed.partial" / "progress.json"
    script.write_text(CHILD)
    options = json.dumps({**options_of(source, processes=processes), "output": str(out)})
    resumed = 0
    for turn in range(kills + 1):
        process = subprocess.Popen(
            [sys.executable, str(script), options], env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        seen, wanted = set(), rng.randrange(1, 7)
        while turn < kills and len(seen) < wanted and process.poll() is None:
            if record.exists():
                seen.add(record.stat().st_mtime_ns)
            time.sleep(0.002)
        if turn < kills:
            time.sleep(rng.random() * 0.03)
            process.kill()
        said = process.communicate(timeout=120)[1]  # ends when the workers have gone, too
        resumed += b"going on after" in said
        assert process.returncode in ((0, -signal.SIGKILL) if turn < kills else (0,)), said.decode()
        if process.returncode == 0:
            break
        assert not out.exists()
    return resumed


def check_kills(tmp_path, source, *, kills, processes):
    prepare(Prepare(**options_of(source), output=tmp_path / "whole"))
    assert killed_until_done(tmp_path, source, kills=kills, processes=processes) >= kills / 3, "went on"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(verify(tmp_path / "killed").files) > 3
    left = {"texts.jsonl", "child.py", "whole", "killed", ".whole.lock", ".killed.lock"}
    assert {path.name for path in tmp_path.iterdir()} - {"killed.worker"} == left


def test_killed_and_gone_on_with(tmp_path, source, small):
    check_kills(tmp_path, source, kills=3, processes=1)


def test_killed_with_its_workers(tmp_path, source, small):
    check_kills(tmp_path, source, kills=1, processes=2)


def test_ctrl_c_is_one_line_at_any_time(tmp_path, source, small):
    """Typed when a worker starts, and when all of them encode: the terminal sends it to every process."""
    script, worker, record = tmp_path / "child.py", tmp_path / "out.worker", tmp_path / ".out.partial/progress.json"
    script.write_text(CHILD)
    options = json.dumps({**options_of(source, "bytes", processes=2), "output": str(tmp_path / "out")})
    command = [sys.executable, str(script), options]
    for moment in (worker.exists, lambda: record.exists() and json.loads(record.read_text())["position"][0]):
        worker.unlink(missing_ok=True)
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        while not moment() and process.poll() is None:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=120)[1]
        assert (process.returncode, said) == (130, "interrupted\n")
    prepare(Prepare(**options_of(source, "bytes"), output=tmp_path / "whole"))
    subprocess.run(command, env=ENVIRONMENT, check=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_ten_times(tmp_path, source, small, processes):
    Path(source).write_text(Path(source).read_text() * 5)
    check_kills(tmp_path, source, kills=10, processes=processes)


class Stop(Exception):
    """A stand-in for any end that comes unasked."""


def stopping(monkeypatch, after):
    """Let encoding raise once so many batches have been written."""
    encode_all = encoding.encode_all

    def stopped(*args, **kwargs):
        for number, step in enumerate(encode_all(*args, **kwargs)):
            if number == after:
                raise Stop
            yield step

    monkeypatch.setattr(door, "encode_all", stopped)


@pytest.mark.parametrize("after", [0, 1, 14, 20])
def test_stopped_after_any_batch(tmp_path, source, small, monkeypatch, capsys, after):
    """In this process, so at exact places: a document's middle is one of them."""
    with Path(source).open("a") as file:
        file.write('broken\n{"text": "\\ud800"}\n')
    options = options_of(source, "bytes")
    prepare(Prepare(**options, output=tmp_path / "whole"))
    wanted = noted(capsys.readouterr().out)
    assert len(wanted) == 3
    with monkeypatch.context() as patch:
        stopping(patch, after)
        with pytest.raises(Stop):
            prepare(Prepare(**options, output=tmp_path / "out"))
    partial = tmp_path / ".out.partial"
    assert partial.exists() == (after > 0), "nothing is left where nothing was done"
    if after:
        (partial / "train_000099.bin").write_text("whatever else a kill leaves behind")
    prepare(Prepare(**options, output=tmp_path / "out"))
    said = capsys.readouterr()
    assert ("going on after" in said.err) == (after > 0)
    assert noted(said.out) == wanted, "of what an earlier run read, too"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def write_parquet(path, texts, **options):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is in the extras `data` and `dev`")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": [*texts, None]}), path / "x.parquet", **options)


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


def write_files(path, texts):
    for number, text in enumerate(texts):
        (path / f"{number:03}.txt").write_text(text)
    (path / "broken.txt").write_bytes(b"caf\xe9")


KINDS = {
    "groups": functools.partial(write_parquet, row_group_size=3),
    "one group": write_parquet,  # of which the file says that it is small, for many texts are the same
    "records": write_array_record,
    "packed": write_gz,
    "files": write_files,
}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_in_any_kind_of_source(tmp_path, small, monkeypatch, capsys, kind):
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(5, 300))) + " é" for _ in range(40)]
    texts = [*texts, "", *texts[:20] * 3]
    (tmp_path / "source").mkdir()
    KINDS[kind](tmp_path / "source", texts)
    monkeypatch.setattr(encoding, "MOST_TEXT", 5000)
    options = options_of(str(tmp_path / "source"), "bytes")
    prepare(Prepare(**options, output=tmp_path / "whole"))
    wanted = noted(capsys.readouterr().out)
    assert any("empty documents" in line for line in wanted)
    assert any("the first: " in line for line in wanted)
    for after in (2, 7):
        out = tmp_path / f"out{after}"
        with monkeypatch.context() as patch:
            stopping(patch, after)
            with pytest.raises(Stop):
                prepare(Prepare(**options, output=out))
        prepare(Prepare(**options, output=out))
        said = capsys.readouterr()
        assert ("going on after" in said.err) == (kind != "one group"), "within it there is no place to go on"
        assert noted(said.out) == wanted
        assert contents(out) == contents(tmp_path / "whole")


def noted(report):
    return [line for line in report.splitlines() if line.startswith("note:")]


def test_another_request_starts_anew(tmp_path, source, small, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stopping(patch, 9)
        with pytest.raises(Stop):
            prepare(Prepare(**options_of(source, "bytes"), output=tmp_path / "out"))
    changed = options_of(source, "bytes") | {"shard_tokens": 2000, "max_document_tokens": None}
    prepare(Prepare(**changed, output=tmp_path / "out"))
    said = capsys.readouterr().err
    assert "of another request (max_document_tokens, shard_tokens differ). Starting anew." in said
    assert "going on" not in said
    prepare(Prepare(**changed, output=tmp_path / "whole"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_vocabulary_is_learnt_once(tmp_path, source, small, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 0)
        with pytest.raises(Stop):
            prepare(Prepare(**options_of(source), output=tmp_path / "out"))
    monkeypatch.setattr(door, "learn_bpe", None)
    manifest = prepare(Prepare(**options_of(source), output=tmp_path / "out"))
    assert manifest.tokenizer == "bpe-300"


def test_files_that_are_gone_start_anew(tmp_path, capsys):
    def opened():
        return Journal(tmp_path / "partial", {"source": "x", "sizes": (1, 2)})

    (tmp_path / "partial").mkdir()
    journal = opened()
    with SplitWriter(tmp_path / "partial", "train", dtype=np.dtype(np.uint16), shard_tokens=10) as writer:
        writer.append(np.arange(14, dtype=np.uint16), np.array([0, 12]), size=20)
        notes = Notes({"invalid records skipped": 2}, {"invalid records skipped": "x:3"})
        reached = Reached(Position(1, 3, 9), {"train": writer.written()}, notes)
        journal.record(reached)
        writer.append(np.arange(3, dtype=np.uint16))
    assert opened().reached(itemsize=2) == reached
    assert opened().reached(itemsize=2).notes.lines() == ["2 invalid records skipped; the first: x:3"]
    record = tmp_path / "partial" / "progress.json"
    assert json.loads(record.read_text())["version"] == 3, "another number where a position means something else"
    (tmp_path / "partial" / "train.documents").write_bytes(b"short")
    assert opened().reached(itemsize=2) == Reached()
    assert "missing or cut short. Starting anew." in capsys.readouterr().err
    (tmp_path / "partial" / "progress.json").write_text("{")
    assert opened().reached(itemsize=2) == Reached()
    assert [path.name for path in (tmp_path / "partial").iterdir()] == ["progress.json"]


def test_an_error_leaves_nothing_when_nothing_was_done(tmp_path, source):
    with pytest.raises(UserError, match="such as bpe:1024"):
        prepare(Prepare(source=source, tokenizer="bpe:many", output=tmp_path / "out"))
    assert not (tmp_path / ".out.partial").exists()
