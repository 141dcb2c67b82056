"""Shapes of batches: each is a program of its own, so batches share one where compiling costs more than padding."""

import itertools
from collections.abc import Callable, Sequence

import jax

from gptjax.model.gpt import GPT
from gptjax.sharding.devices import target_device

Shape = tuple[int, ...]
MIN_LENGTH = 16
"""Rows are filled up to at least this many tokens."""
COMPILATION_FLOPS = {"cpu": 1e11, "accelerator": 1e14}
"""What a device computes in about the time in which a program is compiled.

A CPU's follows from measurements (benchmarks/RESULTS.md). That of GPUs and TPUs is an estimate.
"""


def round_up_length(length: int, limit: int) -> int:
    """A length of rows that holds `length` tokens: few programs serve all lengths, and little of a row is padding."""
    return min(limit, round_up(length, least=MIN_LENGTH))


def round_up(number: int, *, least: int = 1) -> int:
    """The next multiple of a quarter of its power of two, and at least `least`."""
    step = max(1, 1 << max(0, (number - 1).bit_length() - 3))
    return max(least, -(-number // step) * step)


def plan_shapes(model: GPT, shapes: Sequence[Shape], *, count_tokens: Callable[[Shape], float]) -> list[Shape]:
    """A shape for each batch that holds its own shape; neighbours share one where that costs least.

    `count_tokens` says what a batch of a shape costs, in tokens that go through the layers. Of all ways to cut the
    sequence into stretches with the largest sizes of each, the cheapest is taken. The time grows with the square of
    the number of stretches of equal shapes.
    """
    kinds = [(shape, len([*same])) for shape, same in itertools.groupby(shapes)]
    program = COMPILATION_FLOPS["cpu" if target_device().platform == "cpu" else "accelerator"] / (
        2 * sum(leaf.size for leaf in jax.tree.leaves(model.blocks))
    )
    plans: list[tuple[float, int, Shape]] = [(0.0, 0, ())] * (len(kinds) + 1)  # cost from a kind on, next cut, shape
    for first in reversed(range(len(kinds))):
        largest, number, alone, choices = kinds[first][0], 0, 0.0, list[tuple[float, int, Shape]]()
        for end, (shape, times) in enumerate(kinds[first:], start=first + 1):
            largest, number = tuple(map(max, largest, shape)), number + times
            alone += times * count_tokens(shape)
            shared = number * count_tokens(largest)
            if shared - alone > program * (end - first):  # no saved compilation makes up for so much padding
                break
            choices.append((program + shared + plans[end][0], end, largest))
        plans[first] = min(choices)
    found, first = list[Shape](), 0
    while first < len(kinds):
        _, end, largest = plans[first]
        found += [largest] * sum(times for _, times in kinds[first:end])
        first = end
    return found


def count_head_tokens(model: GPT) -> float:
    """How many tokens through the layers cost what the logits of one position do."""
    head = model.config.resolved_vocab_size * model.config.embed_dim
    return head / sum(leaf.size for leaf in jax.tree.leaves(model.blocks))
