"""Texts, tasks and CORE as evaluators of a run. A failing one is logged and does not end the run.

What is wrong at once, such as a file that does not exist, is refused before the first step.
"""

import contextlib
import re
import sys
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from gptjax.core.errors import UserError
from gptjax.core.files import expand_path
from gptjax.core.lazy import LazyModule
from gptjax.data.config import TokenShards
from gptjax.data.token_stream import TokenStream
from gptjax.evaluation.figures import Figure, compute_figures
from gptjax.evaluation.protocols import EvalProtocol, find_protocol
from gptjax.evaluators.evaluator import EvalContext, Metrics, OpenEvaluator, PeriodicEvaluator
from gptjax.metrics.plots import EVALUATION_PREFIX
from gptjax.objectives.objective import get_row_kind
from gptjax.tokenization.chat import with_chatml
from gptjax.tokenization.difference import check_made_for
from gptjax.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptjax.evaluation import core_bundle, harness, harness_model, scoring, texts
    from gptjax.model import gpt
else:
    # A config needs none of these, which import flax.
    core_bundle = LazyModule("gptjax.evaluation.core_bundle")
    harness = LazyModule("gptjax.evaluation.harness")
    harness_model = LazyModule("gptjax.evaluation.harness_model")
    scoring = LazyModule("gptjax.evaluation.scoring")
    texts = LazyModule("gptjax.evaluation.texts")


@dataclass(frozen=True)
class _BatchedEvaluator(PeriodicEvaluator):
    batch_size: int = 16
    """Rows per batch. Does not change the result."""

    counts: ClassVar[tuple[str, ...]] = ("batch_size",)


@dataclass(frozen=True)
class TextProtocol(_BatchedEvaluator):
    """Figures of a text by a protocol (`protocols.find_protocol`), as `evaluate --text` gives them."""

    name: str = "text"
    """Metrics are called `eval_NAME_nats_per_token` and so on."""
    text: str | None = None
    """A file, as `evaluate --text` takes. None: the validation split of the run."""
    text_field: str | None = None
    """Key or column that holds the text of a record. None: `text`."""
    data: str | None = None
    """Directory of shards, instead of a text; its validation split is scored."""
    protocol: str | EvalProtocol = "gptjax"
    """Name of the protocol (docs/evaluation.md), or one with windows and so on of your own."""
    tokens: int | None = None
    """Tokens to predict, from the start. None: the protocol's, or all."""

    counts: ClassVar[tuple[str, ...]] = ("batch_size", "tokens")

    def check(self, context: EvalContext) -> None:
        self._resolve_protocol(context)
        if self.text is None or self.data is not None:
            self._open_stream(context)
        else:
            _require_tokenizer(context)
            texts.check_exists(expand_path(self.text))

    def open(self, context: EvalContext) -> OpenEvaluator:
        """Raises `UserError` for a text or shards that cannot be read."""
        protocol = self._resolve_protocol(context)
        if self.text is None or self.data is not None:
            text = texts.open_stored_text(self._open_stream(context), context.tokenizer, protocol)
        else:
            tokenizer = _require_tokenizer(context)
            text = texts.encode_text(expand_path(self.text), tokenizer, protocol, text_field=self.text_field)
        options = scoring.ScoringOptions(batch_size=self.batch_size)
        _ = texts.fit_protocol(protocol, text)

        def evaluate(model: "gpt.GPT") -> Metrics:
            sums = texts.score_text(model, text, protocol, options=options)
            return name_metrics({f"{self.name} {key}": value for key, value in compute_figures(sums).items()})

        return guard(evaluate, self.name)

    def _resolve_protocol(self, context: EvalContext) -> EvalProtocol:
        protocol = find_protocol(self.protocol) if isinstance(self.protocol, str) else self.protocol
        protocol = protocol if self.tokens is None else replace(protocol, tokens=self.tokens)
        return protocol.resolve(context.model_config.context_length)

    def _open_stream(self, context: EvalContext) -> TokenStream:
        """The shards of `data`, or the run's validation split."""
        if self.data is None:
            if get_row_kind(context.objective) == "pairs":
                problem = "would score the run's validation pairs, of which one answer is rejected"
                raise UserError(f"evaluators: {self.name} {problem}. Give it a text, or data with texts or chats.")
            return context.validation
        if self.text is not None:
            raise UserError(f"evaluators: {self.name} has both text and data: choose one.")
        shards = TokenShards(path=self.data)
        advice = "Prepare it with the run's tokenizer"
        check_made_for(context.tokenizer, shards.load_tokenizer(), name=f"evaluators: {self.data}", advice=advice)
        if (stream := shards.open_stream("val")) is None:
            raise UserError(f"evaluators: {self.data} has no validation split.")
        return stream


