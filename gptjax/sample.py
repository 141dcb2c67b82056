"""Door: `python -m gptjax.sample --checkpoint=RUN --prompt="Once upon"` lets a run's weights write."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.core.settings import parse_options
from gptjax.model.generation import generate
from gptjax.run_dir import RunDir
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Tokenizer

DEFAULT_LENGTH = 200


@dataclass(frozen=True)
class Sample:
    """Continue a text. The same arguments write the same text."""

    checkpoint: str
    """A run directory."""
    prompt: str = ""
    """The text to continue; empty starts a new document."""
    prompt_file: str | None = None
    """Take the prompt from this file (UTF-8), as it stands: a line end at its end counts."""
    max_new_tokens: int | None = None
    """Tokens to write; default: 200, or what fits the model's context."""
    temperature: float = 1.0
    """Below 1 keeps to the likely, above 1 dares more; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Choose among this many likeliest tokens only."""
    top_p: float | None = None
    """Choose among the fewest tokens that have this much probability together."""
    stop: bool = True
    """Stop at an end of text; --no-stop writes on with the next document, which sees this one."""
    num_samples: int = 1
    """How many texts to write."""
    seed: int = 0
    """Another seed, other texts."""
    step: str = "latest"
    """Which checkpoint: a number, `latest` or `best`."""
    ema: bool = True
    """Take the run's average of the weights, if it keeps one; --no-ema takes the last ones."""
    mesh: MeshConfig = MeshConfig("single")
    """Devices to spread over: `--mesh=tensor` for a model too large for one."""

    def __post_init__(self) -> None:
        if self.prompt and self.prompt_file is not None:
            raise UserError("--prompt and --prompt-file are both given: choose one.")
        if self.num_samples < 1:
            raise UserError(f"--num-samples is {self.num_samples}; it must be at least 1.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}; it lies between 0 and {2**32 - 1}.")


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        words = sys.argv[1:] if argv is None else argv
        arguments = parse_options(Sample, words, prog="python -m gptjax.sample")
        for i, text in enumerate(sample(arguments), start=1):
            if arguments.num_samples > 1:
                print(f"{'' if i == 1 else chr(10)}--- sample {i} of {arguments.num_samples} ---")
            print(text)


def sample(arguments: Sample) -> Iterator[str]:
    """The texts, each with its prompt; one ends after `max_new_tokens` or, unless told otherwise, at an end of text."""
    run = RunDir.open(arguments.checkpoint)
    tokenizer = run.require_tokenizer()
    start = first_tokens(read_prompt(arguments), tokenizer)
    mesh = arguments.mesh.resolve(jax.device_count())
    with mesh.activate():
        model = run.load_model(arguments.step, mesh=mesh, ema=arguments.ema)
        rows = generate(
            model,
            np.tile(start.ids, (arguments.num_samples, 1)),
            max_new_tokens=wanted_length(arguments, room=model.config.context_length - len(start.ids)),
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            end_of_text=tokenizer.end_of_text if arguments.stop else None,
            key=jax.random.key(arguments.seed),
        )
    for row in rows:
        ends = np.flatnonzero(row[len(start.ids) :] == tokenizer.end_of_text)
        end = len(start.ids) + int(ends[0]) if ends.size and arguments.stop else len(row)
        yield tokenizer.decode(row[start.hidden : end])


@dataclass(frozen=True)
class Start:
    """What is read before the first new token; the first `hidden` ids are not part of the text."""

    ids: np.ndarray
    hidden: int = 0


def first_tokens(prompt: str, tokenizer: Tokenizer) -> Start:
    """The prompt's tokens; an empty one starts where documents start: after an end of text, or after a line end."""
    if prompt:
        return Start(tokenizer.encode(prompt))
    if tokenizer.end_of_text is not None:
        return Start(np.array([tokenizer.end_of_text]), hidden=1)
    try:
        line_end = tokenizer.encode("\n")
    except UserError:
        raise UserError(
            f"the {tokenizer.name} tokenizer has neither an end of text nor a line end to start from. Give --prompt."
        ) from None
    print("note: this tokenizer has no end of text; the empty prompt is taken to be a line end.", file=sys.stderr)
    return Start(line_end, hidden=len(line_end))


def read_prompt(arguments: Sample) -> str:
    if arguments.prompt_file is None:
        return arguments.prompt
    try:
        return Path(arguments.prompt_file).read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"--prompt-file={arguments.prompt_file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt-file={arguments.prompt_file} is not UTF-8: {error}. Convert it first.") from None


def wanted_length(arguments: Sample, *, room: int) -> int:
    """As many tokens as asked for; by default what fits, but at least 1, so that `generate` explains a full context."""
    return max(1, min(DEFAULT_LENGTH, room)) if arguments.max_new_tokens is None else arguments.max_new_tokens


if __name__ == "__main__":
    main()
