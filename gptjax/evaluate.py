"""Door: `python -m gptjax.evaluate --checkpoint=RUN` says how well weights predict text, and how that was measured."""

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.core.settings import parse_options
from gptjax.data.config import TokenShards
from gptjax.data.shards import write_shard
from gptjax.data.splits import open_split
from gptjax.data.token_stream import TokenStream
from gptjax.run_dir import RunDir
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.evaluators import EvalContext, ValidationEvaluator
from gptjax.training.objective import NextToken


@dataclass(frozen=True)
class Evaluate:
    """Loss of a checkpoint on the validation split of its own data, on other shards, or on a text file."""

    checkpoint: str
    """A run directory."""
    step: str = "latest"
    """Which checkpoint: a number, `latest` or `best`."""
    ema: bool = True
    """Take the run's average of the weights, if it keeps one; --no-ema takes the last ones."""
    data: str | None = None
    """A directory of shards made with the run's tokenizer."""
    split: Literal["val", "train"] = "val"
    """Which split of the shards is judged."""
    text: str | None = None
    """A text file (UTF-8), judged as one document."""
    tokens: int | None = None
    """Predict this many tokens, from the start; default: all."""
    context_length: int | None = None
    """Windows of this length instead of the model's whole context."""
    dtype: str | None = None
    """Type of activations, `bfloat16` or `float32`; default: as trained."""
    batch_size: int = 16
    """Windows per batch; does not change the result."""
    mesh: MeshConfig = MeshConfig()
    json: str | None = None
    """Also write the result to this file."""

    def __post_init__(self) -> None:
        if self.data is not None and self.text is not None:
            raise UserError("--data and --text are both given: choose one.")
        if self.dtype not in (None, "bfloat16", "float32"):
            raise UserError(f"--dtype is {self.dtype!r}; it is bfloat16 or float32.")
        for name in ("tokens", "context_length", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 1.")


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        words = sys.argv[1:] if argv is None else argv
        arguments = parse_options(Evaluate, words, prog="python -m gptjax.evaluate")
        result = evaluate(arguments)
        if arguments.json is not None:
            write_json(Path(arguments.json), result)
    print(
        f"{result['protocol']}\nstep {result['step']}{', average of the weights' * (result['weights'] == 'average')}: "
        + ", ".join(
            f"{name} {result[name]:.4f}" for name in ("val_loss", "val_perplexity", "val_bpb") if name in result
        )
    )


def write_json(path: Path, result: dict[str, float | str | int]) -> None:
    try:
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json={path} cannot be written: {error.strerror}.") from None


def evaluate(arguments: Evaluate) -> dict[str, float | str | int]:
    """`val_loss` (nats per token), `val_perplexity`, `val_bpb` (with a tokenizer), `protocol`, `step`, `tokens`, and
    which `weights` were judged: the `average` or the `last`."""
    run = RunDir.open(arguments.checkpoint)
    if arguments.dtype is not None:
        model_config = replace(
            run.config.model, compute=replace(run.config.model.compute, dtype=arguments.dtype, head_dtype=None)
        )
        run = replace(run, config=replace(run.config, model=model_config))
    mesh = arguments.mesh.resolve(jax.device_count())
    step = run.find_step(arguments.step)
    with mesh.activate(), tempfile.TemporaryDirectory() as scratch:
        stream = chosen_stream(arguments, run, Path(scratch))
        model = run.load_model(step, mesh=mesh, context_length=arguments.context_length, ema=arguments.ema)
        material = EvalContext(run.config.data, run.tokenizer, model.config, NextToken(), mesh)
        judge = ValidationEvaluator(stream, material, tokens=arguments.tokens, batch_size=arguments.batch_size)
        weights = "average" if arguments.ema and run.has_ema(step) else "last"
        return {**judge(model), "protocol": judge.protocol, "step": step, "tokens": judge.scored, "weights": weights}


def chosen_stream(arguments: Evaluate, run: RunDir, scratch: Path) -> TokenStream:
    """The tokens to be predicted; a text file becomes a shard in `scratch` first."""
    if arguments.text is not None:
        path = Path(arguments.text)
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
        stream.name = str(path)  # what messages are about
        return stream
    data = run.config.data if arguments.data is None else TokenShards(path=arguments.data)
    if data == TokenShards():
        raise UserError(f"{run.directory} has no data of its own: it was imported. Give --data or --text.")
    tokenizer = data.load_tokenizer()
    if tokenizer is not None and run.tokenizer is not None and tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise UserError(
            f"the data was made with another tokenizer ({tokenizer.name}) than the run's "
            f"({run.tokenizer.name}). Prepare the text with the run's tokenizer.json."
        )
    stream = data.open_stream(arguments.split)
    if stream is None:
        raise UserError(f"the run's data has no split {arguments.split!r} of its own. Give --data or --text.")
    return stream


if __name__ == "__main__":
    main()
