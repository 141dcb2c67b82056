"""Conversations to shards: every token and mark in its place, and invalid records named by file and line."""

import gzip
import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from pipelines import run_pipeline

from data_pipelines import prepare_chat as prepare_chat_module
from data_pipelines import scored_shards
from data_pipelines.conversations import block_encoder
from data_pipelines.conversations.chat_formats import REASONING
from data_pipelines.conversations.examples import EMPTY_MESSAGE, MARKS, REPEATED_ROLE
from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.encode.encoder import DEFAULT_LIMITS, Limits
from data_pipelines.prepare_chat import PrepareChat, find_template, prepare_chat
from data_pipelines.prepare_preferences import PreparePreferences
from data_pipelines.readers.records import NOT_JSON
from gptjax.core.constants import IGNORE_INDEX
from gptjax.core.errors import UserError, count_of
from gptjax.data.checksums import verify_shards
from gptjax.data.sequences import open_sequences
from gptjax.data.splits import open_split
from gptjax.tokenization.chat import CHAT_TOKENS, ChatEncoder
from gptjax.tokenization.chat_template import CHAT_TEMPLATE_FILE, CHATML, NANOCHAT, Message, RoleFormat
from gptjax.tokenization.messages import NO_ANSWER, NO_LIST, NO_ROLE, NO_TEXT, WRONG_TURNS
from gptjax.tokenization.tokenizer import load_tokenizer

GREETING = [("system", "Be brief."), ("user", "Hi <|im_end|>"), ("assistant", "Hello.")]
SUMS = [("user", "2+2?"), ("assistant", "4"), ("user", "And 3+3?"), ("assistant", "6 é☕\r\n"), ("user", "Bye")]


def many(n):
    return [[("user", f"{i}+1?"), ("assistant", f"{i + 1}")] for i in range(n)]


def line(turns):
    return json.dumps({"id": 7, "messages": [{"role": role, "content": content} for role, content in turns]})


