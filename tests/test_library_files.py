"""Odd files of tokenizers that the library encodes: other spellings, sections that are missing, and what is said."""

import base64
import json
import os
import re
import struct
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from library_tokenizers import FORMS, write_form

from data_pipelines.encode.encoder import Encoder, count_marks
from data_pipelines.prepare import Prepare, prepare
from data_pipelines.readers.documents import ReadContext
from gptjax.core.errors import UserError
from gptjax.evaluation.core_bundle import CoreTask, _encode_in_context
from gptjax.evaluation.protocols import find_protocol
from gptjax.evaluation.texts import encode_text
from gptjax.tokenization.difference import explain_difference
from gptjax.tokenization.library_tokenizer import LibraryTokenizer
from gptjax.tokenization.special_names import compile_names
from gptjax.tokenization.text_stream import TextStream
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer

PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
LETTERS = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}


def read_form(form: str) -> dict[str, Any]:
    return json.loads(FORMS[form]().to_str())


def load(directory: Path, content: dict[str, Any], **config: Any) -> Tokenizer:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(content))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(directory)


def test_another_end_of_text_leaves_a_former_one_as_the_file_has_it(tmp_path: Path) -> None:
    write_form(tmp_path / "given", "qwen", eos_token="<tool_call>")
    former = load_tokenizer(tmp_path / "given")
    tok = load_tokenizer(tmp_path / "given", end_of_text="<|endoftext|>")
    again = load_tokenizer(tok.save(tmp_path / "saved").parent)
    assert again.fingerprint == tok.fingerprint != former.fingerprint
    assert again.specials == tok.specials
    assert "<tool_call>" in tok.text_tokens
    assert again.encode("a<tool_call>b").tolist() == tok.encode("a<tool_call>b").tolist()
    assert not tok.with_special_tokens(["<|a|>"]).extends(former)
    assert former.with_special_tokens(["<|a|>"]).extends(former)


def make_charsmap(units: dict[int, int], texts: bytes = b"x\0") -> bytes:
    """A table of 512 units, the first of which leads to the others behind number 256."""
    values = [units.get(i, 256 << 10 if i == 0 else 0) for i in range(512)]
    return struct.pack("<513I", 4 * 512, *values) + texts


@pytest.mark.parametrize(
    ("table", "is_whole"),
    [
        (make_charsmap({}), True),
        (make_charsmap({256 + ord("B"): ord("B") | 1 << 8 | (0x42 ^ 0x99) << 10}), True),
        (make_charsmap({256 + ord("B"): ord("B") | 512 << 10}), False),
        (make_charsmap({256 + ord("C"): ord("B") | 512 << 10}), True),
        (make_charsmap({256 + ord("B"): ord("B") | 1 << 8 | (0x42 ^ 0x99) << 10, 256 + 0x99: 3}), False),
        (make_charsmap({256 + ord("B"): ord("B") | 1 << 8 | (0x42 ^ 0x99) << 10, 256 + 0x99: 1}, "é".encode()), False),
        (struct.pack("<257I", 4 * 256, 0x100 << 10, *[0] * 255), False),
        (struct.pack("<9I", 4 * 8, *[0] * 8), False),
    ],
)
def test_a_table_that_leads_behind_its_end_is_refused_before_any_text(table: bytes, is_whole: bool, tmp_path: Path):
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
    content = {"model": LETTERS, "normalizer": {"type": "Sequence", "normalizers": [normalizer]}}
    if is_whole:
        tok = load(tmp_path, content)
        assert tok.encode("abB" + "".join(map(chr, range(128, 0x3000)))).tolist() == [2]
    else:
        with pytest.raises(UserError, match=r"tokenizer\.json: (the table of its normalizer leads behind|not a)"):
            load(tmp_path, content)


