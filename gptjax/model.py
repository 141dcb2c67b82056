"""GPT as Flax NNX modules; a module is a pytree of its weights, so `jax.jit`, `jax.grad` and optax take it whole.

With the defaults of `GPTConfig` this is GPT-2; a later idea is a line where it acts, and a module of its own where it
needs more (additions.py). The weights of all blocks are stacked along a leading axis N, which no letter names: the
forward pass scans over it (or unrolls), and on disk and in the optimizer there is one array for each kind of weight.
Every weight is created with its letters, and is cast and gathered where it is used (`use`): float32 in storage,
`config.dtype` in products.
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

from gptjax.additions import LearnedSinks, UNet, ValueEmbeddings, ValueMix, X0Mix
from gptjax.attention import Heads, attend, choose
from gptjax.errors import UserError
from gptjax.gpt_config import GPTConfig
from gptjax.layout import Layout, place
from gptjax.ops import ACTIVATIONS, dropout, fold_rows, layer_norm, rms_norm, rotary_angles, rotate, softcapped
from gptjax.shapes import BT, BTD, BTHK, BTJK, BTV, VD, RowKeys, Scalar
from gptjax.weights import Part, constant, looked_up, use, weight


class Norm(Part):
    """LayerNorm with a gain and, where the model has biases, a bias; or RMSNorm, with a gain or without."""

    def __init__(self, config: GPTConfig, layout: Layout) -> None:
        has_bias = config.bias and config.norm_gain and config.norm == "layer"
        self.scale = constant(1.0, "D", (config.width,), layout=layout) if config.norm_gain else None
        self.bias = constant(0.0, "D", (config.width,), layout=layout) if has_bias else None
        self.config, self.layout = config, layout

    def __call__(self, x: BTD) -> BTD:
        scale, bias = (None if p is None else use(p, "float32", self.layout) for p in (self.scale, self.bias))
        if self.config.norm == "rms":
            return rms_norm(x, scale, epsilon=self.config.norm_epsilon)
        return layer_norm(x, scale, bias, epsilon=self.config.norm_epsilon)


class Attention(Part):
    """The projections around attention: in to q, k, v, and out to the residual stream."""

    def __init__(self, config: GPTConfig, layout: Layout, *, key: Array) -> None:
        self.config, self.layout = config, layout
        in_key, out_key = jax.random.split(key)
        heads, head_width, width = config.num_heads, config.head_width, config.width
        self.draw_in(in_key, std=config.matrix_std(width))
        out_std = config.residual_std(width)
        self.out = weight(out_key, "HKD", (heads, head_width, width), std=out_std, layout=layout)
        self.out_bias = constant(0.0, "D", (width,), layout=layout) if config.bias else None
        self.sinks = LearnedSinks(config, layout, key=jax.random.fold_in(in_key, 1)) if config.sinks else None
        mixes = config.value_residual or config.value_embeddings
        self.value_mix = ValueMix(config, layout) if mixes else None

    def draw_in(self, key: Array, *, std: float) -> None:
        """The weights that lead to q, k and v: as many heads of each, in one matrix."""
        config, layout = self.config, self.layout
        shape = (3, config.num_heads, config.head_width)
        self.qkv = weight(key, "DCHK", (config.width, *shape), std=std, layout=layout)
        self.qkv_bias = constant(0.0, "CHK", shape, layout=layout) if config.bias else None

    def qkv_of(self, x: BTD) -> tuple[BTHK, BTJK, BTJK]:
        q, k, v = self.linear("BTD,DCHK->CBTHK", x, self.qkv, self.qkv_bias)
        return q, k, v

    def project_in(self, x: BTD, positions: Int[Array, " T"], others: BTJK | None) -> Heads:
        """Queries, keys and values; `others` are values from elsewhere, to be mixed in."""
        config = self.config
        q, k, v = self.qkv_of(x)
        if self.value_mix is not None and others is not None:
            v = self.value_mix(x, v, others)
        if config.qk_norm:
            q, k = (rms_norm(each, None, epsilon=config.norm_epsilon) for each in (q, k))
        sinks = None if self.sinks is None else self.sinks(q)
        if config.positions == "rotary":
            half = config.rotary_dims == "half"
            angles = rotary_angles(positions, config.head_width, base=config.rotation_base, half=half)
            q, k = rotate(q, angles), rotate(k, angles)
        return Heads(q, k, v, sinks)

    def project_out(self, y: BTHK) -> BTD:
        return self.linear("BTHK,HKD->BTD", y, self.out, self.out_bias)


class GroupedQueryAttention(Attention):
    """Fewer heads of keys and values than of queries (arXiv:2305.13245), so they have a matrix of their own."""

    def draw_in(self, key: Array, *, std: float) -> None:
        config, layout = self.config, self.layout
        q_key, kv_key = jax.random.split(key)
        q, kv = (config.num_heads, config.head_width), (2, config.key_heads, config.head_width)
        self.q = weight(q_key, "DHK", (config.width, *q), std=std, layout=layout)
        self.kv = weight(kv_key, "DCJK", (config.width, *kv), std=std, layout=layout)
        self.q_bias = constant(0.0, "HK", q, layout=layout) if config.bias else None
        self.kv_bias = constant(0.0, "CJK", kv, layout=layout) if config.bias else None

    def qkv_of(self, x: BTD) -> tuple[BTHK, BTJK, BTJK]:
        q = self.linear("BTD,DHK->BTHK", x, self.q, self.q_bias)
        k, v = self.linear("BTD,DCJK->CBTJK", x, self.kv, self.kv_bias)
        return q, k, v


class MLP(Part):
    """Up to F, an activation (times a gate, if the model has one), and down again."""

    def __init__(self, config: GPTConfig, layout: Layout, *, key: Array) -> None:
        up_key, down_key = jax.random.split(key)
        width, hidden = config.width, config.hidden_width
        std = config.matrix_std(width) * config.mlp_init
        gate_key = jax.random.fold_in(up_key, 1)
        self.up = weight(up_key, "DF", (width, hidden), std=std, layout=layout)
        self.gate = weight(gate_key, "DF", (width, hidden), std=std, layout=layout) if config.gated else None
        self.down = weight(down_key, "FD", (hidden, width), std=config.residual_std(hidden), layout=layout)
        self.up_bias = constant(0.0, "F", (hidden,), layout=layout) if config.bias else None
        self.down_bias = constant(0.0, "D", (width,), layout=layout) if config.bias else None
        self.config, self.layout = config, layout

    def __call__(self, x: BTD) -> BTD:
        activation = ACTIVATIONS[self.config.activation]
        h = checkpoint_name(self.linear("BTD,DF->BTF", x, self.up, self.up_bias), "up")
        if self.gate is None:
            h = activation(h)
        else:
            h = h * activation(checkpoint_name(self.linear("BTD,DF->BTF", x, self.gate), "gate"))
        return self.linear("BTF,FD->BTD", h, self.down, self.down_bias)


class Block(Part):
    """One layer: x + attention(norm(x)), and to that + mlp(norm of it).

    In two halves with attention itself between them, so that a cache or a checkpoint can step in.
    """

    def __init__(self, config: GPTConfig, layout: Layout, *, key: Array, depth: Scalar) -> None:
        """`depth` goes from 0 at the first layer to 1 at the last."""
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = Norm(config, layout)
        kind = Attention if config.key_heads == config.num_heads else GroupedQueryAttention
        self.attention = kind(config, layout, key=attention_key)
        self.mlp_norm = Norm(config, layout)
        self.mlp = MLP(config, layout, key=mlp_key)
        self.mix = X0Mix(config, layout, depth=depth) if config.x0_mix else None
        self.config, self.layout = config, layout

    def before(self, x: BTD, x0: BTD, positions: Int[Array, " T"], others: BTJK | None) -> tuple[BTD, Heads]:
        """The residual stream → the same as this block reads it, and what attention is given."""
        x = x if self.mix is None else self.mix(x, x0)
        return x, self.attention.project_in(self.attention_norm(x), positions, others)

    def after(self, x: BTD, y: BTHK, keys: RowKeys | None = None) -> BTD:
        """The residual stream and what attention gave → the residual stream of the next layer."""
        rate = self.config.dropout
        branch = lambda out, site: out if keys is None else dropout(out, rate, fold_rows(keys, site))
        x = checkpoint_name(x + branch(self.attention.project_out(y), 1), "mid")
        return x + branch(self.mlp(self.mlp_norm(x)), 2)


class Documents(NamedTuple):
    """Where each token of a batch stands, if a row holds several documents."""

    segments: BT
    """The number of its document in the row."""
    positions: BT
    """Its place in the document, from 0."""


class Stream(NamedTuple):
    """What flows from block to block."""

    x: BTD
    """The residual stream."""
    values: BTJK | None = None
    """The first layer's values, where later layers mix them in."""
    skips: tuple[BTD, ...] = ()
    """What the first half of the layers left for the second."""


