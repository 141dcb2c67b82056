import re
from dataclasses import replace
from typing import Any

import pytest

from gptjax.core.errors import UserError
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.requirements import REQUIREMENTS

SMALL = GPTConfig(num_layers=2, embed_dim=32, num_heads=4, context_length=16, vocab_size=128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 30}, r"model\.embed_dim 30 does not split over model\.num_heads 4"),
        ({"num_layers": 0}, r"model\.num_layers is 0; it must be at least 1"),
        ({"context_length": -1}, r"model\.context_length is -1"),
        ({"mlp_dim": 0}, r"model\.mlp_dim is 0"),
        ({"short_window": 0}, r"model\.short_window is 0"),
        ({"dropout": 1.0}, r"model\.dropout is 1.0"),
        ({"num_kv_heads": 3}, r"model\.num_heads 4 is no multiple of model\.num_kv_heads 3"),
        ({"window_pattern": "SSX"}, r"model\.window_pattern is 'SSX'; it must be a pattern of L and S"),
        ({"window_pattern": "SL"}, r"model\.short_window is not given"),
        ({"num_sinks": -1}, r"model\.num_sinks is -1; it must not be negative"),
        ({"activation": "swiglu"}, r"gelu_tanh, .*silu \(swiglu is silu with model\.gated_mlp\), or a name"),
        ({"positions": "rope"}, r"learned, rotary \(rope is rotary\), or a name"),
        ({"activation": "mish"}, r"model\.activation is 'mish'; it must be one of gelu_tanh, gelu, relu"),
        (
            {"positions": "alibi"},
            r"model\.positions is 'alibi'; it must be one of learned, rotary, or a name .*POSITIONS\['alibi'\] = …",
        ),
        ({"norm_epsilon": 0.0}, r"model\.norm_epsilon is 0.0; it must be positive and finite"),
        ({"norm_epsilon": 1e30}, r"model\.norm_epsilon is 1e\+30; it must be at most 1"),
        (
            {"compute": ComputeConfig(scan_layers="on"), "unet_skips": "plain"},
            r"model\.compute\.scan_layers=on needs layers that are alike",
        ),
    ],
    ids=str,
)
def test_impossible_fields_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)


def test_impossible_sections_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"model\.compute\.query_block is 0"):
        ComputeConfig(query_block=0)
    with pytest.raises(UserError, match=r"model\.init\.std is -1"):
        InitConfig(std=-1.0)


def make_init(**changes: Any) -> dict[str, InitConfig]:
    return {"init": InitConfig(**changes)}


UNMET: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("rotary_base", {"rotary_base": 500.0}, {"positions": "rotary"}),
    ("rotary_fraction", {"rotary_fraction": 0.5}, {"positions": "rotary"}),
    ("qk_norm_scale", {"qk_norm_scale": True}, {"qk_norm": True}),
    ("long_window", {"long_window": 9, "window_pattern": "S", "short_window": 5}, {"window_pattern": "SL"}),
    ("short_window", {"short_window": 9}, {"window_pattern": "SSL"}),
    ("unet_skips", {"unet_skips": "plain", "num_layers": 1}, {"num_layers": 2}),
    ("init.residual_mix", make_init(residual_mix=(1.0, 0.5)), {"x0_mix": True}),
    ("init.x0_mix", make_init(x0_mix=(0.2, 0.1)), {"x0_mix": True}),
    ("value_residual", {"value_residual": True, "num_layers": 1}, {"num_layers": 2}),
    (
        "value_residual",
        {"value_residual": True, "value_embeddings": ".01", "num_layers": 3},
        {"value_embeddings": ".0."},
    ),
    ("value_embeddings", {"value_embeddings": "...0", "num_layers": 3}, {"num_layers": 4}),
    ("value_gate", {"value_gate": True}, {"value_embeddings": "0"}),
    ("value_gate", {"value_gate": True, "value_embeddings": "0", "embed_dim": 8, "num_heads": 2}, {"embed_dim": 12}),
    ("logit_softcap_curve", {"logit_softcap_curve": "sqrt"}, {"logit_softcap": 15.0}),
    ("init.head_std", make_init(head_std=0.1), {"tie_embeddings": False}),
]
"""A field that would change nothing, the fields that show it, and the change that meets its requirement."""


