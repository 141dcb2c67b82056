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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from gptjax.core.command_line import parse_options
from gptjax.core.compile_cache import enable_compile_cache
from gptjax.core.errors import UserError, count_of, exit_on_user_error
from gptjax.core.files import expand_path, write_atomically
from gptjax.inference.text_generation import Completion, GenerationOptions, TextGenerator
from gptjax.sharding.devices import measure_copy_bandwidth
from gptjax.tokenization.chat import ChatEncoder
from gptjax.tokenization.chat_template import Message
from gptjax.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptjax.generation.generate import DecodingSpeed

DEFAULT_LENGTH = 200


@dataclass(frozen=True)
class Sample(GenerationOptions):
    """Continue a text, or let a model that was trained on chats answer. The same arguments write the same text."""

    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text to continue, or a message to a model that was trained on chats. Empty starts a new document. May be given
    several times, for texts side by side."""
    prompt_file: str | None = None
    """File (UTF-8) that holds the prompt, as it stands: a line end at its end counts."""
    interactive: bool = False
    """Read prompts from the terminal, a line each. For conversations there is `python -m gptjax.chat`."""
    max_new_tokens: int | None = None
    """Tokens to generate. Default: 200, or as many as fit the model's context."""
    stop: bool = True
    """Stop at an end of text, or at the end of a turn. --no-stop goes on with the next document, which sees this
    one."""
    special_tokens: bool = False
    """Names of special tokens in the prompt, such as <|im_start|>, stand for these tokens. It is continued as it
    stands."""
    raw: bool = False
    """Continue the prompt as it stands, also for a model that was trained on chats."""
    crop: bool = False
    """Write past the model's context: each token sees the last context of tokens, as in nanoGPT."""
    num_samples: int = 1
    """Number of texts for each prompt."""
    json: str | None = None
    """Also write texts, tokens and log-probabilities to this file. `-` prints them instead of the texts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [f"--{name}" for name in ("prompt", "prompt_file", "interactive") if getattr(self, name)]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given).replace('_', '-')} are both given: choose one.")
        if self.num_samples < 1:
            raise UserError(f"--num-samples is {self.num_samples}; it must be at least 1.")
        if self.interactive and self.json is not None:
            raise UserError("--interactive and --json are both given: choose one.")

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts as given; without any, the empty one."""
        return self.prompt or ("",)


@dataclass(frozen=True)
class Prompt:
    """Ids that the model reads first. The first `hidden` of them are not part of the text."""

    ids: np.ndarray
    hidden: int = 0


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        words = sys.argv[1:] if argv is None else argv
        options = parse_options(Sample, words, prog="python -m gptjax.sample", introduction=__doc__ or "")
        enable_compile_cache()
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


def write_samples(sampler: "Sampler") -> None:
    """Print the texts, and write them as JSON if that is asked for. A single text is printed while it is written."""
    options, texts = sampler.options, read_prompts(sampler.options)
    prompts = [sampler.encode(text) for text in texts for _ in range(options.num_samples)]
    is_quiet = options.json == "-"
    if len(prompts) == 1 and not is_quiet:
        completions = stream_text(sampler, prompts[0])
    else:
        *_, completions = sampler.complete(prompts, every=1 if options.stop_text else None)
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), start=1):
            heading = f"{'' if number == 1 else chr(10)}--- sample {number} of {len(prompts)} ---"
            print(heading, sampler.show(prompt) + completion.text, sep="\n") if not is_quiet else None
    if sampler.generator.speed is not None:
        print_speed(sampler.generator.speed)
    if options.json is not None:
        report = json.dumps(sampler.report(prompts, completions), ensure_ascii=False, indent=1)
        print(report) if is_quiet else write_atomically(expand_path(options.json), report + "\n")


def stream_text(sampler: "Sampler", prompt: Prompt, *, seed: int | None = None) -> list[Completion]:
    """Print prompt and text while it is written."""
    stream = sampler.complete([prompt], every=1, seed=seed)
    completions = next(stream)  # an error comes before anything is printed
    print(sampler.show(prompt), completions[0].new_text, sep="", end="", flush=True)
    for completions in stream:
        print(completions[0].new_text, end="", flush=True)
    print()
    return completions


def run_interactive(sampler: "Sampler") -> None:
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


