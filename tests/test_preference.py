"""Objectives over pairs: their formulas in float64, on one device and on eight, and the reference that is stored."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formula import assert_gradient_equals, compute_logits, read_weights, softmax, traced_by_jax
from models import make_model, open_loader, place_model
from scored import draw_documents, draw_pairs, write_documents
from tiny import MODEL, SINGLE, read_lines, tiny_config, tokenizer

from gptjax.benchmark.step_contestants import open_batches
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.data.loader import Batch, put_on_devices
from gptjax.data.preferences import PreferenceShards, cut_pairs
from gptjax.evaluators.validation import ValidationLoss
from gptjax.model.gpt import GPT
from gptjax.objectives.objective import SFT, NextToken, Objective, compute_sums
from gptjax.objectives.preference import DPO, IPO, ORPO, PairObjective, ReferenceObjective, SimPO
from gptjax.runs.run_dir import write_imported_run
from gptjax.runs.startup import make_read_spec
from gptjax.runs.trainer import train
from gptjax.sharding.mesh import MeshConfig

TRAIN, VALIDATION = draw_pairs(40, seed=1), draw_pairs(11, seed=2)
CONFIG = replace(MODEL, intra_document_mask=True, num_layers=1)
OBJECTIVES = {
    "dpo": DPO(beta=0.3, label_smoothing=0.1, chunk_tokens=24, store_reference=False),
    "ipo": IPO(beta=0.4, chunk_tokens=24, store_reference=False),
    "simpo": SimPO(beta=2.0, margin=0.5),
    "orpo": ORPO(beta=0.3),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    directory = tmp_path_factory.mktemp("preference")
    path = write_documents(directory / "pairs", {"train": TRAIN, "val": VALIDATION}, kind="preferences")
    return tiny_config(
        path,
        name="dpo",
        steps=4,
        batch_size=4,
        model={"intra_document_mask": True, "num_layers": 1},
        data=PreferenceShards(path=str(path)),
        objective=DPO(beta=0.3, chunk_tokens=24),
        evaluators=(ValidationLoss(every=4, batch_size=3),),
    )


def read_batch(config: TrainConfig, rows: int = 8) -> dict[str, np.ndarray]:
    """The first rows of the training data, (1, B, T)."""
    reader = config.data.open(make_read_spec(config, None))
    return {name: array[None] for name, array in reader.read(np.arange(rows)).items()}


class Exact(NamedTuple):
    """What the models of the tests compute in float64."""

    batch: dict[str, np.ndarray]
    policy: np.ndarray
    """Log-probability of the scored tokens of each document of the rows, in order."""
    reference: np.ndarray
    lengths: np.ndarray
    pull_back: Callable[[np.ndarray], dict[str, np.ndarray]]
    """A gradient by the policy's log-probabilities → the gradient by each weight."""


@pytest.fixture(scope="module")
def exact(config: TrainConfig) -> Exact:
    batch, policy = read_batch(config), make_model(CONFIG, seed=1)
    tokens, targets, segments, positions = (batch[name][0] for name in ("tokens", "targets", "segments", "positions"))
    documents = [(row, number) for row, last in enumerate(segments.max(axis=1)) for number in range(1, last + 1)]
    rows = np.arange(len(segments))[:, None]
    chosen = np.array([(rows == row) & (segments == number) & (targets >= 0) for row, number in documents])

    def sum_log_probs(weights: dict[str, jax.Array]) -> jax.Array:
        with traced_by_jax(weights):
            logits = compute_logits(policy, tokens, segments=segments, positions=positions)
            picked = jnp.take_along_axis(jnp.log(softmax(logits)), np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        return jnp.einsum("nbt,bt->n", chosen.astype(np.float64), picked)

    @jax.jit
    def compute(weights: dict[str, jax.Array], gradient: np.ndarray) -> tuple[jax.Array, dict[str, jax.Array]]:
        log_probs, pull_back = jax.vjp(sum_log_probs, weights)
        return log_probs, pull_back(gradient)[0]

    def run(model: GPT, gradient: np.ndarray) -> Any:
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, compute(read_weights(model), gradient))

    zeros = np.zeros(len(documents))
    own, other = (run(model, zeros)[0] for model in (policy, make_model(CONFIG, seed=2)))
    assert own.dtype == np.float64
    return Exact(batch, own, other, chosen.sum(axis=(1, 2)), lambda gradient: run(policy, gradient)[1])


