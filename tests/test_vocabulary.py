"""New tokens of trained weights: where their rows are and what they begin with."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from chat_models import PLAIN, TOKENIZER
from tiny import MODEL, SINGLE, tiny_config, write_shards

from gptjax.core.errors import UserError
from gptjax.finetuning.vocabulary import grow_vocabulary
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.runs.initial_weights import load_start
from gptjax.runs.run_dir import write_imported_run
from gptjax.runs.startup import make_read_spec, prepare_config
from gptjax.tokenization.chat_template import CHATML
from gptjax.tokenization.tokenizer import BPE


def create_model(config: GPTConfig) -> GPT:
    return jax.jit(lambda key: GPT(config, key=key))(jax.random.key(0))


@pytest.mark.parametrize(
    ("rows", "known", "wanted", "stored"),
    [
        pytest.param(250, None, 252, 256, id="padding holds them"),
        pytest.param(256, None, 258, 384, id="the table grows"),
        pytest.param(256, 250, 256, 256, id="spare rows hold them"),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_of_the_known_ones(
    rows: int, known: int | None, wanted: int, stored: int, tied: bool
) -> None:
    model = create_model(replace(MODEL, vocab_size=rows, tie_embeddings=tied))
    grown, old = grow_vocabulary(model, wanted, known=known), known or rows
    assert grown.config.vocab_size == wanted
    tables = [(model.token_embedding[...], grown.token_embedding[...])]
    tables += [] if tied else [(model.head[...].T, grown.head[...].T)]
    for before, after in tables:
        assert after.shape == (stored, MODEL.embed_dim)
        np.testing.assert_array_equal(after[:old], before[:old])
        expected = np.broadcast_to(np.mean(before[:old], axis=0), after[old:].shape)
        np.testing.assert_allclose(after[old:], expected, atol=1e-6)
    logits = jax.jit(GPT.__call__)(grown, jax.numpy.array([[1, 2, wanted - 1]]))
    assert logits.shape == (1, 3, wanted)


def test_model_with_all_tokens_stays_as_it_is() -> None:
    model = create_model(MODEL)
    assert grow_vocabulary(model, MODEL.resolved_vocab_size) is model


@pytest.mark.parametrize("rows", [PLAIN.vocab_size, 384])
def test_run_on_chats_starts_from_weights_without_their_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture, rows: int
) -> None:
    """Weights with 384 rows have spare ones, as imported weights may."""
    base = create_model(replace(MODEL, vocab_size=rows))
    write_imported_run(tmp_path / "base", model=base, tokenizer=PLAIN)
    ids = np.arange(250) % TOKENIZER.vocab_size
    shards = write_shards(tmp_path / "chat", {"train": [ids], "val": [ids]}, own=TOKENIZER)
    config = tiny_config(shards, init_from=str(tmp_path / "base"), model={"vocab_size": None})
    config, tokenizer = prepare_config(config)
    assert tokenizer.chat_template == TOKENIZER.chat_template
    assert config.model.vocab_size == max(rows, TOKENIZER.vocab_size)
    assert "<|im_start|>, <|im_end|> are new; their rows begin as the mean of the other 258" in capsys.readouterr().out
    weights = load_start(config, SINGLE.resolve(1))
    mean = np.mean(base.token_embedding[...][: PLAIN.vocab_size], axis=0)
    for token in range(PLAIN.vocab_size, TOKENIZER.vocab_size):
        np.testing.assert_allclose(weights.token_embedding[...][token], mean, atol=1e-6)


def test_data_without_the_special_tokens_of_the_weights_is_accepted(tmp_path: Path) -> None:
    chat = create_model(replace(MODEL, vocab_size=TOKENIZER.vocab_size))
    write_imported_run(tmp_path / "chat", model=chat, tokenizer=TOKENIZER)
    ids = np.arange(250)
    shards = write_shards(tmp_path / "text", {"train": [ids], "val": [ids]}, own=PLAIN)
    config = tiny_config(shards, init_from=str(tmp_path / "chat"), model={"vocab_size": None})
    config, tokenizer = prepare_config(config)
    assert (tokenizer.fingerprint, tokenizer.chat_template) == (TOKENIZER.fingerprint, TOKENIZER.chat_template)
    assert config.model.vocab_size == TOKENIZER.vocab_size


def test_template_is_that_of_the_data_where_the_weights_have_more_tokens(tmp_path: Path) -> None:
    """Answers are asked for as the data was written, and the data is checked for how it begins."""
    model = create_model(replace(MODEL, vocab_size=TOKENIZER.vocab_size + 1))
    write_imported_run(tmp_path / "base", model=model, tokenizer=TOKENIZER.with_special_tokens(["<|tool|>"]))
    own = TOKENIZER.with_chat_template(replace(CHATML, begins=False))
    shards = write_shards(tmp_path / "chats", {"train": [np.arange(250)]}, own=own)
    config = tiny_config(shards, init_from=str(tmp_path / "base"), model={"vocab_size": None})
    config, tokenizer = prepare_config(config)
    assert "<|tool|>" in tokenizer.specials
    assert tokenizer.chat_template == own.chat_template
    assert TOKENIZER.specials["<|im_start|>"] in make_read_spec(config, tokenizer).first_tokens


def test_data_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    model = create_model(replace(MODEL, vocab_size=PLAIN.vocab_size))
    write_imported_run(tmp_path / "base", model=model, tokenizer=PLAIN)
    other = BPE(PLAIN.tokens, {"<|a|>": 257}, merges=PLAIN.merges, pattern=PLAIN.pattern or "")
    ids = np.arange(250)
    shards = write_shards(tmp_path / "text", {"train": [ids], "val": [ids]}, own=other)
    with pytest.raises(UserError, match=r"base was trained with .*: they differ in special tokens"):
        prepare_config(tiny_config(shards, init_from=str(tmp_path / "base"), model={"vocab_size": None}))
