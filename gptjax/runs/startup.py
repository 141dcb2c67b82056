"""Everything before the first step: config, data, state, evaluators and compiled programs, each opened once."""

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from gptjax.checkpoints.checkpoint_format import check_path
from gptjax.config import TrainConfig
from gptjax.core.diff import diff_configs
from gptjax.core.errors import UserError, count_of
from gptjax.core.files import hash_json
from gptjax.core.serialization import Modules, find_unimportable, from_json, to_json
from gptjax.data.batch_size import BatchSize
from gptjax.data.checksums import find_first_tokens
from gptjax.data.loader import BatchLoader
from gptjax.data.source import DataSource, ReadSpec, RowReader
from gptjax.evaluators.evaluator import (
    EvalContext,
    Evaluator,
    Evaluators,
    Metrics,
    OpenEvaluator,
    list_metrics,
    may_measure,
    open_or_skip,
    passes_check,
)
from gptjax.evaluators.metric_names import check_best_metric, check_evaluator_names
from gptjax.finetuning.adapters import merge_adapters
from gptjax.finetuning.model_config import merge_model_config, select_layers
from gptjax.metrics.logger import MetricLogger
from gptjax.metrics.metrics_file import read_metrics
from gptjax.metrics.throughput import RunCost
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.objectives.objective import get_row_kind
from gptjax.process.console import print_once
from gptjax.process.memory import release_freed_memory
from gptjax.runs.checkpoint_source import Checkpoint
from gptjax.runs.field_effects import check_effects
from gptjax.runs.initial_weights import (
    add_trained_rows,
    check_explicit_fields,
    join_vocabularies,
    load_start,
    open_first_weights,
    report_merge,
)
from gptjax.runs.resume import Fingerprints, adopt_history
from gptjax.runs.run_dir import METRICS, has_trained, reopen_run
from gptjax.sharding.compilation import DETERMINISTIC_OPTIONS
from gptjax.sharding.devices import (
    GPU_PLATFORMS,
    describe_unused_gpu,
    get_peak_flops,
    has_units_for,
    preferred_dtype,
    start_backend,
    target_device,
)
from gptjax.sharding.distributed import share_floats
from gptjax.sharding.mesh import MeshConfig
from gptjax.supervision.stopping import list_losses
from gptjax.tokenization.tokenizer import Tokenizer
from gptjax.training import state as training_state
from gptjax.training.stages import Phase
from gptjax.training.state import TrainState
from gptjax.training.step import StepConfig, make_train_step


def prepare_config(
    config: TrainConfig, modules: Modules | None = None, *, explicit_fields: Collection[str] = ()
) -> tuple[TrainConfig, Tokenizer | None]:
    """The config with its data prepared, its history and its model's shape known, and the data's tokenizer.

    `explicit_fields` are paths of fields that the command line has set. One that cannot be had, or that has no effect,
    is a `UserError`.
    """
    check_effects(config, explicit_fields)
    check_path(config.directory)
    source: Checkpoint | None = None
    exists = has_trained(config.directory)
    # Before the data: a preparation may take hours.
    if config.init_from is not None:  # once this run exists, its own directory says as much
        source = reopen_run(config, modules) if exists else open_first_weights(config, modules or {})
    config = replace(config, data=config.data.resolve())
    check_restorable(config, modules)
    config = adopt_history(config, modules)
    tokenizer = config.data.load_tokenizer() or (source.tokenizer if source else None)
    model = config.model
    if source is not None:
        layers = () if exists else config.init_layers
        model = merge_model_config(select_layers(source.model_config, layers), config.model)
        check_explicit_fields(source, config, model, explicit_fields=explicit_fields)
        report_merge(source, config, model)
        if source.tokenizer and tokenizer:
            model, tokenizer = join_vocabularies(source, model, tokenizer, name=_name_data(config), resumes=exists)
    if tokenizer is not None and model.vocab_size not in (None, tokenizer.vocab_size):
        # Imported weights may have more rows than their tokenizer has tokens, and a recipe may count the padding.
        padded = replace(model, vocab_size=tokenizer.vocab_size).padded_vocab_size
        spare = source is not None and model.vocab_size > tokenizer.vocab_size
        if model.vocab_size != padded and not spare:
            raise UserError(
                f"model.vocab_size is {model.vocab_size}, but the tokenizer of {_name_data(config)} ({tokenizer.name}) "
                f"has {tokenizer.vocab_size} tokens. Give --model.vocab-size={tokenizer.vocab_size}, or other data."
            )
    vocab_size = model.vocab_size or (tokenizer.vocab_size if tokenizer else None)
    config = replace(config, model=replace(model, vocab_size=vocab_size))
    if source is not None and config.lora.enabled:
        config = replace(config, lora=add_trained_rows(config, source, tokenizer))
        config.lora.check_trained()
    return config, tokenizer


