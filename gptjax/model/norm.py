"""The norm before attention, before the MLP and before the output head."""

import jax

from gptjax.model.config import GPTConfig
from gptjax.model.layers import layer_norm, rms_norm
from gptjax.model.module import Module
from gptjax.model.params import constant_param, gather
from gptjax.sharding.axes import BTD
from gptjax.sharding.mesh import MeshConfig


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