def mean_loss(objective: PairObjective, policy: jax.Array, *, exact: Exact) -> jax.Array:
    """The mean loss by the formulas of the papers; documents are chosen and rejected ones in turn."""
    beta, ratios, means = objective.beta, policy - exact.reference, policy / exact.lengths
    log_sigmoid = lambda x: -jnp.log1p(jnp.exp(-x))
    if isinstance(objective, DPO):
        h, wrong = beta * (ratios[::2] - ratios[1::2]), objective.label_smoothing
        losses = -(1 - wrong) * log_sigmoid(h) - wrong * log_sigmoid(-h)
    elif isinstance(objective, IPO):
        ratios = ratios / exact.lengths
        losses = (ratios[::2] - ratios[1::2] - 1 / (2 * beta)) ** 2
    elif isinstance(objective, SimPO):
        losses = -log_sigmoid(beta * (means[::2] - means[1::2]) - objective.margin)
    else:
        odds = jnp.exp(means) / (1 - jnp.exp(means))
        losses = -means[::2] - beta * log_sigmoid(jnp.log(odds[::2] / odds[1::2]))
    return losses.mean()


EIGHT = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        *((name, MeshConfig()) for name in OBJECTIVES),
        ("dpo", EIGHT),
        *(pytest.param(name, EIGHT, marks=pytest.mark.slow) for name in ("ipo", "simpo", "orpo")),
    ],
)
def test_loss_and_gradient_equal_the_formula_in_float64(exact: Exact, name: str, mesh: MeshConfig) -> None:
    objective, policy, reference = OBJECTIVES[name], make_model(CONFIG, seed=1), make_model(CONFIG, seed=2)
    frozen = {"frozen": None} if not isinstance(objective, ReferenceObjective) else {}

    def mean(model: GPT, reference: GPT, batch: Batch) -> jax.Array:
        rows = {name: array[0] for name, array in batch.items()}
        sums = compute_sums(objective, model, rows, **{"frozen": reference, **frozen})
        return sums.loss / sums.scored

    with mesh.activate():
        placed = place_model(policy, mesh), place_model(reference, mesh), put_on_devices(exact.batch, mesh)
        loss, gradient = jax.jit(jax.value_and_grad(mean))(*placed)
    with jax.enable_x64(True):
        by_formula = jax.value_and_grad(lambda log_probs: mean_loss(objective, log_probs, exact=exact))
        wanted, by_log_probs = jax.tree.map(np.asarray, by_formula(jnp.asarray(exact.policy)))
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    assert_gradient_equals(gradient, exact.pull_back(by_log_probs))


