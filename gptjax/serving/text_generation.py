"""Text from a checkpoint, as it is written: what `sample` and `chat` share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import tyro

from gptjax.cli.command_line import Imports
from gptjax.core.errors import UserError
from gptjax.core.lazy import LazyModule
from gptjax.generation.sampling import SamplingOptions
from gptjax.model.products import Quantize
from gptjax.runs.checkpoint_source import name_step, open_checkpoint
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.chat_template import read_jinja_template
from gptjax.tokenization.text_stream import TextStream
from gptjax.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptjax.generation import decoding
    from gptjax.generation import generate as generation
    from gptjax.model import gpt
else:  # these import flax, which --help does not need
    decoding = LazyModule("gptjax.generation.decoding")
    generation = LazyModule("gptjax.generation.generate")

FinishReason = Literal["length", "end_of_text", "stop_text"]


@dataclass(frozen=True)
class GenerationOptions:
    """Options of `sample` and `chat` alike."""

    checkpoint: str
    """A run, the directory of a model that transformers saved, or hf:OWNER/REPO."""
    temperature: float = 0.8
    """Divides the logits. 0 always takes the likeliest token; 1 draws as the model predicts."""
    top_k: int | None = 200
    """Sample among this many likeliest tokens only. --top-k=none takes all."""
    top_p: float | None = None
    """Sample among the fewest tokens with this much probability together."""
    min_p: float | None = None
    """Sample among tokens with at least this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1, makes tokens that the text has already less likely: Hugging Face's rule. 1 changes nothing."""
    stop_text: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Stop before this text. May be given several times."""
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
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}; it lies between 0 and {2**32 - 1}.")
        if "" in self.stop_text:
            raise UserError("--stop-text is empty. Give the text to stop before, or leave it out.")
        _ = self.sampling

    @property
    def sampling(self) -> SamplingOptions:
        return SamplingOptions(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


@dataclass
class Completion:
    """The continuation of one prompt, which grows."""

    stream: TextStream
    ids: list[int] = field(default_factory=list)
    """New tokens, without one that ends the text."""
    log_probabilities: list[float] = field(default_factory=list)
    new_text: str = ""
    """What the last tokens added."""
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        return self.stream.text

    def add(self, ids: Sequence[int], nats: Sequence[float], *, ends: Sequence[int]) -> None:
        """Take new tokens up to one that ends the text."""
        if self.finish_reason is not None:
            self.new_text = ""
            return
        count = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        self.ids += ids[:count]
        self.log_probabilities += nats[:count]
        self.new_text = self.stream.add(ids[:count])
        if self.stream.stopped:
            self.finish_reason = "stop_text"
            self._drop_stop_text()
        elif count < len(ids):
            self.finish("end_of_text")

    def _drop_stop_text(self) -> None:
        """Drop the last tokens without which the text is still whole: those of the stop text and after it."""
        while self.ids and self.stream.decode(self.ids[:-1]).startswith(self.text):
            self.ids.pop()
            self.log_probabilities.pop()

    def finish(self, reason: FinishReason) -> None:
        """Give out what was held back, unless the text has ended."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self.new_text += self.stream.finish()


class TextGenerator:
    """A model whose weights are ready to be read, and its tokenizer."""

    def __init__(
        self,
        model: "gpt.GPT",
        tokenizer: Tokenizer,
        options: GenerationOptions,
        *,
        about: Mapping[str, Any] | None = None,
        jinja_template: str | None = None,
    ) -> None:
        with model.mesh.activate():
            self.model = decoding.prepare_for_decoding(model, quantize=options.quantize)
        self.tokenizer, self.options = tokenizer, options
        self.about = dict(about or {})
        """The step of the weights and, of an export, the run."""
        self.jinja_template = jinja_template
        self.speed: generation.DecodingSpeed | None = None
        """That of the last texts."""

    @classmethod
    def open(cls, options: GenerationOptions) -> "TextGenerator":
        """Read the checkpoint that the options name."""
        run = open_checkpoint(options.checkpoint, imports=options.imports)
        tokenizer = run.require_tokenizer()
        mesh = options.mesh.resolve(jax.device_count())
        with mesh.activate():
            about = name_step(run, options.step)
            which = about.get("step", options.step)  # `latest` moves while a run goes on
            model = run.load_model(which, mesh=mesh, ema=options.ema)
            template = read_jinja_template(run.directory)
            return cls(model, tokenizer, options, about=about, jinja_template=template)

    @property
    def context_length(self) -> int:
        return self.model.config.context_length

    def complete(
        self,
        prompts: Sequence[np.ndarray],
        *,
        max_new_tokens: int,
        ends: Sequence[int],
        seed: int | None = None,
        every: int = 1,
        log_probabilities: bool = False,
        crop: bool = False,
        measure_speed: bool = False,
    ) -> Iterator[list[Completion]]:
        """Yield the completions of all prompts each time that they have grown by `every` tokens.

        It is one list, which is finished at the end. To stop earlier, stop reading.

        Args:
            ends: tokens that end a text, and are no part of it.
            seed: the options' own by default.
            crop: texts may be longer than the context (`generation.stream_cropped`).
            measure_speed: leave it in `speed`.
        """
        options = self.options
        stops = options.stop_text
        streams = [TextStream(self.tokenizer, after=prompt.tolist(), stop_texts=stops) for prompt in prompts]
        completions = [Completion(stream) for stream in streams]
        stream = generation.stream_cropped if crop else generation.stream_tokens
        report: dict[str, Any] = (
            {"report_speed": lambda speed: setattr(self, "speed", speed)} if measure_speed and not crop else {}
        )
        for new in stream(
            self.model,
            prompts,
            max_new_tokens=max_new_tokens,
            options=options.sampling,
            every=every,
            end_of_text=list(ends) or None,
            key=jax.random.key(options.seed if seed is None else seed),
            log_probabilities=log_probabilities,
            **report,
        ):
            nats = np.zeros(new.tokens.shape) if new.log_probabilities is None else new.log_probabilities
            for completion, ids, row_nats in zip(completions, new.tokens, nats, strict=True):
                completion.add(ids.tolist(), row_nats.tolist(), ends=ends)
            yield completions
            if all(completion.finish_reason for completion in completions):
                return
        for completion in completions:
            completion.new_text = ""
            completion.finish("length")
        yield completions