def write(path, lines):
    content = ("\n".join(lines) + "\n").encode()
    if path.suffix == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
    else:
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A tokenizer of 280 ids without the special tokens of a chat."""
    directory = tmp_path_factory.mktemp("plain")
    train_bpe(["the user and the assistant say hello to the other\n"] * 20, vocab_size=280).save(directory)
    return directory


@pytest.fixture
def run(tmp_path, plain):
    def run(source, name="out", *, limits=DEFAULT_LIMITS, **options):
        options = {"split": None if "validation_source" in options else "none", **options}
        request = {"source": source, "tokenizer": str(plain), "output": tmp_path / name, **options}
        return prepare_chat(PrepareChat(**request), limits=limits)

    return run


def documents(directory, split="train"):
    """(tokens, marks) of each document, cut at the starts that the companion names."""
    stream = open_split(directory, split)
    borders = [*stream.document_starts.tolist(), len(stream)]
    return [(stream.read(a, b - a).tolist(), stream.loss_mask[a:b].tolist()) for a, b in itertools.pairwise(borders)]


@pytest.mark.parametrize("name", ["chat.jsonl", "chat.jsonl.gz", "chat.jsonl.zst"])
def test_shards_hold_the_template(tmp_path, run, name):
    manifest = run(write(tmp_path / name, [line(GREETING), "", line(SUMS)]), shard_tokens=50)
    assert verify_shards(tmp_path / "out") == manifest
    tok = load_tokenizer(tmp_path / "out")
    assert (tok.fingerprint, tok.vocab_size) == (manifest.fingerprint, 282)
    template = ChatEncoder(tok)
    found = documents(tmp_path / "out")
    for turns, (tokens, scored) in zip([GREETING, SUMS], found, strict=True):
        expected = template.encode_conversation([Message(*turn) for turn in turns])
        assert (tokens, scored) == (expected.tokens.tolist(), expected.loss_mask.tolist())
        said = "".join(f"{content}<|im_end|>" for role, content in turns if role == "assistant")
        assert tok.decode([token for token, mark in zip(tokens, scored, strict=True) if mark]) == said
    assert len(manifest.files) > 2, "documents and marks go across the files of shards"
    assert manifest.request["kind"] == "chat"
    counts = manifest.splits["train"]
    assert (counts.documents, counts.tokens) == (2, sum(len(tokens) for tokens, _ in found))
    assert counts.bytes == sum(len(f"{role}\n{content}\n".encode()) for role, content in GREETING + SUMS)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_windows_score_what_the_assistant_says(tmp_path, run, packing):
    """Through the rows that a model is trained on: each scored target once, and no other."""
    run(write(tmp_path / "chat.jsonl", map(line, [GREETING, SUMS, *many(40)])))
    stream, tok = open_split(tmp_path / "out", "train"), load_tokenizer(tmp_path / "out")
    windows = open_sequences(stream, 16, packing, end_of_text=tok.end_of_text)
    targets = windows.read(np.arange(len(windows)))["targets"]
    seen = 16 * len(windows) + 1 if packing == "concat" else len(stream)
    expected = stream.read(0, seen)[stream.loss_mask[:seen] == 1]
    assert sorted(targets[targets != IGNORE_INDEX].tolist()) == sorted(expected.tolist())
    assert (tok.specials["<|im_end|>"] == expected).sum() > 40  # pyright: ignore[reportAttributeAccessIssue]


def test_cropped_conversations_are_scored_like_whole_ones(tmp_path, run):
    """Every row holds beginnings of conversations, each predicted and scored as in the whole, and once."""
    run(write(tmp_path / "chat.jsonl", map(line, [GREETING, SUMS, *many(40)])))
    stream, tok = open_split(tmp_path / "out", "train"), load_tokenizer(tmp_path / "out")
    windows = open_sequences(stream, 64, "bos_best_fit", end_of_text=tok.end_of_text)
    read = windows.read(np.arange(len(windows)), with_documents=True)
    rows, targets, positions = read["tokens"], read["targets"], read["positions"]
    known = Counter()
    for tokens, marks in documents(tmp_path / "out"):
        known.update((*tokens[:t], tokens[t] if marks[t] else IGNORE_INDEX) for t in range(1, len(tokens)))
        known[(*tokens, IGNORE_INDEX)] += 1
    found = Counter(
        (*rows[row, t - positions[row, t] : t + 1].tolist(), int(targets[row, t])) for row, t in np.ndindex(rows.shape)
    )
    assert (targets != IGNORE_INDEX).sum() > 50
    assert found <= known


def test_missing_chat_tokens_are_added(tmp_path, run, plain, capsys):
    source = write(tmp_path / "chat.jsonl", [line(GREETING)])
    run(source)
    assert "<|im_start|> and <|im_end|> were added to bpe-280: a model needs 282 ids" in capsys.readouterr().out
    run(source)  # which finds them
    assert "were added" not in capsys.readouterr().out
    learned, given = (PrepareChat(source="q", tokenizer=name, output=tmp_path) for name in ("bpe:280", "gpt2"))
    assert learned.choose_flags(9) == "--config=own_chats_cpu", "no run knows these ids"
    of_gpt2 = PrepareChat(source="q", tokenizer=f"gpt2:{tmp_path}", output=tmp_path)
    assert {options.choose_flags(9) for options in (given, of_gpt2)} == {"--config=own_chats_cpu"}
    assert [bool(options.describe_start()) for options in (learned, given, of_gpt2)] == [False, True, True]
    (tmp_path / "my run/checkpoints").mkdir(parents=True)
    of_a_run = PrepareChat(source="q", tokenizer=f"{tmp_path}/my run", output=tmp_path)
    assert of_a_run.choose_flags(9) == f"--config=own_chats_cpu --init-from='{tmp_path}/my run'"
    (tmp_path / "my run/config.json").touch()
    with (tmp_path / "my run/model.safetensors").open("wb") as weights:
        weights.truncate(2**26)
    assert " --optimizer.learning-rate=1e-5 --init" in of_a_run.choose_flags(9), "as large as GPT-2"
    pairs = PreparePreferences(source="q", tokenizer=f"{tmp_path}/my run", output=tmp_path)
    assert pairs.choose_flags(9).startswith("--config=own_pairs_cpu --optimizer.learning-rate=5e-6 --init-from='/")
    for step in (9, 10):  # of a run, whose newest checkpoint counts
        (tmp_path / f"my run/checkpoints/{step}/model/d").mkdir(parents=True)
    (tmp_path / "my run/checkpoints/9/model/d/weights").write_bytes(bytes(2**26))
    assert "learning-rate" not in of_a_run.choose_flags(9) + pairs.choose_flags(9)
    run(source, "again", tokenizer=str(tmp_path / "out"))
    assert "were added" not in capsys.readouterr().out
    assert (tmp_path / "out/train_000000.bin").read_bytes() == (tmp_path / "again/train_000000.bin").read_bytes()
    with pytest.raises(UserError, match="cannot take special tokens"):
        run(source, "bytes", tokenizer="bytes")


def test_a_bpe_is_learned_from_the_conversations(tmp_path, run, capsys):
    rows = [{"question": f"What is {i} and {i + 1}?", "answer": f"It is {2 * i + 1}, I think."} for i in range(40)]
    (tmp_path / "q.jsonl").write_text("not JSON\n" + "".join(json.dumps(row) + "\n" for row in rows))
    manifest = run(str(tmp_path / "q.jsonl"), tokenizer="bpe:280", split="hash:0.2")
    tokenizer = load_tokenizer(tmp_path / "out")
    assert (manifest.vocab_size, tokenizer.vocab_size) == (280, 280)
    assert [tokenizer.specials[name] for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [277, 278, 279]
    assert run(str(tmp_path / "q.jsonl"), tokenizer="bpe:280", split="hash:0.2") == manifest
    assert "were added" not in capsys.readouterr().out
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"holds no usable conversations for training.* got an object with text"):
        run(str(tmp_path / "bad.jsonl"), "other", tokenizer="bpe:280")
    asked = run(str(tmp_path / "q.jsonl"), "other", tokenizer="bpe:5000")
    assert asked.vocab_size == load_tokenizer(tmp_path / "other").vocab_size < 500
    assert f"note: the text has merges for {asked.vocab_size} tokens, not 5,000" in capsys.readouterr().out
    run(str(tmp_path / "q.jsonl"), "other", tokenizer="bpe:5000")
    assert "already prepared by the same request" in capsys.readouterr().out


def test_template_of_another_form_is_refused_with_the_flag(tmp_path):
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match=r"^--template=.*bad\.json: .*Copy one from prepared data.*docs/chat\.md"):
        find_template(str(tmp_path / "bad.json"))


def test_template_may_be_a_file_of_ones_own(tmp_path, run):
    """Its role tokens are added to the tokenizer, and it is saved with the data."""
    own = replace(NANOCHAT, user=RoleFormat("[ASK]", "", "[/ASK]"), system_prompt="Be brief.")
    own.save(tmp_path)
    source = write(tmp_path / "chat.jsonl", [line(SUMS[:2])])
    for number, name in enumerate((tmp_path / CHAT_TEMPLATE_FILE, tmp_path)):
        run(source, f"out{number}", template=str(name))
        tokenizer = load_tokenizer(tmp_path / f"out{number}")
        [(tokens, _)] = documents(tmp_path / f"out{number}")
        assert tokenizer.chat_template == own
        assert "[ASK]Be brief.\n\n2+2?[/ASK]<|assistant_start|>4" in tokenizer.decode(tokens)
    tokenizer = load_tokenizer(tmp_path / "out0")
    named = replace(own, user=replace(own.user, header="<|v1|>"))
    tokenizer.with_chat_template(named).save(tmp_path / "older")
    run(source, "as before", tokenizer=str(tmp_path / "older"))
    assert load_tokenizer(tmp_path / "as before").specials == tokenizer.specials
    run(source, "new", tokenizer=str(tmp_path / "older"), template=str(tmp_path / "older"))
    assert load_tokenizer(tmp_path / "new").specials.keys() - tokenizer.specials.keys() == {"<|v1|>"}


def test_validation_by_hash_or_from_another_source(tmp_path, run):
    train, other = write(tmp_path / "a.jsonl", map(line, many(300))), write(tmp_path / "b.jsonl", map(line, many(5)))
    manifest = run(train, split="hash:0.2")
    sizes = [manifest.splits[split].documents for split in ("train", "val")]
    assert sum(sizes) == 300
    assert 30 < sizes[1] < 90
    sides = [{tuple(tokens) for tokens, _ in documents(tmp_path / "out", split)} for split in ("train", "val")]
    assert not sides[0] & sides[1]
    turned = write(tmp_path / "turned.jsonl", map(line, many(300)[::-1]))
    run(turned, "turned", split="hash:0.2")
    assert sides[1] == {tuple(tokens) for tokens, _ in documents(tmp_path / "turned", "val")}
    manifest = run(train, "two", validation_source=other)
    assert [manifest.splits[split].documents for split in ("train", "val")] == [300, 5]
    manifest = run(other, "few", split="hash:0.000001")
    assert [manifest.splits[split].documents for split in ("train", "val")] == [4, 1]
    *others, note = manifest.notes
    found = re.fullmatch(r"5 conversations, too few for hash:0.000001: split by (hash:0.\d+) instead", note)
    again = run(other, "again", split=found[1])
    assert (again.files, again.notes) == (manifest.files, others)
    with pytest.raises(UserError, match=r"leaves no usable conv.* for val .*Use --split=none or a --validation-source"):
        run(write(tmp_path / "one.jsonl", map(line, many(1) * 3)), "one", split="hash:0.000001")
    empty = write(tmp_path / "empty.jsonl", ['{"messages": 3}'])
    with pytest.raises(UserError, match=r"empty\.jsonl: holds no usable conversations.*empty\.jsonl:1: "):
        run(train, "empty", validation_source=empty)
    assert not any((tmp_path / name).exists() for name in ("one", "empty"))


def test_long_conversations_are_cut_off(tmp_path, run, capsys):
    long_answer = [("user", "Go"), ("assistant", "ha " * 50)]
    long_question = [("user", "ha " * 50), ("assistant", "No")]
    source = write(tmp_path / "chat.jsonl", map(line, [SUMS[:2], long_answer, long_question]))
    manifest = run(source, max_document_tokens=40)
    whole, cut = documents(tmp_path / "out")
    assert manifest.splits["train"].documents == 2
    assert len(whole[0]) < 40
    assert len(cut[0]) == len(cut[1]) == 40
    template = ChatEncoder(load_tokenizer(tmp_path / "out"))
    assert cut[0] == template.encode_conversation([Message(*turn) for turn in long_answer]).tokens[:40].tolist()
    assert cut[1][-1] == 1
    printed = capsys.readouterr().out
    assert "1 conversation cut off at --max-document-tokens=40" in printed
    assert "1 conversation skipped: no answer is left at --max-document-tokens=40" in printed


INVALID = [
    ('{"messages": [{"role": "user"', NOT_JSON, "not a line of JSON"),
    ('["messages"]', NO_LIST, "message 1: wanted an object"),
    ('{"conversations": []}', NO_LIST, "wanted a list of messages, got []"),
    (line([("robot", "Hi"), ("assistant", "Ho")]), NO_ROLE, "message 1: its role is 'robot'"),
    (line([("user", "Hi"), ("assistant", None)]), NO_TEXT, "message 2: its content is None"),
    (line([("user", "Hi")]), NO_ANSWER, "the assistant says nothing"),
    (line([("assistant", "Hi"), ("user", "Ho")]), WRONG_TURNS, "message 1 is of the assistant, wanted user"),
    ('{"text": "Hi"}', "invalid records skipped: of another form", '"prompt" and "completion"'),
    ("[" * 100_000, NOT_JSON, "not a line of JSON"),
]


@pytest.mark.parametrize(("invalid", "note", "message"), INVALID)
def test_invalid_records_are_skipped_and_named(tmp_path, run, capsys, invalid, note, message):
    source = write(tmp_path / "chat.jsonl", [line(GREETING), "", invalid, line(SUMS)])
    with pytest.raises(UserError) as caught:
        run(source, strict=True)
    assert str(caught.value).startswith(f"{source}:3: ")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert run(source).splits["train"].documents == 2
    printed = capsys.readouterr().out
    told = f"note: {count_of(1, note)}; the first: {caught.value}\n"
    assert told in printed
    run(source)
    assert told not in capsys.readouterr().out, "it was told when it was prepared"
    with pytest.raises(UserError, match="holds no usable conversations") as caught:
        run(write(tmp_path / "all.jsonl", [invalid]), "none")
    assert f"{tmp_path}/all.jsonl:1: " in str(caught.value)


def test_lone_surrogates_make_a_record_invalid(tmp_path, run, capsys):
    whole, half = line([("user", "a"), ("assistant", "\ud83d\ude00")]), line([("user", "a\ud800"), ("assistant", "b")])
    assert "\\ud800" in half
    source = write(tmp_path / "chat.jsonl", [half, whole])
    run(source, split="none")
    assert "chat.jsonl:1: " in (printed := capsys.readouterr().out)
    assert "a surrogate without a partner" in printed
    tok = load_tokenizer(tmp_path / "out")
    assert [tok.decode(tokens).count("assistant\n😀<|im_end|>") for tokens, *_ in documents(tmp_path / "out")] == [1]
    with pytest.raises(UserError, match=r"chat\.jsonl:1: .*surrogate"):
        run(source, split="none", strict=True, overwrite=True)


def test_changing_source_is_noticed(tmp_path, run, monkeypatch):
    source, write_all = write(tmp_path / "chat.jsonl", map(line, many(30))), scored_shards._write_shards

    def change_and_write(*args, **options):
        with Path(source).open("a") as file:
            file.write(line(SUMS) + "\n")
        return write_all(*args, **options)

    monkeypatch.setattr(scored_shards, "_write_shards", change_and_write)
    with pytest.raises(UserError, match=r"chat\.jsonl: was changed while it was read"):
        run(source)
    assert not list(tmp_path.glob("*out*/*"))


def test_same_request_finds_the_data(tmp_path, run, capsys):
    source = write(tmp_path / "chat.jsonl", map(line, many(30)))
    first = run(source)
    made = (tmp_path / "out/train.scored").stat().st_mtime_ns
    assert run(source) == first
    assert (tmp_path / "out/train.scored").stat().st_mtime_ns == made
    assert "already prepared" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another request \(strict differ\)"):
        run(source, strict=True)
    with pytest.raises(UserError, match=r"another request \(max_document_tokens differ\)"):
        run(source, max_document_tokens=20)
    assert run(source, max_document_tokens=20, overwrite=True) != first
    old = json.loads((tmp_path / "out/manifest.json").read_text()) | {"version": 1}
    (tmp_path / "out/manifest.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="version 1 is unknown"):
        run(source)
    assert run(source, overwrite=True) == first
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="will not be replaced"):
        run(source, "home", overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tail:0.1"}, "wanted hash:F or none"),
        ({"split": "none", "validation_source": "x"}, "choose one"),
        ({"max_document_tokens": 1}, "--max-document-tokens=1"),
        ({"shard_tokens": 0}, "--shard-tokens=0"),
        ({"source": "absent.jsonl"}, "no such file"),
    ],
)
def test_wrong_options_are_refused(tmp_path, run, options, message):
    source = write(tmp_path / "chat.jsonl", [line(GREETING)])
    with pytest.raises(UserError, match=message):
        run(options.pop("source", source), **options)


def test_command_skips_or_stops(tmp_path, plain, capsys):
    source = write(tmp_path / "chat.jsonl", [line(GREETING), line(SUMS[1:])])
    words = [f"--source={source}", f"--tokenizer={plain}", f"--output={tmp_path / 'out'}", "--split=none"]
    assert run_pipeline("prepare_chat", *words, "--strict") == 2
    assert capsys.readouterr().err.startswith(f"error: {source}:2: message 1 is of the assistant, wanted user")
    assert run_pipeline("prepare_chat", *words) == 0
    printed = capsys.readouterr().out
    assert "1 document " in printed
    assert f"{source}:2: message 1 is of the assistant" in printed
    assert set(CHAT_TOKENS) < set(load_tokenizer(tmp_path / "out").specials)


def test_formats_give_the_same_documents(tmp_path, run):
    """JSON lines, a JSON array and Parquet, as messages and as fields."""
    turns = many(5)
    records = [json.loads(line(each))["messages"] for each in turns]
    fields = [{"instruction": each[0][1], "input": "", "output": each[1][1]} for each in turns]
    (tmp_path / "a.json").write_text(json.dumps(fields, indent=1))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (tmp_path / "c.json").write_text("".join(json.dumps({"messages": each}) + "\n" for each in records))
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(json.dumps(records).encode()))
    table = pyarrow.Table.from_pylist([{"messages": each, "other": 1} for each in records])
    parquet.write_table(table, tmp_path / "e.parquet", row_group_size=3)
    found = []
    for name in ("a.json", "b.jsonl", "c.json", "d.json.gz", "e.parquet"):
        run(str(tmp_path / name), f"{name}.out")
        found.append(documents(tmp_path / f"{name}.out"))
    assert len(found[0]) == 5
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '{\n"data": []}', "holds one object .data.; wanted an array"),
        ("x.json", '{"messages": [{"role": "user", "content": "a"}]}', r"jq -c \. \S*x\.json > \S*x\.jsonl"),
        ("x.jsonl", '{"messages": null}', r"got an object with messages\.$"),
        ("x.json", '[{"a":', "neither JSON nor JSON lines"),
        ("x.json", "", "neither JSON nor JSON lines"),
        ("x.json", '[{"instruction": "a", "output": "b"}, 3]', r"x\.json: item 2: wanted a list of messages"),
    ],
)
def test_other_json_is_refused(tmp_path, run, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        run(str(tmp_path / name), strict=True)


def test_parquet_without_known_columns_is_refused(tmp_path, run):
    parquet.write_table(pyarrow.table({"Frage": ["a"], "Antwort": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet: has the columns 'Frage', 'Antwort'; wanted some of messages"):
        run(str(tmp_path / "x.parquet"))
    manifest = run(str(tmp_path / "x.parquet"), rename_fields="Frage:prompt,Antwort:completion")
    assert manifest.splits["train"].documents == 1
    nested = pyarrow.table({"body": [{"messages": json.loads(line(SUMS))["messages"]}]})
    parquet.write_table(nested, tmp_path / "nested.parquet")
    with pytest.raises(UserError, match=r"columns 'body'.* its messages are: --rename-fields=body.messages:messages$"):
        run(str(tmp_path / "nested.parquet"), "nested")
    manifest = run(str(tmp_path / "nested.parquet"), "nested", rename_fields="body.messages:messages")
    assert manifest.splits["train"].documents == 1


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("x.tsv", f"{'long question ' * 4}?\tyes\nq\ta\n", r"write names above it: sed -i '1i prompt\tcompletion' "),
        ("x.csv", f"{'long question ' * 4}?;yes\nq;a\n", "write names above it: sed -i '1i prompt;completion' "),
        (
            "x.jsonl",
            '{"role": "user", "content": "Hi"}\n',
            "Group the messages by a field that names their conversation",
        ),
        ("x.json", '[{"role": "user", "content": "Hi", "chat_id": 1}]', "one record of the messages with one chat_id."),
        ("x.csv", "role,content,chat_id\nuser,Hi,1\n", "one record of the messages with one chat_id."),
        (
            "x.jsonl",
            '{"session_id": 1, "from": "human", "value": "Hi"}\n',
            "jq -cs 'group_by(.session_id)[] | {messages: .}' ",
        ),
        ("x.yaml", "- instruction: a\n  output: b\n", "This makes JSON of it: python -c 'import json, sys, yaml; "),
    ],
)
def test_a_file_that_lacks_a_step_is_told_the_command(tmp_path, run, name, content, advice):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        run(str(tmp_path / name))
    assert advice in str(caught.value)
    assert "prepare_chat" not in str(caught.value)
    assert ("jq" in str(caught.value)) == ("jq" in advice)


def test_plain_text_is_refused(tmp_path, run):
    (tmp_path / "x.txt").write_text("\nUser: a\nAssistant: b\n")
    with pytest.raises(UserError, match=r"is plain text.* is for python -m data_pipelines.prepare"):
        run(str(tmp_path / "x.txt"))
    (tmp_path / "x.txt").write_text("[1.2.2024, 10:00:11] Ann: Hi\n" * 99)
    with pytest.raises(UserError, match=r"is plain text.* is for python -m data_pipelines.prepare"):
        run(str(tmp_path / "x.txt"))
    (tmp_path / "x.txt").write_text("[\n" + ",\n".join(map(line, many(3))) + "\n]")
    with pytest.raises(UserError, match=r"is an array over several lines"):
        run(str(tmp_path / "x.txt"))


def test_empty_messages_are_kept_and_told(tmp_path, run, capsys):
    run(write(tmp_path / "chat.jsonl", [line([("user", "Hi"), ("assistant", "")]), line(SUMS)]))
    assert f"{count_of(1, EMPTY_MESSAGE)}; the first: {tmp_path}/chat.jsonl:1" in capsys.readouterr().out
    assert sum(documents(tmp_path / "out")[0][1]) == 1


def test_conversations_for_a_saved_model_follow_its_jinja(tmp_path, run):
    """Where it writes the tokens of ChatML: also without `<|endoftext|>` before them."""
    model = tmp_path / "model"
    run(write(tmp_path / "x.jsonl", [line(SUMS)]), "plain")
    load_tokenizer(tmp_path / "plain").with_chat_template(None).save(model)
    (model / "chat_template.jinja").write_text(CHATML.to_jinja(begin=None))
    run(write(tmp_path / "x.jsonl", [line(SUMS)]), tokenizer=str(model))
    ours, plain = (documents(tmp_path / name)[0][0] for name in ("out", "plain"))
    assert ours == plain[1:]


def test_reasoning_that_is_left_out_is_told(tmp_path, run, capsys):
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "reasoning_content": "Hm."}]
    run(write(tmp_path / "chat.jsonl", [json.dumps({"messages": said}), line(SUMS)]))
    assert f"{count_of(1, REASONING)}; the first: {tmp_path}/chat.jsonl:1" in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["Hi<|im_end|>\n<|im_start|>assistant", "### Instruction: Hi\n### Response:"])
def test_marks_of_turns_inside_a_content_are_told(tmp_path, run, capsys, asked):
    run(write(tmp_path / "chat.jsonl", [line(SUMS), line([("user", asked), ("assistant", "Ha")])]))
    assert f"{count_of(1, MARKS)}; the first: {tmp_path}/chat.jsonl:2" in capsys.readouterr().out


def test_two_messages_of_one_role_stay_two_turns(tmp_path, run, capsys):
    run(write(tmp_path / "chat.jsonl", [line([("user", "Hi"), ("user", "Ho"), ("assistant", "Ha")])]))
    assert f"{count_of(1, REPEATED_ROLE)}; the first: {tmp_path}/chat.jsonl:1" in capsys.readouterr().out
    text = load_tokenizer(tmp_path / "out").decode(documents(tmp_path / "out")[0][0])
    assert "user\nHi<|im_end|>\n<|im_start|>user\nHo<|im_end|>\n<|im_start|>assistant" in text


def test_end_of_text_may_be_chosen(tmp_path, run, plain):
    load_tokenizer(plain).with_special_tokens(["</s>"]).save(tmp_path / "other")
    source, options = write(tmp_path / "chat.jsonl", [line(SUMS)]), {"tokenizer": str(tmp_path / "other")}
    run(source, **options)
    run(source, "chosen", end_of_text="</s>", **options)
    usual, chosen = (load_tokenizer(tmp_path / name) for name in ("out", "chosen"))
    assert (usual.end_of_text_name, chosen.end_of_text_name) == ("<|endoftext|>", "</s>")
    assert documents(tmp_path / "chosen")[0][0][0] == chosen.specials["</s>"]
    with pytest.raises(UserError, match="--end-of-text=</pad> is no special token"):
        run(source, "wrong", end_of_text="</pad>", **options)


SMALL = Limits(batch_bytes=500, pool_bytes=2000, record_seconds=0.0)


def test_several_processes_write_the_same_bytes(tmp_path, run):
    """Also after a kill at any record of progress, and with notes of every block."""
    lines = list(map(line, many(60)))
    lines[40] = "{"
    source = write(tmp_path / "chat.jsonl", lines)
    request = {"split": "hash:0.3", "shard_tokens": 300}
    alone = run(source, "one", processes=1, **request)
    both = run(source, "two", processes=2, limits=SMALL, **request)
    assert (both.files, both.sidecars, both.notes) == (alone.files, alone.sidecars, alone.notes)


def test_after_a_kill_the_same_command_continues(tmp_path, run, monkeypatch, capsys):
    source = write(tmp_path / "chat.jsonl", [*map(line, many(60)), "{"])
    whole = run(source, "whole", processes=1)
    join, calls = block_encoder.BlockEncoder._join, itertools.count()

    def fail_later(self, documents):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return join(self, documents)

    monkeypatch.setattr(block_encoder.BlockEncoder, "_join", fail_later)
    with pytest.raises(KeyboardInterrupt):
        run(source, processes=1, limits=SMALL)
    monkeypatch.setattr(block_encoder.BlockEncoder, "_join", join)
    continued = run(source, processes=1, limits=SMALL)
    assert re.search(r"continuing after [1-9]\d* documents", capsys.readouterr().err)
    assert (continued.files, continued.sidecars, continued.notes) == (whole.files, whole.sidecars, whole.notes)


def test_small_sources_have_a_larger_validation_split(tmp_path, run):
    source = write(tmp_path / "chat.jsonl", map(line, many(200)))
    counts = run(source, split=None).splits
    assert 1 < counts["val"].documents < 30
    talks = [[("user", f"hello {name}"), ("assistant", "hello to the other")] for name in ("Ann", "Bob")]
    few = write(tmp_path / "few.jsonl", map(line, talks))
    for name, options in (("few", {}), ("learned", {"tokenizer": "bpe:262"})):
        counts = run(few, name, split=None, **options).splits
        assert (counts["train"].documents, counts["val"].documents) == (1, 1)


def test_a_learned_tokenizer_never_saw_the_validation_split(tmp_path, run, monkeypatch):
    """Also where answers that `--max-document-tokens` cuts off had a part in the choice of the split."""
    learn, seen = prepare_chat_module.train_bpe_on_documents, list[bytes]()
    monkeypatch.setattr(
        prepare_chat_module,
        "train_bpe_on_documents",
        lambda texts, **options: learn(seen.extend(texts) or seen, **options),
    )
    found = 0
    for seed in range(12):
        seen.clear()
        talks = [[("user", f"{seed} {i} ?" + " long" * 40 * (i % 2)), ("assistant", "4")] for i in range(16)]
        source = write(tmp_path / f"{seed}.jsonl", map(line, talks))
        options = {"tokenizer": "bpe:270", "max_document_tokens": 60, "processes": 1}
        try:
            run(source, f"{seed}", split=None, **options)
        except UserError as error:  # all of the validation split is too long: the message has one that works
            seen.clear()
            (split,) = re.findall(r" for val: \d+ .* Use --split=(hash:\S+), a larger", str(error))
            run(source, f"{seed}", split=split, **options)
            found += 1
        text = load_tokenizer(tmp_path / f"{seed}").decode(documents(tmp_path / f"{seed}", "val")[0][0])
        assert not [each for each in seen if b"?" in each and each.decode() in text]
    assert 2 < found < 10