@pytest.mark.parametrize("form", FORMS)
def test_fingerprint_is_that_of_the_file_which_the_library_writes(tmp_path: Path, form: str) -> None:
    content = read_form(form)
    metaspace = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    if form == "t5":
        content["pre_tokenizer"] = content["decoder"] = metaspace
    if form == "qwen":
        content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    old = load(tmp_path / "old", content)
    tokenizers.Tokenizer.from_file(str(tmp_path / "old" / "tokenizer.json")).save(str(tmp_path / "new.json"))
    new = load(tmp_path / "new", json.loads((tmp_path / "new.json").read_text()))
    assert isinstance(new, LibraryTokenizer)
    assert (tmp_path / "new.json").read_text() != (tmp_path / "old" / "tokenizer.json").read_text()
    assert new.fingerprint == old.fingerprint


def test_fingerprint_tells_an_unknown_token_with_the_id_0_from_none(tmp_path: Path) -> None:
    pieces = [["a", 0.0], ["b", -1.0]]
    models = [{"type": "Unigram", "vocab": pieces, "unk_id": unknown} for unknown in (0, None)]
    known, without = (load(tmp_path / str(i), {"model": model}) for i, model in enumerate(models))
    assert known.fingerprint != without.fingerprint
    assert explain_difference(known, without) == "they differ in tokens"
    assert (known.unknown, without.unknown, known.encode("bz").tolist()) == (0, None, [1, 0])


@pytest.mark.parametrize(
    ("section", "change", "difference"),
    [
        ("added_tokens", {"id": 302, "content": "<think>", **PLAIN}, r"they differ in added tokens \(<think>\)"),
        ("added_tokens", {"id": 301, "content": "<tool_call>", **PLAIN, "lstrip": True}, r"tokens \(<tool_call>\)"),
        ("normalizer", {"type": "NFD"}, "they differ in the normalizer"),
        ("pre_tokenizer", {"type": "Whitespace"}, "they differ in the pre-tokenizer"),
    ],
)
def test_a_difference_names_the_part_of_the_file(tmp_path: Path, section: str, change: Any, difference: str) -> None:
    content = read_form("qwen")
    ours = load(tmp_path / "ours", content)
    others = [token for token in content["added_tokens"] if token["id"] != change.get("id")]
    content[section] = [*others, change] if section == "added_tokens" else change
    theirs = load(tmp_path / "theirs", content)
    assert ours.fingerprint != theirs.fingerprint
    assert re.search(f"{difference}$", explain_difference(ours, theirs))
    assert not theirs.extends(ours)


@pytest.mark.parametrize("section", ["decoder", "added_tokens", "normalizer", "post_processor"])
@pytest.mark.parametrize("form", ["qwen", "t5"])
def test_a_file_may_lack_a_section(tmp_path: Path, form: str, section: str) -> None:
    content = read_form(form)
    del content[section]
    tok = load(tmp_path / "given", content)
    text = tok.decode(tok.encode("the cat"))
    assert text.replace("▁", " ").strip()
    more = tok if tok.kind == "bpe" else tok.with_special_tokens(["<|a|>"])
    assert load_tokenizer(more.save(tmp_path / "saved").parent).fingerprint == more.fingerprint
    assert len(tok.bytes_per_token) == tok.vocab_size


@pytest.mark.parametrize("kind", ["WordLevel", "BPE"])
def test_a_file_without_tokens_is_refused(tmp_path: Path, kind: str) -> None:
    model = {"type": kind, "vocab": {}} | ({"merges": []} if kind == "BPE" else {"unk_token": "<unk>"})
    with pytest.raises(UserError, match=r"tokenizer\.json: has no tokens"):
        load(tmp_path, {"model": model})


def test_a_vocabulary_without_its_unknown_token_says_so_where_it_is_needed(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"the": 0, "cat": 1}, "unk_token": "<unk>"}
    tok = load(tmp_path, {"model": model, "pre_tokenizer": {"type": "Whitespace"}})
    assert tok.encode("the cat").tolist() == [0, 1]
    for encode in (tok.encode, tok.encode_with_sizes, lambda text: tok.encode_all([text, "the"])):
        with pytest.raises(UserError, match=r"the tokenizers-2 tokenizer cannot encode a text: .*unknown token"):
            encode("the mat")


