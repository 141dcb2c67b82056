"""What later models add around GPT-2's blocks, each a small module that is only there if its field says so."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gptjax.attention import Sinks
from gptjax.gpt_config import GATE_CHANNELS, GPTConfig
from gptjax.layout import Layout, place
from gptjax.shapes import BT, BTD, BTHK, BTJK, Scalar
from gptjax.weights import Part, constant, looked_up, use, weight


class LearnedSinks(Part):
    """Keys and values of one layer that belong to no token (`attention.Sinks`); the values start at zero.

    The keys are drawn: sinks that start alike would learn alike, and be one.
    """

    def __init__(self, config: GPTConfig, layout: Layout, *, key: Array) -> None:
        shape = (config.sinks, config.key_heads, config.head_width)
        self.keys = weight(key, "IJK", shape, std=config.matrix_std(config.head_width), layout=layout)
        self.values = constant(0.0, "IJK", shape, layout=layout)
        self.config, self.layout = config, layout

    def __call__(self, queries: BTHK) -> Sinks:
        keys, values = (use(w, self.config.dtype, self.layout) for w in (self.keys, self.values))
        return Sinks(queries, keys, values)


class ValueMix(Part):
    """A layer's values and others: by two learned numbers (arXiv:2410.17897), or the others times a gate (nanochat)."""

    def __init__(self, config: GPTConfig, layout: Layout) -> None:
        gated, heads = config.value_gate, config.key_heads
        self.mix = None if gated else constant(0.5, "C", (2,), layout=layout)
        self.gate = constant(0.0, "PJ", (GATE_CHANNELS, heads), layout=layout) if gated else None
        self.config, self.layout = config, layout

    def __call__(self, x: BTD, v: BTJK, others: BTJK) -> BTJK:
        if self.gate is not None:
            logits = self.linear("BTP,PJ->BTJ", x[..., :GATE_CHANNELS], self.gate)
            return v + 3.0 * jax.nn.sigmoid(logits)[..., None] * others
        assert self.mix is not None
        own, other = use(self.mix, self.config.dtype, self.layout)
        return own * v + other * others


class ValueEmbeddings(Part):
    """Tables that give a token values of its own, for the layers that name them (modded-nanogpt, nanochat)."""

    def __init__(self, config: GPTConfig, layout: Layout, *, key: Array) -> None:
        shape, std = (config.padded_vocab_size, config.key_heads * config.head_width), config.matrix_std(config.width)
        keys = jax.random.split(key, len(config.value_tables))
        # Stacked along a leading axis that no letter names.
        self.tables = jax.vmap(lambda key: weight(key, "VE", shape, std=std, layout=layout))(keys)
        self.config, self.layout = config, layout

    def __call__(self, tokens: BT, layer: int) -> BTJK | None:
        """The tokens' values for a layer; None if it names no table."""
        config, layout = self.config, self.layout
        if (number := config.value_table(layer)) is None:
            return None
        table = place(self.tables[...][number].astype(config.dtype), layout.gathered("VE"))
        values = looked_up(table, tokens, layout)
        return place(jnp.reshape(values, (*tokens.shape, config.key_heads, config.head_width)), layout.acts("BTJK"))


class X0Mix(Part):
    """A block reads α x + β x0: the residual stream, and the embeddings once more (modded-nanogpt)."""

    def __init__(self, config: GPTConfig, layout: Layout, *, depth: Scalar) -> None:
        """`depth` goes from 0 at the first layer to 1 at the last."""
        by_depth = lambda ends: nnx.Param(ends[0] + (ends[1] - ends[0]) * depth, letters="")
        self.residual_mix, self.x0_mix = by_depth(config.residual_init), by_depth(config.x0_init)
        self.config, self.layout = config, layout

    def __call__(self, x: BTD, x0: BTD) -> BTD:
        return self.residual_mix[...].astype(x.dtype) * x + self.x0_mix[...].astype(x.dtype) * x0


class UNet(Part):
    """Skips from the first half of the layers to the second, the last first, as they are or times a learned weight."""

    def __init__(self, config: GPTConfig, layout: Layout) -> None:
        self.half = config.num_layers // 2
        learned = config.unet == "learned"
        self.skip_weights = constant(1.0, "N", (self.half,), layout=layout) if learned else None
        self.config, self.layout = config, layout

    def leave(self, x: BTD, skips: tuple[BTD, ...], layer: int) -> tuple[BTD, ...]:
        """The skips after a layer whose output is x."""
        return (*skips, x) if layer < self.half else skips

    def take(self, x: BTD, skips: tuple[BTD, ...], layer: int) -> tuple[BTD, tuple[BTD, ...]]:
        """What a layer reads instead of x, and the skips that remain."""
        partner = self.config.num_layers - 1 - layer
        if partner >= self.half:
            return x, skips
        skip = skips[-1] if self.skip_weights is None else self.skip_weights[...][partner].astype(x.dtype) * skips[-1]
        return x + skip, skips[:-1]
