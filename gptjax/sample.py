"""Entry point: `python -m gptjax.sample --checkpoint=RUN --prompt="Once upon"` continues a text."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
import tyro

from gptjax.checkpoint_source import open_checkpoint
from gptjax.core.command_line import Imports, parse_options
from gptjax.core.compile_cache import enable_compile_cache
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.model.products import Quantize
from gptjax.sharding.devices import measure_copy_bandwidth
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptjax.model.generation import DecodingSpeed

DEFAULT_LENGTH = 200


@dataclass(frozen=True)
class Sample:
    """Continue a text. The same arguments write the same text."""

    checkpoint: str
    """A run, the directory of a model that transformers saved, or hf:OWNER/REPO."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text to continue. Empty starts a new document. May be given several times, for texts side by side."""
    prompt_file: str | None = None
    """File (UTF-8) that holds the prompt, as it stands: a line end at its end counts."""
    max_new_tokens: int | None = None
    """Tokens to generate. Default: 200, or as many as fit the model's context."""
    temperature: float = 1.0
    """Divides the logits. 0 always takes the likeliest token."""
    top_k: int | None = None
    """Sample among this many likeliest tokens only."""
    top_p: float | None = None
    """Sample among the fewest tokens with this much probability together."""
    stop: bool = True
    """Stop at an end of text. --no-stop goes on with the next document, which sees this one."""
    num_samples: int = 1
    """Number of texts for each prompt."""
    quantize: Quantize | None = None
    """int8: read matrices rounded to 8 bits. `evaluate --quantize=int8` measures what that costs."""
    seed: int = 0
    """Random seed."""
    step: str = "latest"
    """Checkpoint: a number, `latest` or `best`."""
    ema: bool = True
    """Take the run's average of the weights, if it keeps one. --no-ema takes the raw weights."""
    mesh: MeshConfig = MeshConfig("single")
    """Devices to spread over: `--mesh=tensor` for a model too large for one."""
    imports: Imports = ()
    """Module or Python file with classes of the run's own model config. May be given several times."""

    def __post_init__(self) -> None:
        if self.prompt and self.prompt_file is not None:
            raise UserError("--prompt and --prompt-file are both given: choose one.")
        if self.num_samples < 1:
            raise UserError(f"--num-samples is {self.num_samples}; it must be at least 1.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}; it lies between 0 and {2**32 - 1}.")

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts as given; without any, the empty one."""
        return self.prompt or ("",)


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        words = sys.argv[1:] if argv is None else argv
        options = parse_options(Sample, words, prog="python -m gptjax.sample")
        enable_compile_cache()
        for i, text in enumerate(sample(options), start=1):
            if (count := options.num_samples * len(options.prompts)) > 1:
                print(f"{'' if i == 1 else chr(10)}--- sample {i} of {count} ---")
            print(text)


def sample(options: Sample) -> Iterator[str]:
    """The texts, each with its prompt. A text ends after `max_new_tokens` or, with `stop`, at an end of text."""
    from gptjax.model.generation import generate  # imports flax, which --help does not need

    run = open_checkpoint(options.checkpoint, imports=options.imports)
    tokenizer = run.require_tokenizer()
    prompts = [encode_prompt(prompt, tokenizer) for prompt in read_prompts(options) for _ in range(options.num_samples)]
    longest = max(len(prompt.ids) for prompt in prompts)
    mesh = options.mesh.resolve(jax.device_count())
    with mesh.activate():
        model = run.load_model(options.step, mesh=mesh, ema=options.ema)
        length = resolve_length(options, available=model.config.context_length - longest)
        rows = generate(
            model,
            [prompt.ids for prompt in prompts],
            max_new_tokens=length,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            end_of_text=tokenizer.end_of_text if options.stop else None,
            key=jax.random.key(options.seed),
            quantize=options.quantize,
            report_speed=print_speed,
        )
    for row, prompt in zip(rows, prompts, strict=True):
        start, end = len(prompt.ids), len(prompt.ids) + length
        ends = np.flatnonzero(row[start:end] == tokenizer.end_of_text)
        end = start + int(ends[0]) if ends.size and options.stop else end
        yield tokenizer.decode(row[prompt.hidden : end])


def print_speed(speed: "DecodingSpeed") -> None:
    """One line on stderr. The bandwidth is compared with that of a copy, measured now."""
    measured, copied = speed.bytes_per_second, measure_copy_bandwidth()
    print(
        f"{speed.tokens} tokens in {speed.seconds:.2f} s: {speed.tokens_per_second:,.1f} tokens/s; weights and cache "
        f"read at {measured / 1e9:.1f} GB/s, {measured / copied:.0%} of a copy's {copied / 1e9:.1f} GB/s",
        file=sys.stderr,
    )


@dataclass(frozen=True)
class Prompt:
    """Ids that the model reads first. The first `hidden` of them are not part of the text."""

    ids: np.ndarray
    hidden: int = 0


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> Prompt:
    """The prompt's tokens. An empty prompt stands for the start of a document: an end of text, or else a line end."""
    if prompt:
        return Prompt(tokenizer.encode(prompt))
    if tokenizer.end_of_text is not None:
        return Prompt(np.array([tokenizer.end_of_text]), hidden=1)
    try:
        line_end = tokenizer.encode("\n")
    except UserError:
        raise UserError(
            f"the {tokenizer.name} tokenizer has neither an end of text nor a line end to start from. Give --prompt."
        ) from None
    print("note: this tokenizer has no end of text; the empty prompt is taken to be a line end.", file=sys.stderr)
    return Prompt(line_end, hidden=len(line_end))


def read_prompts(options: Sample) -> tuple[str, ...]:
    if options.prompt_file is None:
        return options.prompts
    try:
        return (Path(options.prompt_file).expanduser().read_bytes().decode("utf-8"),)
    except OSError as error:
        raise UserError(f"--prompt-file={options.prompt_file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt-file={options.prompt_file} is not UTF-8: {error}. Convert it first.") from None


def resolve_length(options: Sample, *, available: int) -> int:
    """The number of new tokens: as asked for, or else what fits. At least 1: `generate` refuses a full context."""
    return max(1, min(DEFAULT_LENGTH, available)) if options.max_new_tokens is None else options.max_new_tokens


if __name__ == "__main__":
    main()
