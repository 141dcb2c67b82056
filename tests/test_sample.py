"""The door that lets a model write: what it prints, where an empty prompt starts, and what it refuses."""

import jax
import numpy as np
import pytest

from gptjax import sample as door
from gptjax.core.errors import UserError
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.generation import generate
from gptjax.model.gpt import GPT
from gptjax.run_dir import write_imported_run
from gptjax.sample import Sample, first_tokens, main, sample
from gptjax.tokenization.tokenizer import BPE, END_OF_TEXT, GPT2_PATTERN, Bytes, Chars

TOKENIZER = BPE(
    {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257},
    {END_OF_TEXT: 258},
    merges=[(b"t", b"h"), (b"th", b"e")],
    pattern=GPT2_PATTERN,
)


@pytest.fixture(scope="module")
def model():
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
def run(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    write_imported_run(directory, model=model, tokenizer=TOKENIZER)
    return directory


def written(capsys, *words):
    main([*words])
    return capsys.readouterr()


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([*words])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_it_prints_the_prompt_and_what_the_model_writes(capsys, run, model):
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
    out = written(capsys, *words).out
    assert out == TOKENIZER.decode(row[row != 258]) + "\n"
    assert out.startswith("in the")
    assert written(capsys, *words).out == out
    assert written(capsys, *words[:-1], "--seed=4").out != out


def test_several_samples_are_told_apart(capsys, run):
    out = written(capsys, f"--checkpoint={run}", "--prompt=the", "--num-samples=3", "--max-new-tokens=5").out
    first, *rest = out.split("--- sample ")
    texts = [part.split(" ---\n", 1) for part in rest]
    assert first == ""
    assert [label for label, _ in texts] == ["1 of 3", "2 of 3", "3 of 3"]
    assert all(text.startswith("the") for _, text in texts)
    assert len({text for _, text in texts}) > 1


def test_a_prompt_file_is_read_as_it_stands(run, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"one\r\ntwo\n")
    [text] = sample(Sample(checkpoint=str(run), prompt_file=str(file), max_new_tokens=2))
    assert text.startswith("one\r\ntwo\n")


def test_a_text_ends_at_its_end_of_text(run, monkeypatch):
    rows = np.array([[257, 65, 258, 258], [257, 66, 67, 258], [257, 68, 69, 70]])
    monkeypatch.setattr(door, "generate", lambda *args, **kwargs: rows)
    assert list(sample(Sample(checkpoint=str(run), prompt="the"))) == ["theA", "theBC", "theDEF"]
    on = list(sample(Sample(checkpoint=str(run), prompt="the", stop=False)))
    assert on == ["theA" + 2 * "<|endoftext|>", "theBC<|endoftext|>", "theDEF"]


def test_an_empty_prompt_starts_after_an_end_of_text_that_is_not_shown(run, monkeypatch):
    monkeypatch.setattr(door, "generate", lambda model, ids, **kwargs: np.array([[*ids[0], 257, 65, 258]]))
    assert list(sample(Sample(checkpoint=str(run)))) == ["theA"]


def test_without_end_of_text_an_empty_prompt_starts_after_a_line_end(capsys):
    start = first_tokens("", Bytes())
    assert (start.ids.tolist(), start.hidden) == ([10], 1)
    assert "taken to be a line end" in capsys.readouterr().err
    with pytest.raises(UserError, match="Give --prompt"):
        first_tokens("", Chars.from_text("abc"))


def test_by_default_it_writes_what_fits(run):
    [text] = sample(Sample(checkpoint=str(run), prompt="x", temperature=0.0))
    [longest] = sample(Sample(checkpoint=str(run), prompt="x", temperature=0.0, max_new_tokens=31))
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
def test_what_cannot_be_done_is_explained(capsys, run, words, message):
    assert message in refused(capsys, f"--checkpoint={run}", *words)


def test_a_directory_that_is_no_run_is_explained(capsys, tmp_path):
    assert "is not a run directory" in refused(capsys, f"--checkpoint={tmp_path}")


def test_a_run_without_tokenizer_is_explained(capsys, tmp_path, model):
    write_imported_run(tmp_path / "mute", model=model, tokenizer=None)
    assert "has no tokenizer.json" in refused(capsys, f"--checkpoint={tmp_path / 'mute'}", "--prompt=a")


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    options = ("checkpoint", "prompt", "prompt-file", "max-new-tokens", "temperature", "top-k", "top-p", "num-samples")
    assert all(f"--{option}" in out for option in (*options, "seed", "step"))
