"""GPT as Flax NNX modules; a module is a pytree of its weights, so `jax.jit`, `jax.grad` and optax take it whole.

With the defaults of `GPTConfig` this is GPT-2; a later idea is a line where it acts, and a module of its own where it
needs more (additions.py). The weights of all blocks are stacked along a leading axis N, which no letter names: the
forward pass scans over it (or unrolls), and on disk and in the optimizer there is one array for each kind of weight.
Every weight is created with its letters, and is cast and gathered where it is used (`use`): float32 in storage,
`config.compute.dtype` in products.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Int

from gptjax.core.errors import UserError
from gptjax.model.attention import AttentionInputs, attend, select_kernel
from gptjax.model.config import GPTConfig
from gptjax.model.extras import LearnedSinks, UNet, ValueEmbeddings, ValueMix, X0Mix
from gptjax.model.layers import (
    ACTIVATIONS,
    apply_rotary,
    apply_softcap,
    dropout,
    fold_in_rows,
    layer_norm,
    rms_norm,
    rotary_angles,
)
from gptjax.model.module import Module, cast_and_gather, constant_param, embedding_lookup, normal_param
from gptjax.sharding.axes import BT, BTD, BTHK, BTJK, BTV, VD, DropoutKeys, Scalar
from gptjax.sharding.mesh import MeshConfig, reshard


class Norm(Module):
    """LayerNorm with a gain and, where the model has biases, a bias; or RMSNorm, with a gain or without."""

    def __init__(self, config: GPTConfig, mesh: MeshConfig) -> None:
        has_bias = config.bias and config.norm_scale and config.norm == "layer"
        self.scale = constant_param(1.0, "D", (config.embed_dim,), mesh=mesh) if config.norm_scale else None
        self.bias = constant_param(0.0, "D", (config.embed_dim,), mesh=mesh) if has_bias else None
        self.config, self.mesh = config, mesh

    def __call__(self, x: BTD) -> BTD:
        scale, bias = (None if p is None else cast_and_gather(p, "float32", self.mesh) for p in (self.scale, self.bias))
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
        mixes = config.value_residual or config.value_embeddings
        self.value_mix = ValueMix(config, mesh) if mixes else None

    def init_input_weights(self, key: Array, *, std: float) -> None:
        """The weights that lead to q, k and v: as many heads of each, in one matrix."""
        config, mesh = self.config, self.mesh
        shape = (3, config.num_heads, config.head_dim)
        self.qkv = normal_param(key, "DCHK", (config.embed_dim, *shape), std=std, mesh=mesh)
        self.qkv_bias = constant_param(0.0, "CHK", shape, mesh=mesh) if config.bias else None

    def compute_qkv(self, x: BTD) -> tuple[BTHK, BTJK, BTJK]:
        q, k, v = self.linear("BTD,DCHK->CBTHK", x, self.qkv, self.qkv_bias)
        return q, k, v

    def project_in(self, x: BTD, positions: Int[Array, " T"], others: BTJK | None) -> AttentionInputs:
        """Queries, keys and values; `others` are values from elsewhere, to be mixed in."""
        config = self.config
        q, k, v = self.compute_qkv(x)
        if self.value_mix is not None and others is not None:
            v = self.value_mix(x, v, others)
        if config.qk_norm:
            q, k = (rms_norm(each, None, epsilon=config.norm_epsilon) for each in (q, k))
        sinks = None if self.sinks is None else self.sinks(q)
        if config.positions == "rotary":
            half = config.rotary_dims == "half"
            angles = rotary_angles(positions, config.head_dim, base=config.resolved_rotary_base, half=half)
            q, k = apply_rotary(q, angles), apply_rotary(k, angles)
        return AttentionInputs(q, k, v, sinks)

    def project_out(self, y: BTHK) -> BTD:
        return self.linear("BTHK,HKD->BTD", y, self.out, self.out_bias)


class GroupedQueryAttention(Attention):
    """Fewer heads of keys and values than of queries (arXiv:2305.13245), so they have a matrix of their own."""

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
        k, v = self.linear("BTD,DCJK->CBTJK", x, self.kv, self.kv_bias)
        return q, k, v


class MLP(Module):
    """Up to F, an activation (times a gate, if the model has one), and down again."""

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


class Block(Module):
    """One layer: x + attention(norm(x)), and to that + mlp(norm of it).

    In two halves with attention itself between them, so that a cache or a checkpoint can step in.
    """

    def __init__(self, config: GPTConfig, mesh: MeshConfig, *, key: Array, depth: Scalar) -> None:
        """`depth` goes from 0 at the first layer to 1 at the last."""
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = Norm(config, mesh)
        kind = Attention if config.kv_heads == config.num_heads else GroupedQueryAttention
        self.attention = kind(config, mesh, key=attention_key)
        self.mlp_norm = Norm(config, mesh)
        self.mlp = MLP(config, mesh, key=mlp_key)
        self.mix = X0Mix(config, mesh, depth=depth) if config.x0_mix else None
        self.config, self.mesh = config, mesh

    def attention_inputs(
        self, x: BTD, x0: BTD, positions: Int[Array, " T"], others: BTJK | None
    ) -> tuple[BTD, AttentionInputs]:
        """The residual stream → the same as this block reads it, and what attention is given."""
        x = x if self.mix is None else self.mix(x, x0)
        return x, self.attention.project_in(self.attention_norm(x), positions, others)

    def finish(self, x: BTD, y: BTHK, keys: DropoutKeys | None = None) -> BTD:
        """The residual stream and what attention gave → the residual stream of the next layer."""
        rate = self.config.dropout
        branch = lambda out, site: out if keys is None else dropout(out, rate, fold_in_rows(keys, site))
        x = checkpoint_name(x + branch(self.attention.project_out(y), 1), "mid")
        return x + branch(self.mlp(self.mlp_norm(x)), 2)


class DocumentIds(NamedTuple):
    """Where each token of a batch stands, if a row holds several documents."""

    segments: BT
    """The number of its document in the row."""
    positions: BT
    """Its place in the document, from 0."""


class BlockState(NamedTuple):
    """What flows from block to block."""

    x: BTD
    """The residual stream."""
    values: BTJK | None = None
    """The first layer's values, where later layers mix them in."""
    skips: tuple[BTD, ...] = ()
    """What the first half of the layers left for the second."""


