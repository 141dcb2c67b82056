"""Checkpoints measured one after another. All that they need is opened first, so that a mistake costs no time."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import jax

from gptjax.core.errors import UserError, count_of, quote
from gptjax.core.files import expand_path
from gptjax.core.lazy import LazyModule
from gptjax.data.config import TokenShards, list_directories
from gptjax.data.preferences import holds_pairs
from gptjax.data.source import DataSource
from gptjax.evaluation.comparison import Evaluation
from gptjax.evaluation.figures import compute_figures
from gptjax.evaluation.options import Evaluate
from gptjax.evaluation.protocols import EvalProtocol
from gptjax.process.console import print_once
from gptjax.runs.checkpoint_source import Checkpoint, name_step, open_checkpoint
from gptjax.tokenization.chat import with_chatml
from gptjax.tokenization.chat_template import read_jinja_template
from gptjax.tokenization.difference import check_made_for

if TYPE_CHECKING:
    from gptjax.evaluation import core_bundle, harness, scoring, task_results, texts
else:
    # These import flax, which --help does not need.
    core_bundle = LazyModule("gptjax.evaluation.core_bundle")
    harness = LazyModule("gptjax.evaluation.harness")
    scoring = LazyModule("gptjax.evaluation.scoring")
    task_results = LazyModule("gptjax.evaluation.task_results")
    texts = LazyModule("gptjax.evaluation.texts")


@dataclass(frozen=True)
class Inputs:
    """What is read before anything is scored, so that a mistake costs no time."""

    runs: dict[str, Checkpoint]
    protocol: EvalProtocol
    tasks: "harness.PreparedTasks | None" = None
    core: "tuple[core_bundle.CoreTask, ...]" = ()
    told: set[str] = field(default_factory=set)
    """Notes on the text that were printed."""


@contextlib.contextmanager
def open_inputs(options: Evaluate) -> Iterator[Inputs]:
    """Open checkpoints, tasks, CORE's bundle and offsets. Raises `UserError` for whatever is wrong with them."""
    if not options.checkpoints:
        raise UserError("no checkpoint is given. Give --checkpoint=RUN.")
    options.check_outputs()
    protocol = options.resolve_protocol()
    runs = {spec: open_checkpoint(spec, imports=options.imports) for spec in options.checkpoints}
    for run in runs.values():
        check_run(options, run, protocol)
    with contextlib.ExitStack() as stack:
        tasks = None if options.tasks is None else stack.enter_context(harness.prepare_tasks(request_tasks(options)))
        core = () if options.core is None else core_bundle.read_bundle(expand_path(options.core))
        core_bundle.check_tasks(core, limit=options.limit)
        yield Inputs(runs, protocol, tasks, tuple(core))


def check_run(options: Evaluate, run: Checkpoint, protocol: EvalProtocol) -> None:
    """Raise `UserError` for a checkpoint that cannot be measured as asked for."""
    run.find_step(options.step)
    if options.text is not None or options.tasks is not None or options.core is not None:
        run.require_tokenizer()
    if options.scores_text:
        protocol.resolve(options.context_length or run.model_config.context_length)
        if options.text is None:
            find_data(options, run)


def evaluate_all(options: Evaluate, evaluations: list[Evaluation] | None = None) -> list[Evaluation]:
    """An evaluation of each checkpoint, one after another: only one model is in memory.

    Args:
        evaluations: the list to add them to. After an error it has what was measured before.
    """
    evaluations = [] if evaluations is None else evaluations
    with open_inputs(options) as inputs:
        for spec, run in inputs.runs.items():
            evaluations.append(Evaluation(spec, {}))
            try:
                evaluate_checkpoint(evaluations[-1], options, run, inputs)
            except BaseException as error:  # also Ctrl-C, after which the result must not look complete
                told = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
                evaluations[-1].about["failed"] = told
                raise
    check_tasks(evaluations)
    return evaluations


