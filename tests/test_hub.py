"""A Hugging Face repository's files as a source."""

import hashlib
import io
import re

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import Hub, connect, serving
from texts import documents_in

from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.prepare import Prepare, prepare
from data_pipelines.prepare_chat import PrepareChat, prepare_chat
from data_pipelines.prepare_preferences import PreparePreferences, prepare_preferences
from data_pipelines.readers.documents import ReadContext
from data_pipelines.readers.hub import open_hub
from data_pipelines.readers.sources import open_source
from gptjax.core.errors import UserError


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
    with serving(Hub("owner/tales", dict(FILES)), tmp_path, monkeypatch) as hub:
        yield hub


def read(spec):
    return [str(document, "utf-8") for document in documents_in(open_source(spec), ReadContext(strict=True))]


def change_files(hub, files):
    """A new commit."""
    hub.files = files
    hub.commit = hashlib.sha1(repr(files).encode()).hexdigest()


def test_training_files_are_read_in_order_and_fetched_once(hub):
    source = open_source("hf:owner/tales")
    assert not hub.tokens, "nothing is asked before documents are wanted"
    documents = documents_in(source, ReadContext())
    assert next(documents) == b"one"
    assert hub.requests == ["data/train-00000-of-00002.parquet"], "the next file comes when its turn comes"
    assert list(documents) == [b"two", b"three " * 500, b"four"]
    assert source.name == "tales"
    assert read("hf:owner/tales") == ["one", "two", "three " * 500, "four"]
    assert len(hub.requests) == 2


def test_pattern_behind_a_repository_chooses_its_files(hub):
    assert read("hf:owner/tales:data/validation-*.parquet") == ["held out"]
    assert read("hf:owner/tales@main:*/*.jsonl") == ["more"] * 100
    assert read("hf:owner/tales:README.md") == ["# About"]
    for pattern in ("*.py", "absent/*"):
        with pytest.raises(UserError, match=r"no file that can be read matches.*holds \.gitattributes, README\.md"):
            read(f"hf:owner/tales:{pattern}")


def test_readme_and_licence_are_no_data(hub):
    change_files(hub, {"a.txt": b"text", "LICENSE.txt": b"may be used", "notes.md": b"no", "x/.hidden.txt": b"no"})
    assert read("hf:owner/tales") == ["text"]


def test_several_sets_are_refused_with_choices(hub):
    several = {f"{folder}/train-{i}.txt": folder.encode() for folder in ("20231101.de", "20231101.en") for i in (0, 1)}
    change_files(hub, several | {"20231101.de/test-0.txt": b"", "README.md": b""})
    choices = r"2 folders.* such as hf:owner/tales:20231101\.de/\*train\* or hf:owner/tales:20231101\.en/\*train\*;"
    with pytest.raises(UserError, match=choices):
        read("hf:owner/tales")
    assert read("hf:owner/tales:20231101.en/*train*") == ["20231101.en"] * 2
    assert len(read("hf:owner/tales:*train*")) == 4
    change_files(hub, {path: path.encode() for path in ("data/2024/0.txt", "data/2025/0.txt", "sample/0.txt")})
    with pytest.raises(UserError, match=r"2 folders.* such as hf:owner/tales:data/\* or hf:owner/tales:sample/\*;"):
        read("hf:owner/tales")
    assert read("hf:owner/tales:data/*") == ["data/2024/0.txt", "data/2025/0.txt"]
    change_files(hub, {f"{i}/train.txt": b"" for i in range(12)})
    with pytest.raises(UserError, match=r"5/\*train\*"):
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
    change_files(hub, {path: path.encode() for path in paths})
    wanted = [path for path in paths if "train" in path] or paths
    assert read("hf:owner/tales") == sorted(wanted)


def test_other_splits_are_not_read_and_that_is_told(hub, capsys):
    paths = ["data/Training-0.txt", "train/validation-0.txt", "Test.txt"]
    change_files(hub, {path: path.encode() for path in paths})
    assert read("hf:owner/tales") == paths[:1]
    assert "hf:owner/tales: not read: 2 other files, such as hf:owner/tales:Test.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "names", "read", "told"),
    [
        (":*.txt", "train validation test", "train", "not read: 2 files of other splits.*--validation-source"),
        ("", "validation test", "test validation", "reads 2 files that their names call validation or test"),
        (":*valid*", "train validation", "validation", ""),
    ],
)
def test_splits_of_a_repository_are_never_mixed_silently(hub, capsys, pattern, names, read, told):
    change_files(hub, {f"data/{name}-0.txt": name.encode() for name in names.split()})
    source = open_source(f"hf:owner/tales{pattern}")
    assert [str(document, "utf-8") for document in documents_in(source, ReadContext())] == read.split()
    assert re.search(told, capsys.readouterr().err)


