"""Batches of windows: few programs where compiling costs more than padding."""

import jax
import numpy as np
import pytest
from models import make_model

from gptjax.evaluation import batch_shapes, scoring
from gptjax.evaluation.batch_shapes import plan_shapes, round_up_length
from gptjax.evaluation.scoring import score_windows
from gptjax.evaluation.windows import EvalWindow
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import FORWARD_QUERY_BLOCK, GPT, abstract_model, without_gradient

TINY = GPTConfig(num_layers=2, embed_dim=16, num_heads=2, context_length=1024, vocab_size=50)


def plan_lengths(model: GPT, longest: list[int], *, rows: int) -> list[int]:
    shapes = [(rows, round_up_length(length, 1024)) for length in longest]
    return [length for _, length in plan_shapes(model, shapes, count_tokens=lambda shape: shape[0] * shape[1])]


def test_a_small_model_reads_all_lengths_with_one_program() -> None:
    assert plan_lengths(abstract_model(TINY), [300, 200, 90, 20], rows=16) == [320] * 4


def test_a_large_model_pads_little() -> None:
    large = abstract_model(GPTConfig(num_layers=12, embed_dim=768, num_heads=12, context_length=1024))
    assert plan_lengths(large, [300, 290, 200, 90, 20], rows=16) == [320, 320, 224, 96, 20]


@pytest.mark.parametrize("flops", [0.0, 2e6, 1e7, 1e30])
def test_lengths_cost_least_of_all_plans(flops: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every choice of the kinds that keep their own length."""
    monkeypatch.setitem(batch_shapes.COMPILATION_FLOPS, "cpu", flops)
    model, longest = abstract_model(TINY), [300, 300, 200, 90, 90, 64, 20]
    program = flops / (2 * sum(leaf.size for leaf in jax.tree.leaves(model.blocks)) * 16)
    kinds = sorted({round_up_length(length, 1024) for length in longest})

    def measure(lengths: list[int]) -> float:
        return sum(lengths) + program * len(set(lengths))

    fit = lambda length, kept: min(kind for kind in kept if kind >= length)
    choices = [[kind for i, kind in enumerate(kinds) if bits >> i & 1] for bits in range(1, 2 ** len(kinds))]
    costs = [measure([fit(length, kept) for length in longest]) for kept in choices if max(kept) == max(kinds)]
    found = plan_lengths(model, longest, rows=16)
    assert all(length <= planned for length, planned in zip(longest, found, strict=True))
    assert measure(found) == pytest.approx(min(costs))


def test_neighbours_share_the_largest_of_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = abstract_model(TINY), [(16, 320, 8), (16, 256, 64), (4, 192, 32), (4, 192, 32)]
    count = lambda shape: shape[0] * shape[1]
    assert plan_shapes(model, shapes, count_tokens=count) == [(16, 320, 64)] * 4
    monkeypatch.setitem(batch_shapes.COMPILATION_FLOPS, "cpu", 0.0)
    assert plan_shapes(model, shapes, count_tokens=count) == shapes
    assert plan_shapes(model, [], count_tokens=count) == []


def test_lengths_change_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(TINY)
    draw = np.random.default_rng(0)
    windows = [EvalWindow(draw.integers(0, 50, n).astype(np.int32), min(3, n - 1)) for n in (40, 7, 2, 25, 90)]
    shared = score_windows(model, windows, options=scoring.ScoringOptions(batch_size=1))
    monkeypatch.setitem(batch_shapes.COMPILATION_FLOPS, "cpu", 0.0)
    for ours, own in zip(
        shared, score_windows(model, windows, options=scoring.ScoringOptions(batch_size=1)), strict=True
    ):
        np.testing.assert_allclose(ours.log_probabilities, own.log_probabilities, atol=1e-5)


def test_without_a_gradient_attention_has_longer_blocks() -> None:
    model = abstract_model(TINY)
    count = lambda model: str(jax.make_jaxpr(GPT.hidden_states)(model, np.zeros((1, 512), np.int32))).count("exp ")
    assert without_gradient(model).config.compute.query_block == FORWARD_QUERY_BLOCK
    assert count(model) == 4 * count(without_gradient(model)) > 0
