"""The MLP of a layer. Its activations are in `layers.py`."""

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from gptjax.model.config import GPTConfig
from gptjax.model.layers import ACTIVATIONS
from gptjax.model.module import Module
from gptjax.model.params import constant_param, normal_param
from gptjax.sharding.axes import BTD
from gptjax.sharding.mesh import MeshConfig


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