def test_without_network_the_error_names_the_source(tmp_path, monkeypatch):
    connect("http://127.0.0.1:1", tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"^source hf:owner/other: no usable answer from the hub \(ConnectError"):
        read("hf:owner/other")


def test_offline_mode_is_explained(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"offline mode is enabled.*HF_HUB_OFFLINE"):
        read("hf:owner/tales")


def test_identity_is_of_the_content(hub):
    def identity():
        return open_source("hf:owner/tales:data/train-*").identity()

    first = identity()
    assert first["files"] == 2
    assert "readers" in first, "of Parquet"
    read("hf:owner/tales")
    change_files(hub, FILES | {"README.md": b"# About, edited"})
    assert identity() == first
    read("hf:owner/tales")
    assert len(hub.requests) == 2, "a commit that changes no data fetches none again"
    change_files(hub, FILES | {"data/train-00000-of-00002.parquet": table("one", "deux")})
    assert identity() != first


def test_unknown_and_gated_repositories_are_explained(hub):
    with pytest.raises(UserError, match=r"hf:owner/absent: the repository does not exist, or is private.*HF_TOKEN"):
        read("hf:owner/absent")
    hub.gated = True
    with pytest.raises(UserError, match=r"is gated. Accept its terms at https://.*/datasets/owner/tales\. Log in"):
        read("hf:owner/tales")


def test_token_of_the_environment_is_sent(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    read("hf:owner/tales:data/validation-*")
    assert hub.tokens == {"Bearer secret"}


def test_prepare_reads_training_and_validation_files(hub, tmp_path):
    request = {"tokenizer": "bytes", "validation_source": "hf:owner/tales:data/validation-*.parquet", "processes": 1}
    manifest = prepare(Prepare(source="hf:owner/tales", output=tmp_path / "out", **request))
    assert manifest.splits["train"].documents == 4
    assert manifest.splits["val"].bytes == len("held out")


def test_spec_has_owner_name_revision_and_pattern():
    source = open_hub("hf:o.w/n-a_me@refs/convert/parquet:data/a:b*.parquet")
    assert (source.repository, source.revision) == ("o.w/n-a_me", "refs/convert/parquet")
    assert source.pattern == "data/a:b*.parquet"
    for spec in ("hf:", "hf:name", "hf:a/b/c", "hf:a/b:", "hf:../b", "hf:a/.."):
        with pytest.raises(UserError, match=r"wanted hf:OWNER/NAME"):
            open_hub(spec)
    assert open_hub("books.txt") is None


CHAT = b'{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}\n'
PAIR = b'{"prompt": "2+2?", "chosen": "4", "rejected": "5"}\n'


@pytest.mark.parametrize(
    ("options", "prepare_records", "records"),
    [(PrepareChat, prepare_chat, CHAT), (PreparePreferences, prepare_preferences, PAIR)],
)
def test_records_of_a_repository_are_prepared(options, prepare_records, records, hub, tmp_path, capsys):
    change_files(hub, {"README.md": b"#", "data/train-00000.jsonl": records * 20, "data/test-00000.jsonl": records})
    request = options(source="hf:owner/tales", tokenizer=str(train(tmp_path)), output=tmp_path / "o", split="none")
    assert prepare_records(request).splits["train"].documents == 20 * (1 + (options is PreparePreferences))
    assert hub.requests == ["data/train-00000.jsonl"]
    prepare_records(request)
    assert "already prepared" in capsys.readouterr().out


def test_a_repository_without_records_is_an_error(hub, tmp_path):
    change_files(hub, {"a.txt": b"text"})
    request = PrepareChat(source="hf:owner/tales", tokenizer=str(train(tmp_path)), output=tmp_path / "o")
    with pytest.raises(UserError, match="has no file of records; wanted"):
        prepare_chat(request)


def train(directory):
    """The directory of a tokenizer."""
    return train_bpe(["2 + 2 is 4 "] * 9, vocab_size=260).save(directory / "tokenizer").parent
