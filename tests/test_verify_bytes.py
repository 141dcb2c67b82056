"""A byte that is flipped anywhere in what a command has written is named by `verify`: one table of all kinds of files.

`.lock` is a mark of a command, `.verified.json` may be deleted at any time, and the card of an export is its owner's to
edit.
"""

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from models import make_model
from tiny import MODEL, tiny_config, tokenizer, write_text_shards

from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.extend_tokenizer import ExtendTokenizer, extend_tokenizer
from data_pipelines.prepare import Prepare, prepare
from data_pipelines.prepare_chat import PrepareChat, prepare_chat
from data_pipelines.prepare_preferences import PreparePreferences, prepare_preferences
from gptjax import convert
from gptjax.core.errors import UserError
from gptjax.core.file_sums import ChangedFileError, sum_directory
from gptjax.data.manifest import MANIFEST_NAME
from gptjax.finetuning.lora import LoRA
from gptjax.huggingface.model_dir import fetch_model, read_tokenizer
from gptjax.metrics.loggers import TensorBoardLogger
from gptjax.process.console import safe_console
from gptjax.process.diagnosis import write_report
from gptjax.runs import trainer
from gptjax.runs.checkpoint_source import open_checkpoint
from gptjax.runs.run_dir import RunDir, write_imported_run
from gptjax.runs.run_lock import run_lock
from gptjax.runs.trainer import train
from gptjax.tokenization.chat import CHAT_TOKENS
from gptjax.tokenization.tokenizer import TOKENIZER_FILES, Bytes, load_tokenizer
from gptjax.verify import verify