@dataclass(frozen=True)
class HarnessTasks(_BatchedEvaluator):
    """Tasks of lm-evaluation-harness (the extra `eval`), as `evaluate --tasks` runs them."""

    tasks: tuple[str, ...] = ("lambada_openai",)
    """Names of tasks or groups, or YAML files."""
    limit: int | None = 500
    """Items of each task, from the start."""
    num_fewshot: int | None = None
    """Examples in each prompt. None: as the task says."""
    include_path: tuple[str, ...] = ()
    """Directories with further tasks."""
    task_data: tuple[str, ...] = ()
    """Local files, as TASK=FILE, or directories of them."""
    apply_chat_template: bool = False
    """Ask the tasks as in a chat; examples become turns."""

    counts: ClassVar[tuple[str, ...]] = ("batch_size", "limit")

    def check(self, context: EvalContext) -> None:
        self._choose_tokenizer(context)
        harness.find_request_files(self._make_request())

    def open(self, context: EvalContext) -> OpenEvaluator:
        """Raises `UserError` if the harness is not installed, a task is unknown, or a file cannot be read."""
        tokenizer = self._choose_tokenizer(context)
        stack = contextlib.ExitStack()
        prepared = stack.enter_context(harness.prepare_tasks(self._make_request()))  # mistakes are refused here

        def evaluate(model: "gpt.GPT") -> Metrics:
            adapter = harness_model.HarnessModel(model, tokenizer, batch_size=self.batch_size)
            results = prepared.run(adapter)
            failed = dict(note_failure(*pair) for pair in results.failed.items())
            return (
                name_metrics(results.figures) | failed | dict(note_not_run(*pair) for pair in results.not_run.items())
            )

        weakref.finalize(evaluate, stack.close)  # local files were converted, and are read by each evaluation
        return guard(evaluate, " ".join(self.tasks))

    def _choose_tokenizer(self, context: EvalContext) -> Tokenizer:
        tokenizer = with_chatml(_require_tokenizer(context))
        if self.apply_chat_template and tokenizer.chat_template is None:
            raise UserError("evaluators: apply_chat_template needs data with a chat template, and this has none.")
        return tokenizer

    def _make_request(self) -> "harness.TaskRequest":
        return harness.TaskRequest(
            self.tasks,
            include_path=self.include_path,
            task_data=self.task_data,
            limit=self.limit,
            num_fewshot=self.num_fewshot,
            apply_chat_template=self.apply_chat_template,
        )


@dataclass(frozen=True)
class Core(_BatchedEvaluator):
    """CORE from a local copy of its bundle, as `evaluate --core` scores it."""

    bundle: str = "eval_bundle"
    """Directory with nanochat's bundle."""
    limit: int | None = 500
    """Items of each task. nanochat takes 500 during training."""

    counts: ClassVar[tuple[str, ...]] = ("batch_size", "limit")

    def check(self, context: EvalContext) -> None:
        _require_tokenizer(context)
        core_bundle.check_bundle(expand_path(self.bundle))

    def open(self, context: EvalContext) -> OpenEvaluator:
        """Raises `UserError` for a directory that is no bundle."""
        tokenizer, tasks = _require_tokenizer(context), core_bundle.read_bundle(expand_path(self.bundle))
        core_bundle.check_tasks(tasks, limit=self.limit)

        def evaluate(model: "gpt.GPT") -> Metrics:
            figures, items = core_bundle.score_core(
                model, tokenizer, tasks, limit=self.limit, batch_size=self.batch_size
            )
            return name_metrics({name: figures[name] for name in ("CORE", *items)})  # controls do not change

        return guard(evaluate, "core")


def guard(evaluate: OpenEvaluator, name: str) -> OpenEvaluator:
    """The evaluator, with any exception as a metric `eval_NAME_error` and a line on stderr instead."""

    def run(model: "gpt.GPT") -> Metrics:
        try:
            return evaluate(model)
        except Exception as error:  # whatever it is, the run is worth more
            return dict([note_failure(name, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")])

    return run


def note_failure(name: str, reason: str) -> tuple[str, str]:
    """Print that an evaluation failed. Returns its metric `eval_NAME_error` and the value."""
    print(f"note: the evaluation {name} failed, and training goes on: {reason}", file=sys.stderr)
    return name_metric(f"{name} error"), reason


def note_not_run(task: str, reason: str) -> tuple[str, str]:
    """Print that a task lacks its data. Returns its metric `eval_TASK_not_run` and the value."""
    print(f"note: the task {task} was not run, and training goes on: {reason}", file=sys.stderr)
    return name_metric(f"{task} not run"), reason


def name_metrics(figures: dict[str, Figure]) -> Metrics:
    """The figures' values by their names as metrics."""
    return {name_metric(name): figure.value for name, figure in figures.items()}


def name_metric(name: str) -> str:
    """Such as `eval_lambada_openai_acc`."""
    return EVALUATION_PREFIX + re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def _require_tokenizer(context: EvalContext) -> Tokenizer:
    if context.tokenizer is None:
        raise UserError("evaluators: texts and tasks need a tokenizer, and the data has none beside it.")
    return context.tokenizer
