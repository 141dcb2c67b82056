"""GPT as Flax NNX modules. A module is a pytree of its weights, so `jax.jit`, `jax.grad` and optax take it whole.

The weights of all blocks are stacked along a leading axis N without a name. The forward pass scans over it or unrolls
it, and a checkpoint and the optimizer have one array for each kind of weight. Weights are float32 in storage. Each
carries its axis names. Products cast it to `config.compute.dtype` and gather it where it is used (`projection.py`).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gptjax.core.errors import UserError
from gptjax.model.attention import SequenceAttention
from gptjax.model.block import Attend, Block, LayerInputs
from gptjax.model.config import GPTConfig
from gptjax.model.extras import UNet, ValueEmbeddings
from gptjax.model.kernels import select_kernel
from gptjax.model.layers import apply_softcap, dropout, fold_in_rows, rms_norm
from gptjax.model.loss import OutputHead
from gptjax.model.module import Module
from gptjax.model.norm import Norm
from gptjax.model.params import constant_param, embedding_lookup, gather, normal_param
from gptjax.model.products import activation_dtype, multiply
from gptjax.model.stored_matrix import StoredMatrix, multiply_head, run_in_loop, take_layer
from gptjax.sharding.axes import BT, BTD, BTJK, BTV, DropoutKeys, Positions
from gptjax.sharding.devices import preferred_dtype, target_device
from gptjax.sharding.mesh import MeshConfig, reshard

AnyModule = TypeVar("AnyModule", bound=Module)
FORWARD_QUERY_BLOCK = 256
"""Queries that a CPU computes at a time where no gradient is taken (benchmarks/RESULTS.md)."""


class DocumentIds(NamedTuple):
    """The document of each token, for rows that hold several."""

    segments: BT
    """Number of the token's document in the row."""
    positions: BT
    """The token's position in its document, from 0."""


class LayerState(NamedTuple):
    """Values that flow from layer to layer."""

    x: BTD
    """The residual stream."""
    cache: Any = None
    first_values: BTJK | None = None
    """The first layer's values, if later layers mix them in."""
    skips: tuple[BTD, ...] = ()
    """Outputs of the first half of the layers, for the second half."""


