"""Text that a run prints before its first step and after its last."""

import math
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from gptjax.checkpoints.checkpoint_format import DEFAULT_METRIC, rank_steps, read_metadata
from gptjax.checkpoints.integrity import list_steps
from gptjax.cli.flags import drop_flags
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError, count_of
from gptjax.core.files import shorten_path
from gptjax.core.serialization import to_json
from gptjax.data.config import TokenShards
from gptjax.data.fitting_flags import CHAT_FLAGS
from gptjax.data.loader import BatchLoader
from gptjax.data.manifest import read_manifest
from gptjax.evaluators.evaluator import Evaluators, list_metrics, may_measure
from gptjax.evaluators.validation import ValidationLoss
from gptjax.finetuning.adapters import abstract_adapted_model
from gptjax.huggingface.architectures.selection import choose_architecture
from gptjax.metrics.goodput import describe_goodput, read_spans
from gptjax.metrics.metrics_file import find_number, read_metrics
from gptjax.metrics.plots import plot_losses
from gptjax.model.gpt import count_parameters
from gptjax.model.kernels import select_kernel, why_not_flash
from gptjax.model.layers import ACTIVATIONS
from gptjax.objectives.objective import get_row_kind
from gptjax.process.console import keep_console_log, print_once
from gptjax.process.diagnosis import keep_reports_in
from gptjax.runs.resume import describe_ended_schedule
from gptjax.runs.run_dir import CHECKPOINTS, CONSOLE_LOG, TOKENIZER_FILE
from gptjax.sharding.devices import describe_devices, describe_unused_gpu
from gptjax.sharding.mesh import MeshConfig
from gptjax.supervision.stopping import Stop
from gptjax.tokenization.chat_template import CHAT_TEMPLATE_FILE
from gptjax.tokenization.tokenizer import load_tokenizer

_RISE = 0.02
"""A last loss above the lowest by more than this part of it has risen: training on is not suggested."""


def keep_output(config: TrainConfig) -> None:
    """From now on the run directory has what is printed and what is reported."""
    keep_reports_in(config.directory)
    if jax.process_index() == 0:
        keep_console_log(config.directory / CONSOLE_LOG)


def describe_run(
    config: TrainConfig, mesh: MeshConfig, batches: BatchLoader, evaluators: Evaluators, *, start: int = 0
) -> None:
    """Print what is about to run, from step `start` on."""
    model = config.model
    kernel: str = select_kernel(model)
    if model.compute.attention_impl == "auto" and (reason := why_not_flash(model)):
        kernel += f" ({reason})"
    each = "" if config.stages else f" × {config.phases[0].tokens:,} tokens"
    epochs = ", ".join(f"{count:.2f}" for count in batches.epochs(config.steps).values())
    layers = count_of(model.num_layers, f"layers × {model.embed_dim}")
    print_once(
        f"run       {config.directory}",
        f"devices   {describe_devices()}; mesh {mesh.describe()}",
        f"model     {count_parameters(model):,} parameters, {layers}, context "
        f"{model.context_length}, vocabulary {model.resolved_vocab_size:,} (stored {model.padded_vocab_size:,}); "
        f"{model.compute.dtype} products; attention {kernel}",
        *_describe_adapters(config),
        *(f"data      {line}" for line in batches.reader.describe()),
        f"training  {count_of(config.steps, 'steps')}{each} = {config.tokens(config.steps):,}{' tokens' * (not each)} "
        f"({epochs or 'unknown'} epochs)",
        *(f"stage     {phase.describe()}" for phase in config.phases if config.stages and phase.begin < config.steps),
        *(f"evaluated {protocol}" for protocol in evaluators.describe()),
    )
    if config.ema.enabled:
        print_once(
            f"average   {config.ema.describe(steps=config.schedule_length)}; it is evaluated, sampled and exported"
        )
    print_once(*_describe_cut_chats(config), *_describe_unevaluated(config))
    if config.steps > max(1, start) and _is_rising(config):
        print_once(
            f"note: the learning rate still rises at the last of {count_of(config.steps, 'steps')}: shorten its "
            "warm-up (--optimizer.schedule.warmup-steps)"
        )


def _describe_adapters(config: TrainConfig) -> list[str]:
    """What is trained, if that is not the whole model."""
    lora = config.lora
    if not lora.enabled:
        return []
    adapters = abstract_adapted_model(config.model, lora).adapters
    trained = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(adapters))
    rows = f"; rows of {len(lora.trained_rows)} tokens" if lora.trained_rows else ""
    share = trained / count_parameters(config.model)
    return [f"adapters  {trained:,} trained parameters ({share:.2%} of the model's), rank {lora.rank}{rows}"]