def check_tasks(evaluations: Sequence[Evaluation]) -> None:
    """Raise `UserError` if tasks failed, which have no figures among those of the others."""
    found = [(e.name, e.about["harness"].get("failed", {})) for e in evaluations if "harness" in e.about]
    if reasons := [f"{task} ({name}): {reason}" for name, failed in found for task, reason in failed.items()]:
        raise UserError(f"{count_of(len(reasons), 'tasks')} failed, and have no figures: {'; '.join(reasons)}.")


def evaluate_checkpoint(evaluation: Evaluation, options: Evaluate, run: Checkpoint, inputs: Inputs) -> None:
    """Add everything that was asked for, measured of one checkpoint."""
    mesh = options.mesh.resolve(jax.device_count())
    about = name_step(run, options.step)
    which = about.get("step", options.step)  # `latest` moves while a run goes on
    weights = "average" if options.ema and run.has_ema(which) else "last"
    evaluation.about |= about | {"weights": weights}
    evaluation.tokenizer = None if run.tokenizer is None else run.tokenizer.fingerprint
    with mesh.activate():
        model = run.load_model(
            which, mesh=mesh, context_length=options.context_length, ema=options.ema, dtype=options.dtype
        )
        if options.scores_text:
            add_text(evaluation, options, run, model, inputs)
        if inputs.tasks is not None:
            add_tasks(evaluation, options, run, model, inputs.tasks)
        if inputs.core:
            add_core(evaluation, options, run, model, inputs.core)


def request_tasks(options: Evaluate) -> "harness.TaskRequest":
    """The tasks that the flags name."""
    return harness.TaskRequest(
        options.task_names,
        include_path=options.include_path,
        task_data=options.task_data,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
    )


def add_tasks(
    evaluation: Evaluation, options: Evaluate, run: Checkpoint, model: Any, tasks: "harness.PreparedTasks"
) -> None:
    """Run the harness' tasks, and add their figures, items and controls."""
    from gptjax.evaluation.harness_model import HarnessModel  # imports lm_eval

    tokenizer = run.require_tokenizer()
    template = read_jinja_template(run.directory)
    if template is None:
        tokenizer = with_chatml(tokenizer)  # a base model with the tokens of chats is asked like its descendants
    adapter = HarnessModel(model, tokenizer, batch_size=options.batch_size, chat_template=template)
    results = task_results.TaskResults()
    with keep_results(evaluation, options, results):
        tasks.run(adapter, results)
    if results.failed:
        evaluation.about["failed"] = f"the tasks {', '.join(results.failed)} failed"


@contextlib.contextmanager
def keep_results(evaluation: Evaluation, options: Evaluate, results: "task_results.TaskResults") -> Iterator[None]:
    """Keep what tasks have found inside the context, also after an error or Ctrl-C, which goes on.

    Raises:
        UserError: the file of responses cannot be written. After an error this is a warning.
    """
    try:
        yield
    except BaseException:
        try:
            _add_results(evaluation, options, results)
        except UserError as unwritten:
            print_once(f"warning: {unwritten}", to_stderr=True)
        raise
    _add_results(evaluation, options, results)


def _add_results(evaluation: Evaluation, options: Evaluate, results: "task_results.TaskResults") -> None:
    evaluation.figures |= results.figures
    evaluation.items |= results.items
    if results.about or results.failed:
        evaluation.about["harness"] = results.to_json()
    if options.responses is not None:
        mode = "w" if evaluation.name == options.checkpoints[0] else "a"
        path = expand_path(options.responses)
        task_results.write_responses(path, results.samples, checkpoint=evaluation.name, mode=mode)


def add_core(
    evaluation: Evaluation, options: Evaluate, run: Checkpoint, model: Any, tasks: "Sequence[core_bundle.CoreTask]"
) -> None:
    """Score CORE's tasks."""
    tokenizer, rows = run.require_tokenizer(), options.batch_size
    figures, items = core_bundle.score_core(model, tokenizer, tasks, limit=options.limit, batch_size=rows)
    evaluation.figures |= figures
    evaluation.items |= items
    evaluation.means["CORE"] = {f"core {task.name}": 1 / (1 - task.chance / 100) for task in tasks}
    evaluation.about["core"] = {
        "num_fewshot": {f"core {task.name}": task.num_fewshot for task in tasks},
        "items": {name: len(scores.pairs) for name, scores in items.items()},
    }


