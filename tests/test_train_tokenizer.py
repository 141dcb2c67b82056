"""The commands that train a tokenizer and add special tokens to one."""

import json
import random

import pytest
from pipelines import run_pipeline

from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.extend_tokenizer import ExtendTokenizer, extend_tokenizer
from data_pipelines.train_tokenizer import TrainTokenizer, train_tokenizer
from gptjax.core.errors import UserError
from gptjax.core.file_sums import read_sums, sum_directory, sum_files
from gptjax.tokenization.tokenizer import Bytes, Chars, load_tokenizer

CHAT_NAMES = ["<|im_start|>", "<|im_end|>"]


def make_texts(n=60, seed=0):
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 9))) for _ in range(200)]
    return [f"{i}. " + " ".join(rng.choices(words, k=80)) + " 12345 é☕\r\n" for i in range(n)]


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_validation_text_and_text_behind_max_bytes_are_not_read(tmp_path):
    def train(name, texts, **options):
        source = write_jsonl(tmp_path / f"{name}.jsonl", texts)
        request = TrainTokenizer(source=source, vocab_size=300, output=tmp_path / name, **options)
        made = train_tokenizer(request).fingerprint
        assert load_tokenizer(tmp_path / name).fingerprint == made
        return made

    early = make_texts()
    first = train("a", [*early, "zyzzyva " * 270], split="tail:0.3")
    assert train("b", [*early, "quixotry " * 240], split="tail:0.3") == first
    assert train("c", [*early, "zyzzyva " * 270], split="none") != first
    size = sum(len(text.encode()) for text in early)
    assert train("d", [*early, "zyzzyva " * 300], split="none", max_bytes=size) == train("f", early, split="none")
    with pytest.raises(UserError, match="--max-bytes=0"):
        train("e", early, max_bytes=0)


def test_extended_tokenizer_keeps_every_id(tmp_path, capsys):
    plain = train_bpe(make_texts(), vocab_size=300)
    path = plain.save(tmp_path / "plain")
    made = extend_tokenizer(ExtendTokenizer(tokenizer=str(path), output=tmp_path / "chat"))
    assert made.specials == {"<|endoftext|>": 299, "<|im_start|>": 300, "<|im_end|>": 301}
    assert "<|im_end|> 301" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "chat").fingerprint == made.fingerprint != plain.fingerprint
    for text in make_texts(5, seed=3):
        assert made.encode(text).tolist() == plain.encode(text).tolist()
    assert made.with_special_tokens(CHAT_NAMES).fingerprint == made.fingerprint
    for other in (Bytes(), Chars.from_text("abc")):
        with pytest.raises(UserError, match="cannot take special tokens"):
            other.with_special_tokens(CHAT_NAMES)


@pytest.mark.parametrize("others", [[], ["config.json", "model.safetensors"]])
def test_tokenizer_that_is_extended_in_its_place_is_read_and_whole(tmp_path, others):
    train_bpe(make_texts(), vocab_size=300).save(tmp_path)
    for name in others:
        (tmp_path / name).write_text("{}")
    sum_directory(tmp_path)
    made = extend_tokenizer(ExtendTokenizer(tokenizer=str(tmp_path), output=tmp_path))
    assert load_tokenizer(tmp_path).fingerprint == made.fingerprint
    sums, _ = read_sums(tmp_path) or ({}, {})
    assert sums == sum_files(tmp_path, ["tokenizer.json", *others])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", '{"vocab_size": 301}', "holds a model of 301 ids, and the tokenizer would have 302"),
        ("manifest.json", "{}", "holds what was made with its own tokenizer"),
        ("checkpoints/1/x", "", "holds what was made with its own tokenizer"),
    ],
)
def test_tokenizer_that_other_files_need_is_not_replaced(tmp_path, name, content, said):
    path = train_bpe(make_texts(), vocab_size=300).save(tmp_path)
    before = path.read_bytes()
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        extend_tokenizer(ExtendTokenizer(tokenizer=str(path), output=tmp_path))
    with pytest.raises(UserError, match="--output="):
        train_tokenizer(TrainTokenizer(source="nowhere", vocab_size=302, output=tmp_path))
    assert path.read_bytes() == before
    if name == "config.json":  # the rows are there
        (tmp_path / name).write_text('{"vocab_size": 302}')
        extend_tokenizer(ExtendTokenizer(tokenizer=str(path), output=tmp_path))
        assert load_tokenizer(tmp_path).vocab_size == 302


def test_commands_print_special_tokens_and_notes(tmp_path, capsys):
    source = write_jsonl(tmp_path / "x.jsonl", ["<|im_start|>", *make_texts()])
    with open(source, "a") as file:
        file.write("not JSON\n")
    words = [f"--source={source}", "--vocab-size=300", "--special-tokens=chat", f"--output={tmp_path / 'out'}"]
    assert run_pipeline("train_tokenizer", *words) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path}/out/tokenizer.json: 300 tokens" in printed
    assert "<|im_start|> 298" in printed
    assert "note: 1 invalid record skipped" in printed
    assert "note: 1 time <|im_start|> stands in text" in printed
    assert run_pipeline("extend_tokenizer", "--tokenizer=bytes", f"--output={tmp_path}") == 2
    assert capsys.readouterr().err.startswith("error: the bytes tokenizer cannot take special tokens")