def prepare_device(config: TrainConfig, modules: Modules | None = None) -> TrainConfig:
    """The config with a dtype in place of `auto`: that of the run if it exists, else what the device prefers.

    JAX's backend is started here.
    """
    start_backend()
    if (warning := describe_unused_gpu()) is not None:
        print_once(warning)
    model = config.model
    if model.compute.dtype != "auto":
        if not has_units_for(model.compute.dtype):
            kind, advice = jax.devices()[0].device_kind, f"--model.compute.dtype=auto takes {preferred_dtype()}"
            print_once(f"note: {kind} only emulates products in {model.compute.dtype}; {advice}")
        return config
    if has_trained(config.directory):
        dtype, why = reopen_run(config, modules).model_config.compute.dtype, "as this run began"
    else:
        dtype, why = preferred_dtype(), f"for this {jax.devices()[0].platform.upper()}"
    print_once(f"  model.compute.dtype: 'auto' → {dtype!r}, {why}")
    return replace(config, model=replace(model, compute=replace(model.compute, dtype=dtype)))


def _name_data(config: TrainConfig) -> str:
    """The data in messages."""
    return getattr(config.data, "path", None) or f"the data ({type(config.data).__name__})"


def check_restorable(config: TrainConfig, modules: Modules | None = None) -> None:
    """Raise before step 0 unless a resumed run could read this config back from config.json."""
    if reason := find_unimportable(config):
        raise UserError(f"This config could not be read back by a resumed run: {reason}")
    restored = from_json(json.loads(json.dumps(to_json(config))), TrainConfig, modules=modules, trusted=config)
    if changes := diff_configs(config, restored):
        path, old, new = changes[0]
        raise UserError(
            f"This config could not be read back by a resumed run: {path} is {old!r} and would come back as {new!r}. "
            "Use frozen dataclasses whose fields are all arguments, with tuples instead of lists."
        )


def make_read_spec(config: TrainConfig, tokenizer: Tokenizer | None) -> ReadSpec:
    """What the run asks of its data source."""
    return ReadSpec(
        context_length=config.model.context_length,
        seed=config.seed,
        vocab_size=config.model.resolved_vocab_size,
        end_of_text=tokenizer.end_of_text if tokenizer else None,
        with_documents=config.model.intra_document_mask,
        batch_schedule=tuple((phase.begin, phase.batch) for phase in config.phases),
        row_kind=get_row_kind(config.objective),
        epoch_seeds=config.epoch_seeds or "mixed",
        row_offsets=config.row_offsets,
        first_tokens=find_first_tokens(tokenizer) if tokenizer else (),
    )


def check_evaluators(config: TrainConfig, tokenizer: Tokenizer | None, mesh: MeshConfig) -> str | None:
    """Raise early what `open_evaluators` would raise; returns the validation's identity, if a `check` opens it."""
    spec = make_read_spec(config, tokenizer)
    context = EvalContext(config.data, tokenizer, config.model, config.objective, mesh, read_spec=spec)
    check_evaluator_names(config.evaluators)
    is_required = config.require_validation
    _check_best_metric(
        config, [one for one in config.evaluators if passes_check(one, context, is_required=is_required)]
    )
    return context.validation_fingerprint


def open_evaluators(
    config: TrainConfig,
    tokenizer: Tokenizer | None,
    mesh: MeshConfig,
    *,
    frozen: GPT | None = None,
    read_spec: ReadSpec | None = None,
) -> Evaluators:
    """Open each evaluator of the config. Raises a `UserError` if a metric is waited for that none can measure."""
    spec = read_spec or make_read_spec(config, tokenizer)
    context = EvalContext(config.data, tokenizer, config.model, config.objective, mesh, frozen=frozen, read_spec=spec)
    found = [(each, open_or_skip(each, context, is_required=config.require_validation)) for each in config.evaluators]
    opened = tuple((each, run) for each, run in found if run is not None)
    _check_best_metric(config, [evaluator for evaluator, _ in opened])
    return Evaluators(opened, context)


def _check_best_metric(config: TrainConfig, evaluators: Sequence[Evaluator]) -> None:
    """Refuse a metric that none of these can measure."""
    metric = config.checkpoint.best_metric
    if not any(may_measure(evaluator, metric) for evaluator in evaluators):
        measured = {name for evaluator in evaluators for name in list_metrics(evaluator)}
        check_best_metric(metric, measured, patience=config.patience)


def evaluate_state(evaluate: OpenEvaluator, state: TrainState, config: TrainConfig) -> Metrics:
    """Metrics of the evaluated weights; `val_loss_last` is the raw weights' loss once an average differs from them."""
    metrics = evaluate(merge_adapters(state.eval_model))
    compared: str | None = getattr(evaluate, "compared_metric", None)
    if compared and config.ema.has_started(int(state.step), steps=config.schedule_length):
        metrics |= {f"{compared}_last": evaluate(merge_adapters(state.model))[compared]}
    return metrics


