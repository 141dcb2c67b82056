"""Door: `python -m gptjax.train --config=configs/quickstart.py` trains, and the same command again resumes.

The loop is in `train`; the functions below it open what the loop uses, each once.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from gptjax.config import CLASSES, TrainConfig, compare
from gptjax.core.console import print_once
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.core.settings import config_source, diff_configs, from_json, parse, to_json
from gptjax.data.config import fingerprint_data, mixture_components, mixture_weights, validation_data
from gptjax.data.loader import BatchLoader, check_token_ids, open_loader
from gptjax.data.sequences import require_document_starts
from gptjax.metrics.logger import MetricLogger
from gptjax.metrics.metrics_file import read_metrics
from gptjax.metrics.plots import plot_losses
from gptjax.metrics.throughput import RunCost
from gptjax.model.attention import select_kernel, why_not_flash
from gptjax.model.gpt import count_parameters, with_static
from gptjax.run_dir import CHECKPOINTS, PLACES, RunDir, merge_model_config, run_lock, write_run_files
from gptjax.sharding import devices as hardware
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Tokenizer
from gptjax.training import state
from gptjax.training.checkpoint import CheckpointManager
from gptjax.training.checkpoint_format import complete_steps
from gptjax.training.evaluators import BigramBaseline, EvalContext, EvaluatorFn, ValidationEvaluator, ValidationLoss
from gptjax.training.nonfinite import NonFiniteGuard
from gptjax.training.preemption import GracefulShutdown
from gptjax.training.stages import Phase
from gptjax.training.state import TrainState
from gptjax.training.step import StepConfig, make_train_step

PROG = "python -m gptjax.train"


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        hardware.initialize_distributed()
        words = sys.argv[1:] if argv is None else argv
        config, base, spec = parse(TrainConfig, words, prog=PROG, description="Train a GPT, or go on training it.")
        print_once(f"config {spec}", *(f"  {path}: {old!r} → {new!r}" for path, old, new in diff_configs(base, config)))
        code = train(config, source=config_source(spec), command=shlex.join([*PROG.split(), *words]))
    raise SystemExit(code)


def train(config: TrainConfig, *, source: str | None = None, command: str = PROG) -> int:
    """Train to the end, or until a signal; everything is saved in either case.

    Returns 0, or 130 after Ctrl-C and 143 after SIGTERM (in several processes, after either). `source` is the text of
    the config file, kept with the run.
    """
    config, tokenizer = prepare_config(config)
    mesh = config.mesh.resolve(jax.device_count())
    config.check_mesh(mesh)
    with (
        mesh.activate(),
        run_lock(config.directory),
        GracefulShutdown() as signals,
        CheckpointManager(config.directory / CHECKPOINTS, config.checkpoint) as checkpoints,
    ):
        marks = collect_fingerprints(config, tokenizer)
        current = restore_run_state(config, checkpoints, marks, mesh) or create_run_state(config, mesh)
        start = int(current.step)
        if jax.process_index() == 0:
            write_run_files(config.directory, config, tokenizer, source=source)
        judges = open_evaluators(config, tokenizer, mesh)
        batches = open_run_loader(config, mesh, tokenizer=tokenizer)
        describe_run(config, mesh, batches, judges)

        with open_logger(config, mesh, start) as log:
            with log.timed("compile"):
                train_step = compile_steps(config, mesh, current, batches, start=start)
            rows_of_step = batches.iterate_from(start)
            guard = NonFiniteGuard(checkpoints, steps=config.steps, limit=config.max_consecutive_skips)
            stopped = None
            for step in range(start, config.steps + 1):  # one more turn: the end needs no case of its own
                stopped = signals.received(step)
                values: dict[str, Any] = {}
                for due, judge in judges:
                    if due(step, steps=config.steps) and not stopped:
                        with log.timed("evaluate"):
                            found = evaluate_state(judge, current, config)
                        log.write(step, found)
                        values |= found
                if step > start and (stopped or guard.should_save(config.checkpoint, step, state=current)):
                    with log.timed("checkpoint"):
                        metadata = {"config": to_json(config), "fingerprints": marks}
                        checkpoints.save(step, current, metadata=metadata, val_loss=values.get("val_loss"))
                if stopped or step == config.steps:
                    break
                with log.timed("data"):
                    rows = next(rows_of_step)
                current, metrics = train_step(step)(current, rows)  # dispatched, not awaited
                log.step(step + 1, metrics | batches.epochs(step + 1))  # writes the step before
                guard.check(step, metrics)
            with log.timed("checkpoint"):
                checkpoints.wait()
    print_summary(config, command, stopped=stopped)
    return 128 + stopped if stopped else 0


def prepare_config(config: TrainConfig) -> tuple[TrainConfig, Tokenizer | None]:
    """The config with its data prepared and its model's shape known, and the data's tokenizer."""
    data = config.data.resolve()
    for part in mixture_components(data):
        part.data.open_split("train")  # whether they are there is the first question
    start = None
    if config.init_from is not None:  # once this run exists, it needs the other no more
        exists = (config.directory / "config.json").is_file()
        start = RunDir.open(config.directory if exists else config.init_from)
    tokenizer = data.load_tokenizer() or (start.tokenizer if start else None)
    model = config.model
    if start is not None:
        model = merge_model_config(start, config.model)
        settled = diff_configs(config.model, model)
        print_once(*(f"  model.{field}: {old!r} → {new!r}, as the weights have it" for field, old, new in settled))
        changed = [change for change in diff_configs(start.config.model, model) if change[0] in PLACES]
        print_once(
            *(f"  model.{field}: {new!r}, where the weights were trained with {old!r}" for field, old, new in changed)
        )
    vocab_size = model.vocab_size
    if start is not None and start.tokenizer and tokenizer and start.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{data.path} was made with {tokenizer.name}, but {start.directory} was trained with "
            f"{start.tokenizer.name}. Prepare the text with {start.directory}/tokenizer.json."
        )
    # Imported weights may have more rows than their tokenizer has tokens, and a recipe may count the padding.
    spare = False
    if tokenizer is not None and vocab_size is not None:
        padded = replace(model, vocab_size=tokenizer.vocab_size).padded_vocab_size
        spare = vocab_size == padded or (start is not None and vocab_size > tokenizer.vocab_size)
    if tokenizer is not None and vocab_size not in (None, tokenizer.vocab_size) and not spare:
        raise UserError(
            f"model.vocab_size is {vocab_size}, but the tokenizer of {data.path} ({tokenizer.name}) has "
            f"{tokenizer.vocab_size} tokens. Give --model.vocab-size={tokenizer.vocab_size}, or other data."
        )
    model = replace(model, vocab_size=vocab_size or (tokenizer.vocab_size if tokenizer else None))
    config = replace(config, data=data, model=model)
    check_data(config, tokenizer)
    return config, tokenizer


def check_data(config: TrainConfig, tokenizer: Tokenizer | None) -> None:
    """Before a device is touched: name a file whose first tokens show that it is of another vocabulary, and data whose
    documents nobody knows, if they are to be kept apart."""
    streams = [part.data.open_split("train") for part in mixture_components(config.data)]
    if any(isinstance(judge, ValidationLoss | BigramBaseline) for judge in config.evaluators):
        streams.append(validation_data(config.data).open_split("val"))
    for stream in streams:
        if config.model.intra_document_mask:
            require_document_starts(stream, tokenizer.end_of_text if tokenizer else None)
        if (vocab_size := config.model.vocab_size) is not None:
            for path, begin, end in stream.file_spans():
                check_token_ids(stream.read(begin, min(end - begin, 2**16)), vocab_size, source=str(path))


def collect_fingerprints(config: TrainConfig, tokenizer: Tokenizer | None) -> dict[str, str | None]:
    """What identifies the text that the run learns from and is judged by; the data's order is in the config."""
    judged = any(isinstance(judge, ValidationLoss) for judge in config.evaluators)
    return {
        "data": fingerprint_data(config.data),
        "validation": validation_data(config.data).open_split("val").fingerprint if judged else None,
        "tokenizer": tokenizer.fingerprint if tokenizer else None,
    }


