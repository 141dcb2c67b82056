"""Windows that begin alike: what they share is read once, and its keys and values serve all of them.

The answers to a question share the question, and few-shot prompts share their examples. The windows are sorted, and
neighbours form a group as long as that saves tokens. One program reads the prefixes of several groups and then all that
follows them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from gptjax.evaluation.batch_shapes import Shape, count_head_tokens, plan_shapes, round_up, round_up_length
from gptjax.evaluation.scoring import (
    DEFAULTS,
    ScoringOptions,
    TokenScores,
    check_windows,
    find_places,
    round_up_places,
    score_hidden,
    score_windows,
    without_document_mask,
)
from gptjax.evaluation.windows import EvalWindow
from gptjax.model.attention import SequenceAttention
from gptjax.model.attention_inputs import AttentionInputs, AttentionOptions
from gptjax.model.block import LayerInputs
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, without_gradient
from gptjax.model.kernels import select_kernel
from gptjax.model.xla_attention import dot_product_attention
from gptjax.sharding.axes import BT, BTD, BTHK
from gptjax.sharding.compilation import jit_for_few_calls

MIN_PREFIX = 8
"""Shorter prefixes are not worth a group."""
MIN_SHARE = 0.2
"""Share of a window's tokens that are its group's: for less, programs of groups do not pay (benchmarks/RESULTS.md)."""
ROWS_PER_BATCH = 4
"""Rows of a batch of groups, in batches of whole windows: what follows a prefix is short."""
MAX_SCORES = 1 << 22
"""Most attention scores of one head in a batch."""


class PrefixGroup(NamedTuple):
    """Windows that share their first tokens."""

    prefix: int
    """Tokens that they share."""
    members: list[int]


def score_with_shared_prefixes(
    model: GPT, windows: Sequence[EvalWindow], *, options: ScoringOptions = DEFAULTS
) -> list[TokenScores]:
    """As `score_windows`, but shared prefixes are read once. Each window is of one document.

    On several devices it is the same as `score_windows`.
    """
    if model.mesh.is_sharded:
        return score_windows(model, windows, options=options)
    model = without_document_mask(model)
    check_windows(model, windows)
    limit = ROWS_PER_BATCH * options.batch_size
    groups = plan_groups(windows, max_members=limit)
    alone = [group.members[0] for group in groups if len(group.members) == 1]
    scores: dict[int, TokenScores] = dict(
        zip(alone, score_windows(model, [windows[i] for i in alone], options=options), strict=True)
    )
    batches = plan_batches([g for g in groups if len(g.members) > 1], windows, options=options)
    for batch, shape in zip(batches, _plan_batch_shapes(model, batches, windows), strict=True):
        scores |= _score_groups(model, batch, windows, shape)
    return [scores[i] for i in range(len(windows))]


def plan_groups(windows: Sequence[EvalWindow], *, max_members: int) -> list[PrefixGroup]:
    """Neighbours in sorted order, as long as a group saves more tokens with the next window than without it."""
    order = sorted(range(len(windows)), key=lambda i: windows[i].inputs.astype(">i4").tobytes())
    groups: list[PrefixGroup] = []
    for i in order:
        window = windows[i]
        free = len(window.inputs) - window.scored
        if groups and len(groups[-1].members) < max_members:
            last = groups[-1]
            shared = min(last.prefix, free, count_shared(windows[last.members[-1]].inputs, window.inputs))
            is_worth = shared >= max(MIN_PREFIX, MIN_SHARE * len(window.inputs))
            if is_worth and shared * len(last.members) >= last.prefix * (len(last.members) - 1):
                groups[-1] = PrefixGroup(shared, [*last.members, i])
                continue
        groups.append(PrefixGroup(free, [i]))
    return groups


def count_shared(left: np.ndarray, right: np.ndarray) -> int:
    """Tokens with which both begin."""
    length = min(len(left), len(right))
    differ = np.flatnonzero(left[:length] != right[:length])
    return int(differ[0]) if len(differ) else length


def plan_batches(
    groups: Sequence[PrefixGroup], windows: Sequence[EvalWindow], *, options: ScoringOptions
) -> list[list[PrefixGroup]]:
    """Groups of like length together, as many as fit."""
    tail = lambda g: max(len(windows[i].inputs) for i in g.members) - g.prefix
    batches: list[list[PrefixGroup]] = []
    rows = longest = 0
    for group in sorted(groups, key=lambda g: (-round_up(g.prefix), -tail(g))):
        rows, longest = rows + len(group.members), max(longest, tail(group))
        first = round_up(batches[-1][0].prefix) if batches else 0
        fits = rows <= ROWS_PER_BATCH * options.batch_size and len(batches[-1] if batches else []) < options.batch_size
        if not batches or not fits or rows * longest * (first + longest) > MAX_SCORES:
            batches.append([])
            rows, longest = len(group.members), tail(group)
        batches[-1].append(group)
    return batches


def _plan_batch_shapes(
    model: GPT, batches: Sequence[Sequence[PrefixGroup]], windows: Sequence[EvalWindow]
) -> list[Shape]:
    """The shape of each batch: prefixes, tokens of a prefix, rows of tails, tokens of a tail, scored places."""
    limit, head = model.config.context_length, count_head_tokens(model)

    def measure(groups: Sequence[PrefixGroup]) -> Shape:
        rows = round_up(sum(len(group.members) for group in groups), least=4)
        tail = max(len(windows[i].inputs) - group.prefix for group in groups for i in group.members)
        prefix = round_up_length(max(group.prefix for group in groups), limit)
        places = round_up_places(sum(windows[i].scored for group in groups for i in group.members))
        return round_up(len(groups)), prefix, rows, min(limit, round_up(tail, least=4)), places

    def count_tokens(shape: Shape) -> float:
        count, prefix, rows, tail, places = shape
        excess = max(0, rows * tail * (prefix + tail) - 2 * MAX_SCORES)  # of memory: no shared shape is worth it
        return count * prefix + rows * tail + places * head + 1e6 * excess

    shapes: list[Shape] = []
    for _, alike in itertools.groupby(map(measure, batches), key=lambda shape: (shape[1], shape[3])):
        each = [*alike]  # of one length of prefixes and one of tails
        shapes += [tuple(map(max, *each)) if len(each) > 1 else each[0]] * len(each)
    return plan_shapes(model, shapes, count_tokens=count_tokens)


def _score_groups(
    model: GPT, groups: Sequence[PrefixGroup], windows: Sequence[EvalWindow], shape: Shape
) -> dict[int, TokenScores]:
    """The scores of all members, by their number."""
    count, prefix, rows, length, size = shape
    members = [i for group in groups for i in group.members]
    owner = np.repeat(np.arange(len(groups)), [len(group.members) for group in groups])
    starts = np.array([groups[g].prefix for g in owner.tolist()])
    tails = [EvalWindow(windows[i].tokens[start:], windows[i].scored) for i, start in zip(members, starts, strict=True)]
    prefixes = np.zeros((count, prefix), np.int32)
    for row, group in enumerate(groups):
        prefixes[row, : group.prefix] = windows[group.members[0]].inputs[: group.prefix]
    inputs, targets = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    for row, tail in enumerate(tails):
        inputs[row, : len(tail.inputs)], targets[row, : len(tail.inputs)] = tail.inputs, tail.tokens[1:]
    fill = lambda x: np.concatenate([x, np.zeros(rows - len(x), x.dtype)]).astype(np.int32)
    places = find_places(tails, size)
    found = score_tails(model, prefixes, Tails(inputs, fill(owner), fill(starts)), places, targets[places])
    log_probabilities, greedy = np.asarray(found[0]), np.asarray(found[1])
    ends = np.cumsum([tail.scored for tail in tails])
    spans = [slice(end - tail.scored, end) for end, tail in zip(ends.tolist(), tails, strict=True)]
    return {i: TokenScores(log_probabilities[s].copy(), greedy[s].copy()) for i, s in zip(members, spans, strict=True)}


class Tails(NamedTuple):
    """What follows the prefixes."""

    inputs: Any
    """(B, T)."""
    group: Any
    """(B,): the prefix of each row."""
    starts: Any
    """(B,): its length."""


class PrefixCache(NamedTuple):
    """Keys and values (layers, groups, positions, key heads, channels) of the prefixes."""

    k: Array
    v: Array


@jit_for_few_calls
def score_tails(
    model: GPT,
    prefixes: BT,
    tails: Tails,
    places: tuple[Int[Array, " M"], Int[Array, " M"]],
    targets: Int[Array, " M"],
) -> tuple[Float[Array, " M"], Bool[Array, " M"]]:
    """Scores of the tokens after these places of the tails."""
    model = without_gradient(model)
    cache = read_prefixes(model, prefixes)
    return score_hidden(model, read_tails(model, tails, cache)[places], targets)


def read_prefixes(model: GPT, prefixes: BT) -> PrefixCache:
    """Keys and values of rows of tokens. What fills a row up comes after its tokens, which do not see it."""
    config = model.config
    shape = (config.num_layers, *prefixes.shape, config.kv_heads, config.head_dim)
    empty = PrefixCache(*(jnp.zeros(shape, config.compute.dtype) for _ in "kv"))
    positions = jnp.arange(prefixes.shape[1])
    inputs = LayerInputs(prefixes, positions, model.embed(prefixes, positions))
    attend = StoringAttention(SequenceAttention(config, model.mesh, kernel=select_kernel(config)))
    return model.run_layers(inputs, attend, cache=empty)[1]


def read_tails(model: GPT, tails: Tails, cache: PrefixCache) -> BTD:
    """What the head reads, for rows that continue prefixes."""
    positions = tails.starts[:, None] + jnp.arange(tails.inputs.shape[1])[None]
    positions = jnp.minimum(positions, model.config.context_length - 1)  # of what fills a row up
    inputs = LayerInputs(tails.inputs, positions, model.embed(tails.inputs, positions))
    x, _ = model.run_layers(inputs, PrefixAttention(model.config, tails.group, tails.starts), cache=cache)
    return model.norm(x)


@dataclass(frozen=True)
class StoringAttention:
    """Attention of whole sequences that also stores keys and values (`block.Attend`)."""

    attend: SequenceAttention

    def __call__(self, inputs: AttentionInputs, layer: int | Array, cache: PrefixCache) -> tuple[BTHK, PrefixCache]:
        y, _ = self.attend(inputs, layer, None)
        place = (jnp.asarray(layer), 0, 0, 0, 0)
        store = lambda stored, new: jax.lax.dynamic_update_slice(stored, new[None].astype(stored.dtype), place)
        return y, PrefixCache(store(cache.k, inputs.k), store(cache.v, inputs.v))


@dataclass(frozen=True)
class PrefixAttention:
    """Attention of rows over a stored prefix each, and over themselves (`block.Attend`)."""

    config: GPTConfig
    group: Int[Array, " B"]
    starts: Int[Array, " B"]

    def __call__(self, inputs: AttentionInputs, layer: int | Array, cache: PrefixCache) -> tuple[BTHK, PrefixCache]:
        options = AttentionOptions.from_config(self.config, layer=layer)
        join = lambda stored, new: jnp.concatenate([stored[layer][self.group].astype(new.dtype), new], axis=1)
        keys, values = join(cache.k, inputs.k), join(cache.v, inputs.v)
        mask = self.make_mask(cache.k.shape[2], inputs.k.shape[1], window=options.window)
        return dot_product_attention(inputs.q, keys, values, options, mask=mask, sinks=inputs.sinks), cache

    def make_mask(self, prefix: int, length: int, *, window: int | None) -> Bool[Array, "B T S"]:
        """The keys of the prefix, and then of the row, that each token of the row sees."""
        own = jnp.arange(length)
        before = self.starts[:, None, None] + own[None, :, None] - jnp.arange(prefix)[None, None]
        stored = jnp.arange(prefix)[None, None] < self.starts[:, None, None]
        among = jnp.broadcast_to(own[None, :, None] - own[None, None], (len(self.starts), length, length))
        distance = jnp.concatenate([jnp.where(stored, before, -1), among], axis=-1)
        return (distance >= 0) if window is None else (distance >= 0) & (distance < window)