def _describe_cut_chats(config: TrainConfig) -> list[str]:
    """A note if rows do not hold whole conversations that are apart, as an objective over answers would demand."""
    data = config.data
    if not isinstance(data, TokenShards) or data.path is None or get_row_kind(config.objective) != "text":
        return []
    manifest = read_manifest(data.path)
    if manifest is None or manifest.request.get("kind") != "chat":
        return []
    if data.reads_whole_documents and config.model.intra_document_mask:
        return []
    tokens = sum(split.tokens for split in manifest.splits.values())
    flags = CHAT_FLAGS.choose(tokens, weight_bytes=4 * count_parameters(config.model))
    if config.init_from is not None:
        flags = f"{flags} --init-from={shlex.quote(config.init_from)}"
    return [
        "note: the data holds conversations, of which the answers alone are learned, but rows cut them or let one see "
        f"another; the objective SFT reads whole ones, as in {flags}"
    ]


def _describe_unevaluated(config: TrainConfig) -> list[str]:
    """A note if no checkpoint before the last is evaluated: then the last is `best`, whatever its loss."""
    metric = config.checkpoint.best_metric
    losses = [evaluator for evaluator in config.evaluators if may_measure(evaluator, metric)]
    # A user's own evaluator may measure anything, so it is expected to measure what was asked for alone.
    is_expected = metric != DEFAULT_METRIC or any(metric in list_metrics(evaluator) for evaluator in losses)
    if not (config.checkpoint.keep_best and losses and is_expected):
        return []
    by_time = []
    if config.checkpoint.every_minutes is not None:
        by_time = ["note: checkpoints of --checkpoint.every-minutes become `best` only at steps that are evaluated"]
    saved = [step for step in range(1, config.steps) if config.checkpoint.should_save(step, steps=config.steps)]
    if not saved or any(evaluator.should_run(step, steps=config.steps) for evaluator in losses for step in saved):
        return by_time
    return [
        *by_time,
        f"note: no checkpoint before the last is evaluated with {metric}, so none of them can become `best`: let its "
        f"evaluation run at the steps that are saved ({saved[0]:,}, …)",
    ]


def _is_rising(config: TrainConfig) -> bool:
    before, last = (
        float(config.optimizer.learning_rate_at(step, steps=config.schedule_length))
        for step in (config.steps - 2, config.steps - 1)
    )
    return last > before


def print_summary(config: TrainConfig, command: str, *, stopped: Stop | None) -> None:
    """Plot the losses, sum up, and print commands to type next."""
    if jax.process_index() != 0:
        return
    try:
        _print_results(config)
    except (OSError, UserError, ValueError) as error:  # a log that was lost, a full disk, a wrong MPLBACKEND
        print_once(f"warning: the losses are not plotted: {error}")
    print_once(*describe_ended_schedule(config))
    _print_commands(config, command, stopped=stopped)
    if (warning := describe_unused_gpu()) is not None:  # the one at the start has scrolled away
        print_once(warning)


def _print_results(config: TrainConfig) -> None:
    records = read_metrics(config.directory / "metrics.jsonl")
    last: dict[str, Any] = {}
    for record in records:
        last |= record
    bigram, bits, bigram_bits = (find_number(last, name) for name in ("bigram_loss", "val_bpb", "bigram_bpb"))
    references = {} if bigram is None else {"bigram": bigram}
    picture = plot_losses(config.directory, references=references)
    whole = all(evaluator.tokens is None for evaluator in config.evaluators if isinstance(evaluator, ValidationLoss))
    evaluated = max((record["step"] for record in records if record.get("val_bpb") is not None), default=-1)
    if whole and evaluated == last.get("step") and bits is not None and bigram_bits:
        ratio = bits / bigram_bits
        print_once(f"validation {bits:.4f} bits per byte; a bigram has {bigram_bits:.4f} (ratio {ratio:.3f})")
    print_once(f"losses plotted in {picture}")
    if line := describe_goodput(read_spans(config.directory)):
        print_once(line)


