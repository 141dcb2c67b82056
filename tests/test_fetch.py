"""Published token shards arrive whole, in order, resumable, and train as they are."""

import subprocess
import sys

import numpy as np
import pytest
from hub_server import Hub, serving

from data_pipelines import fetch
from data_pipelines.fetch import Fetch
from data_pipelines.readers import downloads
from data_pipelines.train_tokenizer import train_bpe
from gptjax.core.errors import UserError
from gptjax.data.shards import HEADER_BYTES, shard_header
from gptjax.data.splits import open_split

TOKENIZER = train_bpe(["the end of the end, and the rest\n" * 9], vocab_size=270)


def shard(seed, count=3000):
    tokens = np.random.default_rng(seed).integers(0, 270, count).astype("<u2")
    tokens[0] = TOKENIZER.end_of_text
    return shard_header(count, tokens.dtype) + tokens.tobytes()


FILES = {f"finewebedu_train_{i:06d}.bin": shard(i) for i in (3, 1, 2)} | {"finewebedu_val_000000.bin": shard(0, 500)}


@pytest.fixture(scope="module", autouse=True)
def tokenizer(tmp_path_factory):
    return str(TOKENIZER.save(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0)
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    with serving(Hub("kjj0/finewebedu10B-gpt2", {"README.md": b"", **FILES})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def names(directory):
    return sorted(path.name for path in directory.glob("[!.]*"))


def test_shards_by_recipe_few_and_then_more(hub, tokenizer, tmp_path, capsys):
    out = tmp_path / "out"
    assert fetch.fetch(Fetch("fineweb_edu_10b", output=out, shards=1, tokenizer=tokenizer)) == out
    assert names(out) == [
        "finewebedu_train_000001.bin",
        "finewebedu_val_000000.bin",
        "manifest.json",
        "tokenizer.json",
        "train.documents",
        "val.documents",
    ]
    assert "2 of 4 shards, 3,500 tokens" in capsys.readouterr().out
    assert [path for path, _ in hub.requests] == ["finewebedu_val_000000.bin", "finewebedu_train_000001.bin"]
    hub.cut_after = [HEADER_BYTES + 10]
    fetch.fetch(Fetch("hf:kjj0/finewebedu10B-gpt2", output=out, tokenizer=tokenizer))
    assert len(hub.requests) == 5
    assert {name: (out / name).read_bytes() for name in FILES} == FILES
    assert len(open_split(out, "train")) == 9000
    assert len(open_split(out, "val")) == 500
    np.testing.assert_array_equal(
        open_split(out, "train").read(3000, 3000),
        np.frombuffer(FILES["finewebedu_train_000002.bin"][HEADER_BYTES:], "<u2"),
    )


def test_patterns(hub, tokenizer, tmp_path):
    fetch.fetch(Fetch("hf:kjj0/finewebedu10B-gpt2:*val*", output=tmp_path / "out", tokenizer=tokenizer))
    assert [name for name in names(tmp_path / "out") if name.endswith(".bin")] == ["finewebedu_val_000000.bin"]


def test_what_is_no_shard_is_refused(hub, tokenizer, tmp_path):
    """Even though it is what the repository promised."""
    hub.files["finewebedu_val_000000.bin"] = shard(0)[:-2]
    with pytest.raises(UserError, match=r"finewebedu_val_000000\.bin is cut short"):
        fetch.fetch(Fetch("fineweb_edu_10b", output=tmp_path / "out", tokenizer=tokenizer))
    hub.files = {"README.md": b"", "model.bin": b"", "data/train.parquet": b""}
    with pytest.raises(UserError, match=r"no token shards.*data_pipelines\.prepare"):
        fetch.fetch(Fetch("hf:kjj0/finewebedu10B-gpt2", output=tmp_path / "other", tokenizer=tokenizer))


def test_requests_that_make_no_sense(tmp_path):
    with pytest.raises(UserError, match="--output=DIR is missing"):
        fetch.fetch(Fetch("fineweb_10b"))
    for source in ("openwebtext", "absent"):
        with pytest.raises(UserError, match="wanted fineweb_10b, fineweb_edu_10b, hf:OWNER/NAME or tfds:NAME"):
            fetch.fetch(Fetch(source, output=tmp_path))
    with pytest.raises(UserError, match="--shards=-1: wanted at least 0"):
        Fetch("fineweb_10b", output=tmp_path, shards=-1)


def test_the_command(hub, tokenizer, tmp_path):
    command = [
        sys.executable,
        "-m",
        "data_pipelines.fetch",
        "fineweb_edu_10b",
        f"--output={tmp_path}/out",
        "--shards=2",
        f"--tokenizer={tokenizer}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 of 4 shards, 6,500 tokens" in done.stdout
    done = subprocess.run([*command[:3], "absent"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: absent: --output=DIR is missing")
