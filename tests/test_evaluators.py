import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_models import PLAIN, TOKENIZER
from tiny import MODEL, tokenizer, write_shards, write_text_shards

from gptjax.core.constants import IGNORE_INDEX
from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.evaluators.bigram import BigramBaseline, bigram_loss
from gptjax.evaluators.evaluator import EvalContext, Evaluator
from gptjax.evaluators.metric_names import check_evaluator_names, to_metrics
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.model.gpt import GPT, with_static
from gptjax.objectives.objective import NextToken
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Bytes, Chars

forward = jax.jit(GPT.__call__)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_shards(tmp_path_factory.mktemp("evaluators") / "shards", lines=60)


@pytest.fixture(scope="module")
def model() -> GPT:
    return draw_model(MeshConfig())


@dataclass(frozen=True)
class SquaredError:
    """A loss that is not in nats, with another metric, as a plain tuple."""

    def sum_loss(self, model: GPT, batch: dict[str, Any], dropout_keys: Any = None) -> tuple[Any, Any, dict[str, Any]]:
        scored = batch["targets"] != IGNORE_INDEX
        loss = jnp.sum(jnp.mean(model(batch["tokens"]) ** 2, axis=-1) * scored)
        return loss, jnp.sum(scored), {"twice": 2 * loss}


def draw_model(mesh: MeshConfig) -> GPT:
    with mesh.activate():
        return jax.jit(lambda: GPT(MODEL, key=jax.random.key(0), mesh=mesh))()


def make_context(shards: Path, *, with_tokenizer: bool = True, mesh: MeshConfig | None = None) -> EvalContext:
    own = tokenizer() if with_tokenizer else None
    return EvalContext(TokenShards(path=str(shards)), own, MODEL, NextToken(), mesh or MeshConfig())


def read_ids(shards: Path, split: str) -> np.ndarray:
    stream = TokenShards(path=str(shards)).open_stream(split)
    return stream.read(0, len(stream))


@pytest.fixture(scope="module")
def expected_nats(shards: Path, model: GPT) -> np.ndarray:
    """Nats of every token of the split after its first, from the logits of windows that do not overlap."""
    ids, nats = read_ids(shards, "val"), []
    for start in range(0, len(ids) - 1, MODEL.context_length):
        window = ids[start : start + MODEL.context_length + 1].astype(np.int32)
        padded = np.pad(window[:-1], (0, MODEL.context_length - len(window) + 1))
        logits = np.asarray(forward(model, jnp.asarray(padded[None])), np.float64)[0, : len(window) - 1]
        normal = np.log(np.exp(logits).sum(axis=1))
        nats += list(normal - logits[np.arange(len(window) - 1), window[1:]])
    return np.array(nats)


@pytest.mark.parametrize(("tokens", "batch_size"), [(None, 3), (None, 16), (40, 16), (1, 1)])
def test_validation_loss_is_the_mean_for_any_batch_size(
    shards: Path, model: GPT, expected_nats: np.ndarray, tokens: int | None, batch_size: int
) -> None:
    found = ValidationLoss(tokens=tokens, batch_size=batch_size).open(make_context(shards))(model)
    nats = expected_nats[:tokens]
    assert found["val_loss"] == pytest.approx(nats.mean(), abs=1e-5)
    assert found["val_perplexity"] == pytest.approx(math.exp(nats.mean()), rel=1e-4)
    assert found["val_bpb"] == pytest.approx(nats.sum() / math.log(2) / len(nats), rel=1e-5)  # characters of one byte


def test_validation_losses_of_two_data_sets_keep_their_names(
    shards: Path, model: GPT, expected_nats: np.ndarray, tmp_path: Path
) -> None:
    other = write_text_shards(tmp_path / "other", lines=20)
    own, books = ValidationLoss(), ValidationLoss(name="books", data=TokenShards(path=str(shards)))
    check_evaluator_names([own, books, Samples(), BigramBaseline()])
    found = own.open(make_context(other))(model) | books.open(make_context(other))(model)
    assert found["books_loss"] == pytest.approx(expected_nats.mean(), abs=1e-5)
    assert found["val_loss"] != found["books_loss"]
    assert set(found) == {f"{name}_{kind}" for name in ("val", "books") for kind in ("loss", "perplexity", "bpb")}


def test_evaluators_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match=r'2 ValidationLoss are named \'val\'.*ValidationLoss\(name="books"\)'):
        check_evaluator_names([ValidationLoss(), Samples(), ValidationLoss(every=7)])


def test_validation_data_of_another_tokenizer_is_refused(shards: Path, tmp_path: Path) -> None:
    bytes_shards = write_shards(tmp_path / "bytes", {"val": [np.arange(99)]}, own=Bytes())
    with pytest.raises(UserError, match="the data of ValidationLoss 'x' was made with another tokenizer \\(bytes\\)"):
        ValidationLoss(name="x", data=TokenShards(path=str(bytes_shards))).open(make_context(shards))