def collect_fingerprints(data: DataSource, reader: RowReader, tokenizer: Tokenizer | None) -> Fingerprints:
    """Identity of the training text and of its tokenizer. The order of the data follows from the config.

    A data source that has no fingerprint is identified by its config.
    """
    return {
        "data": reader.fingerprint or hash_json(to_json(data)),
        "tokenizer": tokenizer.fingerprint if tokenizer else None,
    }


def initialize_state(config: TrainConfig, mesh: MeshConfig, *, modules: Modules | None = None) -> TrainState:
    """A state at step 0: new weights, or those of `init_from`."""
    optimizer = config.optimizer.build(steps=config.schedule_length, mesh=mesh)
    has_ema = config.ema.enabled
    if config.init_from is None:
        return training_state.create_state(config.model, optimizer, seed=config.seed, mesh=mesh, has_ema=has_ema)
    key = jax.random.key(config.seed)
    adapt = lambda model: training_state.add_adapters(model, config.lora, key=key)
    begin = jax.jit(lambda model: training_state.init_state(adapt(model), optimizer, has_ema=has_ema))
    return begin(load_start(config, mesh, modules=modules))


def read_values(config: TrainConfig, metric: str, *, before: int) -> list[float]:
    """The values of a metric at the steps before this one; [] where the record is lost.

    All processes must call this: they decide alike by what the first one, which writes the record, reads.
    """
    records = []
    if jax.process_index() == 0:
        with suppress(UserError, OSError):
            records = read_metrics(config.directory / METRICS)
    return share_floats(list_losses(records, metric, before=before))


Programs = dict[tuple[BatchSize, GPTConfig], Any]
"""Compiled training steps."""


def compile_steps(
    config: TrainConfig,
    mesh: MeshConfig,
    state: TrainState,
    batches: BatchLoader,
    *,
    start: int,
    frozen: GPT | None = None,
    programs: Programs | None = None,
) -> Callable[[int], Any]:
    """Step number → the compiled training step of its phase.

    Compiles one program for each batch size and model that a step from `start` on needs. `programs` are those that the
    run has compiled before; new ones are added.
    """
    phases, programs = config.phases, {} if programs is None else programs
    ends = [*(phase.begin for phase in phases[1:]), config.steps]
    for phase, end in zip(phases, ends, strict=True):
        to_come = max(phase.begin, start) < min(end, config.steps)
        if to_come and (phase.batch, phase.model_config) not in programs:
            programs[phase.batch, phase.model_config] = compile_step(config, mesh, state, batches, phase, frozen=frozen)
    if config.stages:
        print_once(f"compiled  {count_of(len(programs), 'programs')} for the stages to come")

    def train_step(step: int) -> Any:
        phase = next(phase for phase in reversed(phases) if phase.begin <= step)
        program = programs[phase.batch, phase.model_config]
        return program if frozen is None else lambda state, batch: program(state, batch, frozen)

    return train_step


def compile_step(
    config: TrainConfig,
    mesh: MeshConfig,
    state: TrainState,
    batches: BatchLoader,
    phase: Phase | None = None,
    *,
    frozen: GPT | None = None,
) -> Any:
    """The training step of a phase (the first by default), compiled before a batch is read."""
    phase = phase or config.phases[0]
    batch = batches.abstract_batch(phase.begin)
    arguments = (state, batch) if frozen is None else (state, batch, frozen)
    step = make_phase_step(config, mesh, phase).lower(*arguments)
    program = step.compile(compiler_options=list_compiler_options(config))
    release_freed_memory()
    return program


def list_compiler_options(config: TrainConfig) -> dict[str, bool | str]:
    """What XLA is told besides its defaults."""
    is_gpu = target_device().platform in GPU_PLATFORMS
    return dict(DETERMINISTIC_OPTIONS) if config.model.compute.deterministic and is_gpu else {}


def make_phase_step(config: TrainConfig, mesh: MeshConfig, phase: Phase) -> jax.stages.Wrapped:
    """The training step of a phase, not compiled yet."""
    return make_train_step(
        config.objective,
        config.optimizer,
        config=StepConfig(
            steps=config.schedule_length,
            seed=config.seed,
            ema=config.ema,
            model_config=phase.model_config,
            lr_scales=tuple((phase.begin, phase.lr_scale) for phase in config.phases),
        ),
        mesh=mesh,
    )


def open_logger(config: TrainConfig, mesh: MeshConfig, start: int, *, seconds: float = 0.0) -> MetricLogger:
    """The log of a run that has completed `start` steps, and whose start took these seconds."""
    peak = get_peak_flops(jax.devices()[0].device_kind)
    return MetricLogger(
        config.log,
        config.directory,
        total_steps=config.steps,
        start_step=start,
        cost=RunCost(
            config.tokens,
            flops=partial(config.flops, causal=True),
            flops_palm=partial(config.flops, causal=False),
            peak_flops=None if peak is None else peak * mesh.num_devices,
        ),
        config_json=to_json(config),
        start_seconds=seconds,
    )