def create_run_state(config: TrainConfig, mesh: MeshConfig) -> TrainState:
    """A state at step 0: new weights, or those of the run to start from."""
    optimizer = config.optimizer.build(steps=config.steps, mesh=mesh)
    has_ema = config.ema.enabled
    if config.init_from is None:
        return state.create_state(config.model, optimizer, seed=config.seed, mesh=mesh, has_ema=has_ema)
    weights = RunDir.open(config.init_from).load_model(mesh=mesh, context_length=config.model.context_length)
    begin = jax.jit(lambda model: state.init_state(model, optimizer, has_ema=has_ema))
    return begin(with_static(weights, config=config.model))


def restore_run_state(
    config: TrainConfig, checkpoints: CheckpointManager, marks: dict[str, str | None], mesh: MeshConfig
) -> TrainState | None:
    """The state of the newest checkpoint; None if there is none; refused where it would not be the same run."""
    step = checkpoints.latest
    if step is None:
        return None
    if config.resume == "never":
        raise UserError(
            f"{config.directory} has a checkpoint at step {step} and resume is `never`. Choose another --name."
        )
    if step > config.steps:
        raise UserError(
            f"{config.directory} is at step {step} already, beyond steps {config.steps}. Give more --steps."
        )
    metadata = checkpoints.read_metadata(step)
    before = from_json(metadata.get("config", {}), CLASSES)
    reported, refused = compare(before, config)
    past, wanted = (mixture_weights(one.data, until=step) for one in (before, config))
    refused += [f"data.components: shares until step {step}: {past} → {wanted}"] if past != wanted else []
    past, wanted = (one.history_until(step) for one in (before, config))
    refused += [f"stages until step {step}: {past} → {wanted}"] if past != wanted else []
    saved = metadata.get("fingerprints", {})
    for name, mark in marks.items():
        old = saved.get(name)
        if old != mark and not (name == "validation" and None in (old, mark)):  # evaluators come and go
            refused.append(f"{name}: {shorten_fingerprint(old)} → {shorten_fingerprint(mark)}")
    if refused and config.resume != "force":
        raise UserError(
            f"{config.directory} holds a run that learned something else:\n  " + "\n  ".join(refused) + "\n"
            "Undo the change, choose another --name, or go on regardless with --resume=force."
        )
    print_once(f"resuming {config.directory} at step {step:,}", *(f"  changed: {line}" for line in reported + refused))
    optimizer = config.optimizer.build(steps=config.steps, mesh=mesh)
    wanted, there = config.ema.enabled, checkpoints.has_ema_item(step)
    found = checkpoints.restore(
        state.abstract_state(config.model, optimizer, mesh=mesh, has_ema=wanted and there), step
    )
    if wanted and not there:
        print_once(f"  step {step:,} has no average: it begins with these weights, which stand for all before them")
        return replace(found, ema=state.copy_arrays(found.model))
    return found


