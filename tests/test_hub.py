"""A Hugging Face repository's files as a source: by pattern, resumed, checked, and again without a network."""

import hashlib
import io

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import COMMIT, Hub, serving
from texts import documents_in

from data_pipelines.prepare import Prepare, prepare
from data_pipelines.readers import downloads
from data_pipelines.readers.documents import ReadContext
from data_pipelines.readers.hub import Repository, open_hub, parse_hub
from data_pipelines.readers.sources import open_source
from gptjax.errors import UserError


def table(*texts):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": list(texts)}), buffer)
    return buffer.getvalue()


FILES = {
    "README.md": b"# About",
    ".gitattributes": b"",
    "data/train-00001-of-00002.parquet": table("three " * 500, "four"),
    "data/train-00000-of-00002.parquet": table("one", "two"),
    "data/validation-00000-of-00001.parquet": table("held out"),
    "extra é/more text.jsonl": b'{"text": "more"}\n' * 100,
    "script.py": b"raise SystemExit",
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0)
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(Hub("owner/tales", dict(FILES))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + "/")
        yield hub


def read(spec):
    return [str(document, "utf-8") for document in documents_in(open_source(spec), ReadContext(strict=True))]


def test_training_files_are_read_in_order_and_fetched_once(hub, tmp_path):
    source = open_source("hf:owner/tales")
    assert not hub.authorized, "nothing is asked before documents are wanted"
    assert list(documents_in(source, ReadContext())) == [b"one", b"two", b"three " * 500, b"four"]
    assert source.name == "tales"
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"):
        (kept,) = (tmp_path / "cache" / "hub" / "owner--tales").glob(f"*/{name}")
        assert kept.read_bytes() == FILES[f"data/{name}"]
    before = len(hub.requests)
    assert [str(document, "utf-8") for document in documents_in(source, ReadContext())] == read("hf:owner/tales")
    assert len(hub.requests) == before == 2


def test_files_come_when_their_turn_comes(hub):
    documents = documents_in(open_source("hf:owner/tales"), ReadContext())
    assert next(documents) == b"one"
    assert [path for path, _ in hub.requests] == ["data/train-00000-of-00002.parquet"]
    documents.close()


def test_patterns(hub):
    assert read("hf:owner/tales:data/validation-*.parquet") == ["held out"]
    assert read("hf:owner/tales@main:*/*.jsonl") == ["more"] * 100
    assert read("hf:owner/tales:README.md") == ["# About"]
    for pattern in ("*.py", "absent/*"):
        with pytest.raises(UserError, match=r"no file that can be read matches.*holds README\.md"):
            read(f"hf:owner/tales:{pattern}")
    hub.files = {"a.txt": b"text", "LICENSE.txt": b"may be used", "notes.md": b"no"}
    assert [file.path for file in open_hub("hf:owner/tales").files] == ["a.txt"]


def test_one_set_of_several_must_be_chosen(hub):
    several = {f"{folder}/train-{i}.txt": folder.encode() for folder in ("20231101.de", "20231101.en") for i in (0, 1)}
    hub.files = several | {"20231101.de/test-0.txt": b"", "README.md": b""}
    choices = r"2 folders.* hf:owner/tales:20231101\.de/\*train\* or hf:owner/tales:20231101\.en/\*train\*;"
    with pytest.raises(UserError, match=choices):
        read("hf:owner/tales")
    assert read("hf:owner/tales:20231101.en/*train*") == ["20231101.en"] * 2
    assert len(read("hf:owner/tales:*train*")) == 4
    hub.files = {path: path.encode() for path in ("data/2024/0.txt", "data/2025/0.txt", "sample/0.txt", "all.txt")}
    hub.commit = hashlib.sha1(b"without names").hexdigest()
    with pytest.raises(UserError, match=r"3 folders.* Choose hf:owner/tales:data/\* or hf:owner/tales:sample/\*;"):
        read("hf:owner/tales")
    assert read("hf:owner/tales:data/*") == ["data/2024/0.txt", "data/2025/0.txt"]
    hub.commit = hashlib.sha1(b"many").hexdigest()
    hub.files = {f"{i}/train.txt": b"" for i in range(100)}
    with pytest.raises(UserError, match=r"15/\*train\* \(and 92 more\)"):
        read("hf:owner/tales")


@pytest.mark.parametrize(
    "paths",
    [
        ["train/chunk1/0.txt", "train/chunk2/0.txt", "test/chunk1/0.txt"],
        ["data/train-0.txt", "data/train-1.txt", "extra/more.txt"],
        ["data/0.txt", "data/more/1.txt"],
    ],
)
def test_one_set_in_several_folders_is_read_whole(hub, paths):
    hub.files = {path: path.encode() for path in paths}
    wanted = [path for path in paths if "train" in path] or paths
    assert read("hf:owner/tales") == sorted(wanted)


