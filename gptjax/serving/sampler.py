"""Prompts as a model was trained to read them, their continuations, and the options of `gptjax.sample`."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from gptjax.core.errors import UserError
from gptjax.core.files import expand_path
from gptjax.serving.text_generation import Completion, GenerationOptions, TextGenerator
from gptjax.tokenization.chat import ChatEncoder
from gptjax.tokenization.chat_template import Message
from gptjax.tokenization.tokenizer import Tokenizer

DEFAULT_LENGTH = 200


@dataclass(frozen=True)
class Sample(GenerationOptions):
    """Continue a text, or let a model that was trained on chats answer. The same arguments write the same text."""

    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text to continue, or a message to a model that was trained on chats. Empty starts a new document. May be given
    several times, for texts side by side."""
    prompt_file: str | None = None
    """File that holds the prompt as it stands, its last line end included, or a prompt for each record (.jsonl, …)."""
    text_field: str | None = None
    """Key or column of --prompt-file that holds the prompt of a record. Default: text."""
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
        if self.text_field is not None and self.prompt_file is None:
            raise UserError("--text-field names a field of --prompt-file, which is not given.")
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

    def _show_each(self, prompt: Prompt, completion: Completion) -> list[str]:
        """The text of each new token by itself, with the blank that it has behind others."""
        ids = [*prompt.ids.tolist(), *completion.ids]
        return [self.tokenizer.decode_after(ids[:i], [ids[i]]) for i in range(len(prompt.ids), len(ids))]

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
                    {"id": token, "text": text, "logprob": nats}
                    for token, text, nats in zip(
                        completion.ids, self._show_each(prompt, completion), completion.log_probabilities, strict=True
                    )
                ],
            }
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        settings["repetition_penalty"] = options.repetition_penalty
        about = {"checkpoint": options.checkpoint, **self.generator.about}
        return about | {"settings": settings, "samples": samples}


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> Prompt:
    """The prompt's tokens. An empty prompt stands for the start of a document: an end of text, or else a line end."""
    if prompt:
        if tokenizer.kind == "bpe" and prompt.endswith(" "):
            print("note: the prompt ends with a blank, but words begin with theirs: leave it out.", file=sys.stderr)
        return Prompt(tokenizer.encode(prompt))
    if tokenizer.begin_of_text is not None:
        return Prompt(np.array([tokenizer.begin_of_text]), hidden=1)
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
    from gptjax.evaluation.texts import read_documents  # imports flax, which --help does not need

    return tuple(read_documents(expand_path(options.prompt_file), text_field=options.text_field))


def resolve_length(options: Sample, *, available: int) -> int:
    """The number of new tokens: as asked for, or else what fits. At least 1: `generate` refuses a full context."""
    return max(1, min(DEFAULT_LENGTH, available)) if options.max_new_tokens is None else options.max_new_tokens
