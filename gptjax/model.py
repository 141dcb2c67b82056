"""GPT-2 as Flax NNX modules; a module is a pytree of its weights, so `jax.jit`, `jax.grad` and optax take it whole.

The weights of all blocks are stacked along a leading axis N, which no letter names: the forward pass scans over it (or
unrolls), and on disk and in the optimizer there is one array for each kind of weight. Every weight is created with its
letters, and is cast and gathered where it is used (`use`): float32 in storage, `config.dtype` in products.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from gptjax.attention import AttentionNeeds, Implementation, attend, choose
from gptjax.errors import UserError
from gptjax.layout import Layout, place
from gptjax.ops import ACTIVATIONS, dropout, fold_rows, layer_norm, rms_norm, rotary_angles, rotate, softcapped
from gptjax.shapes import BT, BTD, BTHK, BTV, VD, RowKeys

VOCABULARY_MULTIPLE = 128
"""The vocabulary is padded to a multiple of this: GPT-2's 50,257 rows multiply far slower than 50,304."""


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT and how it computes; the defaults are GPT-2 124M."""

    num_layers: int = 12
    width: int = 768
    """D: the size of the residual stream."""
    num_heads: int = 12
    context: int = 1024
    """T: the longest text it sees, in tokens."""
    vocab_size: int | None = 50257
    """V before padding; None takes the tokenizer's."""
    mlp_width: int | None = None
    """F; None means 4 × width."""
    bias: bool = True
    """Biases in norms and projections (GPT-2 has them; nanoGPT's own recipe leaves them out)."""
    tied: bool = True
    """Whether the output head is the token embedding transposed."""
    activation: Literal["gelu_tanh", "gelu", "relu", "relu2", "silu"] = "gelu_tanh"
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    """Share dropped of embeddings, attention probabilities and both branches' outputs, in training only."""
    init_std: float = 0.02
    """Standard deviation of initial weights; that of projections into the residual stream is divided by √(2N)."""

    # What later models changed.
    positions: Literal["learned", "rotary"] = "learned"
    """A table of embeddings, or queries and keys turned by their positions (RoPE)."""
    rotary_base: float = 10_000.0
    """RoPE: the slowest pair turns by about 1 / base a position."""
    rotary_dims: Literal["all", "half"] = "all"
    """RoPE: which of a head's pairs turn; `half` leaves the slower half still."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm, or RMSNorm, which neither centres nor has a bias."""
    norm_gain: bool = True
    """Whether norms have a learned gain (LayerNorm's bias goes with it)."""
    qk_norm: bool = False
    """RMSNorm without gain over each head of the queries and keys."""
    attention_scale: float | None = None
    """What q kᵀ is multiplied by; None: 1 / √K."""
    gated: bool = False
    """Whether the MLP multiplies its activation with a second projection: with `silu` that is SwiGLU."""
    softcap: float | None = None
    """Logits are drawn into (-softcap, softcap) by a tanh; None leaves them."""
    zero_init: bool = False
    """Whether projections into the residual stream, and an untied head, start at zero."""

    # How it computes.
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of activations and products; weights, norms, softmax and loss are float32 in either case."""
    head_dtype: Literal["bfloat16", "float32"] | None = None
    """Type of the operands of the output head in the loss; None: `dtype`. With float32 activations, bfloat16 here
    makes the largest product faster on CPUs with AVX512-BF16."""
    attention: Implementation = "auto"
    """Attention kernel: `cudnn` (NVIDIA, 16-bit) or `xla`; `auto` takes the fastest that can run; the log names it."""
    remat: Literal["none", "light", "full"] = "light"
    """What the backward pass computes again: nothing, norms and activations (0.1 % more FLOPs, a quarter of the
    memory), or every block whole (about 18 % more FLOPs)."""
    layers: Literal["scan", "unroll"] = "scan"
    """One compiled block run N times, or N blocks in a row: longer to compile, sometimes faster."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "width", "num_heads", "context", "vocab_size", "mlp_width"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"model.{name} is {value}; it must be at least 1.")
        if self.width % self.num_heads:
            raise UserError(
                f"model.width {self.width} does not split over model.num_heads {self.num_heads}. "
                f"Use a width that is a multiple of {self.num_heads}."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout is {self.dropout}; it is a share in [0, 1).")
        if self.positions == "rotary" and self.head_width % 4:
            raise UserError(f"model.positions=rotary turns pairs of a head; {self.head_width} is no multiple of 4.")
        for name in ("rotary_base", "softcap", "attention_scale"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"model.{name} is {value}; it must be positive.")

    @property
    def head_width(self) -> int:
        """K."""
        return self.width // self.num_heads

    @property
    def attention_needs(self) -> AttentionNeeds:
        """What decides which attention kernel can run."""
        return {"dtype": self.dtype, "dropout": self.dropout, "head_width": self.head_width}

    @property
    def residual_std(self) -> float:
        """Standard deviation of initial projections into the residual stream."""
        return 0.0 if self.zero_init else self.init_std / math.sqrt(2 * self.num_layers)

    @property
    def hidden_width(self) -> int:
        """F."""
        return self.mlp_width or 4 * self.width

    @property
    def vocabulary(self) -> int:
        """V before padding, once it is known."""
        if self.vocab_size is None:
            raise UserError("model.vocab_size is not known: no tokenizer says it. Give --model.vocab-size.")
        return self.vocab_size

    @property
    def padded_vocab_size(self) -> int:
        """V as it is stored; the columns beyond the vocabulary never take part in a softmax."""
        return -(-self.vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    def flops_per_token(self, *, causal: bool) -> float:
        """FLOPs of one training token, forward and backward: 6 a matmul parameter, 12 N T D for attention.

        `causal=True` counts only the half of attention that a causal kernel must do, N T D → N (T + 1) D / 2;
        False is the convention of PaLM (appendix B) and nanoGPT. Recomputation is not counted.
        """
        block = 4 * self.width**2 + (3 if self.gated else 2) * self.width * self.hidden_width
        matmuls = self.num_layers * block + self.padded_vocab_size * self.width
        attention = 6 * (self.context + 1) if causal else 12 * self.context
        return 6.0 * matmuls + self.num_layers * self.width * attention


def weight(key: Array, letters: str, shape: tuple[int, ...], *, std: float, layout: Layout) -> nnx.Param[Array]:
    """A float32 parameter drawn from N(0, std²), born sharded as its letters say."""
    normal = jax.random.normal(key, shape, jnp.float32, out_sharding=layout.weights(letters))
    return nnx.Param(std * normal, letters=letters)


def constant(value: float, letters: str, shape: tuple[int, ...], *, layout: Layout) -> nnx.Param[Array]:
    """A float32 parameter that starts as one number everywhere."""
    filled = jnp.full(shape, value, jnp.float32, out_sharding=layout.weights(letters))  # pyright: ignore[reportCallIssue]
    return nnx.Param(filled, letters=letters)


def use(parameter: nnx.Param[Array], dtype: str, layout: Layout) -> Array:
    """A weight as products need it: cast first, so that fewer bytes travel, then gathered over fsdp."""
    return place(parameter[...].astype(dtype), layout.gathered(parameter.letters))


def project(letters: str, x: Array, w: Array, layout: Layout) -> Array:
    """`einsum` of activations (B, T, …) with a weight, such as "BTD,DF->BTF", with B and T as one axis meanwhile.

    On CPUs a training step takes about three quarters of the time so (LAB.md).
    """
    ins, out = letters.split("->")
    sizes = dict(zip(ins.replace(",", ""), (*x.shape, *w.shape), strict=True))
    acts, weight = ins.replace("BT", "M").split(",")
    product = jnp.einsum(
        f"{acts},{weight}->{out.replace('BT', 'M')}",
        jnp.reshape(x, (-1, *x.shape[2:]), out_sharding=layout.acts(acts)),
        w,
        out_sharding=layout.acts(out.replace("BT", "M")),
    )
    return jnp.reshape(product, tuple(sizes[letter] for letter in out), out_sharding=layout.acts(out))


class Part(nnx.Module):
    """A part of the model: its weights, and what is known while tracing."""

    config: GPTConfig
    layout: Layout


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
    """The two projections around attention: in to q, k, v, and out to the residual stream."""

    def __init__(self, config: GPTConfig, layout: Layout, *, key: Array) -> None:
        in_key, out_key = jax.random.split(key)
        width, heads, head_width = config.width, config.num_heads, config.head_width
        self.qkv = weight(in_key, "DCHK", (width, 3, heads, head_width), std=config.init_std, layout=layout)
        self.out = weight(out_key, "HKD", (heads, head_width, width), std=config.residual_std, layout=layout)
        self.qkv_bias = constant(0.0, "CHK", (3, heads, head_width), layout=layout) if config.bias else None
        self.out_bias = constant(0.0, "D", (width,), layout=layout) if config.bias else None
        self.config, self.layout = config, layout

    def project_in(self, x: BTD, start: int | Array) -> tuple[BTHK, BTHK, BTHK]:
        config, dtype, layout = self.config, self.config.dtype, self.layout
        qkv = project("BTD,DCHK->CBTHK", x, use(self.qkv, dtype, layout), layout)
        if self.qkv_bias is not None:
            qkv = qkv + use(self.qkv_bias, dtype, layout)[:, None, None]
        q, k, v = qkv[0], qkv[1], qkv[2]
        if config.qk_norm:
            q, k = (rms_norm(x, None, epsilon=config.norm_epsilon) for x in (q, k))
        if config.positions == "rotary":
            places = start + jnp.arange(x.shape[1])
            half = config.rotary_dims == "half"
            angles = rotary_angles(places, config.head_width, base=config.rotary_base, half=half)
            q, k = rotate(q, angles), rotate(k, angles)
        return q, k, v

    def project_out(self, y: BTHK) -> BTD:
        dtype, layout = self.config.dtype, self.layout
        out = project("BTHK,HKD->BTD", y, use(self.out, dtype, layout), layout)
        return out if self.out_bias is None else out + use(self.out_bias, dtype, layout)[None, None]


class MLP(Part):
    """Up to F, an activation (times a gate, if the model has one), and down again."""

    def __init__(self, config: GPTConfig, layout: Layout, *, key: Array) -> None:
        up_key, down_key = jax.random.split(key)
        width, hidden = config.width, config.hidden_width
        self.up = weight(up_key, "DF", (width, hidden), std=config.init_std, layout=layout)
        gate = partial(weight, jax.random.fold_in(up_key, 1), "DF", (width, hidden), std=config.init_std, layout=layout)
        self.gate = gate() if config.gated else None
        self.down = weight(down_key, "FD", (hidden, width), std=config.residual_std, layout=layout)
        self.up_bias = constant(0.0, "F", (hidden,), layout=layout) if config.bias else None
        self.down_bias = constant(0.0, "D", (width,), layout=layout) if config.bias else None
        self.config, self.layout = config, layout

    def __call__(self, x: BTD) -> BTD:
        dtype, layout = self.config.dtype, self.layout
        h = project("BTD,DF->BTF", x, use(self.up, dtype, layout), layout)
        if self.up_bias is not None:
            h = h + use(self.up_bias, dtype, layout)[None, None]
        h = checkpoint_name(h, "up")
        if self.gate is None:
            h = ACTIVATIONS[self.config.activation](h)
        else:
            gate = project("BTD,DF->BTF", x, use(self.gate, dtype, layout), layout)
            h = h * ACTIVATIONS[self.config.activation](checkpoint_name(gate, "gate"))
        y = project("BTF,FD->BTD", h, use(self.down, dtype, layout), layout)
        return y if self.down_bias is None else y + use(self.down_bias, dtype, layout)[None, None]


class Block(Part):
    """One layer, in two halves with attention between them, so that a cache or a checkpoint can step in."""

    def __init__(self, config: GPTConfig, layout: Layout, *, key: Array) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = Norm(config, layout)
        self.attention = Attention(config, layout, key=attention_key)
        self.mlp_norm = Norm(config, layout)
        self.mlp = MLP(config, layout, key=mlp_key)
        self.config, self.layout = config, layout

    def before(self, x: BTD, start: int | Array = 0) -> tuple[BTHK, BTHK, BTHK]:
        """The residual stream → q, k, v; `start` is the position of the first token."""
        return self.attention.project_in(self.attention_norm(x), start)

    def after(self, x: BTD, y: BTHK, keys: RowKeys | None = None) -> BTD:
        """The residual stream and what attention gave → the residual stream of the next layer."""
        rate = self.config.dropout
        branch = lambda out, site: out if keys is None else dropout(out, rate, fold_rows(keys, site))
        x = checkpoint_name(x + branch(self.attention.project_out(y), 1), "mid")
        return x + branch(self.mlp(self.mlp_norm(x)), 2)

    def __call__(self, x: BTD, keys: RowKeys | None = None) -> BTD:
        """Attention stays outside the light checkpoints: a flash kernel's statistics cannot be saved by name."""
        config = self.config
        light = config.remat == "light"
        before, after = Block.before, Block.after
        if light:
            save = jax.checkpoint_policies.save_only_these_names("mid", "up", "gate")
            before, after = jax.checkpoint(before), jax.checkpoint(after, policy=save)
        kernel = choose(config.attention, backend=jax.default_backend(), **config.attention_needs)
        q, k, v = before(self, x)
        attention_keys = None if keys is None else fold_rows(keys, 0)
        y = attend(
            q,
            k,
            v,
            kernel=kernel,
            scale=config.attention_scale,
            dropout=config.dropout,
            keys=attention_keys,
            layout=self.layout,
        )
        return after(self, x, y, keys)


class GPT(Part):
    """A language model: token ids (B, T) → logits (B, T, V) of the token that follows each."""

    def __init__(self, config: GPTConfig, *, key: Array, layout: Layout | None = None) -> None:
        """Draw new weights. Under a sharded layout call it inside `jax.jit` and `layout.active()`."""
        layout = layout or Layout()
        token_key, position_key, block_key, head_key = jax.random.split(key, 4)
        vocab, width, std = config.padded_vocab_size, config.width, config.init_std
        self.tokens = weight(token_key, "VD", (vocab, width), std=std, layout=layout)
        learned = config.positions == "learned"
        self.positions = (
            weight(position_key, "TD", (config.context, width), std=std, layout=layout) if learned else None
        )
        self.blocks = jax.vmap(lambda key: Block(config, layout, key=key))(
            jax.random.split(block_key, config.num_layers)
        )
        self.norm = Norm(config, layout)
        head_std = 0.0 if config.zero_init else std
        self.head = None if config.tied else weight(head_key, "DV", (width, vocab), std=head_std, layout=layout)
        self.config, self.layout = config, layout

    def embed(self, tokens: BT, *, start: int | Array = 0) -> BTD:
        """Token embeddings, plus those of positions where they are learned; `start` is the position of the first."""
        config, layout = self.config, self.layout
        table = use(self.tokens, config.dtype, layout)
        x = table[tokens] if not layout.sharded else table.at[tokens].get(out_sharding=layout.acts("BTD"))
        if self.positions is None:
            return x
        places = use(self.positions, config.dtype, layout)
        return x + jax.lax.dynamic_slice_in_dim(places, start, tokens.shape[1])[None]

    def hidden(self, tokens: BT, keys: RowKeys | None = None) -> BTD:
        """The final residual stream, normalised: what the head reads. `keys` (one a row) turn dropout on."""
        if tokens.shape[1] > self.config.context:
            raise UserError(f"{tokens.shape[1]} tokens do not fit model.context {self.config.context}.")
        x = self.embed(tokens)
        if keys is not None:
            x = dropout(x, self.config.dropout, fold_rows(keys, self.config.num_layers))
        return self.norm(self._through_blocks(x, keys))

    def _through_blocks(self, x: BTD, keys: RowKeys | None) -> BTD:
        def body(x: BTD, layer: tuple[Block, Array]) -> tuple[BTD, None]:
            block, index = layer
            layer_keys = None if keys is None else fold_rows(keys, index)
            run: Callable[..., BTD] = jax.checkpoint(Block.__call__) if self.config.remat == "full" else Block.__call__
            return run(block, x, layer_keys), None

        layers = (self.blocks, jnp.arange(self.config.num_layers))
        if self.config.layers == "scan":
            return jax.lax.scan(body, x, layers)[0]
        for i in range(self.config.num_layers):
            x, _ = body(x, jax.tree.map(lambda leaf: leaf[i], layers))  # noqa: B023 (mapped at once)
        return x

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
        whole = place(softcapped(logits, self.config.softcap), layout.acts("BT_"))
        return whole[..., : self.config.vocabulary]

    def __call__(self, tokens: BT, keys: RowKeys | None = None) -> BTV:
        return self.unembed(self.hidden(tokens, keys))


def abstract(config: GPTConfig, layout: Layout | None = None) -> GPT:
    """The model with shapes and shardings in place of arrays; costs no memory."""
    return jax.eval_shape(lambda key: GPT(config, key=key, layout=layout), jax.random.key(0))


def num_parameters(config: GPTConfig) -> int:
    """Weights of the published model: without the rows that pad the vocabulary."""
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(config)))
    padding = (config.padded_vocab_size - config.vocabulary) * config.width
    return stored - padding * (1 if config.tied else 2)


def rebound(model: GPT, *, config: GPTConfig | None = None, layout: Layout | None = None) -> GPT:
    """The same arrays in a model with another static config or layout: other dropout, or inside a manual region."""
    copy = jax.tree.map(lambda leaf: leaf, model)
    for _, part in nnx.iter_modules(copy):
        assert isinstance(part, Part)
        part.config, part.layout = config or part.config, layout or part.layout
    return copy


def cropped(model: GPT, context: int) -> GPT:
    """The same model for texts of at most `context` tokens: the first of its position embeddings, if it has any."""
    config = model.config
    if context > config.context:
        raise UserError(
            f"model.context {context} is longer than the {config.context} positions of the given weights. "
            f"Use --model.context={config.context} or less."
        )
    shorter = rebound(model, config=replace(config, context=context))
    if model.positions is not None:
        shorter.positions = nnx.Param(model.positions[...][:context], letters="TD")
    return shorter
