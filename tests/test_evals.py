import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL, tokenizer, write_shards, write_text_shards

from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.model.gpt import GPT, with_static
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.bigram import bigram_loss
from gptjax.training.evaluators import BigramBaseline, EvalContext, Samples, ValidationLoss, to_metrics
from gptjax.training.objective import NextToken


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_text_shards(tmp_path_factory.mktemp("evaluators") / "shards", lines=60)


def material(shards, *, own=True, mesh=None):
    data = TokenShards(path=str(shards))
    return EvalContext(data, tokenizer() if own else None, MODEL, NextToken(), mesh or MeshConfig())


def model(mesh=None):
    mesh = mesh or MeshConfig()
    with mesh.activate():
        return jax.jit(lambda: GPT(MODEL, key=jax.random.key(0), mesh=mesh))()


@pytest.fixture(scope="module")
def by_hand(shards):
    """Nats of every token of the split after its first, from the logits of windows that do not overlap."""
    stream = TokenShards(path=str(shards)).open_stream("val")
    ids = stream.read(0, len(stream))
    forward, here, nats = jax.jit(GPT.__call__), model(), []
    for start in range(0, len(ids) - 1, MODEL.context_length):
        window = ids[start : start + MODEL.context_length + 1].astype(np.int32)
        padded = np.pad(window[:-1], (0, MODEL.context_length - len(window) + 1))
        logits = np.asarray(forward(here, jnp.asarray(padded[None])), np.float64)[0, : len(window) - 1]
        normal = np.log(np.exp(logits).sum(axis=1))
        nats += list(normal - logits[np.arange(len(window) - 1), window[1:]])
    return np.array(nats)


@pytest.mark.parametrize(("tokens", "batch_size"), [(None, 3), (None, 16), (40, 16), (1, 1)])
def test_the_loss_is_the_mean_over_all_tokens_whatever_the_batch(shards, by_hand, tokens, sequences):
    found = ValidationLoss(tokens=tokens, batch_size=sequences).open(material(shards))(model())
    nats = by_hand[:tokens]
    assert found["val_loss"] == pytest.approx(nats.mean(), abs=1e-5)
    assert found["val_perplexity"] == pytest.approx(math.exp(nats.mean()), rel=1e-4)
    assert found["val_bpb"] == pytest.approx(nats.sum() / math.log(2) / len(nats), rel=1e-5)  # characters of one byte


def test_the_loss_does_not_depend_on_the_layout(shards, by_hand):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    with mesh.activate():
        judge = ValidationLoss(batch_size=3).open(material(shards, mesh=mesh))
        assert judge(model(mesh))["val_loss"] == pytest.approx(by_hand.mean(), abs=1e-5)


def test_bits_per_byte_divide_by_the_bytes_of_the_scored_text(shards):
    """Some tokens are of several bytes, and one has no text at all."""
    own = tokenizer()
    own.bytes_per_token = np.arange(own.vocab_size, dtype=np.int32) % 4
    judge = ValidationLoss(tokens=50).open(replace(material(shards), tokenizer=own))
    ids = TokenShards(path=str(shards)).open_stream("val").read(1, 50)
    assert judge.bytes == int((ids % 4).sum())
    found = judge(model())
    assert found["val_bpb"] == pytest.approx(found["val_loss"] * 50 / math.log(2) / judge.bytes)
    assert f"50 of {len(TokenShards(path=str(shards)).open_stream('val')) - 1:,} next tokens" in judge.protocol
    assert f"{judge.bytes:,} bytes" in judge.protocol


def test_only_what_is_scored_counts(shards, by_hand, tmp_path):
    """As in conversations, where the answers are judged and the questions only read."""
    val = TokenShards(path=str(shards)).open_stream("val")
    ids = val.read(0, len(val))
    marks = (np.arange(len(ids)) % 3 == 0).astype(np.uint8)
    beside = {("val", "scored"): marks}
    marked = write_shards(tmp_path / "marked", {"train": [ids], "val": [ids]}, own=tokenizer(), sidecars=beside)
    judge = ValidationLoss().open(material(marked))
    found = judge(model())
    assert judge.scored == marks[1:].sum()
    assert found["val_loss"] == pytest.approx(by_hand[marks[1:] == 1].mean(), abs=1e-5)
    scored_bytes = tokenizer().bytes_per_token[ids[1:][marks[1:] == 1]].sum()
    assert found["val_bpb"] == pytest.approx(by_hand[marks[1:] == 1].sum() / np.log(2) / scored_bytes, abs=1e-5)


