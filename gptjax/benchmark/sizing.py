"""Counts what a config needs before anything runs: parameters and FLOPs by part, and bytes of the training state.

Nothing is allocated: shapes come from `jax.eval_shape`. What activations need, only the compiler knows.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from gptjax.benchmark.step_contestants import Memory
from gptjax.config import TrainConfig
from gptjax.data.loader import abstract_batch
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import abstract_model
from gptjax.runs.startup import make_phase_step, make_read_spec, prepare_device
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.state import abstract_state

PARTS = {
    "token_embedding": "token embedding",
    "position_embedding": "position embedding",
    "value_embeddings": "value embeddings",
    "blocks.attention": "attention",
    "blocks.attention_norm": "norms",
    "blocks.mlp": "MLP",
    "blocks.mlp_norm": "norms",
    "blocks.mix": "connections",
    "unet": "connections",
    "norm": "norms",
    "head": "head",
    "head_bias": "head",
}
"""Where a parameter's name begins → the part of the model that it belongs to."""
PADDED_AXES = {"token_embedding": 0, "value_embeddings": 1, "head": 1, "head_bias": 0}
"""The axis of each array whose rows are padded with the vocabulary."""


@dataclass(frozen=True)
class StateBytes:
    """Bytes of the training state on all devices together, without copies."""

    weights: int
    optimizer: int
    """The moments."""
    ema: int
    """The average of the weights."""
    gradients: int
    """Float32 gradients, which exist during a step. A checkpoint does not hold them."""

    @property
    def checkpoint(self) -> int:
        return self.weights + self.optimizer + self.ema


def count_parameters_by_part(config: GPTConfig) -> dict[str, int]:
    """Parameters of each part, without the padding of the vocabulary. They sum to `count_parameters`."""
    counts: Counter[str] = Counter()
    padding = config.padded_vocab_size - config.resolved_vocab_size
    for path, leaf in jax.tree.leaves_with_path(abstract_model(config)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        shape = list(leaf.shape)
        if (axis := PADDED_AXES.get(name.split(".")[0])) is not None:
            shape[axis] -= padding
        counts[find_part(name)] += math.prod(shape)
    return dict(counts)


def find_part(name: str) -> str:
    """The part of the model that a parameter such as `blocks.mlp.up` belongs to."""
    words = name.split(".")
    return PARTS[".".join(words[:2])] if words[0] == "blocks" else PARTS[words[0]]


def count_flops_by_part(config: GPTConfig, *, causal: bool) -> dict[str, float]:
    """FLOPs of the forward pass of one token in each product. A multiplication and an addition are two.

    The backward pass takes twice as many. Three times their sum is `GPTConfig.flops_per_token`. `causal` counts only
    the keys that a token sees.
    """
    width, heads = config.embed_dim, config.num_heads * config.head_dim
    layers, spans = config.num_layers, sum(config.count_attended_tokens(causal=causal))
    return {
        "attention: q, k, v": 2.0 * layers * width * (heads + 2 * config.kv_heads * config.head_dim),
        "attention: scores": 2.0 * heads * spans,
        "attention: weighted values": 2.0 * heads * spans,
        "attention: output": 2.0 * layers * heads * width,
        "MLP: up": 2.0 * layers * width * config.hidden_dim * (2 if config.gated_mlp else 1),
        "MLP: down": 2.0 * layers * config.hidden_dim * width,
        "head": 2.0 * width * config.padded_vocab_size,
    }


def count_state_bytes(config: TrainConfig) -> StateBytes:
    """Bytes of the training state of a config, from shapes and types. The config must know its vocabulary."""
    mesh = MeshConfig("single").resolve(1)
    optimizer = config.optimizer.build(steps=config.steps, mesh=mesh)
    state = abstract_state(config.model, optimizer, mesh=mesh, has_ema=config.ema.enabled)
    weights = count_bytes(state.model)
    return StateBytes(
        weights=weights,
        optimizer=count_bytes(state.optimizer),
        ema=count_bytes(state.ema),
        gradients=4 * sum(leaf.size for leaf in jax.tree.leaves(state.model)),
    )


def count_bytes(tree: Any) -> int:
    """Bytes of the arrays of a tree, concrete or abstract."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def format_shares(counts: Mapping[str, int] | Mapping[str, float], *, unit: str) -> str:
    """A Markdown table of numbers and their shares of the sum."""
    total = sum(counts.values())
    rows = [f"| {name} | {count:,.0f} | {count / total:.1%} |" for name, count in counts.items()]
    return "\n".join([f"| part | {unit} | share |", "|---|---:|---:|", *rows, f"| total | {total:,.0f} | |"])


def plan_memory(config: TrainConfig) -> Memory | None:
    """Memory of the first phase's training step on one device of this kind, as the compiler plans it.

    The step is compiled and not run, so a config may be larger than this machine. None: the backend does not tell.
    """
    config, mesh = prepare_device(config), MeshConfig("single").resolve(1)
    with mesh.activate():
        optimizer = config.optimizer.build(steps=config.steps, mesh=mesh)
        state = abstract_state(config.model, optimizer, mesh=mesh, has_ema=config.ema.enabled)
        batch = abstract_batch(config.batch, make_read_spec(config, None), mesh=mesh)
        return Memory.of(make_phase_step(config, mesh, config.phases[0]).lower(state, batch).compile())