def test_validation_data_is_read_by_a_tokenizer_with_more_special_tokens(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "plain", {"val": [np.arange(99)]}, own=PLAIN)
    model = replace(MODEL, vocab_size=TOKENIZER.vocab_size)
    context = EvalContext(TokenShards(), TOKENIZER, model, NextToken(), MeshConfig())
    assert ValidationLoss(data=TokenShards(path=str(shards))).open(context).scored == 98


def test_validation_loss_does_not_depend_on_the_mesh(shards: Path, expected_nats: np.ndarray) -> None:
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    with mesh.activate():
        evaluate = ValidationLoss(batch_size=3).open(make_context(shards, mesh=mesh))
        assert evaluate(draw_model(mesh))["val_loss"] == pytest.approx(expected_nats.mean(), abs=1e-5)


def test_bits_per_byte_divide_by_bytes_of_scored_tokens(shards: Path, model: GPT) -> None:
    """Some tokens have several bytes, and one has none."""
    own = tokenizer()
    own.bytes_per_token = np.arange(own.vocab_size, dtype=np.int32) % 4
    evaluate = ValidationLoss(tokens=50).open(replace(make_context(shards), tokenizer=own))
    ids = read_ids(shards, "val")
    assert evaluate.bytes is not None
    assert evaluate.bytes == int((ids[1:51] % 4).sum())
    found = evaluate(model)
    assert isinstance(found["val_loss"], float)
    assert found["val_bpb"] == pytest.approx(found["val_loss"] * 50 / math.log(2) / evaluate.bytes)
    assert f"50 of {len(ids) - 1:,} next tokens" in evaluate.describe()
    assert f"{evaluate.bytes:,} bytes" in evaluate.describe()


def test_validation_loss_counts_only_scored_tokens(
    shards: Path, model: GPT, expected_nats: np.ndarray, tmp_path: Path
) -> None:
    ids = read_ids(shards, "val")
    mask = (np.arange(len(ids)) % 3 == 0).astype(np.uint8)
    splits, sidecars = {"train": [ids], "val": [ids]}, {("val", "scored"): mask}
    masked = write_shards(tmp_path / "masked", splits, own=tokenizer(), sidecars=sidecars)
    evaluate = ValidationLoss().open(make_context(masked))
    scored, found = mask[1:] == 1, evaluate(model)
    assert evaluate.scored == scored.sum()
    assert found["val_loss"] == pytest.approx(expected_nats[scored].mean(), abs=1e-5)
    scored_bytes = tokenizer().bytes_per_token[ids[1:][scored]].sum()
    assert found["val_bpb"] == pytest.approx(expected_nats[scored].sum() / np.log(2) / scored_bytes, abs=1e-5)


def test_intra_document_mask_evaluates_each_document_alone(tmp_path: Path, model: GPT) -> None:
    ids = np.random.RandomState(0).randint(0, MODEL.resolved_vocab_size, 50)
    starts = np.array([0, 5, 6, 21, 40])
    splits, sidecars = {"train": [ids], "val": [ids]}, {("val", "documents"): starts}
    shards = write_shards(tmp_path / "shards", splits, own=tokenizer(), sidecars=sidecars)
    masked = replace(MODEL, intra_document_mask=True)
    evaluate = ValidationLoss(batch_size=2).open(replace(make_context(shards), model_config=masked))
    assert "each document by itself" in evaluate.describe()
    nats = 0.0
    cuts = sorted({*starts, *range(0, 49, MODEL.context_length), 49})
    for start, end in itertools.pairwise(cuts):
        padded = np.zeros((1, MODEL.context_length), np.int32)
        padded[0, : end - start] = ids[start:end]
        logits = np.asarray(jax.nn.log_softmax(forward(model, jnp.asarray(padded))))[0, : end - start]
        nats -= logits[np.arange(end - start), ids[start + 1 : end + 1]].sum()
    assert evaluate(with_static(model, config=masked))["val_loss"] == pytest.approx(nats / 49, abs=1e-5)


def test_validation_loss_without_tokenizer_has_no_bits_per_byte(shards: Path, model: GPT) -> None:
    evaluate = ValidationLoss(tokens=20).open(make_context(shards, with_tokenizer=False))
    assert "val_bpb" not in evaluate(model)
    assert "no bits per byte" in evaluate.describe()


def test_validation_loss_of_another_unit_has_no_perplexity_and_no_bits(shards: Path, model: GPT) -> None:
    context = replace(make_context(shards), objective=SquaredError())
    evaluate = ValidationLoss(tokens=20).open(context)
    found = evaluate(model)
    assert found["val_twice"] == pytest.approx(2 * found["val_loss"])
    assert list(found) == ["val_loss", "val_twice"]
    assert evaluate.describe().endswith("mean loss")


