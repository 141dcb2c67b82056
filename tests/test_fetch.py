"""Published token shards are fetched whole and in order, and train as they are."""

import numpy as np
import pytest
from hub_server import Hub, serving
from pipelines import run_pipeline

from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.fetch import Fetch, fetch
from gptjax.core.errors import UserError
from gptjax.data.shards import shard_header
from gptjax.data.splits import open_split

TOKENIZER = train_bpe(["the end of the end, and the rest\n" * 9], vocab_size=270)
SPEC = "hf:kjj0/finewebedu10B-gpt2"


def make_shard(seed, count=3000):
    tokens = np.random.default_rng(seed).integers(0, 270, count).astype("<u2")
    tokens[0] = TOKENIZER.end_of_text
    return shard_header(count, tokens.dtype) + tokens.tobytes()


FILES = {f"finewebedu_train_{i:06d}.bin": make_shard(i) for i in (3, 1, 2)}
FILES["finewebedu_val_000000.bin"] = make_shard(0, 500)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return str(TOKENIZER.save(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(Hub("kjj0/finewebedu10B-gpt2", {"README.md": b"", **FILES}), tmp_path, monkeypatch) as hub:
        yield hub


def list_names(directory):
    return sorted(path.name for path in directory.glob("*") if not path.name.endswith(".lock"))


def test_fetch_some_shards_and_then_the_rest(hub, tokenizer, tmp_path, capsys):
    out = tmp_path / "out"
    assert fetch(Fetch("fineweb_edu_10b", output=out, shards=1, tokenizer=tokenizer)) == out
    assert list_names(out) == [
        "finewebedu_train_000001.bin",
        "finewebedu_val_000000.bin",
        "manifest.json",
        "tokenizer.json",
        "train.documents",
        "val.documents",
    ]
    assert "2 shards, 3,500 tokens" in capsys.readouterr().out
    assert hub.requests == ["finewebedu_val_000000.bin", "finewebedu_train_000001.bin"]
    fetch(Fetch(SPEC, output=out, tokenizer=tokenizer))
    assert len(hub.requests) == 4, "what is there is not fetched again"
    assert {name: (out / name).read_bytes() for name in FILES} == FILES
    assert len(open_split(out, "train")) == 9000
    assert len(open_split(out, "val")) == 500


def test_fetch_by_pattern_and_from_a_folder(hub, tokenizer, tmp_path):
    hub.files = {f"folder/{name}": content for name, content in FILES.items()}
    fetch(Fetch(f"{SPEC}:*val*", output=tmp_path / "out", tokenizer=tokenizer))
    assert [name for name in list_names(tmp_path / "out") if name.endswith(".bin")] == ["finewebedu_val_000000.bin"]
    hub.files |= FILES
    with pytest.raises(UserError, match=r"several folders hold shards of one name"):
        fetch(Fetch(SPEC, output=tmp_path / "other", tokenizer=tokenizer))


def test_invalid_shards_are_refused(hub, tokenizer, tmp_path):
    request = Fetch("fineweb_edu_10b", output=tmp_path / "out", tokenizer=tokenizer)
    hub.served["finewebedu_val_000000.bin"] = make_shard(7, 500)
    with pytest.raises(UserError, match=r"finewebedu_val_000000\.bin: its SHA-256 is \w+, wanted \w+\. Remove it"):
        fetch(request)
    assert not (tmp_path / "out" / "finewebedu_val_000000.bin").exists()
    hub.files = {"finewebedu_val_000000.bin": make_shard(0)[:-2]}
    hub.served.clear()
    with pytest.raises(UserError, match=r"finewebedu_val_000000\.bin is cut short"):
        fetch(Fetch("fineweb_edu_10b", output=tmp_path / "another", tokenizer=tokenizer))
    hub.files = {"README.md": b"", "model.bin": b"", "data/train.parquet": b""}
    with pytest.raises(UserError, match=r"no token shards.*data_pipelines\.prepare"):
        fetch(Fetch(SPEC, output=tmp_path / "other", tokenizer=tokenizer))


def test_unusable_requests_are_explained(tmp_path):
    with pytest.raises(UserError, match="--output=DIR is missing"):
        fetch(Fetch("fineweb_10b"))
    for source in ("openwebtext", "absent"):
        with pytest.raises(UserError, match="wanted fineweb_10b, fineweb_edu_10b, hf:OWNER/NAME or tfds:NAME"):
            fetch(Fetch(source, output=tmp_path))
    with pytest.raises(UserError, match="--shards=-1: wanted at least 0"):
        Fetch("fineweb_10b", output=tmp_path, shards=-1)


def test_command_fetches_or_explains(hub, tokenizer, tmp_path, capsys):
    options = [f"--output={tmp_path}/out", "--shards=2", f"--tokenizer={tokenizer}"]
    assert run_pipeline("fetch", "fineweb_edu_10b", *options) == 0
    assert "3 shards, 6,500 tokens" in capsys.readouterr().out
    assert run_pipeline("fetch", "absent") == 2
    assert capsys.readouterr().err.startswith("error: absent: --output=DIR is missing")
