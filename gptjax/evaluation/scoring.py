"""Log-probabilities of the scored tokens of windows, in batches of like length.

Only the hidden states of scored positions meet the output head. On one device nothing of size tokens × vocabulary
exists beyond a block of positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Float32, Int

from gptjax.core.errors import UserError
from gptjax.data.row_readers import check_token_ids
from gptjax.evaluation.batch_shapes import Shape, count_head_tokens, plan_shapes, round_up_length
from gptjax.evaluation.windows import EvalWindow
from gptjax.model.gpt import GPT, DocumentIds, with_static, without_gradient
from gptjax.sharding.axes import BT, BTD
from gptjax.sharding.compilation import jit_for_few_calls
from gptjax.sharding.mesh import reshard

HEAD_BLOCK = 512
"""Most positions whose logits exist at a time."""


class TokenScores(NamedTuple):
    """Scores of a window's scored tokens."""

    log_probabilities: Float32[np.ndarray, " _"]
    """Natural logarithms."""
    greedy: Bool[np.ndarray, " _"]
    """Whether the token was the likeliest one."""


@dataclass(frozen=True)
class ScoringOptions:
    """How windows are batched. None of it changes a score beyond rounding."""

    batch_size: int = 16
    """Rows per batch."""
    progress: Callable[[int], object] | None = None
    """Called with the number of windows that are done."""


DEFAULTS = ScoringOptions()


def score_windows(
    model: GPT, windows: Sequence[EvalWindow], *, options: ScoringOptions = DEFAULTS
) -> list[TokenScores]:
    """The scores of each window, in order. Call it under the model's mesh.

    Raises:
        UserError: a window is longer than the model's context, or has ids outside the vocabulary.
    """
    check_windows(model, windows)
    limit = model.config.context_length
    # Neighbours have rows of one length, and about as many scored tokens: so few shapes serve all batches.
    sizes = [(round_up_length(len(window.inputs), limit), window.scored) for window in windows]
    order = sorted(range(len(windows)), key=sizes.__getitem__, reverse=True)
    scores: list[TokenScores] = [TokenScores(np.zeros(0, np.float32), np.zeros(0, bool))] * len(windows)
    rows = model.mesh.round_up_rows(options.batch_size)
    pending, done = list[tuple[list[int], tuple[Array, Array]]](), 0
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]
    for chosen, shape in zip(batches, _plan_batches(model, batches, windows, rows=rows), strict=True):
        pending.append((chosen, _score_batch(model, [windows[i] for i in chosen], shape)))
        if len(pending) > 1:  # one batch is computed while the next is prepared
            _collect(pending.pop(0), windows, scores)
            if options.progress is not None:
                options.progress(done)
            done += len(chosen)
    for batch in pending:
        _collect(batch, windows, scores)
    return scores


def check_windows(model: GPT, windows: Sequence[EvalWindow]) -> None:
    """Raise `UserError` unless every window fits the model's context and vocabulary."""
    limit, vocabulary = model.config.context_length, model.config.resolved_vocab_size
    for window in windows:
        if len(window.tokens) - 1 > limit:
            raise UserError(
                f"a window of {len(window.tokens) - 1} tokens does not fit model.context_length {limit}. Use a shorter "
                "window."
            )
        if not 0 <= window.scored < len(window.tokens):
            raise ValueError(f"{window.scored} scored tokens of a window of {len(window.tokens)}")
        check_token_ids(window.tokens, vocabulary, source="the text")


def _plan_batches(
    model: GPT, batches: Sequence[Sequence[int]], windows: Sequence[EvalWindow], *, rows: int
) -> list[Shape]:
    """The shape of each batch: rows, tokens of a row, scored places."""
    limit, mesh, head = model.config.context_length, model.mesh, count_head_tokens(model)

    def measure(batch: Sequence[int]) -> Shape:
        held = rows if len(batch) > rows // 2 else mesh.round_up_rows(1 << (len(batch) - 1).bit_length())
        length = max(len(windows[i].inputs) for i in batch)
        places = 0 if mesh.is_sharded else round_up_places(sum(windows[i].scored for i in batch))
        return held, round_up_length(length, limit), places

    shapes = [measure(batch) for batch in batches]
    return plan_shapes(model, shapes, count_tokens=lambda shape: shape[0] * shape[1] + shape[2] * head)


def _score_batch(model: GPT, windows: Sequence[EvalWindow], shape: Shape) -> tuple[Array, Array]:
    """Log-probabilities and greediness: of the scored tokens (M,) on one device, else of all positions (B, T)."""
    rows, length, size = shape
    inputs, targets = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    for row, window in enumerate(windows):
        inputs[row, : len(window.inputs)] = window.inputs
        targets[row, : len(window.inputs)] = window.tokens[1:]
    begins = _find_begins(windows, inputs.shape) if model.config.intra_document_mask else None
    if model.mesh.is_sharded:
        return score_all(model, inputs, targets, begins)
    row, column = find_places(windows, size)
    return score_places(model, inputs, (row, column), targets[row, column], begins)