@pytest.mark.slow
def test_stored_reference_gives_the_run_of_a_computed_one(config: TrainConfig, tmp_path: Path) -> None:
    """Stored once, bound to data and weights. The first step knows no preference; every later one is the same."""
    base = replace(config, name="base", data=_as_text(config, tmp_path), objective=SFT(), evaluators=(), steps=2)
    assert train(base) == 0
    stored = replace(config, name="stored", init_from=str(base.directory))
    computed = replace(stored, name="computed", objective=replace(config.objective, store_reference=False))
    assert train(stored) == train(computed) == 0
    assert read_lines(stored.directory)[0][1] == pytest.approx(np.log(2), abs=1e-6)
    for metric in ("loss", "reward_margin", "reward_accuracy", "val_loss", "val_reward_accuracy", "scored"):
        one, other = (read_lines(run.directory, metric) for run in (stored, computed))
        assert [step for step, _ in one] == [step for step, _ in other] != []
        later = slice(1 if "accuracy" in metric else 0, None)  # the sign of a margin of zero is chance
        np.testing.assert_allclose([v for _, v in one][later], [v for _, v in other][later], atol=1e-5)
    files = stored.directory / "reference"
    written = {path.name: path.stat().st_mtime_ns for path in files.iterdir()}
    assert train(stored) == 0
    shutil.rmtree(base.directory)
    assert train(stored) == 0
    with pytest.raises(UserError, match=r"objective\.beta: 0\.3 → 0\.5"):
        train(replace(stored, objective=replace(stored.objective, beta=0.5)))
    assert {path.name: path.stat().st_mtime_ns for path in files.iterdir()} == written, "nothing is computed again"
    identity = json.loads((files / "reference.json").read_text())
    assert set(identity) == {"weights", "context_length", "splits", "sha256"}
    assert set(identity["splits"]) == {"train", "val"}


def test_benchmark_reads_a_stored_reference_of_zeros(config: TrainConfig) -> None:
    """Nothing is computed or written for it."""
    with SINGLE.activate():
        batches, frozen = open_batches(config, SINGLE, tokenizer=tokenizer())
        batch = next(batches.iterate_from(0))
    assert frozen is None
    assert batch["reference"].shape == batch["tokens"].shape == (1, 4, 16)
    assert not np.asarray(batch["reference"]).any()
    assert not (config.directory / "reference").exists()


def _as_text(config: TrainConfig, directory: Path) -> TokenShards:
    path = write_documents(directory / "chat", {"train": draw_documents(40, seed=3)})
    return TokenShards(path=str(path), packing="best_fit_truncate")


@pytest.mark.parametrize("objective", [NextToken(), SFT()])
def test_preference_data_is_refused_under_other_objectives(config: TrainConfig, objective: Objective) -> None:
    with pytest.raises(UserError, match="holds preference pairs, but the objective does not read pairs"):
        open_loader(replace(config, objective=objective), MeshConfig())
    path = config.data.path  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="holds preference pairs, whose rejected texts are not to be learned"):
        open_loader(replace(config, objective=objective, data=TokenShards(path=path)), MeshConfig())


def test_other_data_is_refused_under_a_preference_objective(config: TrainConfig, tmp_path: Path) -> None:
    text = _as_text(config, tmp_path)
    with pytest.raises(UserError, match="this objective reads pairs"):
        open_loader(replace(config, data=text), MeshConfig())
    with pytest.raises(UserError, match="holds no preference data"):
        open_loader(replace(config, data=PreferenceShards(path=text.path)), MeshConfig())
    with pytest.raises(UserError, match=r"DPO, whose rows hold several pairs.*intra-document-mask"):
        replace(config, model=replace(config.model, intra_document_mask=False))


def test_pairs_that_are_cut_keep_what_differs_and_are_told(tmp_path: Path) -> None:
    """Too long together: the longer one is cut first. A pair whose rest does not differ is left out."""
    assert cut_pairs(np.array([[3, 4], [20, 4], [20, 20], [6, 13]]), 16).tolist() == [[3, 4], [12, 4], [8, 8], [6, 10]]
    whole = np.array([[20, 20], [7, 20], [8, 8], [9, 7], [4, 20]])
    assert cut_pairs(whole, 15).tolist() == [[7, 7], [7, 8], [7, 7], [8, 7], [4, 11]]
    mask = lambda prompt, answer: np.repeat([0, 1], [prompt, answer]).astype(np.uint8)
    ids = lambda count, last: np.append(np.arange(count - 1) % 40, last)
    same_until_the_cut = [(ids(20, 1), mask(3, 17)), (ids(20, 2), mask(3, 17))]
    late = [(ids(20, 1), mask(12, 8)), (ids(3, 2), mask(2, 1))]
    useful = [(ids(20, 1), mask(2, 18)), (ids(4, 41), mask(2, 2))]
    path = write_documents(tmp_path / "pairs", {"train": same_until_the_cut + late + useful}, kind="preferences")
    config = tiny_config(path, data=PreferenceShards(str(path)), model={"intra_document_mask": True}, objective=DPO())
    reader = config.data.open(make_read_spec(config, None))
    text = " ".join(reader.describe())
    assert "3 of 3 pairs are longer than 16 tokens and cut" in text
    assert "1 of 3 pairs are left out: no answer or no difference is left of them" in text
    rows = reader.read(np.arange(2))
    assert sorted((rows["targets"] >= 0).sum(axis=1).tolist()) == [2, 12]