def shorten_fingerprint(mark: str | None) -> str:
    """As much of a fingerprint as tells it from another."""
    return "none" if mark is None else f"{mark[:12]}…"


def open_evaluators(
    config: TrainConfig, tokenizer: Tokenizer | None, mesh: MeshConfig
) -> list[tuple[Any, EvaluatorFn]]:
    """Each judge of the config beside the question when it is due."""
    material = EvalContext(config.data, tokenizer, config.model, config.objective, mesh)
    judges = [(judge.should_run, judge.open(material)) for judge in config.evaluators]
    if any(judge is None for _, judge in judges):
        print_once("no samples: the data has no tokenizer.json beside it")
    return [(due, judge) for due, judge in judges if judge is not None]


def evaluate_state(judge: EvaluatorFn, current: TrainState, config: TrainConfig) -> dict[str, float | str]:
    """What a judge says of the weights that count; of the last ones as well, if it is a loss and they are others."""
    found = judge(current.eval_model)
    if isinstance(judge, ValidationEvaluator) and config.ema.has_started(int(current.step), steps=config.steps):
        found |= {"val_loss_last": judge(current.model)["val_loss"]}
    return found


def open_run_loader(config: TrainConfig, mesh: MeshConfig, *, tokenizer: Tokenizer | None = None) -> BatchLoader:
    return open_loader(
        config.data,
        config.phases[0].batch,
        later=[(phase.begin, phase.batch) for phase in config.phases[1:]],
        context_length=config.model.context_length,
        vocab_size=config.model.resolved_vocab_size,
        tokenizer=tokenizer,
        seed=config.seed,
        mesh=mesh,
        documents=config.model.intra_document_mask,
    )


def compile_steps(
    config: TrainConfig, mesh: MeshConfig, current: TrainState, batches: BatchLoader, *, start: int
) -> Callable[[int], Any]:
    """Step number → the training step of its phase. Every program that a step from `start` on needs is compiled here,
    one for each batch and model that differ."""
    phases, programs = config.phases, {}
    ends = [*(phase.begin for phase in phases[1:]), config.steps]
    for phase, end in zip(phases, ends, strict=True):
        to_come = max(phase.begin, start) < min(end, config.steps)
        if to_come and (phase.batch, phase.model) not in programs:
            programs[phase.batch, phase.model] = compile_step(config, mesh, current, batches, phase)
    if config.stages:
        print_once(f"compiled  {len(programs)} programs for the stages to come")

    def train_step(step: int) -> Any:
        phase = next(phase for phase in reversed(phases) if phase.begin <= step)
        return programs[phase.batch, phase.model]

    return train_step


def compile_step(
    config: TrainConfig, mesh: MeshConfig, current: TrainState, batches: BatchLoader, phase: Phase | None = None
) -> Any:
    """The training step of a phase (the first), compiled for exactly this state and batch before one is read."""
    phase = phase or config.phases[0]
    rows = batches.abstract_batch(config.model.context_length, step=phase.begin)
    return make_phase_step(config, mesh, phase).lower(current, rows).compile()