def _print_commands(config: TrainConfig, command: str, *, stopped: Stop | None) -> None:
    words = shlex.split(command)
    if _find_config(words) is None:  # trained from Python
        print_once(f"the run is in {config.directory}; train() with the same config resumes it")
        return
    if not list_steps(config.directory / CHECKPOINTS):
        print_once(f"next: {command}", "(stopped before the first step, so nothing was saved)")
        return
    # The run has gone back, and goes on; or the newest checkpoint is of the config that was forced.
    if re.search(r" --resume[= ]\d", command) or (config.resume == "force" and _is_saved(config)):
        words = drop_flags(words, "resume")
    if stopped is not None and stopped.status == 0:  # by patience: the same command would stop again
        words = [*drop_flags(words, "patience"), "--patience=None"]
    run = shorten_path(config.directory)
    better = _find_better(config)
    run, exported = shlex.quote(f"{run}@best" if better else run), shlex.quote(f"{run}-hf")
    for_model, for_data = _find_imports(config, words)
    # A schedule keeps its length on a resume: without more of it, further steps would have its last learning rate.
    length = 2 * config.steps
    longer = [*drop_flags(words, "steps"), f"--steps={length}"]
    if length > config.schedule_length:
        longer = [*drop_flags(longer, "schedule-steps"), f"--schedule-steps={length}"]
    more = f"resume    {shlex.join(words)}" if stopped else f"train on  {shlex.join(longer)}"
    lines = [] if better and better.is_clear and not stopped else [f"  {more}"]
    if (config.directory / TOKENIZER_FILE).is_file():  # pairs of plain text have no template
        is_chat = get_row_kind(config.objective) != "text" and (config.directory / CHAT_TEMPLATE_FILE).is_file()
        name, prompt = ("chat", "") if is_chat else ("sample", _choose_prompt(config))
        lines.append(f"  {name:<10}python -m gptjax.{name} --checkpoint={run}{prompt}{for_model}")
    if _has_validation(config) and get_row_kind(config.objective) != "pairs":
        lines.append(f"  evaluate  python -m gptjax.evaluate --checkpoint={run}{for_model or for_data}")
    if _is_exportable(config):
        lines.append(f"  convert   python -m gptjax.convert to-hf --checkpoint={run} --output={exported}{for_model}")
    if better:
        metric = config.checkpoint.best_metric
        print_once(
            f"note: {metric} was lowest at step {better.step:,}, {better.loss:.4f}; at step {better.last_step:,} it is "
            f"{better.last_loss:.4f}. {run} names the better one"
        )
    print_once("next:", *lines)


class _Better(NamedTuple):
    """An earlier checkpoint with a lower loss than the newest has."""

    step: int
    loss: float
    last_step: int
    last_loss: float

    @property
    def is_clear(self) -> bool:
        """Whether the loss rises: less may be noise, after which further steps lower it."""
        return self.last_loss - self.loss > _RISE * abs(self.loss)


def _find_better(config: TrainConfig) -> _Better | None:
    checkpoints = config.directory / CHECKPOINTS
    ranked, newest = rank_steps(checkpoints), list_steps(checkpoints)[-1]
    if not config.checkpoint.keep_best or newest not in ranked:
        return None
    best, last = (read_metadata(checkpoints, step)["best_value"] for step in (ranked[0], newest))
    return _Better(ranked[0], best, newest, last) if best < last else None


def _is_saved(config: TrainConfig) -> bool:
    """Whether the newest checkpoint is of this config."""
    checkpoints = config.directory / CHECKPOINTS
    try:
        return read_metadata(checkpoints, list_steps(checkpoints)[-1]).get("config") == to_json(config)
    except UserError:
        return False


def _find_config(words: Sequence[str]) -> str | None:
    """The config in the words of a command; None if it has none."""
    return next((word.partition("=")[2] for word in words if word.startswith("--config=")), None)


def _find_imports(config: TrainConfig, words: Sequence[str]) -> tuple[str, str]:
    """The flag for commands that build a model, and for those that read data, of the user's own file; else empty."""
    found = _find_config(words)
    flag = f" {shlex.join([f'--import={found}'])}" if found else ""
    has_own_model = config.model.activation not in ACTIVATIONS.builtin or _is_own(config.model.position_scheme)
    return flag * has_own_model, flag * _is_own(config.data)


def _is_own(part: Any) -> bool:
    return not type(part).__module__.startswith("gptjax.")


def _choose_prompt(config: TrainConfig) -> str:
    """The flag that `sample` needs if the tokenizer has neither an end of text nor a line end; else empty."""
    try:
        tokenizer = load_tokenizer(config.directory / TOKENIZER_FILE)
    except UserError:  # `sample` says what is wrong with it
        return ""
    try:
        if tokenizer.end_of_text is None:
            tokenizer.encode("\n")
    except UserError:
        return f" --prompt={shlex.quote(tokenizer.decode([0]))}"
    return ""


def _has_validation(config: TrainConfig) -> bool:
    """Whether `evaluate` finds a text without being given one."""
    try:
        return config.data.open_stream("val") is not None
    except UserError:
        return False


def _is_exportable(config: TrainConfig) -> bool:
    try:
        choose_architecture(config.model)
    except UserError:
        return False
    return True
