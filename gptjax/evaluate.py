"""Measure how well weights predict text, or run tasks: `python -m gptjax.evaluate --help`.

    python -m gptjax.evaluate --checkpoint=runs/quickstart
    python -m gptjax.evaluate --checkpoint=runs/a --baseline=runs/b --text=book.txt --json=result.json
    python -m gptjax.evaluate --checkpoint=runs/a --tasks=lambada_openai,hellaswag --limit=500 --responses=items.jsonl

Often given:

    --checkpoint        a run, the directory of a model that transformers saved, or hf:OWNER/REPO; several are compared
    --text, --data      a text or shards; without them the run's own validation split
    --protocol          how windows are cut: gptjax, nanogpt, hf-stride-512, harness and others
    --tasks             tasks of lm-evaluation-harness, with --limit and --num-fewshot
    --json, --picture   files for the result
    --batch-size        rows at a time, if memory is short
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal

import jax
import tyro

from gptjax.cli.command_line import Imports, parse_options
from gptjax.core.compile_cache import enable_compile_cache
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.core.files import check_output_file, expand_path
from gptjax.data.config import TokenShards
from gptjax.data.source import DataSource
from gptjax.evaluation.comparison import Evaluation, draw_bars
from gptjax.evaluation.figures import compute_figures
from gptjax.evaluation.protocols import Documents, EvalProtocol, FirstToken, Words, find_protocol
from gptjax.evaluation.report import describe, to_result, write_result
from gptjax.model.products import Quantize
from gptjax.runs.checkpoint_source import Checkpoint, locate_checkpoint, open_checkpoint
from gptjax.sharding.devices import DType
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.chat import with_chatml
from gptjax.tokenization.chat_template import read_jinja_template
from gptjax.tokenization.difference import explain_difference

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Evaluate:
    """How well checkpoints predict text: the validation split of their own data, other shards, or a text file."""

    checkpoint: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A run, the directory of a model that transformers saved, or hf:OWNER/REPO. May be given several times."""
    baseline: str | None = None
    """One more checkpoint, or one of those: the others are compared with it, document by document."""
    step: str = "latest"
    """Checkpoint of a run: a number, `latest` or `best`."""
    ema: bool = True
    """Take the run's average of the weights, if it keeps one. --no-ema takes the raw weights."""
    data: str | None = None
    """Directory of shards made with the run's tokenizer, or with one that has fewer special tokens."""
    split: Literal["val", "train"] = "val"
    """Split of the shards."""
    text: str | None = None
    """A text file (UTF-8), taken as one document; JSON Lines with a text in each; or a directory, a table and so on."""
    text_field: str | None = None
    """Key or column of --text that holds the text of a record. Default: text."""
    separator: str | None = None
    """Cut a text file into documents here, such as `<|endoftext|>` or `\\n\\n`. By default it is one document."""
    protocol: str = "gptjax"
    """How the text is scored: gptjax, nanogpt, modded-nanogpt, hf-stride-512, harness or wikitext2-rows."""
    window: int | None = None
    """Tokens that a row reads, instead of the protocol's."""
    stride: int | None = None
    """Tokens between the starts of windows, instead of the protocol's."""
    first_token: FirstToken | None = None
    """Whether an end of text goes before each document, so that its first token is predicted, too."""
    documents: Documents | None = None
    """Whether documents run together or each is scored by itself."""
    words: Words | None = None
    """What word perplexity counts: words; line-ends, too; or split, as the harness does."""
    tokens: int | None = None
    """Tokens to predict, from the start. Default: the protocol's, or all."""
    offsets: str | None = None
    """File with the starts of windows, a number in each line: nanoGPT's random ones instead of all."""
    tasks: str | None = None
    """Tasks of lm-evaluation-harness, separated by commas: names, groups, or YAML files. Then no text is scored, unless
    --text or --data is given, too."""
    include_path: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Directory with further tasks of the harness."""
    task_data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Local file of a task, TASK=FILE, or a directory with TASK.jsonl files. May be given several times."""
    limit: int | None = None
    """Items of each task, from the start. Default: all."""
    num_fewshot: int | None = None
    """Examples in each prompt of the tasks. Default: as they say."""
    apply_chat_template: bool = False
    """Ask the tasks as in a chat; examples become turns."""
    responses: str | None = None
    """File (JSON Lines) for every item of the tasks with prompts and answers."""
    core: str | None = None
    """CORE from this local copy of its bundle (eval_bundle)."""
    context_length: int | None = None
    """The model's context, instead of the whole."""
    dtype: DType | None = None
    """Type of products. Default: as trained."""
    batch_size: int = 16
    """Rows per batch. Does not change the result."""
    quantize: Quantize | None = None
    """int8: also measure the loss with the weights that `sample --quantize=int8` reads."""
    mesh: MeshConfig = MeshConfig()
    json: str | None = None
    """Also write the result to this file; - writes it to the standard output, and the table to the error output."""
    picture: str | None = None
    """Also draw the figures as bars with their intervals into this file (.png, .svg or .pdf)."""
    imports: Imports = ()
    """Module or Python file with classes of the run's own data source. May be given several times."""

    def __post_init__(self) -> None:
        if self.data is not None and self.text is not None:
            raise UserError("--data and --text are both given: choose one.")
        for name in ("tokens", "context_length", "batch_size", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
        find_protocol(self.protocol)
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UserError(f"--num-fewshot is {self.num_fewshot}; it must not be negative.")

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """All checkpoints, the baseline first unless it is among them."""
        own: dict[str, str] = {}
        for spec in self.checkpoint:
            own.setdefault(locate_checkpoint(spec), spec)
        specs = tuple(own.values())
        return specs if self.baseline is None or self.compared in specs else (self.baseline, *specs)

    @property
    def compared(self) -> str | None:
        """The baseline as `checkpoints` names it: `runs/a/` is `runs/a`."""
        if self.baseline is None:
            return None
        place = locate_checkpoint(self.baseline)
        return next((spec for spec in self.checkpoint if locate_checkpoint(spec) == place), self.baseline)

    @property
    def scores_text(self) -> bool:
        """Whether a text is scored: one that is named, or the run's own data if nothing else is asked for."""
        return self.text is not None or self.data is not None or (self.tasks is None and self.core is None)

    def check_outputs(self) -> None:
        """Raise `UserError` for a file that could not be written, before anything is scored."""
        for name in ("json", "picture", "responses"):
            if (path := getattr(self, name)) is not None and (name, path) != ("json", "-"):
                check_output_file(name, path)
        if self.picture is not None and not self.picture.lower().endswith(PICTURE_SUFFIXES):
            raise UserError(f"--picture={self.picture}: wanted a name that ends in {', '.join(PICTURE_SUFFIXES)}.")

    def resolve_protocol(self) -> EvalProtocol:
        """The preset with the options that were given."""
        names = ("window", "stride", "first_token", "documents", "words", "tokens")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(find_protocol(self.protocol), **given)


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        words = sys.argv[1:] if argv is None else argv
        options = parse_options(Evaluate, words, prog="python -m gptjax.evaluate", introduction=__doc__ or "")
        enable_compile_cache()
        evaluations = evaluate_all(options)
        output = sys.stderr if options.json == "-" else sys.stdout
        print(describe(evaluations, baseline=options.compared, quantize=options.quantize), file=output)
        if options.json is not None:
            write_result(options.json, to_result(evaluations, baseline=options.compared))
        if options.picture is not None:
            draw_bars(expand_path(options.picture), evaluations)


def evaluate(options: Evaluate) -> dict[str, Any]:
    """The result that `--json` writes; see `to_result`."""
    return to_result(evaluate_all(options), baseline=options.compared)


def evaluate_all(options: Evaluate) -> list[Evaluation]:
    """An evaluation of each checkpoint, one after another: only one model is in memory."""
    if not options.checkpoints:
        raise UserError("no checkpoint is given. Give --checkpoint=RUN.")
    options.check_outputs()
    told: set[str] = set()
    return [evaluate_checkpoint(spec, options, told=told) for spec in options.checkpoints]


def evaluate_checkpoint(spec: str, options: Evaluate, *, told: set[str]) -> Evaluation:
    """Everything that was asked for, measured of one checkpoint. `told` has the notes on the text that were printed."""
    run = open_checkpoint(spec, imports=options.imports)
    mesh = options.mesh.resolve(jax.device_count())
    step = run.find_step(options.step)
    with mesh.activate():
        model = run.load_model(
            step, mesh=mesh, context_length=options.context_length, ema=options.ema, dtype=options.dtype
        )
        weights = "average" if options.ema and run.has_ema(step) else "last"
        evaluation = Evaluation(spec, {}, about={"step": step, "weights": weights})
        evaluation.tokenizer = None if run.tokenizer is None else run.tokenizer.fingerprint
        if options.scores_text:
            add_text(evaluation, options, run, model, told=told)
        if options.tasks is not None:
            add_tasks(evaluation, options, run, model)
        if options.core is not None:
            add_core(evaluation, options, run, model)
    return evaluation


def add_tasks(evaluation: Evaluation, options: Evaluate, run: Checkpoint, model: Any) -> None:
    """Run the harness' tasks, and add their figures, items and controls."""
    from gptjax.evaluation import harness

    harness.require_lm_eval()
    from gptjax.evaluation.harness_model import HarnessModel  # imports lm_eval

    names = tuple(name.strip() for name in (options.tasks or "").split(",") if name.strip())
    request = harness.TaskRequest(
        names,
        include_path=options.include_path,
        task_data=options.task_data,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
    )
    tokenizer = run.require_tokenizer()
    template = read_jinja_template(run.directory) if tokenizer.chat_template is None else None
    if template is None:
        tokenizer = with_chatml(tokenizer)  # a base model with the tokens of chats is asked like its descendants
    adapter = HarnessModel(model, tokenizer, batch_size=options.batch_size, chat_template=template)
    results = harness.run_tasks(adapter, request)
    evaluation.figures |= results.figures
    evaluation.items |= results.items
    evaluation.about["harness"] = results.about
    if options.responses is not None:
        mode = "w" if evaluation.name == options.checkpoints[0] else "a"
        path = expand_path(options.responses)
        harness.write_responses(path, results.samples, checkpoint=evaluation.name, mode=mode)


def add_core(evaluation: Evaluation, options: Evaluate, run: Checkpoint, model: Any) -> None:
    """Score CORE's tasks."""
    from gptjax.evaluation.core_bundle import read_bundle, score_core

    tasks = read_bundle(expand_path(options.core or ""))
    tokenizer = run.require_tokenizer()
    figures, items = score_core(model, tokenizer, tasks, limit=options.limit, batch_size=options.batch_size)
    evaluation.figures |= figures
    evaluation.items |= items


def add_text(evaluation: Evaluation, options: Evaluate, run: Checkpoint, model: Any, *, told: set[str]) -> None:
    """Score the text, and add its figures."""
    from gptjax.evaluation import texts  # these import flax, which --help does not need
    from gptjax.evaluation.scoring import ScoringOptions

    protocol = options.resolve_protocol().resolve(model.config.context_length)
    if options.text is not None:
        name, choices = options.text, {"text_field": options.text_field, "separator": options.separator}
        text = texts.encode_text(expand_path(options.text), run.require_tokenizer(), protocol, told=told, **choices)
    else:
        data = find_data(options, run)
        stream = data.open_stream(options.split)
        if stream is None:
            raise UserError(f"the run's data has no split {options.split!r} of its own. Give --data or --text.")
        if (own := data.load_tokenizer()) is not None:
            evaluation.tokenizer = own.fingerprint  # a run with more special tokens reads the same ids
        text = texts.open_stored_text(stream, run.tokenizer, protocol)
        name = f"{name_data(options, data)} ({options.split})"
    end = None if run.tokenizer is None else run.tokenizer.end_of_text
    scoring = ScoringOptions(batch_size=options.batch_size, end_of_text=end)
    offsets = None if options.offsets is None else read_offsets(expand_path(options.offsets))
    score = lambda model: texts.score_text(model, text, protocol, options=scoring, offsets=offsets)
    sums = score(model)
    evaluation.sums, evaluation.figures = sums, compute_figures(sums)
    evaluation.about |= {
        "protocol": f"{name}: {protocol.describe(has_end_of_text=end is not None, is_stored=text.is_stored)}",
        "tokens": round(float(sums.scored.sum())),
        "documents": len(text.documents),
        "words": round(float(sums.words.sum())),
        "bytes": round(float(sums.bytes.sum())),
        "interval": f"95 %, bootstrap over {len(sums.nats)} {sums.unit}",
    }
    if options.quantize is not None:
        from gptjax.generation.decoding import round_weights

        rounded = compute_figures(score(round_weights(model, options.quantize)), draws=1)
        evaluation.about["val_loss_quantized"] = rounded["nats_per_token"].value


def find_data(options: Evaluate, run: Checkpoint) -> DataSource:
    """The shards that are scored: those of --data, or the run's own."""
    data = run.data if options.data is None else TokenShards(path=options.data)
    if data == TokenShards():
        raise UserError(f"{run.directory} has no data of its own. Give --data or --text.")
    tokenizer, own = data.load_tokenizer(), run.tokenizer
    if tokenizer and own and tokenizer.fingerprint != own.fingerprint and not own.extends(tokenizer):
        raise UserError(
            f"{options.data or 'the data'} was made with another tokenizer ({tokenizer.name}) than the run's "
            f"({own.name}): {explain_difference(tokenizer, own)}. Prepare the text with --tokenizer={run.directory}."
        )
    return data


def name_data(options: Evaluate, data: DataSource) -> str:
    """The shards as they were typed, or without their directory: a result may be published."""
    return options.data or PurePath(str(getattr(data, "path", None) or type(data).__name__)).name


def read_offsets(path: Path) -> list[int]:
    """The whole numbers of a file, one in each line."""
    try:
        return [int(line) for line in path.read_text(encoding="utf-8").split()]
    except OSError as error:
        raise UserError(f"--offsets={path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"--offsets={path}: wanted a whole number in each line; {error}.") from None


if __name__ == "__main__":
    main()
