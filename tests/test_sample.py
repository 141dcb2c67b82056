import gzip
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.generation.generate import NewTokens, generate
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.gpt import GPT, with_static
from gptjax.runs.run_dir import write_imported_run
from gptjax.sample import main, sample
from gptjax.serving.sampler import Sample, encode_prompt, read_prompts
from gptjax.serving.text_generation import Completion
from gptjax.tokenization.chat import CHAT_TOKENS, ChatEncoder
from gptjax.tokenization.chat_template import CHATML, Message
from gptjax.tokenization.text_stream import TextStream
from gptjax.tokenization.tokenizer import BPE, END_OF_TEXT, GPT2_PATTERN, Bytes, Chars

TOKENIZER = BPE(
    {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257},
    {END_OF_TEXT: 258},
    merges=[(b"t", b"h"), (b"th", b"e")],
    pattern=GPT2_PATTERN,
)


@pytest.fixture(scope="module")
def model() -> GPT:
    config = GPTConfig(
        num_layers=1,
        embed_dim=16,
        num_heads=2,
        context_length=32,
        vocab_size=259,
        compute=ComputeConfig(dtype="float32"),
        init=InitConfig(std=0.3),
    )
    return jax.jit(lambda key: GPT(config, key=key))(jax.random.key(0))


@pytest.fixture(scope="module")
def run(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    write_imported_run(directory, model=model, tokenizer=TOKENIZER)
    return directory


def read_output(capsys: pytest.CaptureFixture, *words: str) -> str:
    main([*words])
    return capsys.readouterr().out


def read_error(capsys: pytest.CaptureFixture, *words: str) -> str:
    """The message with which this command is refused."""
    with pytest.raises(SystemExit) as stop:
        main([*words])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_sample_prints_prompt_and_generated_text(capsys: pytest.CaptureFixture, run: Path, model: GPT) -> None:
    words = (
        f"--checkpoint={run}",
        "--prompt=in the",
        "--max-new-tokens=9",
        "--temperature=0.8",
        "--top-k=20",
        "--seed=3",
    )
    ids = TOKENIZER.encode("in the")
    row = generate(model, [ids], max_new_tokens=9, temperature=0.8, top_k=20, end_of_text=258, key=jax.random.key(3))[0]
    out = read_output(capsys, *words)
    assert out == TOKENIZER.decode(row[row != 258]) + "\n"
    assert out.startswith("in the")
    assert read_output(capsys, *words) == out
    assert read_output(capsys, *words[:-1], "--seed=4") != out


def test_several_samples_are_separated_by_headings(capsys: pytest.CaptureFixture, run: Path) -> None:
    out = read_output(capsys, f"--checkpoint={run}", "--prompt=the", "--num-samples=3", "--max-new-tokens=5")
    first, *rest = out.split("--- sample ")
    texts = [part.split(" ---\n", 1) for part in rest]
    assert first == ""
    assert [label for label, _ in texts] == ["1 of 3", "2 of 3", "3 of 3"]
    assert all(text.startswith("the") for _, text in texts)
    assert len({text for _, text in texts}) > 1


def test_several_prompts_are_continued_side_by_side(capsys: pytest.CaptureFixture, run: Path, model: GPT) -> None:
    words = (f"--checkpoint={run}", "--prompt=in the", "--prompt=a", "--temperature=0", "--max-new-tokens=4")
    main([*words, "--quantize=int8", "--no-stop"])
    out, err = capsys.readouterr()
    settings: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0.0, "quantize": "int8"}
    first, second = (generate(model, [TOKENIZER.encode(text)], **settings)[0] for text in ("in the", "a"))
    expected = [TOKENIZER.decode(row) for row in (first, second)]
    assert out == f"--- sample 1 of 2 ---\n{expected[0]}\n\n--- sample 2 of 2 ---\n{expected[1]}\n"
    assert re.fullmatch(r"8 tokens in [\d.]+ s: [\d,.]+ tokens/s\n", err)


def test_prompt_file_is_read_without_changes(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"one\r\ntwo\n")
    [text] = sample(Sample(checkpoint=str(run), prompt_file=str(file), max_new_tokens=2))
    assert text.startswith("one\r\ntwo\n")


def test_prompt_file_may_hold_records(tmp_path: Path) -> None:
    (file := tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"question": "one"}\n{"question": "two"}\n'))
    options = Sample(checkpoint="any", prompt_file=str(file))
    assert read_prompts(replace(options, text_field="question")) == ("one", "two")
    with pytest.raises(UserError, match=r'got one with "question" \(--text-field chooses another\)'):
        read_prompts(options)


