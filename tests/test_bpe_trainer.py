"""A byte-level BPE of any stream of text, and special tokens that no text can produce."""

import random

import pytest
import tokenizers

from data_pipelines.encode.bpe_trainer import (
    describe_fewer,
    parse_special_tokens,
    take_bytes,
    train_bpe,
    train_bpe_on_documents,
)
from gptjax.core.errors import UserError
from gptjax.tokenization.tokenizer import load_tokenizer

NAMES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_texts(n=60, seed=0):
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 9))) for _ in range(200)]
    return [f"{i}. " + " ".join(rng.choices(words, k=80)) + " 12345 é☕\r\n" for i in range(n)]


@pytest.fixture(scope="module")
def chat():
    return train_bpe(make_texts(), vocab_size=400, special_tokens=NAMES[1:])


def test_special_tokens_are_the_last_ids_and_survive_the_file(chat, tmp_path):
    assert chat.vocab_size == 400
    assert chat.specials == {"<|endoftext|>": 397, "<|im_start|>": 398, "<|im_end|>": 399}
    again = load_tokenizer(chat.save(tmp_path))
    assert (again.fingerprint, again.specials) == (chat.fingerprint, chat.specials)
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert other.get_vocab_size() == 400
    assert [other.token_to_id(name) for name in NAMES] == [397, 398, 399]
    for text in make_texts(5, seed=9):
        assert other.encode(text).ids == chat.encode(text).tolist()


def test_text_never_becomes_a_special_token(chat):
    """Neither text that holds the names, nor a tokenizer that was trained on such text."""
    text = "a<|im_start|>user\nb<|im_end|><|endoftext|>" * 30
    trained_on_them = train_bpe([*make_texts(), text], vocab_size=400, special_tokens=NAMES)
    for tok in (chat, trained_on_them):
        ids = tok.encode(text)
        assert not set(ids.tolist()) & set(tok.specials.values())
        assert tok.decode(ids) == text


def test_special_tokens_are_checked():
    assert parse_special_tokens("") == []
    assert parse_special_tokens("chat, <|pad|>") == [*NAMES[1:], "<|pad|>"]
    made = train_bpe(make_texts(), vocab_size=300, special_tokens=["<|pad|>", "<|endoftext|>", "<|pad|>"])
    assert made.specials == {"<|endoftext|>": 298, "<|pad|>": 299}
    for name in ("", " ", "a"):
        with pytest.raises(UserError, match="is blank, or an ordinary token too"):
            train_bpe(make_texts(), vocab_size=300, special_tokens=[name])


def test_little_text_gives_as_many_tokens_as_it_has_merges():
    made = train_bpe(["a rose is a rose"], vocab_size=2**20, special_tokens=["<|pad|>"])
    assert (made.vocab_size, made.specials) == (265, {"<|endoftext|>": 263, "<|pad|>": 264})
    assert describe_fewer(made, 4096) == ["the text has merges for 265 tokens, not 4,096: the tokenizer has 265"]
    assert describe_fewer(made, 265) == []
    assert train_bpe([], vocab_size=258).vocab_size == 257


def test_vocab_size_that_cannot_be_meant_is_refused():
    for names, smallest in (([], 258), (["<|pad|>"], 259)):
        for size in (0, smallest - 1, 10**9):
            with pytest.raises(UserError, match=f"at least {smallest}.*at most 1048576"):
                train_bpe(make_texts(), vocab_size=size, special_tokens=names)


def test_pattern_decides_the_words():
    gpt2 = train_bpe(["1234 " * 90], vocab_size=260, pattern="gpt2")
    gpt4 = train_bpe(["1234 " * 90], vocab_size=259, pattern="gpt4")
    assert len(gpt2.encode("1234")) == 1
    assert len(gpt4.encode("1234")) == 2, "numbers in threes"


def test_cores_do_not_matter(monkeypatch):
    made = []
    for parallel in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        made.append(train_bpe(make_texts(300), vocab_size=500).fingerprint)
    assert made[0] == made[1]


def test_take_bytes_cuts_between_characters():
    assert list(take_bytes([b"abc", b"def"], 10**9)) == ["abc", "def"]
    assert list(take_bytes([b"abc", b"def", b"ghi"], 5)) == ["abc", "de"]
    assert list(take_bytes([b"abc", b"def"], 3)) == ["abc"]
    assert "".join(take_bytes(["é☕".encode(), b"x"], 4)) == "é"


def test_documents_are_read_up_to_max_bytes():
    early = make_texts(30)

    def documents():
        yield from (text.encode() for text in early)
        raise AssertionError("read too far")

    size = sum(len(text.encode()) for text in early)
    made = train_bpe_on_documents(documents(), vocab_size=300, max_bytes=size)
    assert made.fingerprint == train_bpe(early, vocab_size=300).fingerprint
