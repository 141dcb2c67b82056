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

from gptjax import hardware, state
from gptjax.attention import choose, obstacle
from gptjax.batches import Batches, check_vocabulary, open_batches
from gptjax.checkpoint import Checkpoints, whole_steps
from gptjax.config import CLASSES, TrainConfig, compare
from gptjax.data import fingerprint, parts_of, shares, validation_of
from gptjax.errors import UserError, explained
from gptjax.evals import Bigram, Judge, Material, ValidationJudge, ValidationLoss
from gptjax.layout import Layout
from gptjax.logbook import Logbook
from gptjax.model import num_parameters, rebound
from gptjax.records import draw_losses, read_metrics
from gptjax.run import CHECKPOINTS, PLACES, Run, held, started_from, write_files
from gptjax.settings import config_source, differences, from_json, parse, to_json
from gptjax.stages import Phase
from gptjax.state import TrainState
from gptjax.step import make_train_step
from gptjax.stopping import Patience, Signals
from gptjax.terminal import say
from gptjax.tokenizer import Tokenizer
from gptjax.windows import check_documents_known

PROG = "python -m gptjax.train"


def main(argv: list[str] | None = None) -> None:
    with explained():
        hardware.start_processes()
        words = sys.argv[1:] if argv is None else argv
        config, base, spec = parse(TrainConfig, words, prog=PROG, description="Train a GPT, or go on training it.")
        say(f"config {spec}", *(f"  {path}: {old!r} → {new!r}" for path, old, new in differences(base, config)))
        code = train(config, source=config_source(spec), command=shlex.join([*PROG.split(), *words]))
    raise SystemExit(code)


def train(config: TrainConfig, *, source: str | None = None, command: str = PROG) -> int:
    """Train to the end, or until a signal; everything is saved in either case.

    Returns 0, or 130 after Ctrl-C and 143 after SIGTERM (in several processes, after either). `source` is the text of
    the config file, kept with the run.
    """
    config, tokenizer = prepared(config)
    layout = config.layout.resolve(jax.device_count())
    config.check_layout(layout)
    with (
        layout.active(),
        held(config.directory),
        Signals() as signals,
        Checkpoints(config.directory / CHECKPOINTS, config.checkpoint) as checkpoints,
    ):
        marks = fingerprints(config, tokenizer)
        current = resumed(config, checkpoints, marks, layout) or created(config, layout)
        start = int(current.step)
        if jax.process_index() == 0:
            write_files(config.directory, config, tokenizer, source=source)
        judges = opened(config, tokenizer, layout)
        batches = opened_batches(config, layout, tokenizer=tokenizer)
        describe(config, layout, batches, judges)

        with open_logbook(config, layout, start) as log:
            with log.paused("compile"):
                train_step = compiled_steps(config, layout, current, batches, start=start)
            rows_of_step = batches.starting_at(start)
            patience = Patience(checkpoints, steps=config.steps, limit=config.max_skipped)
            stopped = None
            for step in range(start, config.steps + 1):  # one more turn: the end needs no case of its own
                stopped = signals.received(step)
                values: dict[str, Any] = {}
                for due, judge in judges:
                    if due(step, steps=config.steps) and not stopped:
                        with log.paused("evaluate"):
                            found = judgement(judge, current, config)
                        log.write(step, found)
                        values |= found
                if step > start and (stopped or patience.due(config.checkpoint, step, current)):
                    with log.paused("checkpoint"):
                        metadata = {"config": to_json(config), "fingerprints": marks}
                        checkpoints.save(step, current, metadata=metadata, val_loss=values.get("val_loss"))
                if stopped or step == config.steps:
                    break
                with log.paused("data"):
                    rows = next(rows_of_step)
                current, metrics = train_step(step)(current, rows)  # dispatched, not awaited
                log.step(step + 1, metrics | batches.epochs(step + 1))  # writes the step before
                patience.check(step, metrics)
            with log.paused("checkpoint"):
                checkpoints.wait()
    farewell(config, command, stopped=stopped)
    return 128 + stopped if stopped else 0