def replace_stream(monkeypatch: pytest.MonkeyPatch, rows: list[list[int]]) -> None:
    """Let generation write these tokens instead of the model's."""
    tokens = np.array(rows)

    def stream(*args: Any, every: int, **kwargs: Any) -> Iterator[NewTokens]:
        for begin in range(0, tokens.shape[1], every):
            yield NewTokens(tokens[:, begin : begin + every], None, np.zeros(len(rows), bool))

    monkeypatch.setattr("gptjax.serving.text_generation.generation.stream_tokens", stream)


def test_text_stops_at_end_of_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_stream(monkeypatch, [[65, 258, 258], [66, 67, 258], [68, 69, 70]])
    options = Sample(checkpoint=str(run), prompt=("the",), num_samples=3, max_new_tokens=3)
    assert list(sample(options)) == ["theA", "theBC", "theDEF"]
    continued = list(sample(replace(options, stop=False)))
    assert continued == ["theA" + 2 * "<|endoftext|>", "theBC<|endoftext|>", "theDEF"]


def test_text_stops_before_a_stop_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_stream(monkeypatch, [[65, 66, 67, 68], [65, 67, 68, 68], [66, 66, 66, 66]])
    options = Sample(checkpoint=str(run), prompt=("the",), num_samples=3, max_new_tokens=4, stop_text=("BC", "DD"))
    assert sample(options) == ["theA", "theAC", "theBBBB"]


def test_tokens_of_a_stop_text_are_left_out_like_its_text() -> None:
    completion = Completion(TextStream(TOKENIZER, stop_texts=["BC", "he"]))
    completion.add([65, 66, 67, 68], [-1.0, -2.0, -3.0, -4.0], ends=[])
    assert (completion.text, completion.ids, completion.log_probabilities) == ("A", [65], [-1.0])
    completion = Completion(TextStream(TOKENIZER, stop_texts=["he"]))
    completion.add([65, *TOKENIZER.encode("the").tolist(), 66], [-1.0, -2.0, -3.0], ends=[])
    assert (completion.text, len(completion.ids)) == ("At", 2), "a token that is in the text in part is kept"


def test_json_holds_tokens_and_log_probabilities(
    capsys: pytest.CaptureFixture, run: Path, model: GPT, tmp_path: Path
) -> None:
    words = (f"--checkpoint={run}", "--prompt=in the", "--prompt=a", "--temperature=0", "--max-new-tokens=5")
    report = json.loads(read_output(capsys, *words, "--json=-"))
    assert report["step"] == 0
    read_output(capsys, *words, f"--json={tmp_path}/out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == report
    for record, prompt in zip(report["samples"], ("in the", "a"), strict=True):
        ids = TOKENIZER.encode(prompt)
        row = generate(model, [ids], max_new_tokens=5, temperature=0.0)[0]
        written = [token["id"] for token in record["tokens"]]
        assert written == row[len(ids) :].tolist()[: len(written)]
        assert record["prompt"] == prompt
        assert record["text"] == TOKENIZER.decode(written)
        logits = jax.nn.log_softmax(model(jax.numpy.asarray(row[None]))[0])
        nats = [float(logits[len(ids) + place - 1, token]) for place, token in enumerate(written)]
        np.testing.assert_allclose([token["logprob"] for token in record["tokens"]], nats, atol=1e-5)
        assert record["finish_reason"] == ("length" if len(written) == 5 else "end_of_text")


def test_special_tokens_in_a_prompt_act_only_if_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[list[int]] = []

    def stream(model: GPT, rows: list[np.ndarray], **kwargs: Any) -> Iterator[NewTokens]:
        prompts.extend(row.tolist() for row in rows)
        yield NewTokens(np.array([[65]]), None, np.array([False]))

    monkeypatch.setattr("gptjax.serving.text_generation.generation.stream_tokens", stream)
    options = Sample(checkpoint=str(run), prompt=("a<|endoftext|>b",), max_new_tokens=1)
    sample(options)
    sample(replace(options, special_tokens=True))
    assert prompts == [TOKENIZER.encode("a<|endoftext|>b").tolist(), [97, 258, 98]]


def test_interactive_mode_continues_lines(
    capsys: pytest.CaptureFixture, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"the\n{'x' * 40}\nof"))
    main([f"--checkpoint={run}", "--interactive", "--max-new-tokens=3", "--temperature=0"])
    out, err = capsys.readouterr()
    assert "> " not in err, "no terminal asks for a line"
    first, second = sample(Sample(checkpoint=str(run), prompt=("the", "of"), max_new_tokens=3, temperature=0.0))
    assert out == f"{first}\n{second}\n"


def test_prompt_longer_than_the_context_is_named_or_cropped(capsys: pytest.CaptureFixture, run: Path) -> None:
    words = (f"--checkpoint={run}", f"--prompt={'x' * 40}")
    assert "a prompt has 40 tokens, more than the model's context of 32" in read_error(capsys, *words)
    out = read_output(capsys, *words, "--crop", "--temperature=0", "--max-new-tokens=20")
    assert out.startswith("x" * 40)
    assert len(TOKENIZER.encode(out)) > 50