def make_phase_step(config: TrainConfig, mesh: MeshConfig, phase: Phase) -> jax.stages.Wrapped:
    """The training step of a phase, not compiled yet."""
    return make_train_step(
        config.objective,
        config.optimizer,
        config=StepConfig(
            steps=config.steps,
            seed=config.seed,
            ema=config.ema,
            model=phase.model,
            lr_scales=tuple((phase.begin, phase.lr_scale) for phase in config.phases),
        ),
        mesh=mesh,
    )


def open_logger(config: TrainConfig, mesh: MeshConfig, start: int) -> MetricLogger:
    peak = hardware.peak_flops(jax.devices()[0].device_kind)
    cost = RunCost(
        config.tokens,
        flops=partial(config.flops, causal=True),
        flops_palm=partial(config.flops, causal=False),
        peak_flops=None if peak is None else peak * mesh.num_devices,
    )
    return MetricLogger(
        config.log,
        config.directory,
        total_steps=config.steps,
        cost=cost,
        start_step=start,
        config_json=to_json(config),
    )


def describe_run(
    config: TrainConfig, mesh: MeshConfig, batches: BatchLoader, judges: list[tuple[Any, EvaluatorFn]]
) -> None:
    """What is about to run, in a few lines."""
    model = config.model
    backend = jax.default_backend()
    kernel: str = select_kernel(model, backend=backend)
    if model.compute.attention_impl == "auto" and (reason := why_not_flash(model, backend=backend)):
        kernel += f" ({reason})"
    each = "" if config.stages else f" × {config.phases[0].tokens:,} tokens"
    protocols = [judge.protocol for _, judge in judges if isinstance(judge, ValidationEvaluator)]
    print_once(
        f"run       {config.directory}",
        f"devices   {hardware.device_summary()}; layout {mesh.describe()}",
        f"model     {count_parameters(model):,} parameters, {model.num_layers} layers × {model.embed_dim}, context "
        f"{model.context_length}, vocabulary {model.resolved_vocab_size:,} (stored {model.padded_vocab_size:,}); {model.compute.dtype}; "
        f"attention {kernel}",
        *(f"data      {line}" for line in batches.describe()),
        f"training  {config.steps:,} steps{each} = {config.tokens(config.steps):,}{' tokens' * (not each)} "
        f"({', '.join(f'{count:.2f}' for count in batches.epochs(config.steps).values())} epochs)",
        *(f"stage     {phase.describe()}" for phase in config.phases if config.stages and phase.begin < config.steps),
        *(f"judged    {protocol}" for protocol in protocols),
    )
    if config.ema.enabled:
        print_once(f"averaging {config.ema.describe(steps=config.steps)}; it is what is judged, sampled and exported")
    warmup = config.optimizer.schedule.warmup_steps
    if warmup >= config.steps:
        print_once(
            f"note: a warm-up of {warmup:,} steps takes all {config.steps:,}: the full learning rate is never reached"
        )


def print_summary(config: TrainConfig, command: str, *, stopped: int | None) -> None:
    """Draw the losses, sum up, and say what can be typed next."""
    if jax.process_index() != 0:
        return
    records = read_metrics(config.directory / "metrics.jsonl")
    last: dict[str, Any] = {}
    for record in records:
        last |= record
    references = {"bigram": last["bigram_loss"]} if "bigram_loss" in last else {}
    picture = plot_losses(config.directory, references=references)
    whole = all(judge.tokens is None for judge in config.evaluators if isinstance(judge, ValidationLoss))
    judged = max((record["step"] for record in records if "val_bpb" in record), default=-1)
    if whole and judged == last.get("step") and "bigram_bpb" in last:
        ratio = last["val_bpb"] / last["bigram_bpb"]
        print_once(
            f"validation {last['val_bpb']:.4f} bits per byte; a bigram has {last['bigram_bpb']:.4f} (ratio {ratio:.3f})"
        )
    print_once(f"losses drawn in {picture}")
    if not complete_steps(config.directory / CHECKPOINTS):
        print_once(f"next: {command}", "(stopped before the first step, so nothing was saved)")
        return
    run = os.path.relpath(config.directory)
    run, exported = shlex.quote(run), shlex.quote(f"{run}-hf")
    longer = re.sub(r" --steps[= ]\S+", "", command) + f" --steps={2 * config.steps}"
    more = f"resume    {command}" if stopped else f"train on  {longer}"
    print_once(
        "next:",
        f"  {more}",
        f"  sample    python -m gptjax.sample --checkpoint={run}",
        f"  evaluate  python -m gptjax.evaluate --checkpoint={run}",
        f"  convert   python -m gptjax.convert to-hf --checkpoint={run} --output={exported}",
    )


if __name__ == "__main__":
    main()
