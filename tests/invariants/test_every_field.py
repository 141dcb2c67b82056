"""No field of a config is idle: another value changes the program, a file or the text that is printed, or is refused.

The classes and their fields are found by reflection. A new field fails here until `field_values.FIELDS`
has a line for it: another value, and the observation that it changes.
"""

import dataclasses
import functools
import itertools
import json
import re
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scored import draw_documents, write_documents
from tiny import SINGLE, tiny_config, tokenizer, write_shards, write_text_shards

import gptjax.data.config
import gptjax.metrics.loggers
import gptjax.objectives.objective
import gptjax.optim
import gptjax.train
from gptjax.checkpoints.checkpoint import CheckpointManager
from gptjax.checkpoints.checkpoint_format import FORMAT_VERSION
from gptjax.checkpoints.saver import Saver
from gptjax.cli.command_line import ConfigRequest
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.serialization import to_json
from gptjax.data.config import TokenShards
from gptjax.data.loader import BatchLoader
from gptjax.data.source import DataSource
from gptjax.data.splits import MissingSplit
from gptjax.evaluators import bigram, samples, validation
from gptjax.evaluators.evaluator import EvalContext, Evaluator
from gptjax.finetuning.adapters import add_adapters
from gptjax.metrics.logger import MetricLogger
from gptjax.metrics.loggers import Logger
from gptjax.metrics.throughput import RunCost
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT, abstract_model
from gptjax.objectives.objective import SFT, MicroBatch, NextToken, Objective
from gptjax.optim import (
    AdamW,
    Cosine,
    Optimizer,
    Schedule,
)
from gptjax.runs import startup
from gptjax.runs.resume import restore_state as restore_run_state
from gptjax.runs.startup import collect_fingerprints, make_phase_step, make_read_spec, open_evaluators, prepare_config
from gptjax.sharding.mesh import MeshConfig
from gptjax.supervision.divergence import Diverged, DivergenceGuard
from gptjax.supervision.signals import GracefulShutdown
from gptjax.supervision.stopping import StopRules
from gptjax.supervision.watchdog import Watchdog
from gptjax.tokenization.tokenizer import Tokenizer
from gptjax.training.state import TrainState, abstract_state, create_state

from .field_values import FIELDS, NEEDS, REFUSED, SECTIONS, place_section

PROTOCOLS = (DataSource, Evaluator, Logger, Objective, Optimizer, Schedule)
EVALUATORS = (bigram, samples, validation)
MODULES = (gptjax.data.config, gptjax.metrics.loggers, gptjax.optim, gptjax.objectives.objective, *EVALUATORS)


def list_dataclasses(hint: Any) -> set[type]:
    """The dataclasses of a type hint, and those that their own fields name."""
    found = set().union(*map(list_dataclasses, typing.get_args(hint)))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        found = found.union({hint}, *map(list_dataclasses, typing.get_type_hints(hint).values()))
    return found


