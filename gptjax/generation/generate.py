"""Text generation: one compiled program reads the prompts, another writes all new tokens.

Prompts, caches and continuations are padded to powers of two, so few programs serve all lengths. The loop needs no
special first step: it reads the last token and writes the next. Past the context length each new token sees a context's
length of text, and any sinks.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from gptjax.core.errors import UserError
from gptjax.generation.decoding import prepare_for_decoding
from gptjax.generation.decoding_loop import DecodingState, Request, count_read_bytes, read_prompts, write_tokens
from gptjax.generation.sampling import SamplingOptions
from gptjax.model.gpt import GPT
from gptjax.model.stored_matrix import Quantize

MIN_BUCKET = 32
"""Prompts and caches have at least this many positions."""

Prompts = Sequence[Sequence[int] | np.ndarray] | np.ndarray | Array
"""Rows of token ids. Their lengths may differ."""


@dataclass(frozen=True)
class DecodingSpeed:
    """How fast a text was written, without compilation and reading of the prompts."""

    tokens: int
    """New tokens of all rows."""
    seconds: float
    bytes_per_step: int
    """Bytes of weights and cache that a step reads. A step writes a token in each row."""
    steps: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def bytes_per_second(self) -> float:
        return self.bytes_per_step * self.steps / self.seconds


class NewTokens(NamedTuple):
    """Tokens (B, n) that were written after those before, and their log-probabilities if they were asked for.

    A row that is finished is filled with the end of text. Log-probabilities are the model's own, in nats: without
    temperature, filters and penalty.
    """

    tokens: Int[np.ndarray, "B n"]
    log_probabilities: Float[np.ndarray, "B n"] | None
    finished: Bool[np.ndarray, " B"]


def generate(
    model: GPT,
    prompt: Prompts,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    end_of_text: int | Sequence[int] | None = None,
    key: Key[Array, ""] | None = None,
    quantize: Quantize | None = None,
    report_speed: Callable[[DecodingSpeed], object] | None = None,
) -> Int[np.ndarray, "B T_and_new"]:
    """Continue each row of `prompt` (B rows of ids) by `max_new_tokens` ids. Returns prompts and continuations.

    Where prompts differ in length, T is the longest. A shorter row ends earlier and is filled with the end of text, or
    with 0. It is the same text that it would be alone in this row.

    A row draws from `key` by its index and position alone: it is the same in any batch of prompts, and a longer
    continuation begins like a shorter one. A sharded model must have been created under its mesh.

    Args:
        temperature, top_k, top_p, min_p, repetition_penalty: see `SamplingOptions`. Temperature 0 needs no key.
        end_of_text: an id that ends its row, or several. The rest of the row is filled with the first of them.
        quantize: `int8` reads weights rounded to 8 bits (`decoding.prepare_for_decoding`).
        report_speed: called with the speed. The program is then compiled before it is timed.

    Raises:
        TypeError: `model` is no GPT, or `prompt` is not rows of integers. A single prompt is a list of one row.
        UserError: ids outside the vocabulary, int8 over several devices, a text too long for the model's context (for
            positional schemes of any length only the prompt counts), or a number out of range.
    """
    options = SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty)
    lengths = _check_prompt(model, prompt, max_new_tokens)
    [new] = stream_tokens(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        options=options,
        every=max_new_tokens,
        end_of_text=end_of_text,
        key=key,
        quantize=quantize,
        report_speed=report_speed,
    )
    ends = _list_ends(end_of_text)
    ids = np.full((len(lengths), int(lengths.max()) + max_new_tokens), ends[0] if ends else 0, np.int32)
    for row, tokens, written in zip(ids, prompt, new.tokens, strict=True):
        row[: len(tokens)] = tokens
        row[len(tokens) : len(tokens) + max_new_tokens] = written
    return ids


def stream_tokens(
    model: GPT,
    prompt: Prompts,
    *,
    max_new_tokens: int,
    options: SamplingOptions,
    every: int = 1,
    end_of_text: int | Sequence[int] | None = None,
    key: Key[Array, ""] | None = None,
    quantize: Quantize | None = None,
    log_probabilities: bool = False,
    report_speed: Callable[[DecodingSpeed], object] | None = None,
) -> Iterator[NewTokens]:
    """Continue each row of `prompt`, and yield the new tokens after `every` of them, until all rows are finished.

    The tokens are those of `generate`, whose arguments these are. They do not depend on `every`. For texts past the
    context there is `stream_cropped`.

    Args:
        log_probabilities: also yield the log-probability of each token.
        report_speed: called at the end with the speed, in which the time between the yields is not counted.
    """
    _check_prompt(model, prompt, max_new_tokens)
    others = {"end_of_text": end_of_text, "key": key, "quantize": quantize, "log_probabilities": log_probabilities}
    yield from _stream(
        model, prompt, max_new_tokens=max_new_tokens, options=options, every=every, report_speed=report_speed, **others
    )


def _stream(
    model: GPT,
    prompt: Prompts,
    *,
    max_new_tokens: int,
    options: SamplingOptions,
    every: int,
    end_of_text: int | Sequence[int] | None = None,
    key: Key[Array, ""] | None = None,
    quantize: Quantize | None = None,
    log_probabilities: bool = False,
    report_speed: Callable[[DecodingSpeed], object] | None = None,
) -> Iterator[NewTokens]:
    """`stream_tokens` for rows that are known to fit."""
    ends = _list_ends(end_of_text)
    if options.temperature > 0 and key is None:
        raise ValueError("generate draws at random when temperature > 0: pass key=jax.random.key(seed).")
    lengths = np.array([len(row) for row in prompt], np.int32)
    request = Request(
        # Rows that are equally long write one slice of the cache, not one each.
        lengths=lengths[0] if (lengths == lengths[0]).all() else lengths,
        max_new_tokens=0,
        ends=np.array(ends or [-1], np.int32),
        key=None if options.temperature == 0 else key,
        temperature=options.temperature,
        # A float32 sum can reach 1 before the last token, so only no filter at all keeps everything.
        top_p=None if options.top_p == 1.0 else options.top_p,
        min_p=options.min_p or None,
        repetition_penalty=None if options.repetition_penalty == 1.0 else options.repetition_penalty,
        top_k=options.top_k,
    )
    model = prepare_for_decoding(model, quantize=quantize)
    state = _read_rows(model, prompt, lengths, max_new_tokens, request, log_probabilities=log_probabilities)
    if report_speed is not None:  # no step: compiled only
        state = _write(model, state, request)
    seconds, done = 0.0, 0
    while done < max_new_tokens and not np.asarray(state.finished).all():
        start, goal = time.perf_counter(), min(done + every, max_new_tokens)
        state = _write(model, state, replace(request, max_new_tokens=goal))
        # A row that is finished early is filled up, as the rest of the buffer is not written.
        new = np.where(np.arange(goal) < int(state.step), np.asarray(state.new)[:, :goal], request.ends[0])[:, done:]
        nats = None if state.log_probabilities is None else np.array(state.log_probabilities)[:, done:goal]
        seconds, done = seconds + time.perf_counter() - start, goal
        yield NewTokens(new, nats, np.array(state.finished))
    if report_speed is not None:
        report_speed(DecodingSpeed(int(state.written), seconds, count_read_bytes(model, state.cache), int(state.step)))


def stream_cropped(
    model: GPT,
    prompt: Prompts,
    *,
    max_new_tokens: int,
    options: SamplingOptions,
    every: int = 1,
    key: Key[Array, ""] | None = None,
    **others: Any,
) -> Iterator[NewTokens]:
    """`stream_tokens` for texts of any length: a token that does not fit sees the last context of tokens, as nanoGPT's.

    Positions that are learned end with the context. So each token past it reads a whole context anew, which is slow.
    Other models go on with their cache, and only the prompt is cropped.
    """
    rows, context = [np.asarray(row) for row in prompt], model.config.context_length
    _check_prompt(model, [row[-1:] for row in rows], 1 if max_new_tokens > 0 else max_new_tokens)
    fitting = max_new_tokens
    if model.config.position_scheme.max_length is not None:
        fitting = min(max_new_tokens, max(1, context - max(map(len, rows)) + 1))
    finished, done = np.zeros(len(rows), bool), 0
    while done < max_new_tokens and not finished.all():
        first = done == 0
        window, count = [row[-context:] for row in rows], fitting if first else 1
        others["key"] = key if first or key is None else jax.random.fold_in(key, done)
        for new in _stream(model, window, max_new_tokens=count, options=options, every=every, **others):
            fill = (_list_ends(others.get("end_of_text")) or [0])[0]
            tokens = np.where(finished[:, None], fill, new.tokens)
            rows = [np.append(row, added) for row, added in zip(rows, tokens, strict=True)]
            finished = new.finished if first else finished | new.finished
            yield new._replace(tokens=tokens, finished=finished.copy())
        done += count


def _list_ends(end_of_text: int | Sequence[int] | None) -> list[int]:
    return [] if end_of_text is None else [end_of_text] if isinstance(end_of_text, int) else list(end_of_text)


def _read_rows(
    model: GPT,
    prompt: Prompts,
    lengths: Int[np.ndarray, " B"],
    max_new_tokens: int,
    request: Request,
    *,
    log_probabilities: bool,
) -> DecodingState:
    """The state after the prompts, with room for the new tokens."""
    longest, context_length = int(lengths.max()), model.config.context_length
    rows = np.zeros((len(lengths), min(context_length, _bucket(longest))), np.int32)
    for row, tokens in zip(rows, prompt, strict=True):
        row[: len(tokens)] = tokens
    last = rows[np.arange(len(rows)), lengths - 1]
    positions = min(context_length, _bucket(longest + max_new_tokens))
    seen = None
    if request.repetition_penalty is not None:
        seen = np.zeros((len(rows), model.config.resolved_vocab_size), bool)
        for row, tokens in zip(seen, prompt, strict=True):
            row[np.asarray(tokens)] = True
    with model.mesh.activate():
        state = read_prompts(
            model,
            rows,
            last,
            positions=positions,
            max_new_tokens=_bucket(max_new_tokens),
            seen=seen,
            log_probabilities=log_probabilities,
        )
        return jax.block_until_ready(state)


def _write(model: GPT, state: DecodingState, request: Request) -> DecodingState:
    with model.mesh.activate():
        return write_tokens(model, state, request)


def _bucket(length: int) -> int:
    return max(MIN_BUCKET, 1 << (length - 1).bit_length())


def _check_types(model: object, prompt: Any) -> None:
    """Raise a TypeError that says what is wanted: numpy would cut 1.7 to 1, and a text has a length as well."""
    if not isinstance(model, GPT):
        raise TypeError(f"generate needs a GPT, such as run.load_model(); got {type(model).__name__}.")
    wanted = "generate needs rows of token ids, such as [run.tokenizer.encode(text)]"
    if isinstance(prompt, str | bytes):
        raise TypeError(f"{wanted}; got a text.")
    for row in prompt:
        ids = np.asarray(row)
        if ids.ndim == 0 and np.issubdtype(ids.dtype, np.integer):
            raise TypeError(f"{wanted}; got one row. Write generate(model, [ids], ...).")
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise TypeError(f"{wanted}; got a row of type {ids.dtype} and shape {ids.shape}.")


def _check_prompt(model: GPT, prompt: Prompts, max_new_tokens: int) -> Int[np.ndarray, " B"]:
    """The lengths of the rows."""
    _check_types(model, prompt)
    config, mesh = model.config, model.mesh
    lengths = np.array([len(row) for row in prompt], np.int32)
    if not lengths.size or not lengths.min():
        found = f"rows of {lengths.tolist()} tokens" if lengths.size else "no rows"
        raise UserError(f"generate needs rows of at least one token; got {found}.")
    tokens = np.concatenate([np.asarray(row) for row in prompt])
    rows, length, vocabulary = len(lengths), int(lengths.max()), config.resolved_vocab_size
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise UserError(
            f"the prompt has token ids from {tokens.min()} to {tokens.max()}, but the model's go from 0 to "
            f"{vocabulary - 1}. Encode it with the tokenizer that the model was trained with."
        )
    if max_new_tokens < 1:
        raise UserError(f"max-new-tokens is {max_new_tokens}; ask for at least 1.")
    limit = config.position_scheme.max_length
    if length > config.context_length or (limit is not None and length + max_new_tokens > limit):
        remaining = config.context_length - length
        raise UserError(
            f"{length} prompt tokens and {max_new_tokens} new ones do not fit model.context_length "
            f"{config.context_length}. "
            + (f"Ask for at most {remaining} new tokens, or shorten" if remaining > 0 else "Shorten")
            + " the prompt, or write past the context as `sample --crop` does."
        )
    if rows % mesh.num_batch_shards:
        raise UserError(
            f"{rows} rows do not split over {mesh.num_batch_shards} devices (data × fsdp). "
            f"Use a multiple of {mesh.num_batch_shards}, or --mesh=single."
        )
    return lengths
