"""Distillation: loss and gradient by the formula in float64, on any mesh; students of some of a teacher's layers."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formula import assert_gradient_equals, compute_hidden, compute_logits, read_weights, softmax, traced_by_jax
from models import make_model, place_model
from tiny import MODEL, SINGLE, read_lines, tiny_config, tokenizer, write_text_shards

from gptjax.benchmark.step_contestants import open_batches
from gptjax.core.errors import UserError
from gptjax.data.loader import put_on_devices
from gptjax.evaluators.validation import ValidationLoss
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, take_layers
from gptjax.objectives.distillation import Distillation
from gptjax.objectives.objective import compute_sums
from gptjax.runs.run_dir import RunDir, write_imported_run
from gptjax.runs.trainer import train
from gptjax.sharding.mesh import MeshConfig

STUDENT = replace(MODEL, num_layers=1, logit_softcap=8.0)
TEACHER = replace(MODEL, embed_dim=48, num_heads=2)
OBJECTIVE = Distillation(temperature=2.0, kl_weight=5.0, cross_entropy_weight=2.0, cosine_weight=0.0, chunk_tokens=24)


def make_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    targets = rng.integers(0, MODEL.resolved_vocab_size, (1, 4, 16)).astype(np.int32)
    targets[0, 1, 5:] = -1
    return {"tokens": rng.integers(0, MODEL.resolved_vocab_size, (1, 4, 16)).astype(np.int32), "targets": targets}


def compute_exactly(student: GPT, teacher: GPT, *, cosine_weight: float) -> tuple[float, dict[str, np.ndarray]]:
    """5 T² KL(teacher ‖ student) at T = 2, 2 cross-entropies, and the cosine distance: the mean over scored tokens.

    In float64, with the gradient by each weight.
    """
    tokens, targets = (make_batch()[name][0] for name in ("tokens", "targets"))
    p, other = softmax(compute_logits(teacher, tokens) / 2), compute_hidden(teacher, tokens)

    @jax.jit
    @jax.value_and_grad
    def compute(weights: dict[str, jax.Array]) -> jax.Array:
        with traced_by_jax(weights):
            z, hidden = compute_logits(student, tokens), compute_hidden(student, tokens)
            kl = (p * (jnp.log(p) - jnp.log(softmax(z / 2)))).sum(axis=-1)
            picked = jnp.take_along_axis(softmax(z), np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
            losses = 5 * 4 * kl - 2 * jnp.log(picked)
            if cosine_weight:
                lengths = jnp.linalg.norm(hidden, axis=-1) * jnp.linalg.norm(other, axis=-1)
                losses += cosine_weight * (1 - (hidden * other).sum(axis=-1) / lengths)
        return jnp.where(targets >= 0, losses, 0).sum() / (targets >= 0).sum()

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, compute(read_weights(student)))


@pytest.mark.parametrize(
    ("mesh", "teacher_config", "cosine_weight"),
    [(MeshConfig(), TEACHER, 0.0), (MeshConfig(data=2, fsdp=2, tensor=2), MODEL, 1.5)],
    ids=["one", "eight"],
)
def test_loss_and_gradient_equal_the_formula_in_float64(
    mesh: MeshConfig, teacher_config: GPTConfig, cosine_weight: float
) -> None:
    student, teacher, batch = make_model(STUDENT, seed=1), make_model(teacher_config, seed=2), make_batch()
    objective = replace(OBJECTIVE, cosine_weight=cosine_weight)

    def mean(model: GPT, teacher: GPT, batch: dict[str, jax.Array]) -> jax.Array:
        sums = compute_sums(objective, model, {name: array[0] for name, array in batch.items()}, frozen=teacher)
        return sums.loss / sums.scored

    with mesh.activate():
        placed = place_model(student, mesh), place_model(teacher, mesh), put_on_devices(batch, mesh)
        loss, gradient = jax.jit(jax.value_and_grad(mean))(*placed)
    wanted, wanted_gradient = compute_exactly(student, teacher, cosine_weight=cosine_weight)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    assert_gradient_equals(gradient, wanted_gradient)


def test_cosine_is_that_of_the_final_hidden_states() -> None:
    student, teacher, batch = make_model(STUDENT, seed=1), make_model(MODEL, seed=2), make_batch()
    rows = {name: jnp.asarray(array[0]) for name, array in batch.items()}
    objective = replace(OBJECTIVE, cosine_weight=1.0)
    sums = jax.jit(partial(compute_sums, objective))(student, rows, frozen=teacher)
    read = jax.jit(GPT.hidden_states)
    one, other = (np.asarray(read(model, rows["tokens"]), np.float64) for model in (student, teacher))
    cosine = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
    wanted = (1 - cosine)[batch["targets"][0] >= 0].sum()
    assert float(sums.metrics["cosine"]) == pytest.approx(wanted, rel=1e-5)
    without = jax.jit(partial(compute_sums, OBJECTIVE))(student, rows, frozen=teacher)
    assert float(sums.loss - without.loss) == pytest.approx(wanted, rel=1e-3)
    with pytest.raises(UserError, match="the student has 32 channels and the teacher 48"):
        compute_sums(objective, student, rows, frozen=make_model(TEACHER))


def test_rows_without_a_target_and_certain_models_are_never_nan() -> None:
    """A batch without a target counts as nothing; with weights of 5, probabilities are 0 and 1."""
    batch = {name: array[0] for name, array in make_batch().items()}
    batch["targets"][0] = -1

    @jax.jit
    def compute(student: GPT, teacher: GPT, batch: dict[str, np.ndarray]) -> tuple[jax.Array, GPT]:
        objective = replace(OBJECTIVE, cosine_weight=1.0)
        return jax.value_and_grad(lambda student: compute_sums(objective, student, batch, frozen=teacher).loss)(student)

    for std in (0.2, 5.0):
        one, other = (make_model(config, std=std) for config in (replace(STUDENT, logit_softcap=None), MODEL))
        loss, gradient = compute(one, other, batch)
        assert np.isfinite(loss)
        assert loss > 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        loss, gradient = compute(one, other, batch | {"targets": np.full_like(batch["targets"], -1)})
        assert float(loss) == 0.0
        assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def write_teacher(directory: Path, config: GPTConfig) -> str:
    write_imported_run(directory, model=make_model(config, seed=4), tokenizer=tokenizer())
    return str(directory)


def test_student_of_some_layers_trains_and_resumes(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher", replace(MODEL, num_layers=3))
    config = tiny_config(
        write_text_shards(tmp_path / "shards"),
        steps=2,
        objective=Distillation(teacher=teacher, chunk_tokens=64),
        init_from=teacher,
        init_layers=(0, 2),
        evaluators=(ValidationLoss(every=2, tokens=64),),
    )
    assert train(config) == 0
    for name in ("loss", "kl", "cross_entropy", "cosine"):
        assert [step for step, _ in read_lines(config.directory, name)] == [1, 2]
        assert [step for step, _ in read_lines(config.directory, f"val_{name}")] == [0, 2]
    [*_, (_, nats)], [*_, (_, perplexity)] = (
        read_lines(config.directory, name) for name in ("val_cross_entropy", "val_perplexity")
    )
    assert perplexity == pytest.approx(np.exp(nats)), "of the text, not of the weighted sum"
    assert RunDir.open(config.directory).model_config.num_layers == 2
    assert train(replace(config, steps=3)) == 0
    with SINGLE.activate():
        _, frozen = open_batches(replace(config, model=STUDENT), SINGLE, tokenizer=tokenizer())
    assert frozen is not None, "a benchmark measures the teacher's work, too"
    assert frozen.config.num_layers == 3
    kept = take_layers(make_model(replace(MODEL, num_layers=3), seed=4), (0, 2))
    assert kept.blocks.mlp.up[...].shape[0] == 2
    with pytest.raises(UserError, match="init_layers has 3; the layers of the weights are 0 to 2"):
        train(replace(config, name="other", init_layers=(0, 3)))
    with pytest.raises(UserError, match="no init_from is given"):
        replace(config, init_from=None)
