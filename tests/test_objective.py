"""Supervised fine-tuning: only answers are learned, each conversation by itself, with one mean on any mesh."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import make_model, open_loader, place_model
from scored import Document, draw_documents, write_documents
from tiny import MODEL, read_lines, tiny_config, write_text_shards

from gptjax.config import TrainConfig
from gptjax.core.constants import IGNORE_INDEX
from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.evaluation.scoring import score_windows
from gptjax.evaluation.windows import EvalWindow
from gptjax.evaluators.validation import ValidationLoss
from gptjax.model.gpt import GPT
from gptjax.objectives.objective import SFT, compute_sums
from gptjax.objectives.preference import compute_log_probs
from gptjax.optim import AdamW, Constant
from gptjax.runs.run_dir import RunDir
from gptjax.runs.startup import make_phase_step, make_read_spec, open_evaluators
from gptjax.runs.trainer import train
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.state import init_state

TRAIN, VALIDATION = draw_documents(60, seed=1), draw_documents(23, seed=2)
forward = jax.jit(GPT.__call__)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    shards = write_documents(tmp_path_factory.mktemp("sft") / "chat", {"train": TRAIN, "val": VALIDATION})
    return tiny_config(
        shards,
        name="sft",
        steps=6,
        batch_size=8,
        grad_accum=1,
        model={"intra_document_mask": True, "dropout": 0.1},
        data=TokenShards(path=str(shards), packing="best_fit_truncate"),
        objective=SFT(chunk_tokens=24),
        evaluators=(ValidationLoss(every=3, batch_size=3),),
    )


def compute_nats(model: GPT, documents: list[Document]) -> tuple[float, int]:
    """Summed nats and number of scored tokens of documents cut to T tokens, each by itself, in float64."""
    nats, count = 0.0, 0
    plain = replace(model.config, intra_document_mask=False)
    for ids, mask in documents:
        ids, mask = ids[: plain.context_length], mask[: plain.context_length]
        if not mask[1:].any():
            continue
        padded = np.pad(ids, (0, plain.context_length - len(ids)))
        logits = np.asarray(forward(make_model(plain), jnp.asarray(padded[None])), np.float64)[0]
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        places = np.flatnonzero(mask[1:])
        nats -= log_probabilities[places, ids[1:][places]].sum()
        count += len(places)
    return nats, count


def run_steps(config: TrainConfig, mesh: MeshConfig) -> list[dict[str, float]]:
    """Metrics of the first three steps, from made weights."""
    config = replace(config, mesh=mesh, model=replace(config.model, dropout=0.0))
    with mesh.activate():
        optimizer = config.optimizer.build(steps=config.steps, mesh=mesh)
        state = jax.jit(lambda model: init_state(model, optimizer))(place_model(make_model(config.model), mesh))
        batches, found = open_loader(config, mesh).iterate_from(0), []
        step = make_phase_step(config, mesh, config.phases[0])
        for _ in range(3):
            state, metrics = step(state, next(batches))
            found.append({name: float(value) for name, value in metrics.items()})
    return found


def load(config: TrainConfig) -> GPT:
    return RunDir.open(config.directory).load_model()


def test_sft_validation_is_the_mean_over_answers_of_documents_by_themselves(config: TrainConfig) -> None:
    model = make_model(replace(config.model, dropout=0.0))
    nats, count = compute_nats(model, VALIDATION)
    for batch_size, mesh in ((3, MeshConfig()), (16, MeshConfig(data=4, tensor=2))):
        one = replace(config, evaluators=(ValidationLoss(batch_size=batch_size),))
        with mesh.activate():
            evaluators = open_evaluators(one, None, mesh)
            [(_, evaluate)], [text] = evaluators.opened, evaluators.describe()
            assert re.search(r"; \d+ of \d+ documents are left out: nothing in their first 16", text)
            found = evaluate(place_model(model, mesh))
        assert found == {"val_loss": pytest.approx(nats / count, abs=1e-5)}


FORMS: dict[str, dict[str, Any]] = {
    "sinks": {"num_sinks": 2, "positions": "rotary", "num_kv_heads": 2},
    "windows and sinks in blocks of queries": {
        "window_pattern": "SL",
        "short_window": 4,
        "long_window": 7,
        "num_sinks": 2,
        "value_residual": True,
        "x0_mix": True,
        "compute": replace(MODEL.compute, query_block=5),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_packed_answers_have_the_nats_of_each_conversation_alone(config: TrainConfig, form: str) -> None:
    """Token by token, in training and in evaluation, whatever the attention sees."""
    config = replace(config, model=replace(config.model, dropout=0.0, **FORMS[form]))
    model, length = make_model(config.model), config.model.context_length
    rows = config.data.open(make_read_spec(config, None)).read(np.arange(8))
    segments = rows["segments"]
    places = [(row, segments[row] == number) for row in range(8) for number in range(1, segments[row].max() + 1)]
    assert len(places) > 8, "rows hold several conversations"
    documents = [rows["tokens"][row, chosen] for row, chosen in places]
    alone = np.stack([np.pad(ids, (0, length - len(ids))) for ids in documents])
    logits = np.asarray(forward(make_model(replace(config.model, intra_document_mask=False)), alone), np.float64)
    nats = np.log(np.exp(logits).sum(axis=-1, keepdims=True)) - logits

    batch = {name: jnp.asarray(array) for name, array in rows.items()}
    log_probs = partial(compute_log_probs, chunk_tokens=24)
    found, sums = jax.jit(lambda *rows: (-log_probs(*rows), compute_sums(SFT(chunk_tokens=24), *rows)))(model, batch)
    found = np.asarray(found)
    scores = score_windows(model, [EvalWindow(ids, len(ids) - 1) for ids in documents])
    total = 0.0
    for number, (row, chosen) in enumerate(places):
        targets, size = rows["targets"][row, chosen], len(documents[number])
        scored = np.flatnonzero(targets != IGNORE_INDEX)
        wanted = nats[number, scored, targets[scored]]
        np.testing.assert_allclose(found[row, chosen][scored], wanted, atol=1e-5, rtol=1e-5)
        every = nats[number, np.arange(size - 1), documents[number][1:]]
        np.testing.assert_allclose(-scores[number].log_probabilities, every, atol=1e-5, rtol=1e-5)
        total += wanted.sum()
    assert float(sums.loss) == pytest.approx(total, rel=1e-5)
    assert int(sums.scored) == (rows["targets"] != IGNORE_INDEX).sum()


@pytest.fixture(scope="module")
def alone(config: TrainConfig) -> list[dict[str, float]]:
    return run_steps(config, MeshConfig())


@pytest.mark.parametrize(
    ("mesh", "grad_accum"), [(MeshConfig(), 4), (MeshConfig(data=8), 1), (MeshConfig(data=2, fsdp=2, tensor=2), 2)]
)
def test_sft_steps_have_the_mean_over_all_answers_on_any_layout(
    config: TrainConfig, alone: list[dict[str, float]], mesh: MeshConfig, grad_accum: int
) -> None:
    """Rows, micro-batches and devices have different numbers of targets."""
    found = run_steps(replace(config, grad_accum=grad_accum), mesh)
    for one, wanted in zip(found, alone, strict=True):
        assert one["scored"] == wanted["scored"] > 0
        assert one["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)


def test_sft_epoch_scores_each_answer_once(config: TrainConfig) -> None:
    rows = config.data.open(make_read_spec(config, None))
    numbers = np.arange(round(1 / rows.epochs(1)["epoch"]))
    found = rows.read(numbers)
    _, count = compute_nats(make_model(config.model), TRAIN)
    assert (found["targets"] != IGNORE_INDEX).sum() == count
    assert any("left out" in line for line in rows.describe())
    assert not ((found["targets"] == IGNORE_INDEX).all(axis=1)).any(), "documents without an answer are left out"


@pytest.mark.slow
def test_sft_run_stopped_and_resumed_equals_the_whole_run(config: TrainConfig) -> None:
    config = replace(config, optimizer=AdamW(learning_rate=3e-3, schedule=Constant()))
    whole, parts = replace(config, name="whole"), replace(config, name="parts")
    assert train(whole) == train(replace(parts, steps=3)) == train(parts) == 0
    for name in ("loss", "val_loss", "scored", "epoch"):
        assert read_lines(parts.directory, name) == read_lines(whole.directory, name), name
    for one, other in zip(*(jax.tree.leaves(load(run)) for run in (whole, parts)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_long_documents_are_cut_and_told(tmp_path: Path) -> None:
    """An answer that begins beyond the row is left out; one that is cut is learned as far as it is read."""
    length = MODEL.context_length
    late = np.arange(2 * length) % 40, np.repeat([0, 1], [length, length]).astype(np.uint8)
    long = np.arange(2 * length) % 40, np.repeat([0, 1], [4, 2 * length - 4]).astype(np.uint8)
    shards = write_documents(tmp_path / "chat", {"train": [late, long]})
    data = TokenShards(path=str(shards), packing="best_fit_truncate")
    config = tiny_config(shards, data=data, model={"intra_document_mask": True}, objective=SFT())
    reader = data.open(make_read_spec(config, None))
    rows = reader.read(np.arange(1))
    assert rows["tokens"][0].tolist() == list(range(length))
    assert (rows["targets"] != IGNORE_INDEX).sum() == length - 4
    text = " ".join(reader.describe())
    assert "2 of 2 documents are longer than 16 tokens and cut" in text
    assert "1 of 2 documents are left out" in text


def test_sft_refuses_rows_that_it_cannot_learn_from(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SFT, whose rows hold several answers.*--model.intra-document-mask"):
        replace(config, model=replace(config.model, intra_document_mask=False))
    with pytest.raises(UserError, match=r"packing is 'concat'.*best_fit_truncate"):
        open_loader(replace(config, data=replace(config.data, packing="concat")), MeshConfig())
    text = TokenShards(path=str(write_text_shards(tmp_path / "text")), packing="best_fit_truncate")
    with pytest.raises(UserError, match="no file says which tokens are answers"):
        open_loader(replace(config, data=text), MeshConfig())
