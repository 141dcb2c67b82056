"""A model that was trained on chats, as far as its files say, and generators that say what a test wants."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.gpt import GPT
from gptjax.runs.run_dir import write_imported_run
from gptjax.serving.text_generation import Completion, GenerationOptions, TextGenerator
from gptjax.tokenization.chat import CHAT_TOKENS
from gptjax.tokenization.chat_template import CHATML
from gptjax.tokenization.text_stream import TextStream
from gptjax.tokenization.tokenizer import BPE, END_OF_TEXT, GPT2_PATTERN, Tokenizer

TOKENS = {bytes([b]): b for b in range(256)} | {b"th": 256}
PLAIN = BPE(TOKENS, {END_OF_TEXT: 257}, merges=[(b"t", b"h")], pattern=GPT2_PATTERN)
TOKENIZER = PLAIN.with_special_tokens(CHAT_TOKENS).with_chat_template(CHATML)


def write_chat_run(directory: Path, *, tokenizer: Tokenizer = TOKENIZER, context_length: int = 64) -> Path:
    """A run with random weights."""
    config = GPTConfig(
        num_layers=1,
        embed_dim=16,
        num_heads=2,
        context_length=context_length,
        vocab_size=tokenizer.vocab_size,
        compute=ComputeConfig(dtype="float32"),
        init=InitConfig(std=0.3),
    )
    model = jax.jit(lambda key: GPT(config, key=key))(jax.random.key(0))
    write_imported_run(directory, model=model, tokenizer=tokenizer)
    return directory


class Echo(TextGenerator):
    """It answers with the user's last message, a token a time, each after `delay` seconds and a call of `wait`."""

    def __init__(
        self,
        *,
        context_length: int = 64,
        delay: float = 0.0,
        wait: Callable[[], object] = lambda: None,
        tokenizer: Tokenizer = TOKENIZER,
        jinja_template: str | None = None,
    ) -> None:
        self.tokenizer, self.length, self.delay, self.wait = tokenizer, context_length, delay, wait
        self.jinja_template = jinja_template
        self.options = GenerationOptions(checkpoint="runs/echo")
        self.prompts: list[str] = []
        self.lengths: list[int] = []

    @property
    def context_length(self) -> int:
        return self.length

    def complete(
        self, prompts: Sequence[np.ndarray], *, max_new_tokens: int, ends: Sequence[int], **options: Any
    ) -> Iterator[list[Completion]]:
        prompt = self.tokenizer.decode(prompts[0])
        self.prompts.append(prompt)
        self.lengths.append(max_new_tokens)
        said = prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        completion = Completion(TextStream(self.tokenizer))
        for token in self.tokenizer.encode(said).tolist()[:max_new_tokens]:
            time.sleep(self.delay)
            self.wait()
            completion.add([token], [0.0], ends=ends)
            yield [completion]
        completion.new_text = ""
        completion.finish("end_of_text")
        yield [completion]