def test_a_transfer_that_breaks_off_goes_on(hub):
    hub.cut_after = [100, 50]
    assert read("hf:owner/tales") == ["one", "two", "three " * 500, "four"]
    assert [asked for _, asked in hub.requests][:3] == [None, "bytes=100-", "bytes=150-"]


@pytest.mark.parametrize("path", ["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet"])
def test_altered_files_are_refused(hub, path):
    """Large ones by their SHA-256, small ones by git's hash."""
    hub.large = min(len(FILES[name]) for name in FILES if "train" in name)
    middle = len(FILES[path]) // 2
    altered = FILES[path][middle] ^ 1
    hub.served = {path: FILES[path][:middle] + bytes([altered]) + FILES[path][middle + 1 :]}
    with pytest.raises(UserError, match="not the file that was promised"):
        read("hf:owner/tales")


def test_without_a_network_what_was_fetched_is_used(hub, monkeypatch, capsys):
    first = open_source("hf:owner/tales")
    documents, identity = list(documents_in(first, ReadContext())), first.identity()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    again = open_source("hf:owner/tales")
    assert list(documents_in(again, ReadContext())) == documents
    assert again.identity() == identity
    assert "Going on with what it said before" in capsys.readouterr().err
    with pytest.raises(UserError, match="did not answer"):
        read("hf:owner/other")


def test_a_commit_is_asked_about_once(hub, tmp_path):
    listing = Repository("owner/tales").listing
    assert sorted(file.path for file in listing.files) == sorted(FILES), "of all pages"
    kept = tmp_path / "cache" / "hub" / "owner--tales"
    (kept / "main.json").rename(kept / f"{COMMIT}.json")
    hub.authorized.clear()
    assert Repository("owner/tales", COMMIT).listing == listing
    assert not hub.authorized
    (kept / "main.json").write_text('{"commit": "')
    assert Repository("owner/tales").listing == listing, "what is damaged is asked for again"


def test_identity_is_of_the_content(hub):
    def identity():
        return open_source("hf:owner/tales:data/train-*").identity()

    first = identity()
    assert first["files"] == 2
    read("hf:owner/tales")
    fetched = len(hub.requests)
    hub.files["README.md"] = b"# About, edited"
    hub.commit = hashlib.sha1(b"next").hexdigest()
    assert identity() == first
    read("hf:owner/tales")
    assert len(hub.requests) == fetched, "a commit that changes no data fetches none again"
    hub.files["data/train-00000-of-00002.parquet"] = table("one", "deux")
    assert identity() != first


def test_answers_that_make_no_sense(hub, monkeypatch):
    with pytest.raises(UserError, match=r"404.*private or gated, or not exist"):
        read("hf:owner/absent")
    hub.files["../../escaped.txt"] = b"x"
    with pytest.raises(UserError, match=r"not what a Hugging Face server says.*escaped"):
        read("hf:owner/tales")
    del hub.files["../../escaped.txt"]
    hub.commit = "main"
    with pytest.raises(UserError, match=r"not what a Hugging Face server says.*commit 'main'"):
        read("hf:owner/tales")


def test_from_the_hub_to_shards_in_one_command(hub, tmp_path):
    request = {"tokenizer": "bytes", "validation_source": "hf:owner/tales:data/validation-*.parquet", "processes": 1}
    manifest = prepare(Prepare(source="hf:owner/tales", output=tmp_path / "out", **request))
    assert manifest.splits["train"].documents == 4
    assert manifest.splits["val"].bytes == len("held out")


def test_a_token_is_sent_where_there_is_one(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    read("hf:owner/tales:data/validation-*")
    assert [token for path, token in hub.authorized if not path.startswith("/storage")] == ["Bearer secret"] * 5
    assert [token for path, token in hub.authorized if path.startswith("/storage")] == [None]


def test_the_form_of_a_spec():
    repository, pattern = parse_hub("hf:o.w/n-a_me@refs/convert/parquet:data/a:b*.parquet")
    assert (repository, pattern) == (Repository("o.w/n-a_me", "refs/convert/parquet"), "data/a:b*.parquet")
    for spec in ("hf:", "hf:name", "hf:a/b/c", "hf:a/b:", "hf:../b", "hf:a/.."):
        with pytest.raises(UserError, match=r"wanted hf:OWNER/NAME"):
            parse_hub(spec)