def find_config_classes() -> set[type]:
    """TrainConfig, every class that one of gptjax's protocols accepts in it, and all classes of their fields."""
    parts = [
        cls
        for module in MODULES
        for cls in vars(module).values()
        if dataclasses.is_dataclass(cls) and cls.__module__.startswith(module.__name__)
    ]
    parts = [cls for cls in parts if isinstance(cls, type) and any(issubclass(cls, one) for one in PROTOCOLS)]  # pyright: ignore[reportGeneralTypeIssues]
    return set().union(*map(list_dataclasses, [TrainConfig, *parts]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A config that uses every part: dropout, an untied head, a schedule that decays."""
    directory = tmp_path_factory.mktemp("fields")
    write_text_shards(directory / "other", lines=40)
    write_documents(directory / "chat", {"train": draw_documents(40, seed=1), "val": draw_documents(9, seed=2)})
    model = {
        "dropout": 0.1,
        "tie_embeddings": False,
        "num_heads": 2,
        "positions": "rotary",
        "window_pattern": "LS",
        "short_window": 9,
        "x0_mix": True,
        "value_embeddings": "0.",
        "logit_softcap": 30.0,
    }
    config = tiny_config(write_text_shards(directory / "shards", lines=30), model=model)
    return replace(config, optimizer=AdamW(schedule=Cosine(warmup_steps=2)))


@dataclasses.dataclass(frozen=True)
class SumOfWeights:
    """A loss without a forward pass, which is most of what there is to trace."""

    def sum_loss(self, model: GPT, batch: MicroBatch, dropout_keys: Any = None) -> tuple[jax.Array, jax.Array]:
        return sum(map(jnp.sum, jax.tree.leaves(model)), jnp.float32(0)), jnp.int32(batch["targets"].size)


def needs_forward_pass(cls: type, name: str) -> bool:
    """Whether a field changes what the model or the loss computes."""
    return cls in (GPTConfig, ComputeConfig, NextToken, SFT) or name.endswith("_window")


def open_batches(config: TrainConfig, mesh: MeshConfig, own: Tokenizer | None = None) -> BatchLoader:
    spec = make_read_spec(config, own)
    return BatchLoader(config.data.open(spec), spec, mesh=mesh)


@functools.cache
def trace_initialization(model: GPTConfig, seed: int, mesh: MeshConfig) -> str:
    with mesh.activate():
        return str(jax.make_jaxpr(lambda: GPT(model, key=jax.random.key(seed), mesh=mesh))())


@functools.cache
def trace_program(config: TrainConfig) -> str:
    """The initialization of the weights and the training steps, as they are compiled."""
    mesh = config.mesh.resolve(8)
    config.check_mesh(mesh)
    draw = trace_initialization(config.model, config.seed, mesh)
    optimizer = config.optimizer.build(steps=config.steps, mesh=mesh)
    with mesh.activate():
        state = abstract_state(config.model, optimizer, mesh=mesh, has_ema=config.ema.enabled)
        batches, steps = open_batches(config, mesh), []
        for phase in config.phases:
            rows = batches.abstract_batch(phase.begin)
            steps.append(str(make_phase_step(config, mesh, phase).trace(state, rows).jaxpr))
    return re.sub(r"0x[0-9a-f]+", "", "\n".join([draw, *steps]))


def list_due_steps(config: TrainConfig) -> list[list[int]]:
    """The steps at which checkpoints are saved and evaluators run."""
    questions = (config.checkpoint.should_save, *(evaluator.should_run for evaluator in config.evaluators))
    return [[step for step in range(2001) if should_act(step, steps=2000)] for should_act in questions]


def make_context(config: TrainConfig) -> EvalContext:
    return EvalContext(config.data, tokenizer(), config.model, config.objective, MeshConfig())


def describe_validation(config: TrainConfig) -> tuple[str, int, str]:
    evaluate = config.evaluators[0].open(make_context(config))
    return evaluate.describe(), evaluate.batch_size, evaluate.name  # pyright: ignore[reportFunctionMemberAccess]


def record_generation(config: TrainConfig) -> list[Any]:
    """The arguments of `generate`."""
    calls = []

    def generate(model: GPT, prompts: Any, **options: Any) -> jax.Array:
        calls.append((prompts, options | {"key": str(jax.random.key_data(options["key"]))}))
        return jnp.zeros((1, 1), jnp.int32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples.generation, "generate", generate)
        patch.setattr(type(tokenizer()), "decode", lambda self, ids: "")
        found = config.evaluators[0].open(make_context(config))(abstract_model(config.model))
    return [*calls, *found]


def identify_data(config: TrainConfig) -> tuple[str | None, ...]:
    """Fingerprints of the training data, the validation data and the tokenizer."""
    config, own = prepare_config(config)
    reader = open_batches(config, MeshConfig(), own).reader
    return reader.fingerprint, config.data.open_stream("val").fingerprint, own.fingerprint if own else None


def read_rows(config: TrainConfig) -> list[Any]:
    """The first batches, and the epochs after them."""
    config, own = prepare_config(config)
    batches = open_batches(config, MeshConfig(), own)
    return [(batches.read(step)["tokens"].tolist(), batches.epochs(step)) for step in range(3)]


def read_late_rows(config: TrainConfig) -> list[Any]:
    """A batch of the second epoch."""
    batches = open_batches(config, MeshConfig())
    step = next(step for step in range(10_000) if batches.epochs(step)["epoch"] >= 1)
    return batches.read(step)["tokens"].tolist()


def record_prefetch(config: TrainConfig) -> list[dict[str, int]]:
    """The arguments with which Grain reads ahead."""
    calls, options = [], grain.ReadOptions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grain, "ReadOptions", lambda **words: calls.append(words) or options(**words))
        next(open_batches(config, MeshConfig()).iterate_from(0))
    return calls


@functools.cache
def draw_state() -> TrainState:
    model = GPTConfig(num_layers=1, embed_dim=8, num_heads=1, context_length=4, vocab_size=8)
    return create_state(model, AdamW().build(steps=1, mesh=SINGLE), seed=0, mesh=SINGLE)


def list_checkpoints(config: TrainConfig, directory: Path) -> list[str]:
    """The checkpoints that remain of four, of which the first is the best."""
    with CheckpointManager(directory, config.checkpoint) as checkpoints:
        for step, loss in {1: 1.0, 2: 3.0, 3: 2.0, 4: 2.5}.items():
            checkpoints.save(step, draw_state(), metadata={}, best_value=loss)
    return sorted(path.name for path in directory.iterdir())


def read_best_metric(config: TrainConfig, directory: Path) -> Any:
    """What a checkpoint says about the metric that decides `best`."""
    with CheckpointManager(directory, config.checkpoint) as checkpoints:
        checkpoints.save(1, draw_state(), metadata={}, best_value=1.0)
        checkpoints.wait()
        return checkpoints.read_metadata(1)


def list_steps_by_time(config: TrainConfig, directory: Path) -> list[int]:
    """The steps after which a run saves whose steps take ten seconds."""
    seconds = itertools.count(step=10.0)
    with CheckpointManager(directory, config.checkpoint) as checkpoints:
        saver = Saver(checkpoints, config.checkpoint, steps=2000, metadata={}, clock=lambda: next(seconds))
        return [step for step in range(1, 12) if saver.is_due(step)]


def find_stop(config: TrainConfig) -> int | None:
    """The evaluation after which a run stops whose loss rises and whose evaluations take ten minutes."""
    seconds = itertools.count(step=600.0)
    rules = StopRules(
        GracefulShutdown(),
        max_seconds=config.max_seconds,
        patience=config.patience,
        began_at=0.0,
        clock=lambda: next(seconds),
    )
    return next((n for n in range(9) if rules.check(n) or rules.check_loss(float(n))), None)


def find_end(config: TrainConfig) -> int | None:
    """The look, one every ten seconds, at which a watchdog ends a run that does not begin."""
    watchdog = Watchdog(config.hang_seconds, resume="")
    return next((n for n in range(1000) if watchdog.look(10.0)), None)


def evaluate_without_validation(config: TrainConfig, directory: Path) -> str:
    """What becomes of an evaluator where the data have no validation split."""
    data = TokenShards(path=str(write_shards(directory / "train", {"train": [np.arange(500) % 48]})))
    config = replace(config, data=data, evaluators=(validation.ValidationLoss(),))
    try:
        return f"{len(open_evaluators(config, None, SINGLE).opened)} are left"
    except MissingSplit as error:
        return str(error).rpartition("or do without")[2]


def is_restarted(config: TrainConfig) -> bool:
    """Whether the command starts a parent that restarts it."""
    with pytest.MonkeyPatch.context() as patch:
        request = ConfigRequest(config, config, Path(__file__), {}, ())
        patch.setattr(gptjax.train, "require_config", lambda *_, **__: "")
        patch.setattr(gptjax.train, "parse_config", lambda *_, **__: request)
        patch.setattr(gptjax.train, "supervise", lambda *_, **__: 1)
        patch.setattr("gptjax.runs.trainer.train", lambda *_, **__: 0)
        return bool(gptjax.train.run(["--config=quickstart"]))


def record_log(config: TrainConfig, directory: Path, capsys: pytest.CaptureFixture) -> tuple[Any, ...]:
    """Printed lines and written files of twelve steps, and the arguments of Weights & Biases."""
    calls = []
    run = types.SimpleNamespace(log=lambda _: None, finish=lambda: None, define_metric=lambda *_, **__: None)
    init = lambda **words: calls.append((words["project"], words["mode"])) or run
    capsys.readouterr()
    cost = RunCost(lambda step: step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Settings=lambda **_: None))
        with MetricLogger(config.log, directory, total_steps=100, cost=cost, clock=lambda: 0.0) as log:
            for step in range(1, 13):
                log.step(step, {"loss": 1.0})
    return capsys.readouterr().out.count("step "), sorted(path.name for path in directory.iterdir()), calls


def list_divergences(config: TrainConfig, directory: Path) -> list[str]:
    """Why a run goes back whose loss doubles more and more. Raises if four skipped updates in a row end it."""
    found = []
    with CheckpointManager(directory, config.checkpoint) as checkpoints:
        for rollbacks in range(3):
            limits = {"limit": config.max_consecutive_skips, "rollback": config.rollback, "rollbacks": rollbacks}
            guard = DivergenceGuard(checkpoints, steps=config.steps, losses=[1.0] * 20, **limits)
            for step, (loss, skips) in enumerate([(1.0, 0), (2.5, 0), (3.5, 0), (1.0, 4), (1.0, 0)]):
                try:
                    guard.check(step, {"loss": jnp.float32(loss), "consecutive_skips": jnp.int32(skips)})
                except Diverged as divergence:
                    found.append(divergence.reason)
    return found


def resume_with_other_seed(config: TrainConfig, directory: Path) -> str:
    """The reason for which a run that had another seed is not resumed."""
    reader = open_batches(config, SINGLE).reader
    fingerprints = collect_fingerprints(config.data, reader, None)
    fingerprints["validation"] = open_evaluators(config, None, SINGLE).validation_fingerprint
    content = {"config": to_json(replace(config, seed=config.seed + 2)), "fingerprints": fingerprints}
    content |= {"format_version": FORMAT_VERSION, "best_value": None, "step": 3}
    (directory / "3" / "metadata").mkdir(parents=True)
    (directory / "3" / "commit_success.txt").touch()
    (directory / "3" / "metadata" / "metadata").write_text(json.dumps(content))
    with CheckpointManager(directory, config.checkpoint) as checkpoints, pytest.raises(UserError) as refused:
        restore_run_state(config, checkpoints, 3, fingerprints, SINGLE)
    return str(refused.value).replace(str(directory), "")


def list_options_on_a_gpu(config: TrainConfig) -> dict[str, Any]:
    """What XLA is told there. The compiler of this machine knows the names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "target_device", lambda: types.SimpleNamespace(platform="gpu"))
        options = startup.list_compiler_options(config)
    jax.jit(lambda x: x).lower(1.0).compile(compiler_options=options)
    return options


def describe_adapters(config: TrainConfig) -> str:
    """The adapters, and the factor with which they are merged."""
    lora = replace(config.lora, rank=config.lora.rank or 1)
    shapes = jax.eval_shape(
        lambda: add_adapters(GPT(config.model, key=jax.random.key(0)), lora, key=jax.random.key(0)).adapters
    )
    return f"{jax.tree.map(lambda leaf: leaf.shape, shapes)} {lora.scale}"


OBSERVATIONS: dict[str, Callable[..., Any]] = {
    "directory": lambda config, *_: config.directory,
    "program": lambda config, *_: trace_program(config),
    "due steps": lambda config, *_: list_due_steps(config),
    "validation": lambda config, *_: describe_validation(config),
    "sample": lambda config, *_: record_generation(config),
    "data": lambda config, *_: identify_data(config),
    "rows": lambda config, *_: read_rows(config),
    "late rows": lambda config, *_: read_late_rows(config),
    "prefetch": lambda config, *_: record_prefetch(config),
    "stop": lambda config, *_: find_stop(config),
    "watchdog": lambda config, *_: find_end(config),
    "restarts": lambda config, directory, _: is_restarted(config),
    "due minutes": lambda config, directory, _: list_steps_by_time(config, directory),
    "best metric": lambda config, directory, _: read_best_metric(config, directory),
    "checkpoints": lambda config, directory, _: list_checkpoints(config, directory),
    "log": lambda config, directory, capsys: record_log(config, directory, capsys),
    "skips": lambda config, directory, _: list_divergences(config, directory),
    "resume": lambda config, directory, _: resume_with_other_seed(config, directory),
    "compiler": lambda config, *_: list_options_on_a_gpu(config),
    "evaluators": lambda config, *_: len(config.evaluators),
    "adapters": lambda config, *_: describe_adapters(config),
    "without validation": lambda config, directory, _: evaluate_without_validation(config, directory),
}


def test_every_field_has_a_line(base: TrainConfig) -> None:
    """A field that holds a section is covered by the fields of the section."""
    classes = find_config_classes()
    assert classes == set(SECTIONS)
    found = {(cls, field.name) for cls in classes for field in dataclasses.fields(cls)}
    holds_section = lambda cls, name: dataclasses.is_dataclass(getattr(SECTIONS[cls](base), name))
    assert {(cls, name) for cls, name in found if not holds_section(cls, name)} == set(FIELDS)


def test_program_is_traced_reproducibly(base: TrainConfig) -> None:
    assert trace_program.__wrapped__(base) == trace_program(base)
    parts = base.model, base.seed, base.mesh.resolve(8)
    assert trace_initialization.__wrapped__(*parts) == trace_initialization(*parts)


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_another_value_changes_an_observation(
    base: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture, cls: type, name: str
) -> None:
    value, observation = FIELDS[cls, name]
    base = NEEDS.get((cls, name), lambda base: base)(base)
    if observation == "program" and not needs_forward_pass(cls, name):
        base = replace(base, objective=SumOfWeights())
    section = SECTIONS[cls](base)
    assert value != getattr(section, name)

    def observe(directory: Path, **changes: Any) -> Any:
        directory.mkdir()
        try:
            return OBSERVATIONS[observation](place_section(base, replace(section, **changes)), directory, capsys)
        except UserError as error:
            return f"refused: {error}"

    before, again, after = observe(tmp_path / "1"), observe(tmp_path / "2"), observe(tmp_path / "3", **{name: value})
    assert not str(before).startswith("refused"), before
    assert again == before
    assert after != before
    assert str(after).startswith("refused") == ((cls, name) in REFUSED), after
