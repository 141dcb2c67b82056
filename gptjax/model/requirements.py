"""What fields of `GPTConfig` require of each other."""

from collections.abc import Callable
from typing import Any

GATE_CHANNELS = 12
"""Channels of the residual stream from which the gates of value embeddings are computed (nanochat)."""

REQUIREMENTS: tuple[tuple[str, str, str, Callable[[Any], Any]], ...] = (
    ("rotary_base", "positions", "rotary", lambda c: hasattr(c.position_scheme, "rotary_base")),
    ("rotary_fraction", "positions", "rotary", lambda c: hasattr(c.position_scheme, "rotary_fraction")),
    ("qk_norm_scale", "qk_norm", "True", lambda c: c.qk_norm),
    ("long_window", "window_pattern", "a pattern with an L", lambda c: "L" in c.window_pattern),
    ("short_window", "window_pattern", "a pattern with an S", lambda c: "S" in c.window_pattern),
    ("unet_skips", "num_layers", "at least 2", lambda c: c.num_layers > 1),
    ("init.residual_mix", "x0_mix", "True", lambda c: c.x0_mix),
    ("init.x0_mix", "x0_mix", "True", lambda c: c.x0_mix),
    ("value_residual", "num_layers", "at least 2", lambda c: c.num_layers > 1),
    (
        "value_residual",
        "value_embeddings",
        "a pattern with a dot for a later layer",
        lambda c: None in map(c.value_table_index, range(1, c.num_layers)),
    ),
    ("value_embeddings", "num_layers", "enough for a layer with a table", lambda c: c.value_table_names),
    ("value_gate", "value_embeddings", "given", lambda c: c.value_embeddings),
    ("value_gate", "embed_dim", f"at least {GATE_CHANNELS}", lambda c: c.embed_dim >= GATE_CHANNELS),
    ("logit_softcap_curve", "logit_softcap", "given", lambda c: c.logit_softcap is not None),
    ("init.head_std", "tie_embeddings", "False", lambda c: not c.tie_embeddings),
)
"""(field, other field, what the other must be, predicate): without it the field would change nothing. A field at its
default requires nothing."""
OTHER_NAMES = {
    "rope": " (rope is rotary)",
    "swiglu": " (swiglu is silu with model.gated_mlp)",
    "geglu": " (geglu is gelu with model.gated_mlp)",
    "swish": " (swish is silu)",
    "gelu_new": " (gelu_new is gelu_tanh)",
    "absolute": " (absolute ones are learned)",
}
"""Other programs' names of activations and positions, as a message explains them."""