Attend = Callable[[int | Array, Heads, Any], tuple[BTHK, Any]]
"""(layer, what its block gives, memory) → (what attention gives, memory)."""


def unstacked(blocks: "Block", count: int) -> list["Block"]:
    """The blocks one by one, out of the stack of their weights."""
    return [jax.tree.map(lambda leaf: leaf[i], blocks) for i in range(count)]  # noqa: B023 (mapped at once)


class GPT(Part):
    """A language model: token ids (B, T) → logits (B, T, V) of the token that follows each."""

    def __init__(self, config: GPTConfig, *, key: Array, layout: Layout | None = None) -> None:
        """Draw new weights. Under a sharded layout call it inside `jax.jit` and `layout.active()`."""
        layout = layout or Layout()
        token_key, position_key, block_key, head_key = jax.random.split(key, 4)
        value_key = jax.random.fold_in(token_key, 1)
        vocab, width, layers = config.padded_vocab_size, config.width, config.num_layers
        learned = config.positions == "learned"
        drawn = lambda key, letters, *shape, std: weight(key, letters, shape, std=std, layout=layout)
        std, head_std = config.initial_embedding_std, config.initial_head_std
        self.tokens = drawn(token_key, "VD", vocab, width, std=std)
        self.positions = drawn(position_key, "TD", config.context, width, std=std) if learned else None
        self.value_embeddings = ValueEmbeddings(config, layout, key=value_key) if config.value_tables else None
        self.blocks = jax.vmap(lambda key, depth: Block(config, layout, key=key, depth=depth))(
            jax.random.split(block_key, layers), jnp.linspace(0.0, 1.0, layers)
        )
        self.unet = None if config.unet == "none" else UNet(config, layout)
        self.norm = Norm(config, layout)
        self.head = None if config.tied else drawn(head_key, "DV", width, vocab, std=head_std)
        self.head_bias = constant(0.0, "V", (vocab,), layout=layout) if config.head_bias else None
        self.config, self.layout = config, layout

    def embed(self, tokens: BT, positions: Int[Array, " T"] | BT) -> BTD:
        """Token embeddings, plus those of positions where they are learned; (T,) positions follow one another."""
        config = self.config
        x = looked_up(use(self.tokens, config.dtype, self.layout), tokens, self.layout)
        if self.positions is not None:
            places = use(self.positions, config.dtype, self.layout)
            x = x + (
                looked_up(places, positions, self.layout)
                if positions.ndim == 2
                else jax.lax.dynamic_slice_in_dim(places, positions[0], len(positions))[None]
            )
        return rms_norm(x, None, epsilon=config.norm_epsilon) if config.embedding_norm else x

    def hidden(self, tokens: BT, keys: RowKeys | None = None, documents: Documents | None = None) -> BTD:
        """The final residual stream, normalised: what the head reads. `keys` (one a row) turn dropout on."""
        config, length = self.config, tokens.shape[1]
        if length > config.context:
            raise UserError(f"{length} tokens do not fit model.context {config.context}.")
        if config.document_mask and documents is None:
            raise ValueError("model.document_mask needs to know which document each token belongs to: pass documents=.")
        documents = documents if config.document_mask else None
        positions = jnp.arange(length)
        kernel = choose(config, backend=jax.default_backend())

        def attention(layer: int | Array, heads: Heads, memory: None) -> tuple[BTHK, None]:
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
                keys=None if keys is None else fold_rows(fold_rows(keys, layer), 0),
                layout=self.layout,
            )
            return y, memory

        x = self.embed(tokens, positions if documents is None else documents.positions)
        if keys is not None:
            x = dropout(x, config.dropout, fold_rows(keys, config.num_layers))
        x, _ = self.through_blocks(x, tokens, positions, attention, None, keys=keys)
        return self.norm(x)

    def through_blocks(
        self,
        x: BTD,
        tokens: BT,
        positions: Int[Array, " T"],
        attention: Attend,
        memory: Any,
        *,
        keys: RowKeys | None = None,
    ) -> tuple[BTD, Any]:
        """The embeddings → the residual stream after the last block. Rotary positions count from the row's start:
        only differences matter, within a document too."""
        config, x0 = self.config, x
        # `int(layer)` below is for layers that differ, which are never scanned.
        before, after = Block.before, Block.after
        if config.remat == "light":  # attention stays outside: a flash kernel's statistics cannot be saved by name
            save = jax.checkpoint_policies.save_only_these_names("mid", "up", "gate")
            before, after = jax.checkpoint(before), jax.checkpoint(after, policy=save)

        def run(block: Block, layer: int | Array, stream: Stream, memory: Any) -> tuple[Stream, Any]:
            x, values, skips = stream
            if self.unet is not None:
                x, skips = self.unet.take(x, skips, int(layer))
            x, heads = before(block, x, x0, positions, self._other_values(values, tokens, layer))
            y, memory = attention(layer, heads, memory)
            x = after(block, x, y, None if keys is None else fold_rows(keys, layer))
            if self.unet is not None:
                skips = self.unet.leave(x, skips, int(layer))
            if config.value_residual and values is None:
                values = heads.v
            return Stream(x, values, skips), memory

        if config.remat == "full":
            run = jax.checkpoint(run, static_argnums=() if self._scans else (1,))
        carry = (Stream(x), memory)
        if self._scans:
            body = lambda carry, layer: (run(*layer, *carry), None)
            carry, _ = jax.lax.scan(body, carry, (self.blocks, jnp.arange(config.num_layers)))
        else:
            for layer, block in enumerate(unstacked(self.blocks, config.num_layers)):
                carry = run(block, layer, *carry)
        return carry[0].x, carry[1]

    @property
    def _scans(self) -> bool:
        return self.config.layers == "scan" or (self.config.layers == "auto" and self.config.layers_alike)

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
        layout = self.layout
        table = place(self.head_weight.astype(hidden.dtype), layout.gathered("VD"))
        logits = jnp.einsum(
            "BTD,VD->BTV", hidden, table, out_sharding=layout.acts("BTV"), preferred_element_type=jnp.float32
        )
        if self.head_bias is not None:
            logits = logits + use(self.head_bias, "float32", layout)[None, None]
        capped = softcapped(logits, self.config.softcap, self.config.softcap_curve)
        whole = place(capped, layout.acts("BT_"))
        return whole[..., : self.config.vocabulary]

    def __call__(self, tokens: BT, keys: RowKeys | None = None) -> BTV:
        return self.unembed(self.hidden(tokens, keys))