class Sampler:
    """Prompts as the model was trained to read them, and where its texts end."""

    def __init__(self, generator: TextGenerator, options: Sample) -> None:
        self.generator, self.options, self.tokenizer = generator, options, generator.tokenizer
        has_template = self.tokenizer.chat_template is not None
        self.chat = (
            ChatEncoder(self.tokenizer) if has_template and not options.raw and not options.special_tokens else None
        )
        ends = [self.tokenizer.end_of_text, ChatEncoder(self.tokenizer).end if has_template else None]
        self.ends = [end for end in ends if end is not None] if options.stop else []

    def encode(self, text: str) -> Prompt:
        """A prompt's tokens: a user's message, text with special tokens, or text."""
        if self.chat is not None and not text.strip():
            raise UserError("this model was trained on chats and answers a message: give --prompt=MESSAGE, or --raw.")
        if self.chat is not None:
            ids = self.chat.encode_prompt([Message("user", text)])
            return Prompt(ids, hidden=len(ids))
        if self.options.special_tokens and text:
            return Prompt(self.tokenizer.encode_with_specials(text))
        return encode_prompt(text, self.tokenizer)

    def show(self, prompt: Prompt) -> str:
        """The part of the prompt that belongs to the text."""
        return self.tokenizer.decode(prompt.ids[prompt.hidden :])

    def complete(
        self, prompts: list[Prompt], *, every: int | None, seed: int | None = None
    ) -> Iterator[list[Completion]]:
        """Continue the prompts. `every` None writes them at once."""
        options, context = self.options, self.generator.context_length
        longest = max(len(prompt.ids) for prompt in prompts)
        if longest > context and not options.crop:
            raise UserError(
                f"a prompt has {longest:,} tokens, more than the model's context of {context:,}. Shorten it, or let "
                f"--crop read its last {context:,}."
            )
        length = resolve_length(options, available=DEFAULT_LENGTH if options.crop else context - longest)
        return self.generator.complete(
            [prompt.ids for prompt in prompts],
            max_new_tokens=length,
            ends=self.ends,
            seed=seed,
            every=every or max(1, length),
            log_probabilities=options.json is not None,
            crop=options.crop,
            measure_speed=not options.interactive,
        )

    def report(self, prompts: list[Prompt], completions: list[Completion]) -> dict[str, Any]:
        """The content of --json. `logprob` is the model's own, in nats, before temperature and filters."""
        options = self.options
        settings = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "min_p", "seed")}
        samples = [
            {
                "prompt": self.tokenizer.decode(prompt.ids),
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "tokens": [
                    {"id": token, "text": self.tokenizer.decode([token]), "logprob": nats}
                    for token, nats in zip(completion.ids, completion.log_probabilities, strict=True)
                ],
            }
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        settings["repetition_penalty"] = options.repetition_penalty
        return {"checkpoint": options.checkpoint, "step": self.generator.step, "settings": settings, "samples": samples}


def print_speed(speed: "DecodingSpeed") -> None:
    """One line on stderr. The bandwidth is compared with that of a copy, measured now."""
    measured, copied = speed.bytes_per_second, measure_copy_bandwidth()
    print(
        f"{count_of(speed.tokens, 'tokens')} in {speed.seconds:.2f} s: {speed.tokens_per_second:,.1f} tokens/s; "
        f"weights and cache read at {measured / 1e9:.1f} GB/s, {measured / copied:.0%} of a copy's "
        f"{copied / 1e9:.1f} GB/s",
        file=sys.stderr,
    )


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> Prompt:
    """The prompt's tokens. An empty prompt stands for the start of a document: an end of text, or else a line end."""
    if prompt:
        if tokenizer.kind == "bpe" and prompt.endswith(" "):
            print("note: the prompt ends with a blank, but words begin with theirs: leave it out.", file=sys.stderr)
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
        return (expand_path(options.prompt_file).read_bytes().decode("utf-8"),)
    except OSError as error:
        raise UserError(f"--prompt-file={options.prompt_file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt-file={options.prompt_file} is not UTF-8: {error}. Convert it first.") from None


def resolve_length(options: Sample, *, available: int) -> int:
    """The number of new tokens: as asked for, or else what fits. At least 1: `generate` refuses a full context."""
    return max(1, min(DEFAULT_LENGTH, available)) if options.max_new_tokens is None else options.max_new_tokens


if __name__ == "__main__":
    main()
