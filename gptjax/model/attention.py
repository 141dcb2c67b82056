"""Attention: the projections around it, and softmax(q kᵀ) v by one of several kernels (`kernels.py` chooses).

The kernel `xla` is the textbook formula of `xla_attention.py`. The others are in `flash_attention.py`. All run inside
shard_map: rows and heads are independent, and the compiler cannot partition a custom kernel.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gptjax.model import flash_attention
from gptjax.model.attention_inputs import AttentionInputs, AttentionOptions, Sinks
from gptjax.model.config import GPTConfig
from gptjax.model.extras import LearnedSinks, ValueMix
from gptjax.model.kernels import Kernel
from gptjax.model.layers import PROBABILITIES, fold_in_rows, rms_norm
from gptjax.model.module import Module
from gptjax.model.params import constant_param, gather, normal_param
from gptjax.model.xla_attention import HeadDropoutKeys, causal_attention
from gptjax.sharding.axes import BT, BTD, BTHK, BTJK, DropoutKeys, Positions
from gptjax.sharding.mesh import MeshConfig


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
        gain = lambda: constant_param(1.0, "K", (head_dim,), mesh=mesh) if config.qk_norm_scale else None
        self.q_scale, self.k_scale = gain(), gain()
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
            q_scale, k_scale = (None if p is None else gather(p, self.mesh) for p in (self.q_scale, self.k_scale))
            q = rms_norm(q, q_scale, epsilon=config.norm_epsilon)
            k = rms_norm(k, k_scale, epsilon=config.norm_epsilon)
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


@dataclass(frozen=True)
class SequenceAttention:
    """Attention of whole sequences, in training and evaluation (`block.Attend`). It has no cache."""

    config: GPTConfig
    mesh: MeshConfig
    kernel: Kernel
    segments: BT | None = None
    dropout_keys: DropoutKeys | None = None

    def __call__(self, inputs: AttentionInputs, layer: int | Array, cache: Any) -> tuple[BTHK, Any]:
        y = attend(
            inputs,
            AttentionOptions.from_config(self.config, layer=layer),
            kernel=self.kernel,
            segments=self.segments,
            dropout_keys=fold_in_rows(fold_in_rows(self.dropout_keys, layer), PROBABILITIES),
            mesh=self.mesh,
        )
        return y, cache


@jax.named_scope("attention")
def attend(
    inputs: AttentionInputs,
    options: AttentionOptions,
    *,
    kernel: Kernel,
    segments: BT | None = None,
    dropout_keys: DropoutKeys | None = None,
    mesh: MeshConfig,
) -> BTHK:
    """softmax(scale · q kᵀ) v, where each position sees itself and the past.

    Args:
        segments: the document number of each token. A token sees only its own document.
        dropout_keys: a key for each row, which drops probabilities; None keeps all.
    """
    head_dropout_keys = None
    if dropout_keys is not None and options.dropout > 0.0:
        heads = jnp.arange(inputs.q.shape[2])
        head_dropout_keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, heads))(dropout_keys)
        head_dropout_keys = (
            jax.sharding.reshard(head_dropout_keys, mesh.activation_spec("BH"))
            if mesh.is_sharded
            else head_dropout_keys
        )
    specs: Any = (
        attention_specs(inputs, mesh),
        None if segments is None else mesh.activation_spec("BT"),
        None if head_dropout_keys is None else mesh.activation_spec("BH"),
    )

    def attend_locally(inputs: AttentionInputs, segments: BT | None, dropout_keys: HeadDropoutKeys | None) -> BTHK:
        formula = partial(causal_attention, inputs, options, segments=segments, dropout_keys=dropout_keys)
        match kernel:
            case "cudnn":
                return flash_attention.cudnn_attention(inputs, options)
            case "cudnn_bias":
                assert segments is not None
                return flash_attention.cudnn_bias_attention(inputs, options, segments=segments)
            case "cudnn_packed":
                assert segments is not None
                return flash_attention.cudnn_packed_attention(inputs, options, segments=segments, otherwise=formula)
            case "splash":
                return flash_attention.splash_attention(inputs, options, segments=segments)
            case "xla":
                return formula()

    return mesh.shard_map(attend_locally, specs, mesh.activation_spec("BTHK"))(inputs, segments, head_dropout_keys)


def attention_specs(inputs: AttentionInputs, mesh: MeshConfig) -> Any:
    """How attention's inputs are sharded: by rows and heads."""
    rows, shared, learned = mesh.activation_spec("BTHK"), mesh.activation_spec("BTJK"), mesh.unsharded_spec("IJK")
    sinks: Any = None if inputs.sinks is None else (rows, learned, learned)
    return AttentionInputs(rows, shared, shared, sinks and Sinks(*sinks))  # pyright: ignore[reportArgumentType]