def write_hostile_pairs(directory: Path) -> Path:
    """An identical pair, one with nothing in common, one whose answers are cut off, and one that marks nothing."""
    mask = lambda prompt, answer: np.repeat([0, 1], [prompt, answer]).astype(np.uint8)
    same = (np.array([1, 2, 3]), mask(1, 2))
    apart = [(np.array([4, 5]), mask(1, 1)), (np.array([6, 7, 8]), mask(1, 2))]
    cut_off = [(np.append(np.arange(20), last), mask(20, 1)) for last in (1, 2)]
    unmarked = [(np.array([9, last]), mask(2, 0)) for last in (1, 2)]
    documents = [same, same, *apart, *cut_off, *unmarked]
    return write_documents(directory / "hostile", {"train": documents, "val": documents}, kind="preferences")


@pytest.mark.parametrize("objective", [IPO(store_reference=False), SimPO(), ORPO()], ids=["ipo", "simpo", "orpo"])
def test_hostile_pairs_are_told_and_never_nan(config: TrainConfig, objective: PairObjective, tmp_path: Path) -> None:
    """Also where answers are certain or impossible, and in a batch without a pair, which counts as nothing."""
    reader = replace(config, data=PreferenceShards(str(write_hostile_pairs(tmp_path))), objective=objective)
    reader = reader.data.open(make_read_spec(reader, None))
    assert "2 of 4 pairs are left out" in " ".join(reader.describe())
    batch, frozen = reader.read(np.arange(1)), {}
    if isinstance(objective, ReferenceObjective):
        frozen["frozen"] = make_model(CONFIG, seed=2)

    @jax.jit
    def compute(model: GPT, batch: dict[str, jax.Array]) -> Any:
        def run(model: GPT) -> Any:
            sums = compute_sums(objective, model, batch, **frozen)
            return sums.loss, sums

        return jax.value_and_grad(run, has_aux=True)(model)

    for std in (0.2, 5.0):  # with 5, probabilities are 0 and 1
        (loss, sums), gradient = compute(make_model(CONFIG, std=std), batch)
        assert np.isfinite(loss)
        assert int(sums.scored) == 2
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((sums.metrics, gradient)))
    nothing = batch | {"targets": np.full_like(batch["targets"], -1), "segments": np.zeros_like(batch["segments"])}
    (loss, sums), gradient = compute(make_model(CONFIG), nothing)
    assert (float(loss), int(sums.scored)) == (0.0, 0)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
@pytest.mark.parametrize("objective", [DPO(), IPO(), SimPO(), ORPO()], ids=["dpo", "ipo", "simpo", "orpo"])
def test_training_on_hostile_pairs_is_never_nan(config: TrainConfig, objective: PairObjective, tmp_path: Path) -> None:
    write_imported_run(tmp_path / "start", model=make_model(CONFIG), tokenizer=tokenizer())
    data = PreferenceShards(str(write_hostile_pairs(tmp_path)))
    run = replace(config, data=data, objective=objective, init_from=str(tmp_path / "start"), output_dir=str(tmp_path))
    assert train(run) == 0
    for name in ("loss", "reward_margin", "val_loss", "val_reward_margin"):
        values = [value for _, value in read_lines(run.directory, name)]
        assert np.isfinite(values).all()
        assert len(values) >= 2