def prepared(config: TrainConfig) -> tuple[TrainConfig, Tokenizer | None]:
    """The config with its data prepared and its model's shape known, and the data's tokenizer."""
    data = config.data.resolve()
    for part in parts_of(data):
        part.data.split("train")  # whether they are there is the first question
    start = None
    if config.start_from is not None:  # once this run exists, it needs the other no more
        exists = (config.directory / "config.json").is_file()
        start = Run.open(config.directory if exists else config.start_from)
    tokenizer = data.vocabulary() or (start.tokenizer if start else None)
    model = config.model
    if start is not None:
        model = started_from(start, config.model)
        settled = differences(config.model, model)
        say(*(f"  model.{field}: {old!r} → {new!r}, as the weights have it" for field, old, new in settled))
        changed = [change for change in differences(start.config.model, model) if change[0] in PLACES]
        say(*(f"  model.{field}: {new!r}, where the weights were trained with {old!r}" for field, old, new in changed))
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
    check_streams(config, tokenizer)
    return config, tokenizer


def check_streams(config: TrainConfig, tokenizer: Tokenizer | None) -> None:
    """Before a device is touched: name a file whose first tokens show that it is of another vocabulary, and data whose
    documents nobody knows, if they are to be kept apart."""
    streams = [part.data.split("train") for part in parts_of(config.data)]
    if any(isinstance(judge, ValidationLoss | Bigram) for judge in config.evals):
        streams.append(validation_of(config.data).split("val"))
    for stream in streams:
        if config.model.document_mask:
            check_documents_known(stream, tokenizer.end_of_text if tokenizer else None)
        if (vocab_size := config.model.vocab_size) is not None:
            for path, begin, end in stream.spans():
                check_vocabulary(stream.read(begin, min(end - begin, 2**16)), vocab_size, source=str(path))


def fingerprints(config: TrainConfig, tokenizer: Tokenizer | None) -> dict[str, str | None]:
    """What identifies the text that the run learns from and is judged by; the data's order is in the config."""
    judged = any(isinstance(judge, ValidationLoss) for judge in config.evals)
    return {
        "data": fingerprint(config.data),
        "validation": validation_of(config.data).split("val").fingerprint if judged else None,
        "tokenizer": tokenizer.fingerprint if tokenizer else None,
    }


def created(config: TrainConfig, layout: Layout) -> TrainState:
    """A state at step 0: new weights, or those of the run to start from."""
    optimizer = config.optimizer.build(steps=config.steps, layout=layout)
    averaged = config.averaging.kept
    if config.start_from is None:
        return state.create(config.model, optimizer, seed=config.seed, layout=layout, averaged=averaged)
    weights = Run.open(config.start_from).model(layout=layout, context=config.model.context)
    begin = jax.jit(lambda model: state.fresh(model, optimizer, averaged=averaged))
    return begin(rebound(weights, config=config.model))


