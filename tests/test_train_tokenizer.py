"""Learning a byte-level BPE from a stream, and special tokens that no text can produce."""

import json
import random
import subprocess
import sys

import pytest
import tokenizers

from data_pipelines import train_tokenizer as module
from data_pipelines.extend_tokenizer import ExtendTokenizer, extend
from data_pipelines.train_tokenizer import TrainTokenizer, first_bytes, special_names, train, train_bpe
from gptjax.core.errors import UserError
from gptjax.tokenization.tokenizer import Bytes, Chars, load_tokenizer

NAMES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def texts(n=60, seed=0):
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 9))) for _ in range(200)]
    return [f"{i}. " + " ".join(rng.choices(words, k=80)) + " 12345 é☕\r\n" for i in range(n)]


def write_jsonl(path, documents):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


@pytest.fixture(scope="module")
def chat():
    return train_bpe(texts(), vocab_size=400, special_tokens=special_names("chat"))


def test_special_tokens_are_the_last_ids_and_survive_the_file(chat, tmp_path):
    assert chat.vocab_size == 400
    assert chat.specials == {"<|endoftext|>": 397, "<|im_start|>": 398, "<|im_end|>": 399}
    again = load_tokenizer(chat.save(tmp_path))
    assert (again.fingerprint, again.specials) == (chat.fingerprint, chat.specials)
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert other.get_vocab_size() == 400
    assert [other.token_to_id(name) for name in NAMES] == [397, 398, 399]
    for text in texts(5, seed=9):
        assert other.encode(text).ids == chat.encode(text).tolist()


def test_text_never_becomes_a_special_token(chat):
    """Neither from text that holds the names, nor from a tokenizer that was trained on such text."""
    text = "a<|im_start|>user\nb<|im_end|><|endoftext|>" * 30
    trained_on_them = train_bpe([*texts(), text], vocab_size=400, special_tokens=special_names("chat"))
    for tok in (chat, trained_on_them):
        ids = tok.encode(text)
        assert not set(ids.tolist()) & set(tok.specials.values())
        assert tok.decode(ids) == text


def test_the_list_of_special_tokens():
    assert special_names("") == []
    assert special_names("chat") == NAMES[1:]
    assert special_names("chat, <|pad|>") == [*NAMES[1:], "<|pad|>"]
    made = train_bpe(texts(), vocab_size=300, special_tokens=["<|pad|>", "<|endoftext|>", "<|pad|>"])
    assert made.specials == {"<|endoftext|>": 298, "<|pad|>": 299}
    for name in ("", " ", "a"):
        with pytest.raises(UserError, match="is blank, or an ordinary token too"):
            train_bpe(texts(), vocab_size=300, special_tokens=[name])
    with pytest.raises(UserError, match="at least 259"):
        train_bpe(texts(), vocab_size=258, special_tokens=["<|pad|>"])


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_a_text_in_pieces_teaches_the_same(monkeypatch, pattern):
    whole = train_bpe(["".join(texts())], vocab_size=350, pattern=pattern)
    monkeypatch.setattr(module, "PIECE_BYTES", 100)
    assert train_bpe(["".join(texts())], vocab_size=350, pattern=pattern).fingerprint == whole.fingerprint


def test_cores_do_not_matter(monkeypatch):
    made = []
    for parallel in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        made.append(train_bpe(texts(300), vocab_size=500).fingerprint)
    assert made[0] == made[1]


def test_so_many_bytes_and_no_more():
    assert list(first_bytes([b"abc", b"def"], 10**9)) == ["abc", "def"]
    assert list(first_bytes([b"abc", b"def", b"ghi"], 5)) == ["abc", "de"]
    assert list(first_bytes([b"abc", b"def"], 3)) == ["abc"]
    assert "".join(first_bytes(["é☕".encode(), b"x"], 4)) == "é"


def test_only_the_beginning_is_read(tmp_path):
    """The stream is not read past `max_bytes`, and what comes later teaches nothing."""
    early, late = texts(30), texts(30, seed=1)
    size = sum(len(text.encode()) for text in early)
    requests = [
        TrainTokenizer(source=write_jsonl(tmp_path / f"{i}.jsonl", some), vocab_size=300, output=tmp_path / str(i))
        for i, some in enumerate([early, [*early, *late]])
    ]
    options = {"split": "none", "max_bytes": size}
    made = [train(TrainTokenizer(**{**vars(request), **options})) for request in requests]
    assert made[0].fingerprint == made[1].fingerprint
    everything = train(TrainTokenizer(**{**vars(requests[1]), "split": "none"}))
    assert everything.fingerprint != made[0].fingerprint

    def endless():
        yield from (text.encode() for text in early)
        raise AssertionError("read too far")

    assert train_bpe(first_bytes(endless(), size), vocab_size=300).fingerprint == made[0].fingerprint
    with pytest.raises(UserError, match="--max-bytes=0"):
        TrainTokenizer(source="x", vocab_size=300, output=tmp_path, max_bytes=0)


def test_validation_text_has_no_say(tmp_path):
    both = [TrainTokenizer(source="", vocab_size=300, output=tmp_path / name, split="tail:0.01") for name in "ab"]
    made = []
    for request, last in zip(both, ["zyzzyva " * 40, "quixotry " * 36], strict=True):
        source = write_jsonl(tmp_path / f"{request.output.name}.jsonl", [*texts(), last])
        made.append(train(TrainTokenizer(**{**vars(request), "source": source})).fingerprint)
    assert made[0] == made[1]


def test_an_extended_tokenizer_keeps_every_id(tmp_path, capsys):
    plain = train_bpe(texts(), vocab_size=300)
    path = plain.save(tmp_path / "plain")
    made = extend(ExtendTokenizer(tokenizer=str(path), output=tmp_path / "chat"))
    assert made.specials == {"<|endoftext|>": 299, "<|im_start|>": 300, "<|im_end|>": 301}
    assert "<|im_end|> 301" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "chat").fingerprint == made.fingerprint != plain.fingerprint
    for text in texts(5, seed=3):
        assert made.encode(text).tolist() == plain.encode(text).tolist()
    assert made.with_special_tokens(NAMES).fingerprint == made.fingerprint
    for other in (Bytes(), Chars.from_text("abc")):
        with pytest.raises(UserError, match="cannot take special tokens"):
            other.with_special_tokens(NAMES)


def test_the_commands(tmp_path):
    source = write_jsonl(tmp_path / "x.jsonl", texts())
    with open(source, "a") as file:
        file.write("not JSON\n")
    words = [f"--source={source}", "--vocab-size=300", "--special-tokens=chat", f"--output={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "data_pipelines.train_tokenizer", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"300 tokens learnt from {sum(len(text.encode()) for text in texts()) / 1e6:.1f} MB" in done.stdout
    assert "<|im_start|> 298" in done.stdout
    assert "note: 1 broken records left out" in done.stdout
    command = [sys.executable, "-m", "data_pipelines.extend_tokenizer", "--tokenizer=bytes", f"--output={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the bytes tokenizer has cannot take special tokens")
