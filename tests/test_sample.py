import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.generation import generate
from gptjax.model.gpt import GPT
from gptjax.run_dir import write_imported_run
from gptjax.sample import Sample, encode_prompt, main, sample
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
    assert re.search(r"^8 tokens in [\d.]+ s: [\d,.]+ tokens/s; weights and cache read at", err)


def test_prompt_file_is_read_without_changes(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"one\r\ntwo\n")
    [text] = sample(Sample(checkpoint=str(run), prompt_file=str(file), max_new_tokens=2))
    assert text.startswith("one\r\ntwo\n")


def test_text_stops_at_end_of_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([[257, 65, 258, 258], [257, 66, 67, 258], [257, 68, 69, 70]])
    monkeypatch.setattr("gptjax.model.generation.generate", lambda *args, **kwargs: rows)
    options = Sample(checkpoint=str(run), prompt=("the",), num_samples=3, max_new_tokens=3)
    assert list(sample(options)) == ["theA", "theBC", "theDEF"]
    continued = list(sample(replace(options, stop=False)))
    assert continued == ["theA" + 2 * "<|endoftext|>", "theBC<|endoftext|>", "theDEF"]


def test_empty_prompt_starts_after_a_hidden_end_of_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gptjax.model.generation.generate", lambda model, ids, **kwargs: np.array([[*ids[0], 257, 65, 258]])
    )
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
        (["--prompt-file=nowhere.txt"], r"nowhere.txt cannot be read"),
        (["--num-samples=0"], "--num-samples is 0"),
        (["--seed=-1"], "--seed is -1"),
        (["--max-new-tokens=0"], "max-new-tokens is 0"),
        (["--max-new-tokens=32"], "1 prompt tokens and 32 new ones do not fit model.context_length 32"),
        (["--temperature=-1"], "temperature is -1"),
        (["--top-p=2"], "top-p is 2"),
        (["--step=7"], "no step 7"),
        (["--step=best"], "validation loss"),
    ],
)
def test_invalid_arguments_are_named(capsys: pytest.CaptureFixture, run: Path, words: list[str], message: str) -> None:
    assert message in read_error(capsys, f"--checkpoint={run}", *words)


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