class GPT(Module):
    """A language model: token ids (B, T) → logits (B, T, V) of the token that follows each."""

    adapters: Any = None
    """`adapters.Adapters` while they are trained beside frozen weights."""

    def __init__(self, config: GPTConfig, *, key: Array, mesh: MeshConfig | None = None) -> None:
        """Draw new weights. With a sharded mesh call it inside `jax.jit` and `mesh.activate()`."""
        mesh, config = mesh or MeshConfig(), resolve_dtype(config)
        token_key, position_key, block_key, head_key = jax.random.split(key, 4)
        value_key = jax.random.fold_in(token_key, 1)
        vocab, width, layers = config.padded_vocab_size, config.embed_dim, config.num_layers
        length = config.position_scheme.max_length
        draw = lambda key, axis_names, *shape, std: normal_param(key, axis_names, shape, std=std, mesh=mesh)
        std, head_std = config.initial_embedding_std, config.initial_head_std
        self.token_embedding = draw(token_key, "VD", vocab, width, std=std)
        self.position_embedding = None if length is None else draw(position_key, "TD", length, width, std=std)
        self.value_embeddings = ValueEmbeddings(config, mesh, key=value_key) if config.value_table_names else None
        self.blocks = jax.vmap(lambda key, depth: Block(config, mesh, key=key, depth=depth))(
            jax.random.split(block_key, layers), jnp.linspace(0.0, 1.0, layers)
        )
        self.unet = None if config.unet_skips == "none" else UNet(config, mesh)
        self.norm = Norm(config, mesh)
        self.head = None if config.tie_embeddings else draw(head_key, "DV", width, vocab, std=head_std)
        self.head_bias = constant_param(0.0, "V", (vocab,), mesh=mesh) if config.head_bias else None
        self.config, self.mesh = config, mesh

    def __call__(self, tokens: BT, dropout_keys: DropoutKeys | None = None) -> BTV:
        return self.unembed(self.hidden_states(tokens, dropout_keys))

    def hidden_states(
        self, tokens: BT, dropout_keys: DropoutKeys | None = None, *, documents: DocumentIds | None = None
    ) -> BTD:
        """The final residual stream, normalised: what the head reads.

        Args:
            dropout_keys: a key for each row; without them there is no dropout.
            documents: required by `config.intra_document_mask`, ignored otherwise.
        """
        config, length = self.config, tokens.shape[1]
        if length > config.context_length:
            raise UserError(f"{length} tokens do not fit model.context_length {config.context_length}.")
        if config.intra_document_mask and documents is None:
            raise ValueError("model.intra_document_mask needs the document of each token: pass documents=.")
        documents = documents if config.intra_document_mask else None
        positions = jnp.arange(length)
        x = self.embed(tokens, positions if documents is None else documents.positions)
        x = dropout(x, config.dropout, fold_in_rows(dropout_keys, config.num_layers))
        attend = SequenceAttention(
            config,
            self.mesh,
            kernel=select_kernel(config, length=length),
            segments=None if documents is None else documents.segments,
            dropout_keys=dropout_keys,
        )
        x, _ = self.run_layers(LayerInputs(tokens, positions, x, dropout_keys), attend)
        return self.norm(x)

    @jax.named_scope("embed")
    def embed(self, tokens: BT, positions: Positions) -> BTD:
        """Token embeddings with positions."""
        config, mesh = self.config, self.mesh
        x = embedding_lookup(gather(self.token_embedding, mesh), tokens, mesh).astype(jnp.float32)
        x = config.position_scheme.embed(x, positions, table=self.position_embedding, mesh=mesh)
        x = rms_norm(x, None, epsilon=config.norm_epsilon) if config.embedding_norm else x
        return x.astype(activation_dtype(config.compute.dtype))

    def run_layers(self, inputs: LayerInputs, attend: Attend, *, cache: Any = None) -> tuple[BTD, Any]:
        """The embeddings → the residual stream after the last layer, and the cache. Layers are scanned or unrolled."""
        config, state = self.config, LayerState(inputs.embeddings, cache)
        run_layer = partial(self.run_layer, inputs, attend)
        if config.compute.remat == "full":
            run_layer = jax.checkpoint(run_layer, static_argnums=() if config.scans_layers else (1,))
        if config.scans_layers and self.stored_head is not None:
            run_stored = lambda layer, state: run_layer(take_layer(self.blocks, layer), layer, state)
            state = jax.lax.fori_loop(0, config.num_layers, run_stored, state)
        elif config.scans_layers:
            layers = (self.blocks, jnp.arange(config.num_layers))
            state, _ = jax.lax.scan(lambda state, layer: (run_layer(*layer, state), None), state, layers)
        elif cache is not None and self.stored_head is not None:
            for layer in range(config.num_layers):
                state = self._run_layer_in_loop(run_layer, layer, state, position=inputs.positions.ravel()[0])
        else:
            for layer, block in enumerate(unstack_blocks(self.blocks, config.num_layers)):
                state = run_layer(block, layer, state)
        return state.x, state.cache

    @jax.named_scope("layer")
    def run_layer(
        self, inputs: LayerInputs, attend: Attend, block: Block, layer: int | Array, state: LayerState
    ) -> LayerState:
        """One block, between the additions of later models. Those that need `int(layer)` are never scanned."""
        x, cache, first_values, skips = state
        if self.unet is not None:
            x, skips = self.unet.pop(x, skips, int(layer))
        table_values = None if self.value_embeddings is None else self.value_embeddings(inputs.tokens, int(layer))

        extra_values = first_values if table_values is None else table_values
        x, values, cache = block(x, inputs, attend, layer=layer, cache=cache, extra_values=extra_values)
        if self.unet is not None:
            skips = self.unet.push(x, skips, int(layer))
        if self.config.value_residual and first_values is None:
            first_values = values
        return LayerState(x, cache, first_values, skips)

    def _run_layer_in_loop(
        self, run_layer: Callable[..., LayerState], layer: int, state: LayerState, *, position: Array
    ) -> LayerState:
        """One layer of several that are not alike, with `run_in_loop`. Its weights are read inside the loop."""

        def run(i: Array, cache: Any) -> tuple[LayerState, Any]:
            block = take_layer(self.blocks, layer + i)
            after = run_layer(block, layer, state._replace(cache=cache))
            return after._replace(cache=None), after.cache

        after, cache = run_in_loop(run, state.cache, position=position)
        return after._replace(cache=cache)

    @property
    def stored_head(self) -> StoredMatrix | None:
        """The output head if all weights are in their form for decoding (`decoding.prepare_for_decoding`)."""
        head: Any = None if self.head is None else self.head[...]
        return head if isinstance(head, StoredMatrix) else None

    @property
    def output_head(self) -> OutputHead:
        """The output head as it is stored (V padded), tied or not."""
        weight = self.token_embedding[...] if self.head is None else self.head[...].T
        return OutputHead(weight, None if self.head_bias is None else self.head_bias[...])

    @jax.named_scope("head")
    def unembed(self, hidden: BTD) -> BTV:
        """Float32 logits over the true vocabulary."""
        mesh, config = self.mesh, self.config
        dtype = config.compute.dtype
        if (stored := self.stored_head) is not None:
            rows = hidden.reshape(-1, hidden.shape[-1])
            logits = multiply_head(rows, stored, dtype=dtype)[:, : config.padded_vocab_size]
            logits = logits.reshape(*hidden.shape[:2], -1)
        elif mesh.is_sharded:
            table = reshard(self.output_head.weight, mesh.unsharded_spec("VD"))
            spec = mesh.activation_spec("BTV")
            operands = hidden.astype(dtype), table.astype(dtype)
            logits = jnp.einsum("BTD,VD->BTV", *operands, out_sharding=spec, preferred_element_type=jnp.float32)
        else:
            rows = hidden.reshape(-1, hidden.shape[-1])
            logits = multiply(rows, self.output_head.weight, dtype=dtype, transposed=True)
            logits = logits.reshape(*hidden.shape[:2], -1)
        if self.head_bias is not None:
            logits = logits + gather(self.head_bias, mesh)[None, None]
        logits = apply_softcap(logits, config.logit_softcap, config.logit_softcap_curve)
        return reshard(logits, mesh.activation_spec("BT_"))[..., : config.resolved_vocab_size]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstack_blocks(blocks: Block, count: int) -> list[Block]:
    """The blocks one by one, from the stack of their weights.

    The gradient stacks them again. That of an index would be a sum of whole stacks, one for each block.
    """
    return [jax.tree.map(lambda leaf: leaf[i], blocks) for i in range(count)]  # noqa: B023 (mapped at once)


