"""Entry point: `python -m gptjax.evaluate --checkpoint=RUN` measures how well weights predict text."""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from gptjax.checkpoint_source import Checkpoint, open_checkpoint
from gptjax.core.command_line import Imports, parse_options
from gptjax.core.compile_cache import enable_compile_cache
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.data.config import TokenShards
from gptjax.data.shards import write_shard
from gptjax.data.splits import open_split
from gptjax.data.token_stream import TokenStream
from gptjax.model.products import Quantize
from gptjax.sharding.devices import DType
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.evaluators import EvalContext, ValidationEvaluator
from gptjax.training.objective import NextToken


@dataclass(frozen=True)
class Evaluate:
    """Loss of a checkpoint on the validation split of its own data, on other shards, or on a text file."""

    checkpoint: str
    """A run, the directory of a model that transformers saved, or hf:OWNER/REPO."""
    step: str = "latest"
    """Checkpoint: a number, `latest` or `best`."""
    ema: bool = True
    """Take the run's average of the weights, if it keeps one. --no-ema takes the raw weights."""
    data: str | None = None
    """Directory of shards made with the run's tokenizer."""
    split: Literal["val", "train"] = "val"
    """Split of the shards."""
    text: str | None = None
    """A text file (UTF-8), taken as one document."""
    tokens: int | None = None
    """Tokens to predict, from the start. Default: all."""
    context_length: int | None = None
    """Length of a sequence, instead of the model's whole context."""
    dtype: DType | None = None
    """Type of products. Default: as trained."""
    batch_size: int = 16
    """Sequences per batch. Does not change the result."""
    quantize: Quantize | None = None
    """int8: also measure the loss with the weights that `sample --quantize=int8` reads."""
    mesh: MeshConfig = MeshConfig()
    json: str | None = None
    """Also write the result to this file."""
    imports: Imports = ()
    """Module or Python file with classes of the run's own data source. May be given several times."""

    def __post_init__(self) -> None:
        if self.data is not None and self.text is not None:
            raise UserError("--data and --text are both given: choose one.")
        for name in ("tokens", "context_length", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        words = sys.argv[1:] if argv is None else argv
        options = parse_options(Evaluate, words, prog="python -m gptjax.evaluate")
        enable_compile_cache()
        result = evaluate(options)
        if options.json is not None:
            write_result(Path(options.json).expanduser(), result)
    metrics = [f"{name} {result[name]:.4f}" for name in ("val_loss", "val_perplexity", "val_bpb") if name in result]
    average = ", average of the weights" if result["weights"] == "average" else ""
    print(f"{result['protocol']}\nstep {result['step']}{average}: {', '.join(metrics)}")
    if "val_loss_quantized" in result:
        loss, rounded = result["val_loss"], result["val_loss_quantized"]
        assert isinstance(loss, float)
        assert isinstance(rounded, float)
        print(f"weights in {options.quantize}: val_loss {rounded:.4f}, {rounded - loss:+.4f} nats")


def write_result(path: Path, result: dict[str, float | str | int]) -> None:
    try:
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json={path} cannot be written: {error.strerror}.") from None


def evaluate(options: Evaluate) -> dict[str, float | str | int]:
    """Metrics of a checkpoint.

    They are `val_loss` (nats per token), `val_perplexity`, `val_bpb` (with a tokenizer), `protocol`, `step`, `tokens`,
    and `weights`: `average` or `last`. With `quantize` also `val_loss_quantized`.
    """
    run = open_checkpoint(options.checkpoint, imports=options.imports)
    mesh = options.mesh.resolve(jax.device_count())
    step = run.find_step(options.step)
    with mesh.activate(), tempfile.TemporaryDirectory() as scratch:
        stream = open_stream(options, run, Path(scratch))
        model = run.load_model(
            step, mesh=mesh, context_length=options.context_length, ema=options.ema, dtype=options.dtype
        )
        data = TokenShards() if options.text or options.data else run.data
        context = EvalContext(data, run.tokenizer, model.config, NextToken(), mesh)
        evaluator = ValidationEvaluator(stream, context, tokens=options.tokens, batch_size=options.batch_size)
        weights = "average" if options.ema and run.has_ema(step) else "last"
        about = {"protocol": evaluator.describe(), "step": step, "tokens": evaluator.scored, "weights": weights}
        metrics = evaluator(model)
        if options.quantize is not None:
            from gptjax.model.decoding import round_weights  # imports flax, which --help does not need

            about["val_loss_quantized"] = evaluator(round_weights(model, options.quantize))["val_loss"]
        return {**metrics, **about}


def open_stream(options: Evaluate, run: Checkpoint, scratch: Path) -> TokenStream:
    """The tokens to be predicted. A text file becomes a shard in `scratch` first."""
    if options.text is not None:
        return tokenize_file(Path(options.text).expanduser(), run, scratch)
    data = run.data if options.data is None else TokenShards(path=options.data)
    if data == TokenShards():
        raise UserError(f"{run.directory} has no data of its own. Give --data or --text.")
    tokenizer = data.load_tokenizer()
    if tokenizer is not None and run.tokenizer is not None and tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise UserError(
            f"{options.data or 'the data'} was made with another tokenizer ({tokenizer.name}) than the run's "
            f"({run.tokenizer.name}). Prepare the text with the run's tokenizer.json."
        )
    stream = data.open_stream(options.split)
    if stream is None:
        raise UserError(f"the run's data has no split {options.split!r} of its own. Give --data or --text.")
    return stream


def tokenize_file(path: Path, run: Checkpoint, scratch: Path) -> TokenStream:
    """A text file as a token stream, with the run's tokenizer."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"--text={path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--text={path} is not UTF-8: {error}. Convert it first.") from None
    tokenizer = run.require_tokenizer()
    ids = tokenizer.encode(text)
    start = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    write_shard(scratch / "val_000000.bin", np.array([*start, *ids], np.uint32))
    stream = open_split(scratch, "val")
    stream.name = str(path)  # for messages
    return stream


if __name__ == "__main__":
    main()