def test_chat_model_answers_by_turns(
    capsys: pytest.CaptureFixture, model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = TOKENIZER.with_special_tokens(CHAT_TOKENS).with_chat_template(CHATML)
    wide = with_static(model, config=replace(model.config, vocab_size=tokenizer.vocab_size))
    write_imported_run(tmp_path / "chat", model=wide, tokenizer=tokenizer)
    end, seen = tokenizer.specials["<|im_end|>"], []

    def stream(model: GPT, rows: list[np.ndarray], **kwargs: Any) -> Iterator[NewTokens]:
        seen.append((rows[0].tolist(), kwargs["end_of_text"]))
        yield NewTokens(np.array([[72, 105, end]]), None, np.array([True]))

    monkeypatch.setattr("gptjax.serving.text_generation.generation.stream_tokens", stream)
    options = Sample(checkpoint=str(tmp_path / "chat"), prompt=("Hello",), max_new_tokens=3)
    assert sample(options) == ["Hi"]
    assert sample(replace(options, raw=True)) == ["HelloHi"]
    prompt = ChatEncoder(tokenizer).encode_prompt([Message("user", "Hello")])
    assert seen == [(prompt.tolist(), [258, end]), (tokenizer.encode("Hello").tolist(), [258, end])]
    assert "answers a message" in read_error(capsys, f"--checkpoint={tmp_path / 'chat'}")


def test_empty_prompt_starts_after_a_hidden_end_of_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_stream(monkeypatch, [[257, 65, 258]])
    assert list(sample(Sample(checkpoint=str(run)))) == ["theA"]


def test_empty_prompt_without_end_of_text_starts_after_line_end(capsys: pytest.CaptureFixture) -> None:
    start = encode_prompt("", Bytes())
    assert (start.ids.tolist(), start.hidden) == ([10], 1)
    assert "taken to be a line end" in capsys.readouterr().err
    with pytest.raises(UserError, match="Give --prompt"):
        encode_prompt("", Chars.from_text("abc"))


def test_default_length_fills_the_context(run: Path) -> None:
    [text] = sample(Sample(checkpoint=str(run), prompt=("x",), temperature=0.0))
    [longest] = sample(Sample(checkpoint=str(run), prompt=("x",), temperature=0.0, max_new_tokens=31))
    assert text == longest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt=a", "--prompt-file=b"], "choose one"),
        (["--prompt=a", "--interactive"], "--prompt and --interactive are both given"),
        (["--min-p=2"], "min-p is 2"),
        (["--stop-text=END", "--stop-text="], "--stop-text is empty. Give the text to stop before"),
        (["--prompt-file=nowhere.txt"], r"nowhere.txt cannot be read"),
        (["--num-samples=0"], "--num-samples is 0"),
        (["--prompt=a", "--text-field=body"], "--text-field names a field of --prompt-file"),
        (["--seed=-1"], "--seed is -1"),
        (["--max-new-tokens=0"], "max-new-tokens is 0"),
        (["--max-new-tokens=32"], "1 prompt tokens and 32 new ones do not fit model.context_length 32"),
        (["--temperature=-1"], "temperature is -1"),
        (["--top-p=2"], "top-p is 2"),
        (["--step=7"], "no step 7"),
        (["--step=best"], "validation loss"),
        (["--max-new-tokens=40"], "--crop"),
    ],
)
def test_invalid_arguments_are_named(capsys: pytest.CaptureFixture, run: Path, words: list[str], message: str) -> None:
    assert message in read_error(capsys, f"--checkpoint={run}", *words)


def test_json_that_cannot_be_written_is_refused_before_the_checkpoint_is_read(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "out.json"):
        message = read_error(capsys, "--checkpoint=no_run", f"--json={path}")
        assert str(tmp_path) in message
        assert "no_run" not in message


def test_directory_without_run_is_named(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert "is not a run directory" in read_error(capsys, f"--checkpoint={tmp_path}")


def test_run_without_tokenizer_is_refused(capsys: pytest.CaptureFixture, tmp_path: Path, model: GPT) -> None:
    write_imported_run(tmp_path / "untokenized", model=model, tokenizer=None)
    assert "has no tokenizer.json" in read_error(capsys, f"--checkpoint={tmp_path / 'untokenized'}", "--prompt=a")


def test_help_lists_every_option(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    options = ("checkpoint", "prompt", "prompt-file", "max-new-tokens", "temperature", "top-k", "top-p", "num-samples")
    assert all(f"--{option}" in out for option in (*options, "seed", "step"))