def _unstack_forward(blocks: Block, count: int) -> tuple[list[Block], None]:
    return unstack_blocks(blocks, count), None


def _unstack_backward(count: int, saved: None, d_blocks: list[Block]) -> tuple[Block]:
    return (jax.tree.map(lambda *leaves: jnp.stack(leaves), *d_blocks),)


unstack_blocks.defvjp(_unstack_forward, _unstack_backward)


def resolve_dtype(config: GPTConfig) -> GPTConfig:
    """The config with a dtype in place of `auto`: what the target device prefers."""
    if config.compute.dtype != "auto":
        return config
    return replace(config, compute=replace(config.compute, dtype=preferred_dtype()))


def abstract_model(config: GPTConfig, mesh: MeshConfig | None = None) -> GPT:
    """The model with shapes and shardings in place of arrays. It takes no memory."""
    return jax.eval_shape(_draw_model, jax.random.key(0), config=resolve_dtype(config), mesh=mesh)


@partial(jax.jit, static_argnames=("config", "mesh"))  # traced once for each config
def _draw_model(key: Array, *, config: GPTConfig, mesh: MeshConfig | None) -> GPT:
    return GPT(config, key=key, mesh=mesh)


def count_parameters(config: GPTConfig) -> int:
    """Weights of the published model, without the padding of the vocabulary."""
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_model(config)))
    values = len(config.value_table_names) * config.kv_heads * config.head_dim
    per_token = (1 if config.tie_embeddings else 2) * config.embed_dim + values + config.head_bias
    return stored - (config.padded_vocab_size - config.resolved_vocab_size) * per_token


def with_static(model: AnyModule, *, config: GPTConfig | None = None, mesh: MeshConfig | None = None) -> AnyModule:
    """The same arrays in a model with another static config or mesh: other dropout, or inside a manual region."""
    copy = jax.tree.map(lambda leaf: leaf, model)
    for _, part in nnx.iter_modules(copy):
        assert isinstance(part, Module)
        part.config, part.mesh = config or part.config, mesh or part.mesh
    return copy


def without_gradient(model: GPT) -> GPT:
    """The model as it is compiled fastest where no gradient is taken: on CPUs longer blocks of queries."""
    compute = model.config.compute
    if compute.query_block is not None or target_device().platform != "cpu":
        return model
    compute = replace(compute, query_block=FORWARD_QUERY_BLOCK)
    return with_static(model, config=replace(model.config, compute=compute))


def with_context_length(model: GPT, context_length: int) -> GPT:
    """The same weights for texts of at most `context_length` tokens.

    A shorter length keeps the first position embeddings, if there are any. Raises `UserError` for a longer one than the
    positional scheme can place.
    """
    config, limit = model.config, model.config.position_scheme.max_length
    if limit is not None and context_length > limit:
        raise UserError(
            f"context_length {context_length} is longer than the {limit} positions of the given weights. "
            f"Use --context-length={limit} or less."
        )
    changed = with_static(model, config=replace(config, context_length=context_length))
    if model.position_embedding is not None:
        changed.position_embedding = nnx.Param(model.position_embedding[...][:context_length], axis_names="TD")
    return changed


def take_layers(model: GPT, layers: tuple[int, ...]) -> GPT:
    """The model with these of its layers, counted from 0; no layers stand for all."""
    if not layers:
        return model
    copy = jax.tree.map(lambda leaf: leaf, model)
    copy.blocks = jax.tree.map(lambda leaf: jnp.stack([leaf[layer] for layer in layers]), model.blocks)
    return with_static(copy, config=replace(model.config, num_layers=len(layers)))
