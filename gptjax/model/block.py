"""One layer of a GPT: attention and the MLP, each after a norm and beside the residual stream.

With the defaults of `GPTConfig` this is GPT-2's block. A later idea is a line where it acts, and a module in
`extras.py` if it needs more.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from gptjax.model.attention import Attention, GroupedQueryAttention
from gptjax.model.attention_inputs import AttentionInputs
from gptjax.model.config import GPTConfig
from gptjax.model.extras import X0Mix
from gptjax.model.layers import ATTENTION_OUTPUT, MLP_OUTPUT, dropout, fold_in_rows
from gptjax.model.mlp import MLP
from gptjax.model.module import Module
from gptjax.model.norm import Norm
from gptjax.sharding.axes import BT, BTD, BTHK, BTJK, DropoutKeys, Positions, Scalar
from gptjax.sharding.mesh import MeshConfig


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


def light_remat(*saved: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a method: under `remat=light` the backward pass computes it again, except for values of these names."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        policy = jax.checkpoint_policies.save_only_these_names(*saved)
        rematerialized = jax.checkpoint(method, policy=policy)

        @functools.wraps(method)
        def call(self: "Block", *inputs: Any) -> Any:
            return (rematerialized if self.config.compute.remat == "light" else method)(self, *inputs)

        return call

    return decorate


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
        x, qkv = self.before_attention(x, inputs, extra_values)
        y, cache = attend(qkv, layer, cache)
        x = self.after_attention(x, y, fold_in_rows(inputs.dropout_keys, layer))
        return x, qkv.v, cache

    @light_remat()
    def before_attention(self, x: BTD, inputs: LayerInputs, extra_values: BTJK | None) -> tuple[BTD, AttentionInputs]:
        """The residual stream as this block reads it, and q, k, v of norm(x)."""
        x = x if self.mix is None else self.mix(x, inputs.embeddings)
        qkv = self.attention.project_in(self.attention_norm(x), inputs.positions, extra_values=extra_values)
        return x, qkv

    @light_remat("mid", "up", "gate")
    def after_attention(self, x: BTD, y: BTHK, dropout_keys: DropoutKeys | None) -> BTD:
        """x + attention, and to that + mlp(norm(x))."""
        dropout_rate = self.config.dropout
        x = x + dropout(self.attention.project_out(y), dropout_rate, fold_in_rows(dropout_keys, ATTENTION_OUTPUT))
        x = checkpoint_name(x, "mid")
        return x + dropout(self.mlp(self.mlp_norm(x)), dropout_rate, fold_in_rows(dropout_keys, MLP_OUTPUT))