def test_without_a_tokenizer_there_are_no_bits_per_byte(shards):
    judge = ValidationLoss(tokens=20).open(material(shards, own=False))
    assert "val_bpb" not in judge(model())
    assert "no bits per byte" in judge.protocol


def test_sums_become_loss_perplexity_and_bits():
    assert to_metrics(20.0, 10, 5) == {
        "val_loss": 2.0,
        "val_perplexity": pytest.approx(math.e**2),
        "val_bpb": pytest.approx(4 / math.log(2)),
    }
    assert math.isfinite(to_metrics(1e9, 10, None)["val_perplexity"])


def test_a_token_beyond_the_vocabulary_is_named(tmp_path):
    ids = np.array([1, 2, 3, 100, 4])
    shards = write_shards(tmp_path / "shards", {"train": [ids], "val": [ids]})
    judge = ValidationLoss().open(material(shards))
    with pytest.raises(UserError, match=r"token id 100 in .*model\.vocab_size 48"):
        judge(model())


def test_one_token_cannot_be_judged(tmp_path):
    shards = write_shards(tmp_path / "shards", {"train": [np.arange(9)], "val": [np.arange(1)]})
    with pytest.raises(UserError, match="at least 2 are needed"):
        ValidationLoss().open(material(shards))


def test_the_bigram_scores_the_tokens_that_the_model_is_judged_on(shards):
    data = TokenShards(path=str(shards))
    train, validation = (stream.read(0, len(stream)) for stream in (data.open_stream("train"), data.open_stream("val")))
    found = BigramBaseline().open(material(shards))(model())
    loss, constant = bigram_loss(train, validation, vocab_size=MODEL.resolved_vocab_size)
    assert found == {
        "bigram_loss": loss,
        "bigram_constant": constant,
        "bigram_bpb": pytest.approx(loss / math.log(2)),
    }
    assert 0 < loss < 2.5
    assert set(BigramBaseline().open(material(shards, own=False))(model())) == {"bigram_loss", "bigram_constant"}


def test_samples_go_on_from_the_prompt(shards):
    samples = Samples(prompt="12: 1", max_new_tokens=6, seed=3)
    text = samples.open(material(shards))(model())["sample"]
    assert text.startswith("12: 1")
    assert len(text) == 11
    assert samples.open(material(shards))(model())["sample"] == text
    assert replace(samples, seed=4).open(material(shards))(model())["sample"] != text


def test_samples_without_a_tokenizer_are_left_out_and_without_room_refused(shards):
    assert Samples().open(material(shards, own=False)) is None
    with pytest.raises(UserError, match="a sample's prompt has 16 tokens; 1 to 15 fit"):
        Samples(prompt="1" * 16).open(material(shards))
    with pytest.raises(UserError, match="prompt has 0 tokens"):
        Samples(prompt="").open(material(shards))


def test_judges_are_due_at_their_times():
    due = lambda judge: [step for step in range(11) if judge.should_run(step, steps=10)]
    assert due(ValidationLoss(every=4)) == [0, 4, 8, 10]
    assert due(Samples(every=4)) == [4, 8, 10]
    assert due(BigramBaseline()) == [0]


@pytest.mark.parametrize("field", ["every", "tokens", "batch_size"])
def test_counts_are_at_least_one(field):
    with pytest.raises(UserError, match=f"{field} is 0"):
        ValidationLoss(**{field: 0})


def test_with_a_document_mask_each_document_of_a_window_is_judged_by_itself(tmp_path):
    ids = np.random.RandomState(0).randint(0, MODEL.resolved_vocab_size, 50)
    starts = np.array([0, 5, 6, 21, 40])
    shards = write_shards(
        tmp_path / "shards", {"train": [ids], "val": [ids]}, own=tokenizer(), sidecars={("val", "documents"): starts}
    )
    masked = replace(MODEL, intra_document_mask=True)
    judge = ValidationLoss(batch_size=2).open(replace(material(shards), model=masked))
    assert "each document by itself" in judge.protocol
    nats, here, forward = 0.0, model(), jax.jit(GPT.__call__)
    cuts = sorted({*starts, *range(0, 49, MODEL.context_length), 49})
    for start, end in itertools.pairwise(cuts):
        padded = np.zeros((1, MODEL.context_length), np.int32)
        padded[0, : end - start] = ids[start:end]
        logits = np.asarray(jax.nn.log_softmax(forward(here, jnp.asarray(padded))))[0, : end - start]
        nats -= logits[np.arange(end - start), ids[start + 1 : end + 1]].sum()
    assert judge(with_static(model(), config=masked))["val_loss"] == pytest.approx(nats / 49, abs=1e-5)