def _find_begins(windows: Sequence[EvalWindow], shape: tuple[int, ...]) -> Bool[np.ndarray, "B T"] | None:
    """Where documents begin in rows of this shape; None if every row is of one document."""
    if all(window.begins is None for window in windows):
        return None
    begins = np.zeros(shape, bool)
    for row, window in enumerate(windows):
        begins[row, : len(window.inputs)] = False if window.begins is None else window.begins
    return begins


def find_places(windows: Sequence[EvalWindow], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each scored prediction, filled up with the first to `size`."""
    rows = np.repeat(np.arange(len(windows)), [window.scored for window in windows])
    columns = np.concatenate([np.arange(len(w.inputs) - w.scored, len(w.inputs)) for w in windows])
    fill = lambda x: np.concatenate([x, np.zeros(size - len(x), x.dtype)]).astype(np.int32)
    return fill(rows), fill(columns)


def round_up_places(count: int) -> int:
    """One of few numbers of scored positions that holds so many."""
    return max(8, 1 << max(0, count - 1).bit_length()) if count < HEAD_BLOCK else -(-count // HEAD_BLOCK) * HEAD_BLOCK


def _collect(
    batch: tuple[list[int], tuple[Array, Array]], windows: Sequence[EvalWindow], scores: list[TokenScores]
) -> None:
    """Copy a batch's results to the host, each to its window."""
    chosen, found = batch
    log_probabilities, greedy = np.asarray(found[0]), np.asarray(found[1])
    start = 0
    for row, i in enumerate(chosen):
        window = windows[i]
        if log_probabilities.ndim == 2:
            place = (row, slice(len(window.inputs) - window.scored, len(window.inputs)))
        else:
            place = slice(start, start + window.scored)
            start += window.scored
        scores[i] = TokenScores(log_probabilities[place].copy(), greedy[place].copy())


@jit_for_few_calls
def score_places(
    model: GPT,
    inputs: BT,
    places: tuple[Int[Array, " M"], Int[Array, " M"]],
    targets: Int[Array, " M"],
    begins: Bool[Array, "B T"] | None,
) -> tuple[Float[Array, " M"], Bool[Array, " M"]]:
    """Scores of the tokens after these places (row, column). `begins` says where documents begin."""
    model = without_gradient(model)
    return score_hidden(model, read_documents(model, inputs, begins)[places], targets)


def score_hidden(
    model: GPT, hidden: Float[Array, "M D"], targets: Int[Array, " M"]
) -> tuple[Float[Array, " M"], Bool[Array, " M"]]:
    """Log-probability of each target, and whether it is the likeliest token, from what the head reads."""
    block = min(HEAD_BLOCK, len(hidden))

    def score_block(part: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = model.unembed(part[0][None])[0]
        chosen = jnp.take_along_axis(logits, part[1][:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == part[1]

    if block == len(hidden):
        return score_block((hidden, targets))
    parts = (hidden.reshape(-1, block, hidden.shape[-1]), targets.reshape(-1, block))
    log_probabilities, greedy = jax.lax.map(score_block, parts)
    return log_probabilities.reshape(-1), greedy.reshape(-1)


@jit_for_few_calls
def score_all(
    model: GPT, inputs: BT, targets: BT, begins: Bool[Array, "B T"] | None
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Scores of all positions of rows that are divided over devices. The result is whole on every device."""
    model, mesh = without_gradient(model), model.mesh
    place = lambda rows: reshard(jnp.asarray(rows), mesh.activation_spec("BT"))
    inputs, targets = place(inputs), place(targets)
    hidden = read_documents(model, inputs, None if begins is None else place(begins))
    size = max(1, HEAD_BLOCK // inputs.shape[0])
    blocks = [_score_columns(model, hidden, targets, slice(i, i + size)) for i in range(0, inputs.shape[1], size)]
    whole = lambda parts: reshard(jnp.concatenate(parts, axis=1), mesh.activation_spec("__"))
    log_probabilities, greedy = zip(*blocks, strict=True)
    return whole(log_probabilities), whole(greedy)


def _score_columns(model: GPT, hidden: BTD, targets: BT, columns: slice) -> tuple[Array, Array]:
    logits, wanted = model.unembed(hidden[:, columns]), targets[:, columns]
    is_target = jnp.arange(logits.shape[-1])[None, None] == wanted[..., None]
    chosen = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == wanted


def read_documents(model: GPT, inputs: BT, begins: Bool[Array, "B T"] | None) -> BTD:
    """What the head reads. `begins` says where documents begin; None: each row is of one document."""
    if begins is None:
        return without_document_mask(model).hidden_states(inputs)
    places = jnp.arange(inputs.shape[1])[None]
    last = jax.lax.cummax(jnp.where(begins, places, 0), axis=1)
    documents = DocumentIds(jnp.cumsum(begins, axis=1, dtype=jnp.int32), (places - last).astype(jnp.int32))
    return model.hidden_states(inputs, documents=documents)


def without_document_mask(model: GPT) -> GPT:
    """The model for rows of one document each, where the mask changes nothing."""
    if not model.config.intra_document_mask:
        return model
    return with_static(model, config=replace(model.config, intra_document_mask=False))
