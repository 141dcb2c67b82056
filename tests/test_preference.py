"""Objectives over pairs: their formulas in float64, on one device and on eight, and the reference that is stored."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formula import compute_logits, softmax
from models import make_model, place_model
from scored import draw_documents, draw_pairs, write_documents
from tiny import MODEL, read_lines, tiny_config

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.data.loader import Batch, put_on_devices
from gptjax.data.preferences import PreferenceShards, cut_pairs
from gptjax.model.gpt import GPT
from gptjax.runs.startup import make_read_spec, open_loader
from gptjax.runs.trainer import train
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.evaluators import ValidationLoss
from gptjax.training.objective import SFT, NextToken, Objective, compute_sums
from gptjax.training.preference import DPO, IPO, ORPO, PairObjective, ReferenceObjective, SimPO

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


def log_probs_of(model: GPT, batch: dict[str, np.ndarray]) -> list[tuple[float, int]]:
    """(log-probability, length) of the scored tokens of every document of the rows, in order, in float64."""
    tokens, targets, segments, positions = (batch[name][0] for name in ("tokens", "targets", "segments", "positions"))
    logits = compute_logits(model, tokens, segments=segments, positions=positions)
    picked = np.log(np.take_along_axis(softmax(logits), np.maximum(targets, 0)[..., None], axis=-1)[..., 0])
    found = []
    for row, numbers in enumerate(segments):
        for number in range(1, numbers.max() + 1):
            here = (numbers == number) & (targets[row] >= 0)
            found.append((picked[row][here].sum(), int(here.sum())))
    return found


def compute_loss(name: str, objective: PairObjective, model: GPT, *, reference: GPT, batch: dict) -> float:
    """The mean loss by the formulas of the papers, in float64."""
    policy, frozen = log_probs_of(model, batch), log_probs_of(reference, batch)
    sigmoid, losses, beta = lambda x: 1 / (1 + np.exp(-x)), [], objective.beta
    for pair in range(0, len(policy), 2):
        (chosen, m), (rejected, n) = policy[pair], policy[pair + 1]
        ratios = chosen - frozen[pair][0], rejected - frozen[pair + 1][0]
        if name == "dpo":
            h, wrong = beta * (ratios[0] - ratios[1]), objective.label_smoothing  # pyright: ignore[reportAttributeAccessIssue]
            losses.append(-(1 - wrong) * np.log(sigmoid(h)) - wrong * np.log(sigmoid(-h)))
        elif name == "ipo":
            losses.append((ratios[0] / m - ratios[1] / n - 1 / (2 * beta)) ** 2)
        elif name == "simpo":
            losses.append(-np.log(sigmoid(beta * (chosen / m - rejected / n) - objective.margin)))  # pyright: ignore[reportAttributeAccessIssue]
        else:
            odds = [np.exp(x) / (1 - np.exp(x)) for x in (chosen / m, rejected / n)]
            losses.append(-chosen / m - beta * np.log(sigmoid(np.log(odds[0] / odds[1]))))
    return float(np.mean(losses))


def shift_weights(model: GPT, *, by: float) -> tuple[GPT, dict[int, np.ndarray]]:
    """The model with each weight moved along a made direction, and how far each really moved."""
    moved = {}

    def move(number: int, leaf: jax.Array) -> jax.Array:
        direction = np.random.default_rng(number).standard_normal(leaf.shape).astype(np.float32)
        new = jnp.asarray(np.asarray(leaf) + np.float32(by) * direction)
        moved[number] = np.asarray(new, np.float64) - np.asarray(leaf, np.float64)
        return new

    leaves, structure = jax.tree.flatten(model)
    return jax.tree.unflatten(structure, [move(i, leaf) for i, leaf in enumerate(leaves)]), moved


EIGHT = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        *((name, MeshConfig()) for name in OBJECTIVES),
        ("dpo", EIGHT),
        *(pytest.param(name, EIGHT, marks=pytest.mark.slow) for name in ("ipo", "simpo", "orpo")),
    ],
)
def test_loss_and_gradient_equal_the_formula_in_float64(config: TrainConfig, name: str, mesh: MeshConfig) -> None:
    """The gradient by its product with a direction: the loss that far along it, and that far back."""
    objective, batch = OBJECTIVES[name], read_batch(config)
    policy, reference = make_model(CONFIG, seed=1), make_model(CONFIG, seed=2)
    frozen = {"frozen": None} if not isinstance(objective, ReferenceObjective) else {}

    def mean(model: GPT, reference: GPT, batch: Batch) -> jax.Array:
        rows = {name: array[0] for name, array in batch.items()}
        sums = compute_sums(objective, model, rows, **{"frozen": reference, **frozen})
        return sums.loss / sums.scored

    with mesh.activate():
        placed = place_model(policy, mesh), place_model(reference, mesh), put_on_devices(batch, mesh)
        loss, gradient = jax.jit(jax.value_and_grad(mean))(*placed)
    wanted = lambda model: compute_loss(name, objective, model, reference=reference, batch=batch)
    assert float(loss) == pytest.approx(wanted(policy), rel=1e-5)
    (ahead, forth), (behind, back) = (shift_weights(policy, by=by) for by in (3e-5, -3e-5))
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradient)]
    product = sum((leaf * (forth[i] - back[i])).sum() for i, leaf in enumerate(leaves))
    assert abs(product) > 1e-5, "a direction along which nothing changes would prove little"
    assert product == pytest.approx(wanted(ahead) - wanted(behind), rel=1e-4)


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
    assert {path.name: path.stat().st_mtime_ns for path in files.iterdir()} == written, "nothing is computed again"
    identity = json.loads((files / "reference.json").read_text())
    assert set(identity) == {"weights", "context_length", "splits"}
    assert set(identity["splits"]) == {"train", "val"}


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
    assert "1 of 3 pairs are left out" in text
    rows = reader.read(np.arange(2))
    assert sorted((rows["targets"] >= 0).sum(axis=1).tolist()) == [2, 12]


def test_padded_rows_have_no_loss_and_no_gradient(config: TrainConfig) -> None:
    """Rows of padding, and pairs that do not exist, count as nothing: no NaN."""
    batch = {name: jnp.zeros((1, 16), jnp.int32) for name in ("tokens", "segments", "positions")}
    batch["targets"] = jnp.full((1, 16), -1, jnp.int32)
    model = make_model(CONFIG)
    for objective in (SimPO(), ORPO(), OBJECTIVES["ipo"]):
        frozen = model if isinstance(objective, ReferenceObjective) else None
        compute = lambda model, objective=objective, frozen=frozen: compute_sums(objective, model, batch, frozen=frozen)
        sums = compute(model)
        assert (float(sums.loss), int(sums.scored)) == (0.0, 0)
        gradient = jax.grad(lambda model, compute=compute: compute(model).loss)(model)
        assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