def resumed(
    config: TrainConfig, checkpoints: Checkpoints, marks: dict[str, str | None], layout: Layout
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
    metadata = checkpoints.metadata(step)
    before = from_json(metadata.get("config", {}), CLASSES)
    reported, refused = compare(before, config)
    past, wanted = (shares(one.data, until=step) for one in (before, config))
    refused += [f"data.parts: shares until step {step}: {past} → {wanted}"] if past != wanted else []
    past, wanted = (one.learned_until(step) for one in (before, config))
    refused += [f"stages until step {step}: {past} → {wanted}"] if past != wanted else []
    saved = metadata.get("fingerprints", {})
    for name, mark in marks.items():
        old = saved.get(name)
        if old != mark and not (name == "validation" and None in (old, mark)):  # evals come and go
            refused.append(f"{name}: {short(old)} → {short(mark)}")
    if refused and config.resume != "force":
        raise UserError(
            f"{config.directory} holds a run that learned something else:\n  " + "\n  ".join(refused) + "\n"
            "Undo the change, choose another --name, or go on regardless with --resume=force."
        )
    say(f"resuming {config.directory} at step {step:,}", *(f"  changed: {line}" for line in reported + refused))
    optimizer = config.optimizer.build(steps=config.steps, layout=layout)
    wanted, there = config.averaging.kept, checkpoints.has_average(step)
    found = checkpoints.restore(state.abstract(config.model, optimizer, layout=layout, averaged=wanted and there), step)
    if wanted and not there:
        say(f"  step {step:,} has no average: it begins with these weights, which stand for all before them")
        return replace(found, average=state.copied(found.model))
    return found


def short(mark: str | None) -> str:
    """As much of a fingerprint as tells it from another."""
    return "none" if mark is None else f"{mark[:12]}…"


def opened(config: TrainConfig, tokenizer: Tokenizer | None, layout: Layout) -> list[tuple[Any, Judge]]:
    """Each judge of the config beside the question when it is due."""
    material = Material(config.data, tokenizer, config.model, config.objective, layout)
    judges = [(judge.due, judge.open(material)) for judge in config.evals]
    if any(judge is None for _, judge in judges):
        say("no samples: the data has no tokenizer.json beside it")
    return [(due, judge) for due, judge in judges if judge is not None]


def judgement(judge: Judge, current: TrainState, config: TrainConfig) -> dict[str, float | str]:
    """What a judge says of the weights that count; of the last ones as well, if it is a loss and they are others."""
    found = judge(current.judged)
    if isinstance(judge, ValidationJudge) and config.averaging.begun(int(current.step), steps=config.steps):
        found |= {"val_loss_last": judge(current.model)["val_loss"]}
    return found


def opened_batches(config: TrainConfig, layout: Layout, *, tokenizer: Tokenizer | None = None) -> Batches:
    return open_batches(
        config.data,
        config.phases[0].batch,
        later=[(phase.begin, phase.batch) for phase in config.phases[1:]],
        context=config.model.context,
        vocab_size=config.model.vocabulary,
        tokenizer=tokenizer,
        seed=config.seed,
        layout=layout,
        documents=config.model.document_mask,
    )


def compiled_steps(
    config: TrainConfig, layout: Layout, current: TrainState, batches: Batches, *, start: int
) -> Callable[[int], Any]:
    """Step number → the training step of its phase. Every program that a step from `start` on needs is compiled here,
    one for each batch and model that differ."""
    phases, programs = config.phases, {}
    ends = [*(phase.begin for phase in phases[1:]), config.steps]
    for phase, end in zip(phases, ends, strict=True):
        to_come = max(phase.begin, start) < min(end, config.steps)
        if to_come and (phase.batch, phase.model) not in programs:
            programs[phase.batch, phase.model] = compiled_step(config, layout, current, batches, phase)
    if config.stages:
        say(f"compiled  {len(programs)} programs for the stages to come")

    def train_step(step: int) -> Any:
        phase = next(phase for phase in reversed(phases) if phase.begin <= step)
        return programs[phase.batch, phase.model]

    return train_step


def compiled_step(
    config: TrainConfig, layout: Layout, current: TrainState, batches: Batches, phase: Phase | None = None
) -> Any:
    """The training step of a phase (the first), compiled for exactly this state and batch before one is read."""
    phase = phase or config.phases[0]
    rows = batches.abstract(config.model.context, step=phase.begin)
    return step_of(config, layout, phase).lower(current, rows).compile()


def step_of(config: TrainConfig, layout: Layout, phase: Phase) -> jax.stages.Wrapped:
    """The training step of a phase, not compiled yet."""
    return make_train_step(
        config.objective,
        config.optimizer,
        steps=config.steps,
        seed=config.seed,
        dropout=config.model.dropout > 0,
        layout=layout,
        averaging=config.averaging,
        computed=phase.model,
        rates=[(phase.begin, phase.rate) for phase in config.phases],
    )


def open_logbook(config: TrainConfig, layout: Layout, start: int) -> Logbook:
    peak = hardware.peak_flops(jax.devices()[0].device_kind)
    return Logbook(
        config.log,
        config.directory,
        total_steps=config.steps,
        tokens=config.tokens,
        start_step=start,
        flops=partial(config.flops, causal=True),
        flops_palm=partial(config.flops, causal=False),
        peak_flops_total=None if peak is None else peak * layout.size,
        config_json=to_json(config),
    )


def describe(config: TrainConfig, layout: Layout, batches: Batches, judges: list[tuple[Any, Judge]]) -> None:
    """What is about to run, in a few lines."""
    model = config.model
    backend = jax.default_backend()
    kernel: str = choose(model, backend=backend)
    if model.attention == "auto" and (reason := obstacle(model, backend=backend)):
        kernel += f" ({reason})"
    each = "" if config.stages else f" × {config.phases[0].tokens:,} tokens"
    protocols = [judge.protocol for _, judge in judges if isinstance(judge, ValidationJudge)]
    say(
        f"run       {config.directory}",
        f"devices   {hardware.device_summary()}; layout {layout.described()}",
        f"model     {num_parameters(model):,} parameters, {model.num_layers} layers × {model.width}, context "
        f"{model.context}, vocabulary {model.vocabulary:,} (stored {model.padded_vocab_size:,}); {model.dtype}; "
        f"attention {kernel}",
        *(f"data      {line}" for line in batches.described()),
        f"training  {config.steps:,} steps{each} = {config.tokens(config.steps):,}{' tokens' * (not each)} "
        f"({', '.join(f'{count:.2f}' for count in batches.epochs(config.steps).values())} epochs)",
        *(f"stage     {phase.described()}" for phase in config.phases if config.stages and phase.begin < config.steps),
        *(f"judged    {protocol}" for protocol in protocols),
    )
    if config.averaging.kept:
        say(f"averaging {config.averaging.described(steps=config.steps)}; it is what is judged, sampled and exported")
    warmup = config.optimizer.schedule.warmup
    if warmup >= config.steps:
        say(f"note: a warm-up of {warmup:,} steps takes all {config.steps:,}: the full learning rate is never reached")


def farewell(config: TrainConfig, command: str, *, stopped: int | None) -> None:
    """Draw the losses, sum up, and say what can be typed next."""
    if jax.process_index() != 0:
        return
    records = read_metrics(config.directory / "metrics.jsonl")
    last: dict[str, Any] = {}
    for record in records:
        last |= record
    references = {"bigram": last["bigram_loss"]} if "bigram_loss" in last else {}
    picture = draw_losses(config.directory, references=references)
    whole = all(judge.tokens is None for judge in config.evals if isinstance(judge, ValidationLoss))
    judged = max((record["step"] for record in records if "val_bpb" in record), default=-1)
    if whole and judged == last.get("step") and "bigram_bpb" in last:
        ratio = last["val_bpb"] / last["bigram_bpb"]
        say(
            f"validation {last['val_bpb']:.4f} bits per byte; a bigram has {last['bigram_bpb']:.4f} (ratio {ratio:.3f})"
        )
    say(f"losses drawn in {picture}")
    if not whole_steps(config.directory / CHECKPOINTS):
        say(f"next: {command}", "(stopped before the first step, so nothing was saved)")
        return
    run = os.path.relpath(config.directory)
    run, exported = shlex.quote(run), shlex.quote(f"{run}-hf")
    longer = re.sub(r" --steps[= ]\S+", "", command) + f" --steps={2 * config.steps}"
    more = f"resume    {command}" if stopped else f"train on  {longer}"
    say(
        "next:",
        f"  {more}",
        f"  sample    python -m gptjax.sample --checkpoint={run}",
        f"  evaluate  python -m gptjax.evaluate --checkpoint={run}",
        f"  convert   python -m gptjax.convert to-hf --checkpoint={run} --output={exported}",
    )


if __name__ == "__main__":
    main()