def abstract(config: GPTConfig, layout: Layout | None = None) -> GPT:
    """The model with shapes and shardings in place of arrays; costs no memory."""
    return jax.eval_shape(lambda key: GPT(config, key=key, layout=layout), jax.random.key(0))


def num_parameters(config: GPTConfig) -> int:
    """Weights of the published model: without what pads the vocabulary."""
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(config)))
    values = len(config.value_tables) * config.key_heads * config.head_width
    for_a_token = (1 if config.tied else 2) * config.width + values + config.head_bias
    return stored - (config.padded_vocab_size - config.vocabulary) * for_a_token


def rebound(model: GPT, *, config: GPTConfig | None = None, layout: Layout | None = None) -> GPT:
    """The same arrays in a model with another static config or layout: other dropout, or inside a manual region."""
    copy = jax.tree.map(lambda leaf: leaf, model)
    for _, part in nnx.iter_modules(copy):
        assert isinstance(part, Part)
        part.config, part.layout = config or part.config, layout or part.layout
    return copy


def with_context(model: GPT, context: int) -> GPT:
    """The same weights for texts of at most `context` tokens.

    A shorter context takes the first of the learned positions, if there are any; a longer one needs rotary positions.
    """
    config = model.config
    if model.positions is not None and context > config.context:
        raise UserError(
            f"model.context {context} is longer than the {config.context} positions of the given weights. "
            f"Use --model.context={config.context} or less."
        )
    changed = rebound(model, config=replace(config, context=context))
    if model.positions is not None:
        changed.positions = nnx.Param(model.positions[...][:context], letters="TD")
    return changed
