"""Continue a text: `python -m gptjax.sample --help`.

    python -m gptjax.sample --checkpoint=runs/quickstart --prompt="    def" --max-new-tokens=100
    python -m gptjax.sample --checkpoint=hf:openai-community/gpt2 --prompt="Once upon a time" --temperature=0
    python -m gptjax.sample --checkpoint=runs/quickstart --prompt-file=start.txt --num-samples=3 --json=texts.json

Often given:

    --checkpoint        a run, the directory of a model that transformers saved, or hf:OWNER/REPO
    --prompt            the text to continue; without it a new document begins
    --max-new-tokens    tokens to write
    --temperature       0 takes the likeliest token; --top-k, --top-p and --min-p limit the choice
    --num-samples       texts for each prompt; --seed for others
    --interactive       prompts from the terminal
"""

import json
import sys
from typing import TYPE_CHECKING

from gptjax.cli.command_line import parse_options
from gptjax.core.compile_cache import enable_compile_cache
from gptjax.core.errors import UserError, count_of, escape_controls, exit_on_user_error
from gptjax.core.files import check_output_file, expand_path, write_output
from gptjax.serving.sampler import Prompt, Sample, Sampler, read_prompts
from gptjax.serving.text_generation import Completion, TextGenerator
from gptjax.sharding.devices import start_backend

if TYPE_CHECKING:
    from gptjax.generation.generate import DecodingSpeed


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        words = sys.argv[1:] if argv is None else argv
        options = parse_options(Sample, words, prog="python -m gptjax.sample", introduction=__doc__ or "")
        if options.json not in (None, "-"):
            check_output_file("json", options.json)
        enable_compile_cache()
        start_backend()
        sampler = Sampler(TextGenerator.open(options), options)
        if options.interactive:
            run_interactive(sampler)
        else:
            write_samples(sampler)


def sample(options: Sample) -> list[str]:
    """The texts, each with its prompt. A text ends after `max_new_tokens` or, with `stop`, at an end of text."""
    sampler = Sampler(TextGenerator.open(options), options)
    prompts = [sampler.encode(text) for text in read_prompts(options) for _ in range(options.num_samples)]
    *_, completions = sampler.complete(prompts, every=1 if options.stop_text else None)
    return [sampler.show(prompt) + done.text for prompt, done in zip(prompts, completions, strict=True)]


def write_samples(sampler: Sampler) -> None:
    """Print the texts, and write them as JSON if that is asked for. A single text is printed while it is written."""
    options, texts = sampler.options, read_prompts(sampler.options)
    prompts = [sampler.encode(text) for text in texts for _ in range(options.num_samples)]
    is_quiet = options.json == "-"
    if len(prompts) == 1 and not is_quiet:
        completions = stream_text(sampler, prompts[0])
    else:
        *_, completions = sampler.complete(prompts, every=1 if options.stop_text else None)
        if not is_quiet:
            print_texts([sampler.show(prompt) + done.text for prompt, done in zip(prompts, completions, strict=True)])
    if sampler.generator.speed is not None:
        print_speed(sampler.generator.speed)
    if options.json is not None:
        report = json.dumps(sampler.report(prompts, completions), ensure_ascii=False, indent=1)
        print(report) if is_quiet else write_output(expand_path(options.json), report + "\n")


def print_texts(texts: list[str]) -> None:
    """Each text under a heading with its number."""
    for number, text in enumerate(texts, start=1):
        heading = f"{'' if number == 1 else chr(10)}--- sample {number} of {len(texts)} ---"
        print(heading, escape_controls(text), sep="\n")


def stream_text(sampler: Sampler, prompt: Prompt, *, seed: int | None = None) -> list[Completion]:
    """Print prompt and text while it is written."""
    stream = sampler.complete([prompt], every=1, seed=seed)
    completions = next(stream)  # an error comes before anything is printed
    print(escape_controls(sampler.show(prompt) + completions[0].new_text), end="", flush=True)
    for completions in stream:
        print(escape_controls(completions[0].new_text), end="", flush=True)
    print(flush=True)  # before the line on stderr
    return completions


def run_interactive(sampler: Sampler) -> None:
    """Continue every line of standard input, until it ends. Each has a seed of its own."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("A line is a prompt. Ctrl-C stops a text, Ctrl-D ends.", file=sys.stderr)
    seed = sampler.options.seed
    while True:
        if is_terminal:
            print("> ", end="", flush=True, file=sys.stderr)
        if not (line := sys.stdin.readline()):
            break
        try:
            stream_text(sampler, sampler.encode(line.rstrip("\n")), seed=seed)
        except KeyboardInterrupt:
            print()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        seed = (seed + 1) % 2**32


def print_speed(speed: "DecodingSpeed") -> None:
    """One line on stderr."""
    tokens = count_of(speed.tokens, "tokens")
    print(f"{tokens} in {speed.seconds:.2f} s: {speed.tokens_per_second:,.1f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    main()