@pytest.mark.parametrize(("field", "given", "change"), UNMET, ids=[f"{row[0]}-{next(iter(row[2]))}" for row in UNMET])
def test_field_without_effect_is_refused(field: str, given: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^model\.{re.escape(field)} is .*, which needs model\.{next(iter(change))} "):
        GPTConfig(**given)
    GPTConfig(**(given | change))


def test_every_requirement_is_tested() -> None:
    assert [(field, *change) for field, _, change in UNMET] == [row[:2] for row in REQUIREMENTS]


def test_window_pattern_repeats_over_layers() -> None:
    config = GPTConfig(num_layers=6, window_pattern="SSL", short_window=256, long_window=4096)
    assert [config.window(layer) for layer in range(6)] == [256, 256, None, 256, 256, None]
    assert not config.layers_are_identical
    whole = GPTConfig(window_pattern="SL", short_window=2048)
    assert whole.layers_are_identical, "a window of the whole context is none"


def test_value_embeddings_name_a_table_per_layer() -> None:
    config = GPTConfig(num_layers=6, value_embeddings="01..01")
    assert [config.value_table_index(layer) for layer in range(6)] == [0, 1, None, None, 0, 1]


def test_attention_scale_defaults_to_root_of_head_dim() -> None:
    assert SMALL.resolved_attention_scale == pytest.approx(8**-0.5)
    assert replace(SMALL, attention_scale=0.3).resolved_attention_scale == 0.3


def test_padded_vocabulary_is_a_multiple_of_128() -> None:
    assert GPTConfig(vocab_size=50257).padded_vocab_size == 50304
    assert GPTConfig(vocab_size=128).padded_vocab_size == 128
    with pytest.raises(UserError, match=r"--model\.vocab-size"):
        _ = GPTConfig(vocab_size=None).padded_vocab_size


def test_initial_tables_and_heads_have_their_own_spread() -> None:
    def spreads(**changes: Any) -> tuple[float, float]:
        config = replace(SMALL, embed_dim=64, tie_embeddings=False, init=InitConfig(std=0.5, **changes))
        return config.initial_embedding_std, config.initial_head_std

    assert spreads() == (0.5, 0.5)
    assert spreads(scheme="fan_in") == (0.02, 0.5 / 8)
    assert spreads(zero_projections=True) == (0.5, 0)
    assert spreads(zero_projections=True, head_std=0.1, embedding_std=0.3) == (0.3, 0.1)


@pytest.mark.parametrize(
    ("config", "causal", "palm"),
    [(GPTConfig(), 798.1, 854.7), (GPTConfig(context_length=2048, tie_embeddings=False), 854.7, 967.9)],
    ids=["1024", "2048"],
)
def test_flops_equal_the_formula_by_hand(config: GPTConfig, causal: float, palm: float) -> None:
    """GPT-2 124M with 50,304 rows: 6 × 123.6 M for the matmuls, and 56.7 or 113.2 MFLOPs for attention at 1,024."""
    assert config.flops_per_token(causal=True) / 1e6 == pytest.approx(causal, abs=0.06)
    assert config.flops_per_token(causal=False) / 1e6 == pytest.approx(palm, abs=0.06)


def test_flops_subtract_what_windows_and_shared_keys_save() -> None:
    """A window of w of T tokens: the first w see w (w + 1) / 2 in all, each of the others w."""
    plain, short = GPTConfig(), GPTConfig(long_window=128)
    span = (128 * 129 / 2 + (1024 - 128) * 128) / 1024
    saved = plain.flops_per_token(causal=True) - short.flops_per_token(causal=True)
    assert saved == pytest.approx(12 * 768 * 12 * (1025 / 2 - span))
    assert plain.flops_per_token(causal=False) == short.flops_per_token(causal=False)
    shared = GPTConfig(num_kv_heads=3)
    assert plain.flops_per_token(causal=True) - shared.flops_per_token(causal=True) == 6 * 12 * 2 * 768 * 768 * 3 / 4
