"""Looks inside a forward pass: attention patterns, the residual stream between layers, and the logit lens.

These are for small texts on one device: attention patterns take N · B · H · T² numbers.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gptjax.model.attention import SequenceAttention
from gptjax.model.attention_inputs import AttentionInputs, AttentionOptions, causal_mask
from gptjax.model.block import LayerInputs
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, LayerState, unstack_blocks
from gptjax.sharding.axes import BT, BTHK

AttentionPatterns = Float[Array, "N B H T S"]


class Inspection(NamedTuple):
    """What the layers of a model did with a text."""

    attention: AttentionPatterns
    """Share of each query's attention that each key gets. The last `num_sinks` keys are the learned sinks; without
    them S = T. A query's shares sum to 1."""
    residuals: Float[Array, "layers B T D"]
    """The residual stream before the first layer and after each layer: num_layers + 1 of them."""


@dataclass
class RecordingAttention:
    """Attends as in evaluation (`block.Attend`), and keeps the pattern of every layer."""

    attend: SequenceAttention
    patterns: list[Float[Array, "B H T S"]]

    def __call__(self, inputs: AttentionInputs, layer: int | Array, cache: Any) -> tuple[BTHK, Any]:
        self.patterns.append(compute_attention_pattern(inputs, self.attend.config, layer=int(layer)))
        return self.attend(inputs, layer, cache)


def inspect_layers(model: GPT, tokens: BT) -> Inspection:
    """Run a text through the layers one by one, and keep what they did. Dropout is off.

    A document mask is not applied: the row counts as one document.
    """
    config, positions = model.config, jnp.arange(tokens.shape[1])
    attention = RecordingAttention(SequenceAttention(config, model.mesh, kernel="xla"), [])
    x = model.embed(tokens, positions)
    inputs, state, residuals = LayerInputs(tokens, positions, x), LayerState(x), [x]
    for layer, block in enumerate(unstack_blocks(model.blocks, config.num_layers)):
        state = model.run_layer(inputs, attention, block, layer, state)
        residuals.append(state.x)
    return Inspection(jnp.stack(attention.patterns), jnp.stack(residuals).astype(jnp.float32))


def compute_attention_pattern(inputs: AttentionInputs, config: GPTConfig, *, layer: int) -> Float[Array, "B H T S"]:
    """softmax(scale · q kᵀ) of one layer in float32, with the sinks as the last keys."""
    q, k, _, sinks = jax.tree.map(lambda x: x.astype(jnp.float32), inputs)
    options, length = AttentionOptions.from_config(config, layer=layer), q.shape[1]
    repeat = lambda heads: jnp.repeat(heads, config.num_heads // config.kv_heads, axis=-2)
    positions = jnp.arange(length)
    scores = jnp.einsum("BTHK,BSHK->BHTS", q, repeat(k))
    scores = jnp.where(causal_mask(positions, positions, window=options.window)[:, None], scores, -jnp.inf)
    if sinks is not None:
        scores = jnp.concatenate([scores, jnp.einsum("BTHK,IHK->BHTI", sinks.queries, repeat(sinks.keys))], axis=-1)
    return jax.nn.softmax(scores * options.scale, axis=-1)


def compute_logit_lens(model: GPT, residuals: Float[Array, "layers B T D"]) -> Float[Array, "layers B T V"]:
    """The logits that the head would give if the model ended after each layer.

    The last entry is the model's own output. Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    read = lambda x: model.unembed(model.norm(x))
    return jnp.stack([read(x) for x in residuals])
