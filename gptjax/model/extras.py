"""Additions of later models around GPT-2's blocks. Each is a small module that exists only if its field asks for it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gptjax.model.attention_inputs import Sinks
from gptjax.model.config import GPTConfig
from gptjax.model.module import Module
from gptjax.model.params import constant_param, embedding_lookup, gather, normal_param
from gptjax.model.products import activation_dtype
from gptjax.model.requirements import GATE_CHANNELS
from gptjax.sharding.axes import BT, BTD, BTHK, BTJK, Scalar
from gptjax.sharding.mesh import MeshConfig, reshard


class LearnedSinks(Module):
    """Keys and values of one layer that belong to no token (`attention_inputs.Sinks`). The values start at zero.

    The keys are drawn at random: sinks that start alike would stay alike.
    """

    def __init__(self, config: GPTConfig, mesh: MeshConfig, *, key: Array) -> None:
        shape = (config.num_sinks, config.kv_heads, config.head_dim)
        self.keys = normal_param(key, "IJK", shape, std=config.matrix_std(config.head_dim), mesh=mesh)
        self.values = constant_param(0.0, "IJK", shape, mesh=mesh)
        self.config, self.mesh = config, mesh

    def __call__(self, queries: BTHK) -> Sinks:
        return Sinks(queries, gather(self.keys, self.mesh), gather(self.values, self.mesh))


class ValueMix(Module):
    """Mix extra values into a layer's own: by two learned numbers (arXiv:2410.17897), or times a gate (nanochat)."""

    def __init__(self, config: GPTConfig, mesh: MeshConfig) -> None:
        gated, heads = config.value_gate, config.kv_heads
        self.mix = None if gated else constant_param(0.5, "C", (2,), mesh=mesh)
        self.gate = constant_param(0.0, "PJ", (GATE_CHANNELS, heads), mesh=mesh) if gated else None
        self.config, self.mesh = config, mesh

    def __call__(self, x: BTD, v: BTJK, extra_values: BTJK) -> BTJK:
        if self.gate is not None:
            logits = self.linear("BTP,PJ->BTJ", x[..., :GATE_CHANNELS], self.gate)
            gate = 3.0 * jax.nn.sigmoid(logits.astype(jnp.float32))[..., None]
            return add_scaled(jnp.float32(1.0), v, gate, extra_values)
        assert self.mix is not None
        own, extra = gather(self.mix, self.mesh)
        return add_scaled(own, v, extra, extra_values)


class ValueEmbeddings(Module):
    """Tables that give a token values of its own, for the layers that name them (modded-nanogpt, nanochat)."""

    def __init__(self, config: GPTConfig, mesh: MeshConfig, *, key: Array) -> None:
        shape, std = (config.padded_vocab_size, config.kv_heads * config.head_dim), config.matrix_std(config.embed_dim)
        keys = jax.random.split(key, len(config.value_table_names))
        # Stacked along a leading axis without a name.
        self.tables = jax.vmap(lambda key: normal_param(key, "VE", shape, std=std, mesh=mesh))(keys)
        self.config, self.mesh = config, mesh

    def __call__(self, tokens: BT, layer: int) -> BTJK | None:
        """The tokens' values for a layer; None if the layer names no table."""
        config, mesh = self.config, self.mesh
        if (index := config.value_table_index(layer)) is None:
            return None
        table = reshard(self.tables[...][index], mesh.unsharded_spec("VE"))
        values = embedding_lookup(table, tokens, mesh).astype(activation_dtype(config.compute.dtype))
        return reshard(
            jnp.reshape(values, (*tokens.shape, config.kv_heads, config.head_dim)), mesh.activation_spec("BTJK")
        )


class X0Mix(Module):
    """A block reads α x + β x0: the residual stream and the embeddings (modded-nanogpt)."""

    def __init__(self, config: GPTConfig, mesh: MeshConfig, *, depth: Scalar) -> None:
        """`depth` is 0 at the first layer and 1 at the last."""
        by_depth = lambda ends: nnx.Param(ends[0] + (ends[1] - ends[0]) * depth, axis_names="")
        self.residual_mix, self.x0_mix = by_depth(config.init.residual_mix), by_depth(config.init.x0_mix)
        self.config, self.mesh = config, mesh

    def __call__(self, x: BTD, x0: BTD) -> BTD:
        return add_scaled(self.residual_mix[...], x, self.x0_mix[...], x0)


class UNet(Module):
    """Skips from the first half of the layers to the second, the last first, as they are or times a learned weight.

    A skip is what a layer put out or, with `inputs`, what it read.
    """

    def __init__(self, config: GPTConfig, mesh: MeshConfig) -> None:
        self.half = config.num_layers // 2
        learned = config.unet_skips == "learned"
        self.skip_weights = constant_param(1.0, "N", (self.half,), mesh=mesh) if learned else None
        self.config, self.mesh = config, mesh

    def push(self, x: BTD, skips: tuple[BTD, ...], layer: int) -> tuple[BTD, ...]:
        """The skips after a layer with output x."""
        return (*skips, x) if layer < self.half and self.config.unet_skips != "inputs" else skips

    def pop(self, x: BTD, skips: tuple[BTD, ...], layer: int) -> tuple[BTD, tuple[BTD, ...]]:
        """What a layer reads instead of x, and the skips from then on."""
        partner = self.config.num_layers - 1 - layer
        if layer < self.half and self.config.unet_skips == "inputs":
            return x, (*skips, x)
        if partner >= self.half:
            return x, skips
        if self.skip_weights is None:
            return x + skips[-1], skips[:-1]
        return add_scaled(jnp.float32(1.0), x, self.skip_weights[...][partner], skips[-1]), skips[:-1]


def add_scaled(a: Array, x: Array, b: Array, y: Array) -> Array:
    """a x + b y in `x`'s dtype. The gradients of a and b, which are broadcast, are sums, hence float32."""
    return (a * x.astype(jnp.float32) + b * y.astype(jnp.float32)).astype(x.dtype)