def add_text(evaluation: Evaluation, options: Evaluate, run: Checkpoint, model: Any, inputs: Inputs) -> None:
    """Score the text, and add its figures."""
    protocol = inputs.protocol.resolve(model.config.context_length)
    if options.text is not None:
        name, choices = options.text, {"text_field": options.text_field, "separator": options.separator}
        tokenizer = run.require_tokenizer()
        text = texts.encode_text(expand_path(options.text), tokenizer, protocol, told=inputs.told, **choices)
    else:
        data = find_data(options, run)
        stream = data.open_stream(options.split)
        if stream is None:
            raise UserError(f"the run's data has no split {options.split!r} of its own. Give --data or --text.")
        if (own := data.load_tokenizer()) is not None:
            evaluation.tokenizer = own.fingerprint  # a run with more special tokens reads the same ids
        text = texts.open_stored_text(stream, own or run.tokenizer, protocol)
        name = f"{name_data(options, data)} ({options.split})"
    protocol = texts.fit_protocol(protocol, text)
    settings = scoring.ScoringOptions(batch_size=options.batch_size)
    score = lambda model: texts.score_text(model, text, protocol, options=settings)
    sums = score(model)
    evaluation.sums, evaluation.figures = sums, compute_figures(sums)
    tokens, documents = round(float(sums.scored.sum())), len(text.documents)
    evaluation.window = protocol.window
    facts = {"begin": name_begin(run), "is_stored": text.is_stored}
    evaluation.about |= {
        "protocol": f"{name}: {protocol.describe(scored=tokens, documents=documents, **facts)}",
        "tokens": tokens,
        "documents": documents,
        "words": round(float(sums.words.sum())),
        "bytes": round(float(sums.bytes.sum())),
        "interval": f"95 %, bootstrap over {len(sums.nats)} {sums.unit}"
        if len(sums.nats) > 1
        else "none of one document",
    }
    if options.quantize is not None:
        from gptjax.generation.decoding import round_weights

        rounded = compute_figures(score(round_weights(model, options.quantize)), draws=1)
        evaluation.about["val_loss_quantized"] = rounded["nats_per_token"].value


def name_begin(run: Checkpoint) -> str | None:
    """What a document follows, in words; None if the checkpoint's tokenizer has nothing of the kind."""
    if run.tokenizer is None or run.tokenizer.begin_of_text is None:
        return None
    own = run.tokenizer.begin_of_text_name
    return "an end of text" if own is None else quote(own)


def find_data(options: Evaluate, run: Checkpoint) -> DataSource:
    """The shards that are scored: those of --data, or the run's own."""
    data = run.data if options.data is None else TokenShards(path=options.data)
    if data == TokenShards():
        raise UserError(f"{run.directory} has no data of its own. Give --data or --text.")
    paths = list_directories(data)
    if options.data is None and (gone := [path for path in paths if not expand_path(path).is_dir()]):
        places = " and ".join(dict.fromkeys(gone))
        raise UserError(
            f"the data of {run.directory} are no longer in {places}. Give --data=DIR, where they are now, or "
            "--text=FILE."
        )
    if pairs := [path for path in paths if holds_pairs(expand_path(path))]:
        raise UserError(
            f"{pairs[0]} holds preference pairs, of which one answer is rejected: the loss on them says little. Give "
            "--data=DIR of texts or chats, --text=FILE or --tasks."
        )
    advice = f"Prepare the text with --tokenizer={run.directory}"
    check_made_for(run.tokenizer, data.load_tokenizer(), name=options.data or "the data", advice=advice)
    return data


def name_data(options: Evaluate, data: DataSource) -> str:
    """The shards as they were typed, or without their directory: a result may be published."""
    return options.data or PurePath(str(getattr(data, "path", None) or type(data).__name__)).name