def test_names_of_special_tokens_in_text_are_counted_in_any_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tok = load_tokenizer(write_form(tmp_path / "mistral", "mistral"))
    (tmp_path / "text.txt").write_text("[INST] x [/INST]\n\n<s> [INST]")
    encode_text(tmp_path / "text.txt", tok, find_protocol("gptjax"))
    assert "2 times [INST] stands in text and is scored as text" in capsys.readouterr().err
    notes: Counter[str] = Counter()
    names = Encoder(load_tokenizer(write_form(tmp_path / "gemma", "gemma")), ReadContext("text")).names
    count_marks("a\n\n<b> <<end_of_turn>", names, notes, has_text_files=False, found={"<b>"})  # pyright: ignore
    assert dict(notes) == {
        "times <b> stands in text and becomes this token, which is not special": 1,
        "times <end_of_turn> stands in text and is learnt as text": 1,
    }


def test_the_longest_name_is_found() -> None:
    names = compile_names(["<a", "<ab>", "<ac>", "[x]", "<a b>c", "\n\n", "("])
    assert names.findall("<ab><a <ac><a b>c<a b> (\n\n[x]") == ["<ab>", "<a", "<ac>", "<a b>c", "<a", "(", "[x]"]
    assert compile_names([" "]).findall("a b") == []


def test_characters_that_a_tokenizer_leaves_out_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tok = load(tmp_path / "tok", {"model": LETTERS, "decoder": {"type": "Fuse"}})
    assert tok.encode("abzzab日").tolist() == [2, 2]
    (tmp_path / "text.txt").write_text("abzzab日\n" * 5)
    prepare(
        Prepare(
            source=str(tmp_path / "text.txt"), output=tmp_path / "out", tokenizer=str(tmp_path / "tok"), split="none"
        )
    )
    assert "15 times a character is left out that the vocabulary cannot express" in capsys.readouterr().out


def test_a_stream_behind_an_unknown_token_keeps_its_blank(tmp_path: Path) -> None:
    tok = load_tokenizer(write_form(tmp_path, "t5"))
    after, ids = tok.encode("the ☃").tolist(), tok.encode("cat").tolist()
    assert after[-1] == tok.unknown
    stream = TextStream(tok, after=after)
    text = "".join(stream.add([i]) for i in ids) + stream.finish()
    assert tok.decode(after) + text == tok.decode([*after, *ids])
    assert text == " cat"


def test_what_a_file_adds_is_said_once_and_not_of_saved_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write_form(tmp_path / "given", "llama")
    (tmp_path / "text.txt").write_text("the cat\n" * 50)
    request = Prepare(source=str(tmp_path / "text.txt"), output=tmp_path / "out", tokenizer=str(given), split="none")
    prepare(request)
    assert capsys.readouterr().err.count("adds <s> to each text, and here a text is read without it") == 1
    load_tokenizer(tmp_path / "out")
    assert capsys.readouterr().err == ""


def test_a_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_form(tmp_path, "qwen")
    calls, loads = list[int](), json.loads
    monkeypatch.setattr(json, "loads", lambda text, **options: (calls.append(len(text)), loads(text, **options))[1])
    tok = load_tokenizer(tmp_path)
    assert tok.fingerprint
    assert sum(size > 1000 for size in calls) == 1


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="without files in memory there is no other place")
def test_a_tokenizer_is_read_without_a_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    assert load_tokenizer(write_form(tmp_path, "llama")).encode("the cat").size


def test_the_tokens_of_an_answer_are_those_behind_its_question(tmp_path: Path) -> None:
    tok = load_tokenizer(write_form(tmp_path, "llama"))
    task = CoreTask("q", "multiple_choice", [], 0, "\nAnswer: ", 50.0)
    ids = _encode_in_context(tok, task, {"query": "the cat"}, "the mat").tolist()
    assert ids == tok.encode("the cat\nAnswer: the mat").tolist()[-len(ids) :]
    assert ids == tok.encode("the mat").tolist()
