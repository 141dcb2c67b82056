"""One layer of a GPT: norms, attention's projections, the MLP, and the block that joins them.

With the defaults of `GPTConfig` this is GPT-2's block. A later idea is a line where it acts, and a module in
`extras.py` if it needs more.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from gptjax.model.attention import AttentionInputs
from gptjax.model.config import GPTConfig
from gptjax.model.extras import LearnedSinks, ValueMix, X0Mix
from gptjax.model.layers import ACTIVATIONS, dropout, fold_in_rows, layer_norm, rms_norm
from gptjax.model.module import Module
from gptjax.model.params import constant_param, gather, normal_param
from gptjax.sharding.axes import BT, BTD, BTHK, BTJK, DropoutKeys, Positions, Scalar
from gptjax.sharding.mesh import MeshConfig

ATTENTION_OUTPUT, MLP_OUTPUT = 1, 2
"""Dropout sites of a layer that are folded into its keys; `attention.PROBABILITIES` is the third."""


@runtime_checkable
class Attend(Protocol):
    """softmax(q kᵀ) v of one layer, over its own sequence or over a cache, and the cache after it."""

    def __call__(self, inputs: AttentionInputs, layer: int | Array, cache: Any) -> tuple[BTHK, Any]: ...


class LayerInputs(NamedTuple):
    """Values that every layer may read, besides the residual stream."""

    tokens: BT
    positions: Positions
    """Positions in the row, documents or not: rotary positions use only differences."""
    embeddings: BTD
    """x0: the residual stream before the first layer."""
    dropout_keys: DropoutKeys | None = None


class Norm(Module):
    """LayerNorm with a gain and, where the model has biases, a bias; or RMSNorm, with a gain or without."""

    def __init__(self, config: GPTConfig, mesh: MeshConfig) -> None:
        has_bias = config.bias and config.norm_scale and config.norm == "layer"
        self.scale = constant_param(1.0, "D", (config.embed_dim,), mesh=mesh) if config.norm_scale else None
        self.bias = constant_param(0.0, "D", (config.embed_dim,), mesh=mesh) if has_bias else None
        self.config, self.mesh = config, mesh

    @jax.named_scope("norm")
    def __call__(self, x: BTD) -> BTD:
        scale, bias = (None if p is None else gather(p, self.mesh) for p in (self.scale, self.bias))
        if self.config.norm == "rms":
            return rms_norm(x, scale, epsilon=self.config.norm_epsilon)
        return layer_norm(x, scale, bias, epsilon=self.config.norm_epsilon)


class Attention(Module):
    """The projections around attention: in to q, k, v, and out to the residual stream."""

    def __init__(self, config: GPTConfig, mesh: MeshConfig, *, key: Array) -> None:
        self.config, self.mesh = config, mesh
        in_key, out_key = jax.random.split(key)
        heads, head_dim, width = config.num_heads, config.head_dim, config.embed_dim
        self.init_input_weights(in_key, std=config.matrix_std(width))
        out_std = config.residual_std(width)
        self.out = normal_param(out_key, "HKD", (heads, head_dim, width), std=out_std, mesh=mesh)
        self.out_bias = constant_param(0.0, "D", (width,), mesh=mesh) if config.bias else None
        self.sinks = LearnedSinks(config, mesh, key=jax.random.fold_in(in_key, 1)) if config.num_sinks else None
        mixes_values = config.value_residual or config.value_embeddings
        self.value_mix = ValueMix(config, mesh) if mixes_values else None

    def init_input_weights(self, key: Array, *, std: float) -> None:
        """The projection to q, k and v: as many heads of each, in one matrix."""
        config, mesh = self.config, self.mesh
        shape = (3, config.num_heads, config.head_dim)
        self.qkv = normal_param(key, "DCHK", (config.embed_dim, *shape), std=std, mesh=mesh)
        self.qkv_bias = constant_param(0.0, "CHK", shape, mesh=mesh) if config.bias else None

    def compute_qkv(self, x: BTD) -> tuple[BTHK, BTJK, BTJK]:
        qkv = self.linear("BTD,DCHK->BTCHK", x, self.qkv, self.qkv_bias)
        q, k, v = (jnp.squeeze(heads, axis=2) for heads in jnp.split(qkv, 3, axis=2))
        return q, k, v

    def project_in(self, x: BTD, positions: Positions, *, extra_values: BTJK | None = None) -> AttentionInputs:
        """Queries, keys and values of normalised x. `extra_values` are mixed into the values."""
        config = self.config
        q, k, v = self.compute_qkv(x)
        if self.value_mix is not None and extra_values is not None:
            v = self.value_mix(x, v, extra_values)
        if config.qk_norm:
            q, k = (rms_norm(heads, None, epsilon=config.norm_epsilon) for heads in (q, k))
        sinks = None if self.sinks is None else self.sinks(q)
        q, k = config.position_scheme.rotate(q, k, positions)
        return AttentionInputs(q, k, v, sinks)

    def project_out(self, y: BTHK) -> BTD:
        return self.linear("BTHK,HKD->BTD", y, self.out, self.out_bias)


class GroupedQueryAttention(Attention):
    """Fewer heads of keys and values than of queries (arXiv:2305.13245), in a matrix of their own."""

    def init_input_weights(self, key: Array, *, std: float) -> None:
        config, mesh = self.config, self.mesh
        q_key, kv_key = jax.random.split(key)
        q, kv = (config.num_heads, config.head_dim), (2, config.kv_heads, config.head_dim)
        self.q = normal_param(q_key, "DHK", (config.embed_dim, *q), std=std, mesh=mesh)
        self.kv = normal_param(kv_key, "DCJK", (config.embed_dim, *kv), std=std, mesh=mesh)
        self.q_bias = constant_param(0.0, "HK", q, mesh=mesh) if config.bias else None
        self.kv_bias = constant_param(0.0, "CJK", kv, mesh=mesh) if config.bias else None

    def compute_qkv(self, x: BTD) -> tuple[BTHK, BTJK, BTJK]:
        q = self.linear("BTD,DHK->BTHK", x, self.q, self.q_bias)
        kv = self.linear("BTD,DCJK->BTCJK", x, self.kv, self.kv_bias)
        k, v = (jnp.squeeze(heads, axis=2) for heads in jnp.split(kv, 2, axis=2))
        return q, k, v


class MLP(Module):
    """activation(x · up) · down; with a gate (x · up * activation(x · gate)) · down."""

    def __init__(self, config: GPTConfig, mesh: MeshConfig, *, key: Array) -> None:
        up_key, down_key = jax.random.split(key)
        width, hidden = config.embed_dim, config.hidden_dim
        std = config.matrix_std(width) * config.init.mlp_scale
        gate_key = jax.random.fold_in(up_key, 1)
        self.up = normal_param(up_key, "DF", (width, hidden), std=std, mesh=mesh)
        self.gate = normal_param(gate_key, "DF", (width, hidden), std=std, mesh=mesh) if config.gated_mlp else None
        self.down = normal_param(down_key, "FD", (hidden, width), std=config.residual_std(hidden), mesh=mesh)
        self.up_bias = constant_param(0.0, "F", (hidden,), mesh=mesh) if config.bias else None
        self.down_bias = constant_param(0.0, "D", (width,), mesh=mesh) if config.bias else None
        self.config, self.mesh = config, mesh

    def __call__(self, x: BTD) -> BTD:
        activation = ACTIVATIONS[self.config.activation]
        h = checkpoint_name(self.linear("BTD,DF->BTF", x, self.up, self.up_bias), "up")
        if self.gate is None:
            h = activation(h)
        else:
            h = h * activation(checkpoint_name(self.linear("BTD,DF->BTF", x, self.gate), "gate"))
        return self.linear("BTF,FD->BTD", h, self.down, self.down_bias)


@functools.cache
def rematerialize(method: Callable[..., Any], *saved: str) -> Callable[..., Any]:
    """The method, computed again in the backward pass except for the values of these names."""
    return jax.checkpoint(method, policy=jax.checkpoint_policies.save_only_these_names(*saved))


class Block(Module):
    """One layer: x = x + attention(norm(x)), then x = x + mlp(norm(x)).

    Light remat computes again what is before attention and what is after it. Attention itself is outside: the
    statistics of a flash kernel cannot be saved by name.
    """

    def __init__(self, config: GPTConfig, mesh: MeshConfig, *, key: Array, depth: Scalar) -> None:
        """`depth` is 0 at the first layer and 1 at the last."""
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = Norm(config, mesh)
        attention = Attention if config.kv_heads == config.num_heads else GroupedQueryAttention
        self.attention = attention(config, mesh, key=attention_key)
        self.mlp_norm = Norm(config, mesh)
        self.mlp = MLP(config, mesh, key=mlp_key)
        self.mix = X0Mix(config, mesh, depth=depth) if config.x0_mix else None
        self.config, self.mesh = config, mesh

    def __call__(
        self,
        x: BTD,
        inputs: LayerInputs,
        attend: Attend,
        *,
        layer: int | Array,
        cache: Any,
        extra_values: BTJK | None = None,
    ) -> tuple[BTD, BTJK, Any]:
        """The residual stream → the next layer's, this layer's values, and the cache."""
        before, after = Block.before_attention, Block.after_attention
        if self.config.compute.remat == "light":
            before, after = rematerialize(before), rematerialize(after, "mid", "up", "gate")
        x, heads = before(self, x, inputs, extra_values)
        y, cache = attend(heads, layer, cache)
        return after(self, x, y, fold_in_rows(inputs.dropout_keys, layer)), heads.v, cache

    def before_attention(self, x: BTD, inputs: LayerInputs, extra_values: BTJK | None) -> tuple[BTD, AttentionInputs]:
        """The residual stream as this block reads it, and q, k, v of norm(x)."""
        x = x if self.mix is None else self.mix(x, inputs.embeddings)
        qkv = self.attention.project_in(self.attention_norm(x), inputs.positions, extra_values=extra_values)
        return x, qkv

    def after_attention(self, x: BTD, y: BTHK, dropout_keys: DropoutKeys | None) -> BTD:
        """x + attention, and to that + mlp(norm(x))."""
        dropout_rate = self.config.dropout
        x = x + dropout(self.attention.project_out(y), dropout_rate, fold_in_rows(dropout_keys, ATTENTION_OUTPUT))
        x = checkpoint_name(x, "mid")
        return x + dropout(self.mlp(self.mlp_norm(x)), dropout_rate, fold_in_rows(dropout_keys, MLP_OUTPUT))
