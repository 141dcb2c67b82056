"""Complete data is reported, and damaged files are named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from manifests import edit_manifest
from pipelines import run_pipeline

from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.prepare import Prepare, prepare
from data_pipelines.prepare_chat import PrepareChat, prepare_chat
from data_pipelines.verify import VerifyShards, verify_directory
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.files import file_sha256
from gptjax.data.config import TokenShards
from gptjax.data.manifest import Sidecar, read_manifest
from gptjax.data.shards import HEADER_BYTES, open_shard, write_shard
from gptjax.model.config import GPTConfig
from gptjax.objectives.objective import SFT
from gptjax.runs.startup import make_read_spec
from gptjax.tokenization.chat_template import CHATML

TEXTS = [f"Document {i}: " + "the cat sat on the mat. " * (i % 7 + 1) for i in range(60)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    (folder / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for name, size in (("one", 280), ("two", 300)):
        train_bpe(TEXTS, vocab_size=size).save(folder / f"bpe-{name}")
        source, tokenizer = str(folder / "x.jsonl"), str(folder / f"bpe-{name}")
        request = Prepare(source=source, tokenizer=tokenizer, split="tail:0.2", shard_tokens=400, output=folder / name)
        prepare(request)
    return folder


@pytest.fixture
def directory(prepared, tmp_path):
    """A copy to damage."""
    for path in (prepared / "one").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def update_manifest(directory, name):
    """Let the manifest agree with a changed file."""

    def change(content):
        kind = "files" if name in content["files"] else "companions"
        content[kind][name]["sha256"] = file_sha256(directory / name)

    edit_manifest(directory, change)


def test_verify_reports_complete_data(directory, capsys):
    manifest = verify_directory(VerifyShards(directory))
    assert manifest == read_manifest(directory)
    first, second, note, last = capsys.readouterr().out.splitlines()
    counts = manifest.splits["train"]
    assert first.startswith("train")
    assert f"{counts.documents:,} documents" in first
    assert f"{counts.tokens:,} tokens" in first
    assert first.endswith(f"in {len(manifest.files_of('train'))} files")
    assert second.startswith("val")
    assert note.startswith("note: val has only 412 tokens")
    assert last == f"{directory}: complete, bpe-280, uint16"


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["train_000001.bin", "val_000000.bin", "train.documents"])
@pytest.mark.parametrize(
    ("damage", "message"), [(cut, "bytes; [0-9,]+ were written"), (flip, "SHA-256"), (Path.unlink, "missing")]
)
def test_verify_names_damaged_files(directory, name, damage, message):
    damage(directory / name)
    with pytest.raises(UserError, match=message) as caught:
        verify_directory(VerifyShards(directory))
    assert name in str(caught.value)


@pytest.mark.parametrize("order", [[4, 3], [3, 3]], ids=["changed places", "empty document"])
def test_verify_notices_documents_out_of_order(directory, order):
    path = directory / "train.documents"
    starts = np.frombuffer(path.read_bytes(), "<i8").copy()
    starts[[3, 4]] = starts[order]
    path.write_bytes(starts.tobytes())
    update_manifest(directory, path.name)
    with pytest.raises(UserError, match=r"train\.documents: the documents do not begin one after another"):
        verify_directory(VerifyShards(directory))


def test_verify_notices_documents_that_begin_elsewhere(directory):
    path = directory / "train.documents"
    starts = np.frombuffer(path.read_bytes(), "<i8").copy()
    starts[-1] += 1
    path.write_bytes(starts.tobytes())
    update_manifest(directory, path.name)
    with pytest.raises(UserError, match="begins a document but is not the end-of-text id 279"):
        verify_directory(VerifyShards(directory))


@pytest.mark.parametrize("begins", [True, False])
def test_conversations_begin_as_their_template_says(tmp_path, begins):
    """Verification and training notice a template that was changed. Pairs of plain text begin with the end of text."""
    template = replace(CHATML, begins=begins)
    own = train_bpe(TEXTS, vocab_size=280).with_special_tokens(CHATML.special_tokens).with_chat_template(template)
    own.save(tmp_path / "tok")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    output, tok = tmp_path / "out", str(tmp_path / "tok")
    prepare_chat(PrepareChat(source=str(tmp_path / "x.jsonl"), tokenizer=tok, split="none", output=output))
    data, objective = TokenShards(path=str(output), packing="best_fit_truncate"), SFT()
    config = TrainConfig(model=GPTConfig(context_length=64, intra_document_mask=True), data=data, objective=objective)
    read = lambda: data.open_rows("train", make_read_spec(config, data.load_tokenizer()))
    assert len(read()) == 1
    verify_directory(VerifyShards(output))
    replace(template, begins=not begins).save(output)
    edit_manifest(output, lambda content: content.update(tokenizer_files={}))
    if begins:  # what others begin with is allowed: a pair of texts begins so with any template
        assert len(read()) == 1
        return
    for check in (read, lambda: verify_directory(VerifyShards(output))):
        with pytest.raises(UserError, match=r"train_000000.bin: token 0 begins a document but is not 279, as its tok"):
            check()


def test_verify_of_a_wrong_count_of_bytes_names_the_split(directory):
    edit_manifest(
        directory, lambda content: content["splits"]["val"].update(bytes=content["splits"]["val"]["bytes"] + 1)
    )
    with pytest.raises(UserError, match=r"\(val\): its tokens stand for [\d,]+ bytes of text, manifest\.json says"):
        verify_directory(VerifyShards(directory))


def test_verify_notices_marks_other_than_0_and_1(directory):
    manifest = read_manifest(directory)
    assert manifest is not None
    tokens, path = manifest.splits["val"].tokens, directory / "val.scored"

    def write(value):
        marks = np.ones(tokens, np.uint8)
        marks[5] = value
        path.write_bytes(marks.tobytes())
        manifest.sidecars[path.name] = Sidecar("val", "scored", tokens, file_sha256(path))
        manifest.write(directory)

    write(0)
    verify_directory(VerifyShards(directory))
    write(2)
    with pytest.raises(UserError, match=r"val\.scored: has marks other than 0 and 1"):
        verify_directory(VerifyShards(directory))


def test_verify_notices_tokens_beyond_the_vocabulary(directory):
    path = directory / "val_000000.bin"
    tokens = np.array(open_shard(path))
    tokens[7] = 280
    write_shard(path, tokens)
    update_manifest(directory, path.name)
    with pytest.raises(UserError, match=r"val_000000\.bin: token 280 is outside the vocabulary of 280"):
        verify_directory(VerifyShards(directory))


def test_shard_of_another_tokenizer_is_named_before_training(directory, prepared):
    """Even one of the right size: its documents do not begin where, or as, the index says."""
    name = "train_000001.bin"
    (directory / name).write_bytes((prepared / "two" / name).read_bytes())
    assert (directory / name).stat().st_size == HEADER_BYTES + 2 * 400
    with pytest.raises(UserError, match=f"{name}: its SHA-256 differs"):
        TokenShards(path=str(directory)).open_stream("train")
    update_manifest(directory, name)
    with pytest.raises(UserError, match=f"{name}: token 299 is outside the vocabulary of 280"):
        verify_directory(VerifyShards(directory))
    TokenShards(path=str(prepared / "one")).open_stream("train")


def test_short_shard_is_named_before_training(directory):
    cut(directory / "val_000000.bin")
    with pytest.raises(UserError, match=r"val_000000\.bin: .*bytes, but manifest"):
        TokenShards(path=str(directory)).open_stream("train")


def test_verify_notices_another_tokenizer(directory, prepared):
    (directory / "tokenizer.json").write_bytes((prepared / "two" / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match=r"tokenizer\.json has changed since it was written"):
        verify_directory(VerifyShards(directory))
    edit_manifest(directory, lambda _: None)  # as an earlier version wrote it
    with pytest.raises(UserError, match="not the tokenizer that made the shards"):
        verify_directory(VerifyShards(directory))


def test_command_names_the_files_and_exits_with_2(directory, capsys):
    flip(directory / "val_000000.bin")
    cut(directory / "train.documents")
    assert run_pipeline("verify", directory) == 2
    said = capsys.readouterr().err
    assert f"{directory}/val_000000.bin has changed since it was written: its SHA-256 differs" in said
    assert f"{directory}/train.documents has" in said