Attend = Callable[[int | Array, AttentionInputs, Any], tuple[BTHK, Any]]
"""(layer, what its block gives, memory) → (what attention gives, memory)."""


def unstack_blocks(blocks: "Block", count: int) -> list["Block"]:
    """The blocks one by one, out of the stack of their weights."""
    return [jax.tree.map(lambda leaf: leaf[i], blocks) for i in range(count)]  # noqa: B023 (mapped at once)


class GPT(Module):
    """A language model: token ids (B, T) → logits (B, T, V) of the token that follows each."""

    def __init__(self, config: GPTConfig, *, key: Array, mesh: MeshConfig | None = None) -> None:
        """Draw new weights. Under a sharded layout call it inside `jax.jit` and `mesh.active()`."""
        mesh = mesh or MeshConfig()
        token_key, position_key, block_key, head_key = jax.random.split(key, 4)
        value_key = jax.random.fold_in(token_key, 1)
        vocab, width, layers = config.padded_vocab_size, config.embed_dim, config.num_layers
        learned = config.positions == "learned"
        drawn = lambda key, axis_names, *shape, std: normal_param(key, axis_names, shape, std=std, mesh=mesh)
        std, head_std = config.initial_embedding_std, config.initial_head_std
        self.tokens = drawn(token_key, "VD", vocab, width, std=std)
        self.positions = drawn(position_key, "TD", config.context_length, width, std=std) if learned else None
        self.value_embeddings = ValueEmbeddings(config, mesh, key=value_key) if config.value_table_names else None
        self.blocks = jax.vmap(lambda key, depth: Block(config, mesh, key=key, depth=depth))(
            jax.random.split(block_key, layers), jnp.linspace(0.0, 1.0, layers)
        )
        self.unet = None if config.unet_skips == "none" else UNet(config, mesh)
        self.norm = Norm(config, mesh)
        self.head = None if config.tie_embeddings else drawn(head_key, "DV", width, vocab, std=head_std)
        self.head_bias = constant_param(0.0, "V", (vocab,), mesh=mesh) if config.head_bias else None
        self.config, self.mesh = config, mesh

    def embed(self, tokens: BT, positions: Int[Array, " T"] | BT) -> BTD:
        """Token embeddings, plus those of positions where they are learned; (T,) positions follow one another."""
        config = self.config
        x = embedding_lookup(cast_and_gather(self.tokens, config.compute.dtype, self.mesh), tokens, self.mesh)
        if self.positions is not None:
            places = cast_and_gather(self.positions, config.compute.dtype, self.mesh)
            x = x + (
                embedding_lookup(places, positions, self.mesh)
                if positions.ndim == 2
                else jax.lax.dynamic_slice_in_dim(places, positions[0], len(positions))[None]
            )
        return rms_norm(x, None, epsilon=config.norm_epsilon) if config.embedding_norm else x

    def hidden_states(self, tokens: BT, keys: DropoutKeys | None = None, documents: DocumentIds | None = None) -> BTD:
        """The final residual stream, normalised: what the head reads. `keys` (one a row) turn dropout on."""
        config, length = self.config, tokens.shape[1]
        if length > config.context_length:
            raise UserError(f"{length} tokens do not fit model.context_length {config.context_length}.")
        if config.intra_document_mask and documents is None:
            raise ValueError(
                "model.intra_document_mask needs to know which document each token belongs to: pass documents=."
            )
        documents = documents if config.intra_document_mask else None
        positions = jnp.arange(length)
        kernel = select_kernel(config, backend=jax.default_backend())

        def attention(layer: int | Array, heads: AttentionInputs, memory: None) -> tuple[BTHK, None]:
            y = attend(
                heads.q,
                heads.k,
                heads.v,
                kernel=kernel,
                scale=config.attention_scale,
                window=self.window(layer),
                segments=None if documents is None else documents.segments,
                sinks=heads.sinks,
                dropout=config.dropout,
                keys=None if keys is None else fold_in_rows(fold_in_rows(keys, layer), 0),
                mesh=self.mesh,
            )
            return y, memory

        x = self.embed(tokens, positions if documents is None else documents.positions)
        if keys is not None:
            x = dropout(x, config.dropout, fold_in_rows(keys, config.num_layers))
        x, _ = self.run_blocks(x, tokens, positions, attention, None, keys=keys)
        return self.norm(x)

    def run_blocks(
        self,
        x: BTD,
        tokens: BT,
        positions: Int[Array, " T"],
        attention: Attend,
        memory: Any,
        *,
        keys: DropoutKeys | None = None,
    ) -> tuple[BTD, Any]:
        """The embeddings → the residual stream after the last block. Rotary positions count from the row's start:
        only differences matter, within a document too."""
        config, x0 = self.config, x
        # `int(layer)` below is for layers that differ, which are never scanned.
        before, after = Block.attention_inputs, Block.finish
        if (
            config.compute.remat == "light"
        ):  # attention stays outside: a flash kernel's statistics cannot be saved by name
            save = jax.checkpoint_policies.save_only_these_names("mid", "up", "gate")
            before, after = jax.checkpoint(before), jax.checkpoint(after, policy=save)

        def run(block: Block, layer: int | Array, stream: BlockState, memory: Any) -> tuple[BlockState, Any]:
            x, values, skips = stream
            if self.unet is not None:
                x, skips = self.unet.take(x, skips, int(layer))
            x, heads = before(block, x, x0, positions, self._other_values(values, tokens, layer))
            y, memory = attention(layer, heads, memory)
            x = after(block, x, y, None if keys is None else fold_in_rows(keys, layer))
            if self.unet is not None:
                skips = self.unet.leave(x, skips, int(layer))
            if config.value_residual and values is None:
                values = heads.v
            return BlockState(x, values, skips), memory

        if config.compute.remat == "full":
            run = jax.checkpoint(run, static_argnums=() if self._scans else (1,))
        carry = (BlockState(x), memory)
        if self._scans:
            body = lambda carry, layer: (run(*layer, *carry), None)
            carry, _ = jax.lax.scan(body, carry, (self.blocks, jnp.arange(config.num_layers)))
        else:
            for layer, block in enumerate(unstack_blocks(self.blocks, config.num_layers)):
                carry = run(block, layer, *carry)
        return carry[0].x, carry[1]

    @property
    def _scans(self) -> bool:
        return self.config.compute.scan_layers == "on" or (
            self.config.compute.scan_layers == "auto" and self.config.layers_are_identical
        )

    def window(self, layer: int | Array) -> int | None:
        """How many tokens a layer sees; a layer that is only known while running is like any other."""
        return self.config.window(layer if isinstance(layer, int) else 0)

    def _other_values(self, first: BTJK | None, tokens: BT, layer: int | Array) -> BTJK | None:
        """Values that a layer mixes with its own: those of its table, or else the first layer's, if there are any."""
        own = None if self.value_embeddings is None else self.value_embeddings(tokens, int(layer))
        return first if own is None else own

    @property
    def head_weight(self) -> VD:
        """The output head as it is stored (V padded), tied or not."""
        return self.tokens[...] if self.head is None else self.head[...].T

    def unembed(self, hidden: BTD) -> BTV:
        """Float32 logits over the true vocabulary."""
        mesh = self.mesh
        table = reshard(self.head_weight.astype(hidden.dtype), mesh.unsharded_spec("VD"))
        logits = jnp.einsum(
            "BTD,VD->BTV", hidden, table, out_sharding=mesh.activation_spec("BTV"), preferred_element_type=jnp.float32
        )
        if self.head_bias is not None:
            logits = logits + cast_and_gather(self.head_bias, "float32", mesh)[None, None]
        capped = apply_softcap(logits, self.config.logit_softcap, self.config.logit_softcap_curve)
        whole = reshard(capped, mesh.activation_spec("BT_"))
        return whole[..., : self.config.resolved_vocab_size]

    def __call__(self, tokens: BT, keys: DropoutKeys | None = None) -> BTV:
        return self.unembed(self.hidden_states(tokens, keys))


