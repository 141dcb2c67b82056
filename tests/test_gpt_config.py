import re

import pytest

from gptjax.core.errors import UserError
from gptjax.model.config import NEEDS, GPTConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 12, "num_kv_heads": 5}, r"model\.num_heads 12 is no multiple of model\.kv_heads 5"),
        ({"window_pattern": "SSX"}, r"model\.windows is 'SSX'; it is a pattern of L and S"),
        ({"window_pattern": "SL"}, r"model\.short_window is not given"),
        ({"layers": "scan", "unet_skips": "plain"}, r"model\.layers=scan needs layers that are alike"),
        ({"num_sinks": -1}, r"model\.sinks is -1; it must not be negative"),
        ({"short_window": 0}, r"model\.short_window is 0; it must be at least 1"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said(changes, message):
    with pytest.raises(UserError, match=message):
        GPTConfig(**changes)


IDLE = [
    ({"rotary_base": 500.0}, {"positions": "rotary"}),
    ({"rotary_fraction": 0.5}, {"positions": "rotary"}),
    ({"long_window": 9, "window_pattern": "S", "short_window": 5}, {"window_pattern": "SL"}),
    ({"short_window": 9}, {"window_pattern": "SSL"}),
    ({"unet_skips": "plain", "num_layers": 1}, {"num_layers": 2}),
    ({"residual_init": (1.0, 0.5)}, {"x0_mix": True}),
    ({"x0_init": (0.2, 0.1)}, {"x0_mix": True}),
    ({"value_residual": True, "num_layers": 1}, {"num_layers": 2}),
    ({"value_residual": True, "value_embeddings": ".01", "num_layers": 3}, {"value_embeddings": ".0."}),
    ({"value_embeddings": "...0", "num_layers": 3}, {"num_layers": 4}),
    ({"value_gate": True}, {"value_embeddings": "0"}),
    ({"value_gate": True, "value_embeddings": "0", "embed_dim": 8, "num_heads": 2}, {"embed_dim": 12}),
    ({"logit_softcap_curve": "sqrt"}, {"logit_softcap": 15.0}),
    ({"head_std": 0.1}, {"tie_embeddings": False}),
]
"""What changes nothing, or cannot be, by itself; and what makes it work."""


@pytest.mark.parametrize(("given", "serves"), IDLE, ids=str)
def test_a_field_that_would_change_nothing_is_refused_with_the_one_that_it_needs(given, serves):
    (field, value), *_ = given.items()
    (other,) = serves
    refusal = rf"^model\.{field} is {re.escape(repr(value))}, which needs model\.{other} to be"
    with pytest.raises(UserError, match=refusal):
        GPTConfig(**given)
    served = GPTConfig(**(given | serves))
    assert getattr(served, field) == value


def test_every_need_has_its_line_above():
    assert [(next(iter(given)), *serves) for given, serves in IDLE] == [need[:2] for need in NEEDS]


def test_a_pattern_of_windows_repeats_over_the_layers():
    config = GPTConfig(num_layers=6, window_pattern="SSL", short_window=256, long_window=4096)
    assert [config.window(layer) for layer in range(6)] == [256, 256, None, 256, 256, None]
    assert not config.layers_are_identical
    assert GPTConfig(window_pattern="SL", short_window=2048).layers_are_identical, (
        "a window of the whole context is none"
    )


def test_layers_name_their_tables_of_value_embeddings():
    config = GPTConfig(num_layers=6, value_embeddings="01..01")
    assert [config.value_table_index(layer) for layer in range(6)] == [0, 1, None, None, 0, 1]


def test_flops_count_what_windows_and_shared_keys_save():
    """A window of w of T tokens: the first w see w (w + 1) / 2 in all, each of the others w."""
    plain, short = GPTConfig(), GPTConfig(long_window=128)
    seen = (128 * 129 / 2 + (1024 - 128) * 128) / 1024
    saved = plain.flops_per_token(causal=True) - short.flops_per_token(causal=True)
    assert saved == pytest.approx(12 * 768 * 12 * (1025 / 2 - seen))
    assert plain.flops_per_token(causal=False) == short.flops_per_token(causal=False)
    shared = GPTConfig(num_kv_heads=3)
    assert plain.flops_per_token(causal=True) - shared.flops_per_token(causal=True) == 6 * 12 * 2 * 768 * 768 * 3 / 4
