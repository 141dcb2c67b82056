"""Stages: how they resolve to phases, and that a run computes, compiles and counts by them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL, SINGLE, read_lines, tiny_config, write_text_shards

from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.checkpoints.checkpoint_format import flatten_by_name
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.data.batch_size import BatchSize, count_steps_by_part
from gptjax.data.loader import BatchLoader
from gptjax.model.gpt import with_static
from gptjax.optim import AdamW
from gptjax.optim.schedules import Constant, Cosine
from gptjax.runs import startup
from gptjax.runs.startup import compile_steps, initialize_state, make_read_spec
from gptjax.runs.trainer import train
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.stages import Phase, Stage, resolve_phases
from gptjax.training.state import TrainState
from gptjax.training.step import lr_scale_at, make_eval_step

STAGES = (Stage(3, batch_size=16, grad_accum=2), Stage(5), Stage(7, batch_size=4, lr_scale=1.5), Stage(9, lr_scale=0.5))

# Resolving


def test_unset_fields_of_a_stage_are_inherited():
    base = BatchSize(8, 2)
    assert resolve_phases(base, MODEL, ()) == (Phase(0, base, MODEL),)
    phases = resolve_phases(base, MODEL, STAGES)
    wanted = [(0, base, 1.0), (3, BatchSize(16, 2), 1.0), (5, base, 1.0), (7, BatchSize(4, 2), 1.5), (9, base, 0.5)]
    assert phases == tuple(Phase(begin, batch, MODEL, scale) for begin, batch, scale in wanted)
    assert resolve_phases(base, MODEL, (Stage(0, batch_size=2),)) == (Phase(0, BatchSize(2, 2), MODEL),)
    assert phases[3].describe() == "from step 7 on 4 rows = 64 tokens a step, learning rate × 1.5"


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ((Stage(5), Stage(3)), r"stages begin at the steps \[5, 3\].*ascending"),
        ((Stage(5), Stage(5)), r"\[5, 5\]"),
        ((Stage(5, batch_size=9),), r"stages: from step 5 on, .*batch_size 9 does not divide"),
        ((Stage(5, batch_size=0),), r"stages: from step 5 on, .*batch_size is 0"),
        ((Stage(5, long_window=0),), r"stages: from step 5 on, model\.long_window is 0"),
        ((Stage(5, short_window=4),), r"from step 5 on, model\.short_window is 4, which needs model\.window_pattern"),
    ],
)
def test_config_names_the_invalid_stage(stages: tuple[Stage, ...], words: str):
    with pytest.raises(UserError, match=words):
        TrainConfig(batch_size=8, grad_accum=2, stages=stages)


@pytest.mark.parametrize(
    ("fields", "words"), [({"begin": -1}, "step -1"), ({"begin": 5, "lr_scale": 0.0}, r"lr_scale is 0\.0")]
)
def test_stage_checks_its_own_fields(fields: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        Stage(**fields)


def test_check_mesh_checks_every_stage():
    config = TrainConfig(batch_size=8, stages=(Stage(5, batch_size=12),))
    with pytest.raises(UserError, match=r"12 .* 8 devices"):
        config.check_mesh(MeshConfig(data=8))


def test_tokens_and_flops_are_summed_over_phases():
    config = TrainConfig(batch_size=8, grad_accum=2, model=MODEL, stages=STAGES, steps=12)
    rows = np.cumsum([0] + [8] * 3 + [16] * 2 + [8] * 2 + [4] * 2 + [8] * 3)
    assert [config.tokens(steps) for steps in range(13)] == [16 * n for n in rows]
    assert config.flops(12, causal=True) == pytest.approx(16 * rows[-1] * MODEL.flops_per_token(causal=True))
    assert config.flops(0, causal=False) == 0
    assert count_steps_by_part([0, 3, 5], 4) == [3, 1, 0]


def test_windows_change_flops_and_the_summary():
    model = replace(MODEL, window_pattern="SL", short_window=4)
    stages = (Stage(0, long_window=8), Stage(2, short_window=8))
    config = TrainConfig(batch_size=8, model=model, stages=stages)
    narrow, wide = (phase.model_config.flops_per_token(causal=True) * 128 for phase in config.phases)
    assert narrow < wide
    assert config.flops(5, causal=True) == pytest.approx(2 * narrow + 3 * wide)
    assert config.history_until(2) == (
        "from step 0 on 8 rows = 128 tokens a step, long attention windows of 8, short attention windows of 4"
    )


def test_lr_scale_at_is_that_of_the_last_phase():
    scales = ((0, 1.0), (7, 1.5), (9, 0.5))
    assert [float(lr_scale_at(jnp.int32(step), scales)) for step in (0, 6, 7, 8, 9, 99)] == [1, 1, 1.5, 1.5, 0.5, 0.5]
    assert float(lr_scale_at(jnp.int32(3), ())) == 1


# Running


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_shards(tmp_path_factory.mktemp("stages") / "shards")


def make_config(shards: Path, **changes: Any) -> TrainConfig:
    optimizer = AdamW(learning_rate=0.01, schedule=Constant())
    base = {"model": {"num_layers": 1}, "batch_size": 8, "grad_accum": 2, "optimizer": optimizer}
    return tiny_config(shards, **(base | changes))


def open_batches(config: TrainConfig) -> BatchLoader:
    spec = make_read_spec(config, config.data.load_tokenizer())
    return BatchLoader(config.data.open(spec), spec, mesh=SINGLE)


def record_compilations(monkeypatch: pytest.MonkeyPatch, *, compile_step: Callable[..., Any]) -> list[BatchSize]:
    """Compile by `compile_step` from now on; return the growing list of batch sizes that it is called for."""
    batches: list[BatchSize] = []

    def record(*arguments: Any, frozen: Any) -> Any:
        assert frozen is None
        batches.append(arguments[-1].batch)
        return compile_step(*arguments)

    monkeypatch.setattr(startup, "compile_step", record)
    return batches


@pytest.fixture(scope="module")
def finished(shards: Path) -> tuple[TrainConfig, list[BatchSize], str]:
    """A finished run in stages: its config, the batch sizes that it compiled for, and its output."""
    checkpoint = CheckpointConfig(every=4, keep=9)
    config = make_config(shards, name="finished", steps=10, stages=STAGES, checkpoint=checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *parts, sep=" ", **_: printed.append(sep.join(map(str, parts))))
        compiled = record_compilations(patch, compile_step=startup.compile_step)
        assert train(config) == 0
    return config, compiled, "\n".join(printed)


def test_each_batch_size_is_compiled_once_before_training(finished: tuple[TrainConfig, list[BatchSize], str]):
    _, compiled, printed = finished
    assert compiled == [BatchSize(8, 2), BatchSize(16, 2), BatchSize(4, 2)]
    assert printed.index("3 programs") < printed.index("step 10/10  loss")
    assert "10 steps = 1,408 tokens" in printed
    assert "from step 3 on 16 rows = 256 tokens a step" in printed


@pytest.mark.parametrize(
    ("start", "steps", "wanted"),
    [
        (0, 10, [BatchSize(8, 2), BatchSize(16, 2), BatchSize(4, 2)]),
        (5, 10, [BatchSize(8, 2), BatchSize(4, 2)]),
        (7, 10, [BatchSize(4, 2), BatchSize(8, 2)]),
        (3, 5, [BatchSize(16, 2)]),
        (10, 10, []),
    ],
)
def test_only_coming_phases_are_compiled(
    shards: Path, monkeypatch: pytest.MonkeyPatch, start: int, steps: int, wanted: list[BatchSize]
):
    """Here, the program of a phase is just its batch size."""
    config = make_config(shards, steps=steps, stages=STAGES)
    batches = open_batches(config)
    compiled = record_compilations(monkeypatch, compile_step=lambda *arguments: arguments[-1].batch)
    train_step = compile_steps(config, SINGLE, object.__new__(TrainState), batches, start=start)
    assert compiled == wanted
    assert [train_step(step) for step in range(start, steps)] == [batches.batch(step) for step in range(start, steps)]


def test_metrics_count_the_tokens_of_stages(finished: tuple[TrainConfig, list[BatchSize], str]):
    config, *_ = finished
    assert dict(read_lines(config.directory, "tokens")) == {step: config.tokens(step) for step in range(1, 11)}
    rates = dict(read_lines(config.directory, "learning_rate"))
    assert [rates[step] for step in (1, 7, 8, 9, 10)] == pytest.approx([0.01, 0.01, 0.015, 0.015, 0.005])
    epochs = dict(read_lines(config.directory, "epoch"))
    assert epochs[10] == pytest.approx(config.tokens(10) / 16 / 197, rel=1e-6)


def test_lr_scale_scales_learning_rates_and_decay(shards: Path):
    optimizer = AdamW(learning_rate=0.01, weight_decay=0.1, schedule=Cosine(warmup_steps=1))
    configs = (
        make_config(shards, optimizer=replace(optimizer, learning_rate=0.02), steps=4),
        make_config(shards, optimizer=optimizer, stages=(Stage(0, lr_scale=2.0),), steps=4),
    )
    weights = []
    for config in configs:
        state, batches = initialize_state(config, SINGLE), open_batches(config)
        state, _ = compile_steps(config, SINGLE, state, batches, start=0)(0)(state, next(batches.iterate_from(0)))
        weights.append(flatten_by_name(state.model))
    for name, array in weights[0].items():
        np.testing.assert_allclose(np.asarray(array), np.asarray(weights[1][name]), rtol=2e-5, atol=1e-7, err_msg=name)


def test_loss_uses_the_windows_of_the_stage(shards: Path):
    """Evaluation of the same weights with the stage's windows and with the config's own is the reference."""
    config = make_config(shards, steps=4, stages=(Stage(0, long_window=3), Stage(1)))
    batches, evaluate = open_batches(config), make_eval_step(config.objective)
    state = initialize_state(config, SINGLE)
    train_step = compile_steps(config, SINGLE, state, batches, start=0)
    for step, batch in enumerate(islice(batches.iterate_from(0), 2)):
        models = (with_static(state.model, config=replace(config.model, long_window=3)), state.model)
        narrow, full = (float(nats) / int(count) for nats, count, _ in (evaluate(model, batch) for model in models))
        state, metrics = train_step(step)(state, batch)
        assert float(metrics["loss"]) == pytest.approx((narrow, full)[step], abs=1e-5)
        assert abs(narrow - full) > 1e-4


def test_resume_accepts_only_changes_of_coming_stages(
    finished: tuple[TrainConfig, list[BatchSize], str], capsys: pytest.CaptureFixture[str]
):
    config = replace(finished[0], steps=12)
    changed = (*STAGES[:3], Stage(9, lr_scale=0.7))
    with pytest.raises(UserError, match=r"\n  stages until step 10: .*× 0\.5 → .*× 0\.7"):
        train(replace(config, stages=changed))
    # The second removes the stage that ends the first.
    for stages in ((), (STAGES[0], *STAGES[2:])):
        with pytest.raises(UserError, match="stages until step 10"):
            train(replace(config, stages=stages))
    harmless = (Stage(3, batch_size=16, grad_accum=8), *STAGES[1:3], Stage(8, lr_scale=1.5, batch_size=4), STAGES[3])
    assert train(replace(config, stages=(*harmless, Stage(11, batch_size=16)))) == 0
    assert "changed: stages" in capsys.readouterr().out
    assert dict(read_lines(config.directory, "tokens"))[12] - config.tokens(11) == 16 * 16
