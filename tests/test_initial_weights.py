"""Frozen models beside a run: they compute what they were trained to, and know the same tokens."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_models import PLAIN
from library_tokenizers import write_form
from models import make_model, make_tokens
from tiny import MODEL, SINGLE, tiny_config, tokenizer, write_shards

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.evaluation.checkpoints import find_data
from gptjax.evaluation.options import Evaluate
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import DocumentIds
from gptjax.runs.checkpoint_source import open_checkpoint
from gptjax.runs.initial_weights import check_same_tokenizer, join_vocabularies, load_frozen_weights, load_start
from gptjax.runs.run_dir import write_imported_run
from gptjax.tokenization.chat_template import ChatTemplate, RoleFormat
from gptjax.tokenization.tokenizer import Chars, Tokenizer, load_tokenizer


@dataclass(frozen=True)
class OwnConfig(GPTConfig):
    """A config class of a user's own."""


ROTARY = replace(MODEL, positions="rotary", rotary_base=500.0, window_pattern="SL", short_window=4)


def write_run(directory: Path, config: GPTConfig, own: Tokenizer | None = None) -> str:
    write_imported_run(directory, model=make_model(config), tokenizer=own)
    return str(directory)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_config(write_shards(tmp_path / "shards", {"train": [np.arange(40)]}, own=tokenizer()))


def test_frozen_weights_compute_what_their_own_run_does(config: TrainConfig, tmp_path: Path) -> None:
    """Whatever rotary base, windows and dropout the run has; from it are only mask, compute options and length."""
    changes = {"rotary_base": 10_000.0, "window_pattern": "SSL", "short_window": 2, "dropout": 0.5}
    wanted = replace(ROTARY, **changes, intra_document_mask=True, context_length=12)
    wanted = replace(wanted, compute=replace(wanted.compute, remat="full"))
    with SINGLE.activate():
        loaded = load_frozen_weights(replace(config, model=wanted), SINGLE, write_run(tmp_path / "teacher", ROTARY))
        tokens = make_tokens(2, 12, vocab_size=40)
        one_document = DocumentIds(jnp.zeros_like(tokens), jnp.broadcast_to(jnp.arange(12), tokens.shape))
        read = jax.jit(lambda model: model.unembed(model.hidden_states(tokens, documents=one_document)))
        logits, own = read(loaded), jax.jit(lambda model: model(tokens))(make_model(ROTARY))
        np.testing.assert_allclose(logits, own, atol=1e-6)
    kept = {"intra_document_mask": True, "compute": wanted.compute, "context_length": 12}
    assert loaded.config == replace(ROTARY, **kept)


def test_frozen_weights_that_cannot_be_compared_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    """Another vocabulary, also of the same size, or fewer positions. Without a tokenizer the size has to do."""
    alphabet = tokenizer().alphabet
    first, second = list(alphabet)[:2]
    swapped = Chars(alphabet | {first: alphabet[second], second: alphabet[first]})
    refused = {
        "has 49 tokens, the model that is trained 48": (replace(MODEL, vocab_size=49), None),
        r"was trained with .*they differ in tokens\. Prepare the data with --tokenizer=": (MODEL, swapped),
        "has 8 positions, and rows have 16 tokens": (replace(MODEL, context_length=8), tokenizer()),
    }
    for number, (message, (model, own)) in enumerate(refused.items()):
        source = write_run(tmp_path / f"run{number}", model, own)
        with pytest.raises(UserError, match=message), SINGLE.activate():
            load_frozen_weights(config, SINGLE, source)
    for name, own in {"known": tokenizer(), "unknown": None}.items():
        with SINGLE.activate():
            load_frozen_weights(config, SINGLE, write_run(tmp_path / name, MODEL, own))


def test_frozen_weights_may_lack_the_tokens_that_the_data_has_added(tmp_path: Path) -> None:
    """Their table has spare rows for them."""
    more = PLAIN.with_special_tokens(["<|tool|>"])
    shards = write_shards(tmp_path / "shards", {"train": [np.arange(40)]}, own=more)
    config = tiny_config(shards, model={"vocab_size": more.vocab_size})
    source = write_run(tmp_path / "run", replace(MODEL, vocab_size=more.vocab_size), PLAIN)
    with SINGLE.activate():
        assert load_frozen_weights(config, SINGLE, source).config == config.model


def test_weights_are_taken_whose_tokenizer_does_not_call_the_roles_special(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_tokenizer(write_form(tmp_path / "tokenizer", "deepseek"))
    user, assistant = RoleFormat("<｜User｜>", "", ""), RoleFormat("<｜Assistant｜>", "", "<｜end｜>")
    chat = base.with_chat_template(ChatTemplate(user, assistant, None))
    model = replace(MODEL, vocab_size=base.vocab_size)
    source = open_checkpoint(write_run(tmp_path / "base", model, base))
    joined, own = join_vocabularies(source, model, chat, name="the data")
    assert (joined, own.fingerprint) == (model, chat.fingerprint)
    assert "<｜User｜>, <｜Assistant｜> are role tokens here, so that no text becomes one" in capsys.readouterr().out
    check_same_tokenizer(chat, base, name="the reference")
    tuned = open_checkpoint(write_run(tmp_path / "tuned", model, chat))
    assert join_vocabularies(tuned, model, base, name="the data")[1].fingerprint == chat.fingerprint
    printed = capsys.readouterr()
    assert "the data does not use" not in printed.out
    problem = "was made without the roles <｜User｜>, <｜Assistant｜>: a text in it that spells one holds that token"
    assert f"note: the data {problem}. Prepare it with --tokenizer={tuned.directory}." in printed.err
    shards = write_shards(tmp_path / "shards", {"train": [np.arange(9)]}, own=base)
    assert find_data(Evaluate((str(tuned.directory),), data=str(shards)), tuned).load_tokenizer() is not None
    assert f"note: {shards} {problem}. Prepare the text with --tokenizer={tuned.directory}." in capsys.readouterr().err


def test_weights_of_a_config_of_ones_own_are_found_where_it_is_imported(config: TrainConfig, tmp_path: Path) -> None:
    own = OwnConfig(**{name: getattr(MODEL, name) for name in GPTConfig.__dataclass_fields__})
    source = write_run(tmp_path / "own", own)
    config, modules = replace(config, init_from=source), {__name__: sys.modules[__name__]}
    with SINGLE.activate():
        for given in (source, None):
            with pytest.raises(UserError, match="--import"):
                load_frozen_weights(config, SINGLE, given)
        assert isinstance(load_frozen_weights(config, SINGLE, source, modules=modules).config, OwnConfig)
        assert load_start(config, SINGLE, modules=modules).config == config.model
