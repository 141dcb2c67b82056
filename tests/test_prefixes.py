from typing import Any

import jax
import numpy as np
import pytest

from gptjax.evaluation.prefixes import PrefixGroup, plan_batches, plan_groups, score_with_shared_prefixes
from gptjax.evaluation.scoring import ScoringOptions, score_windows
from gptjax.evaluation.windows import EvalWindow
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.gpt import GPT

MODERN: dict[str, Any] = {
    "positions": "rotary",
    "num_kv_heads": 2,
    "window_pattern": "SL",
    "short_window": 8,
    "num_sinks": 2,
    "value_residual": True,
}


def make_model(**changes: Any) -> GPT:
    config = GPTConfig(
        num_layers=2,
        embed_dim=32,
        num_heads=4,
        context_length=48,
        vocab_size=50,
        compute=ComputeConfig(dtype="float32"),
        init=InitConfig(std=0.3),
        **changes,
    )
    return jax.jit(lambda key: GPT(config, key=key))(jax.random.key(0))


def make_choices(random: np.random.RandomState, *, items: int) -> list[EvalWindow]:
    """Answers of some lengths to questions of some lengths, and a text that shares nothing."""
    windows = []
    for _ in range(items):
        question = random.randint(0, 50, random.randint(12, 30))
        for _ in range(4):
            answer = random.randint(0, 50, random.randint(1, 12))
            windows.append(EvalWindow(np.concatenate([question, answer]).astype(np.int32), len(answer)))
    return [*windows, EvalWindow(random.randint(0, 50, 20).astype(np.int32), 19)]


@pytest.mark.parametrize("changes", [{}, MODERN], ids=["gpt2", "modern"])
def test_shared_prefixes_change_no_score(changes: dict[str, Any]) -> None:
    model, windows = make_model(**changes), make_choices(np.random.RandomState(0), items=5)
    options = ScoringOptions(batch_size=4)
    found = score_with_shared_prefixes(model, windows, options=options)
    wanted = score_windows(model, windows, options=options)
    assert len(found) == len(windows)
    for ours, plain in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.log_probabilities, plain.log_probabilities, atol=2e-5)
        np.testing.assert_array_equal(ours.greedy, plain.greedy)


def test_groups_share_the_question_and_never_what_is_scored() -> None:
    windows = make_choices(np.random.RandomState(1), items=3)
    groups = plan_groups(windows, max_members=64)
    assert sorted(sorted(group.members) for group in groups) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12]]
    for group in groups:
        members = [windows[i] for i in group.members]
        assert all(group.prefix <= len(w.inputs) - w.scored for w in members)
        assert all((w.inputs[: group.prefix] == members[0].inputs[: group.prefix]).all() for w in members)


def test_common_examples_outweigh_a_longer_question() -> None:
    """All windows begin with 40 tokens: sharing those saves more than sharing 44 in pairs."""
    begin = np.arange(40)
    tokens = lambda question, answer: np.concatenate([begin, [question] * 4, [answer]]).astype(np.int32)
    windows = [EvalWindow(tokens(question, answer), 1) for question in range(41, 47) for answer in (1, 2)]
    [group] = plan_groups(windows, max_members=64)
    assert group.prefix == 40
    assert len(plan_groups(windows, max_members=4)) >= 3


def test_a_window_that_shares_little_joins_no_group() -> None:
    begin, draw = np.arange(40), np.random.RandomState(0)
    tail = lambda n: draw.randint(40, 50, n)
    alike = [EvalWindow(np.concatenate([begin, tail(10)]).astype(np.int32), 2) for _ in range(2)]
    long = EvalWindow(np.concatenate([begin[:20], tail(380)]).astype(np.int32), 2)
    groups = plan_groups([*alike, long], max_members=64)
    assert sorted((group.prefix, sorted(group.members)) for group in groups) == [(40, [0, 1]), (397, [2])]


def test_batches_hold_every_group_once_and_are_bounded() -> None:
    windows = make_choices(np.random.RandomState(2), items=9)
    groups = [group for group in plan_groups(windows, max_members=8) if len(group.members) > 1]
    batches = plan_batches(groups, windows, options=ScoringOptions(batch_size=2))
    assert sorted(id(group) for batch in batches for group in batch) == sorted(map(id, groups))
    assert all(sum(len(group.members) for group in batch) <= 8 for batch in batches)
    assert isinstance(batches[0][0], PrefixGroup)