def test_to_metrics_of_a_loss_with_other_terms_has_perplexity_and_bits_of_the_cross_entropy() -> None:
    alone = to_metrics({"loss": 20.0}, 10, 5, nats_metric="loss")
    beside = to_metrics({"loss": 90.0, "kl": 10.0, "cross_entropy": 20.0}, 10, 5, nats_metric="cross_entropy")
    assert beside == alone | {"val_loss": 9.0, "val_kl": 1.0, "val_cross_entropy": 2.0}


def test_to_metrics_gives_loss_perplexity_and_bits() -> None:
    assert to_metrics({"loss": 20.0}, 10, 5, nats_metric="loss") == {
        "val_loss": 2.0,
        "val_perplexity": pytest.approx(math.e**2),
        "val_bpb": pytest.approx(4 / math.log(2)),
    }
    perplexity = to_metrics({"loss": 1e9}, 10, None, nats_metric="loss")["val_perplexity"]
    assert isinstance(perplexity, float)
    assert math.isfinite(perplexity)


def test_validation_token_beyond_the_vocabulary_is_named(tmp_path: Path) -> None:
    ids = np.array([1, 2, 3, 100, 4])
    context = make_context(write_shards(tmp_path / "shards", {"train": [ids], "val": [ids]}))
    with pytest.raises(UserError, match=r"token id 100 in .*model\.vocab_size 48"):
        ValidationLoss().open(context)


def test_validation_split_of_one_token_is_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", {"train": [np.arange(9)], "val": [np.arange(1)]})
    with pytest.raises(UserError, match="at least 2 are needed"):
        ValidationLoss().open(make_context(shards))


def test_bigram_baseline_scores_the_same_tokens(shards: Path, model: GPT) -> None:
    found = BigramBaseline().open(make_context(shards))(model)
    train, validation = (read_ids(shards, split) for split in ("train", "val"))
    loss, constant = bigram_loss(train, validation, vocab_size=MODEL.resolved_vocab_size)
    assert found == {
        "bigram_loss": loss,
        "bigram_constant": constant,
        "bigram_bpb": pytest.approx(loss / math.log(2)),
    }
    assert 0 < loss < 2.5
    without = BigramBaseline().open(make_context(shards, with_tokenizer=False))(model)
    assert set(without) == {"bigram_loss", "bigram_constant"}


def test_samples_continue_the_prompt_by_their_seed(shards: Path, model: GPT) -> None:
    samples = Samples(prompt="12: 1", max_new_tokens=6, seed=3)

    def draw(samples: Samples) -> str:
        evaluate = samples.open(make_context(shards))
        assert evaluate is not None
        return str(evaluate(model)["sample"])

    text = draw(samples)
    assert text.startswith("12: 1")
    assert len(text) == 11
    assert draw(samples) == text
    assert draw(replace(samples, seed=4)) != text


def test_samples_need_a_tokenizer_and_space_for_a_token(shards: Path) -> None:
    assert Samples().open(make_context(shards, with_tokenizer=False)) is None
    with pytest.raises(
        UserError, match=r"16 tokens, .*Give --model\.context-length=17 .* at most 15 tokens: --evaluators"
    ):
        Samples(prompt="1" * 16).open(make_context(shards))
    with pytest.raises(UserError, match="has 0 tokens; wanted 1 or more"):
        Samples(prompt="").open(make_context(shards))


def test_samples_of_characters_without_line_ends_begin_with_one_of_them(shards: Path) -> None:
    context = replace(make_context(shards), tokenizer=Chars.from_text("0123456789"))
    assert Samples().open(context) is not None
    with pytest.raises(UserError, match="the prompt of Samples 'sample': the character 'x'"):
        Samples(prompt="x").open(context)


@pytest.mark.parametrize(
    ("evaluator", "steps"),
    [(ValidationLoss(every=4), [0, 4, 8, 10]), (Samples(every=4), [4, 8, 10]), (BigramBaseline(), [0])],
)
def test_evaluators_run_at_their_steps(evaluator: Evaluator, steps: list[int]) -> None:
    assert [step for step in range(11) if evaluator.should_run(step, steps=10)] == steps


@pytest.mark.parametrize("field", ["every", "tokens", "batch_size"])
def test_validation_loss_with_zero_count_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"{field} is 0"):
        replace(ValidationLoss(), **{field: 0})


@pytest.mark.parametrize(
    "samples",
    [{"every": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"top_k": 0}, {"seed": -1}],
)
def test_samples_with_invalid_value_are_refused(samples: dict) -> None:
    """The run would otherwise stop at its first sample."""
    with pytest.raises(UserError, match=f"evaluators: {next(iter(samples))} is"):
        Samples(**samples)