KINDS = ("run", "imported", "shards", "exported", "adapters", "prepared", "chats", "preferences", "tokenizer")
NOT_SUMMED = {".lock", ".verified.json", "README.md"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories that commands have written, by what they hold."""
    root = tmp_path_factory.mktemp("written")
    write_imported_run(root / "imported", model=make_model(MODEL), tokenizer=tokenizer())
    config = tiny_config(
        write_text_shards(root / "shards"),
        steps=4,
        init_from=str(root / "imported"),
        lora=LoRA(rank=2, targets=("qkv",)),
    )
    config = replace(
        config,
        log=replace(config.log, loggers=(TensorBoardLogger(),)),
        checkpoint=replace(config.checkpoint, every=2),
    )
    with safe_console():  # as each start of the command
        assert train(replace(config, steps=2), source="config = None\n") == 0
    assert write_report("traceback", lambda file: print("an error", file=file)) is not None
    with safe_console():
        assert train(config, source="config = None\n") == 0
    convert.main(["to-hf", f"--checkpoint={config.directory}", f"--output={root / 'exported'}", "--no-verify"])
    convert.main(["to-peft", f"--checkpoint={config.directory}", f"--output={root / 'adapters'}"])
    (root / "text.txt").write_text("one two three\n" * 9)
    data = root / "prepared"
    prepare(Prepare(source=str(root / "text.txt"), output=data, tokenizer="bytes", split="none", processes=1))
    prepare_answers(root)
    extend_tokenizer(ExtendTokenizer(str(root / "own"), root / "tokenizer", special_tokens="<|a|>"))
    return {kind: root / kind for kind in KINDS} | {"run": config.directory}


def test_sums_at_the_end_are_written_before_another_start_may_write(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def start_another(directory: Path) -> None:
        with pytest.raises(UserError, match="another process is training this run"), run_lock(directory):
            pass
        refused.append(directory)

    monkeypatch.setattr(trainer, "seal_run", start_another)
    config = replace(tiny_config(places["shards"], steps=1), output_dir=str(tmp_path))
    assert train(config) == 0
    assert refused == [config.directory]
    with run_lock(config.directory):
        pass


def prepare_answers(root: Path) -> None:
    """Conversations and preferences."""
    texts = ["the sky is blue and the user is well\n"] * 9
    train_bpe(texts, vocab_size=280, special_tokens=CHAT_TOKENS).save(root / "own")
    turns = [{"role": "user", "content": "Is it blue?"}, {"role": "assistant", "content": "It is."}]
    chat, pair = {"messages": turns}, {"prompt": "The sky is", "chosen": " blue.", "rejected": " a cat."}
    for name, record in (("chats", chat), ("preferences", pair)):
        (root / f"{name}.jsonl").write_text(f"{json.dumps(record)}\n" * 3)
    own, chats, preferences = str(root / "own"), root / "chats", root / "preferences"
    prepare_chat(PrepareChat(source=f"{chats}.jsonl", output=chats, tokenizer=own, split="none"))
    prepare_preferences(
        PreparePreferences(source=f"{preferences}.jsonl", output=preferences, tokenizer=own, split="none")
    )


def flip_bytes(file: Path) -> Iterator[str]:
    """Flip one bit of a byte at several places of a file, one after another, and put it back."""
    content = file.read_bytes()
    for place in sorted({0, len(content) // 2, len(content) - 1}):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        yield f"byte {place} of {file}"
    file.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_verify_names_a_flipped_byte_in_every_file(
    places: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = places[kind]
    assert verify(directory) == []
    assert "not summed yet" not in capsys.readouterr().out
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.stat().st_size]
    checked = [path for path in files if path.name not in NOT_SUMMED]
    names = {path.name for path in checked}
    if kind == "run":
        logs = {"metrics.jsonl", "goodput.jsonl", "console.log", "loss.png"}
        assert logs <= names
        assert any("tfevents" in name for name in names)
        assert any(name.startswith("traceback") for name in names)
    for file in checked:
        for flipped in flip_bytes(file):
            problems = verify(directory)
            assert any(file.name in problem for problem in problems), (flipped, problems)
            assert len(problems) == 1 or file.name == MANIFEST_NAME, (flipped, problems)
    assert verify(directory) == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [("exported", "model.safetensors"), ("exported", "tokenizer.json"), ("tokenizer", "tokenizer.json")],
)
def test_damaged_export_or_tokenizer_is_not_read(places: dict[str, Path], kind: str, name: str) -> None:
    file = places[kind] / name
    flipped = flip_bytes(file)
    next(flipped)
    next(flipped)
    read = load_tokenizer if kind == "tokenizer" else lambda path: open_checkpoint(path).load_model()
    with pytest.raises(UserError, match=rf"{name} has changed since it was .* you changed it yourself, remove"):
        read(places[kind])
    assert list(flipped)


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_tokenizer_with_a_changed_file_is_refused_before_any_is_parsed(tmp_path: Path, name: str) -> None:
    Bytes().save(tmp_path)
    for each in TOKENIZER_FILES:
        if not (tmp_path / each).exists():
            (tmp_path / each).write_text("{}")
    sum_directory(tmp_path)
    (tmp_path / name).write_text("{")
    for read in (load_tokenizer, functools.partial(read_tokenizer, vocab_size=256)):
        with pytest.raises(ChangedFileError, match=f"{re.escape(name)} has 1 bytes; .* were written. Put the right"):
            read(tmp_path)


def test_changed_config_of_an_export_is_named_before_it_is_understood(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    sum_directory(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ChangedFileError, match=r"config\.json has changed since it was written"):
        fetch_model(str(tmp_path))


def test_edited_card_of_an_export_is_a_note(places: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    card = places["exported"] / "README.md"
    content = card.read_bytes()
    card.write_text("my own words")
    assert verify(card.parent) == []
    card.unlink()
    assert verify(card.parent) == []
    card.write_bytes(content)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert notes == [f"note: {card} was edited since it was written", f"note: {card} was deleted"]


def test_flip_in_a_log_is_placed_between_two_checkpoints_and_ends_nothing(places: dict[str, Path]) -> None:
    run = places["run"]
    content = (run / "console.log").read_bytes()
    place = content.rindex(b"step 4/4")
    (run / "console.log").write_bytes(content[:place] + b"X" + content[place + 1 :])
    (problem,) = verify(run)
    (run / "console.log").write_bytes(content)
    assert f"{run / 'console.log'} has changed since it was written: between its bytes" in problem
    assert "from when step 2 was saved until step 4 was saved" in problem
    assert RunDir.open(run).find_step() == 4