def abstract_model(config: GPTConfig, mesh: MeshConfig | None = None) -> GPT:
    """The model with shapes and shardings in place of arrays; costs no memory."""
    return jax.eval_shape(lambda key: GPT(config, key=key, mesh=mesh), jax.random.key(0))


def count_parameters(config: GPTConfig) -> int:
    """Weights of the published model: without what pads the vocabulary."""
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_model(config)))
    values = len(config.value_table_names) * config.kv_heads * config.head_dim
    for_a_token = (1 if config.tie_embeddings else 2) * config.embed_dim + values + config.head_bias
    return stored - (config.padded_vocab_size - config.resolved_vocab_size) * for_a_token


def with_static(model: GPT, *, config: GPTConfig | None = None, mesh: MeshConfig | None = None) -> GPT:
    """The same arrays in a model with another static config or mesh: other dropout, or inside a manual region."""
    copy = jax.tree.map(lambda leaf: leaf, model)
    for _, part in nnx.iter_modules(copy):
        assert isinstance(part, Module)
        part.config, part.mesh = config or part.config, mesh or part.mesh
    return copy


def with_context_length(model: GPT, context_length: int) -> GPT:
    """The same weights for texts of at most `context` tokens.

    A shorter context takes the first of the learned positions, if there are any; a longer one needs rotary positions.
    """
    config = model.config
    if model.positions is not None and context_length > config.context_length:
        raise UserError(
            f"model.context_length {context_length} is longer than the {config.context_length} positions of the given weights. "
            f"Use --model.context-length={config.context_length} or less."
        )
    changed = with_static(model, config=replace(config, context_length=context_length))
    if model.positions is not None:
        changed.positions = nnx.Param(model.positions[...][:context_length], axis_names="TD")
    return changed
