"""The shape of a GPT and how it computes, as one value. Its defaults are GPT-2; what later models changed is a field.

A field is one idea, to be combined with any other; where two cannot go together, the value says so when it is made.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

from gptjax.errors import UserError

VOCABULARY_MULTIPLE = 128
"""The vocabulary is padded to a multiple of this: GPT-2's 50,257 rows multiply far slower than 50,304."""

GATE_CHANNELS = 12
"""From how many channels of the residual stream the gates of value embeddings are computed (nanochat)."""

Implementation = Literal["auto", "cudnn", "xla"]


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT and how it computes; the defaults are GPT-2 124M."""

    num_layers: int = 12
    width: int = 768
    """D: the size of the residual stream."""
    num_heads: int = 12
    context: int = 1024
    """T: the longest text it is trained on, in tokens."""
    vocab_size: int | None = 50257
    """V before padding; None takes the tokenizer's."""
    mlp_width: int | None = None
    """F; None means 4 × width."""
    bias: bool = True
    """Biases in LayerNorms and projections (GPT-2 has them; nanoGPT's own recipe leaves them out)."""
    tied: bool = True
    """Whether the output head is the token embedding transposed."""
    activation: Literal["gelu_tanh", "gelu", "relu", "relu2", "silu"] = "gelu_tanh"
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    """Share dropped of embeddings, attention probabilities and both branches' outputs, in training only."""
    init_std: float = 0.02
    """Standard deviation of initial weights; that of projections into the residual stream is divided by √(2N)."""

    # What later models changed: positions and norms.
    positions: Literal["learned", "rotary"] = "learned"
    """A table of embeddings, or queries and keys turned by their positions (RoPE)."""
    rotary_base: float | None = None
    """RoPE: the slowest pair turns by about 1 / base a position; None: 10,000, or as the weights that a run starts from
    have it."""
    rotary_dims: Literal["all", "half"] = "all"
    """RoPE: which of a head's pairs turn; `half` leaves the slower half still."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm, or RMSNorm, which neither centres nor has a bias."""
    norm_gain: bool = True
    """Whether norms have a learned gain (LayerNorm's bias goes with it)."""
    qk_norm: bool = False
    """RMSNorm without gain over each head of the queries and keys."""
    embedding_norm: bool = False
    """RMSNorm without gain over the embeddings, before the first block."""

    # Attention.
    kv_heads: int | None = None
    """Heads of keys and values, each shared by num_heads / kv_heads queries (grouped-query attention); None: all."""
    attention_scale: float | None = None
    """What q kᵀ is multiplied by; None: 1 / √K."""
    windows: str = "L"
    """How far each layer looks back, as a pattern repeated over the layers: L `long_window`, S `short_window`."""
    long_window: int | None = None
    """Tokens that layers marked L see, their own included; None: all."""
    short_window: int | None = None
    """Tokens that layers marked S see, their own included."""
    sinks: int = 0
    """Learned keys and values, for each layer and head, that every token sees besides the text (attention sinks)."""
    document_mask: bool = False
    """Whether a token sees only its own document; the loader then gives the rows' documents."""

    # The MLP, and ways around the blocks.
    gated: bool = False
    """Whether the MLP multiplies its activation with a second projection: with `silu` that is SwiGLU."""
    unet: Literal["none", "plain", "learned"] = "none"
    """Skips from the first half of the layers to the second, the last first: added as they are, or times a weight."""
    x0_mix: bool = False
    """Whether each block reads α x + β x0, with learned numbers α and β and the embeddings x0."""
    residual_init: tuple[float, float] = (1.0, 1.0)
    """α at the start, of the first layer and of the last; in between by equal steps."""
    x0_init: tuple[float, float] = (0.0, 0.0)
    """β at the start, likewise."""
    value_residual: bool = False
    """Whether every later layer's values are mixed with the first layer's, by two learned numbers."""
    value_embeddings: str = ""
    """Which layers mix an embedding of the token into their values: a pattern repeated over the layers, with `.` for
    none, any other character for the table of that name: `012......012`. Empty: no layer."""
    value_gate: bool = False
    """Value embeddings are added times a gate 3 σ(W x), one for each head, instead of mixed by learned numbers."""

    # The head.
    head_bias: bool = False
    """Whether the head has a bias, a learned number for each token."""
    softcap: float | None = None
    """Logits are drawn into (-softcap, softcap); None leaves them."""
    softcap_curve: Literal["tanh", "sqrt"] = "tanh"
    """How: c tanh(z / c), or z / √(1 + (z / c)²)."""

    # Initial weights.
    init: Literal["fixed", "fan_in"] = "fixed"
    """Whether `init_std` is the standard deviation itself, or is divided by the root of a matrix's inputs."""
    zero_init: bool = False
    """Whether projections into the residual stream, and an untied head, start at zero."""
    embedding_std: float | None = None
    """Standard deviation of the initial token and position tables; None: 0.02 or, if `fixed`, init_std."""
    head_std: float | None = None
    """That of an untied head; None: as other weights, or 0 with `zero_init`."""
    mlp_init: float = 1.0
    """Factor on the initial weights that lead into the MLP."""

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
    layers: Literal["auto", "scan", "unroll"] = "auto"
    """One compiled block run N times, or N blocks in a row: longer to compile, sometimes faster. `auto` scans if all
    layers are alike, which `scan` needs."""

    def __post_init__(self) -> None:
        counts = ("num_layers", "width", "num_heads", "context", "vocab_size", "mlp_width")
        for name in (*counts, "kv_heads", "long_window", "short_window"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"model.{name} is {value}; it must be at least 1.")
        if self.width % self.num_heads:
            raise UserError(
                f"model.width {self.width} does not split over model.num_heads {self.num_heads}. "
                f"Use a width that is a multiple of {self.num_heads}."
            )
        if self.num_heads % self.key_heads:
            raise UserError(f"model.num_heads {self.num_heads} is no multiple of model.kv_heads {self.kv_heads}.")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout is {self.dropout}; it is a share in [0, 1).")
        multiple = 4 if self.rotary_dims == "half" else 2
        if self.positions == "rotary" and self.head_width % multiple:
            raise UserError(
                f"model.positions=rotary turns pairs of a head's channels ({self.rotary_dims} of them); "
                f"{self.head_width} is no multiple of {multiple}."
            )
        for name in ("rotary_base", "softcap", "attention_scale", "norm_epsilon"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise UserError(f"model.{name} is {value}; it must be positive and finite.")
        for name in ("init_std", "embedding_std", "head_std", "mlp_init", "sinks"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise UserError(f"model.{name} is {value}; it must not be negative, and finite.")
        for name in ("residual_init", "x0_init"):
            if not all(map(math.isfinite, getattr(self, name))):
                raise UserError(f"model.{name} is {getattr(self, name)}; it must be two numbers.")
        if not self.windows or set(self.windows) - set("LS"):
            raise UserError(f"model.windows is {self.windows!r}; it is a pattern of L and S, such as SSSL.")
        if "S" in self.windows and self.short_window is None:
            raise UserError(
                f"model.windows is {self.windows!r}, but model.short_window is not given. Give it a number."
            )
        for name, other, wanted, served in NEEDS:
            if getattr(self, name) != _DEFAULTS[name] and not served(self):
                raise UserError(
                    f"model.{name} is {getattr(self, name)!r}, which needs model.{other} to be {wanted}; it is "
                    f"{getattr(self, other)!r}. Change one of the two."
                )
        if self.layers == "scan" and not self.layers_alike:
            raise UserError(
                "model.layers=scan needs layers that are alike; windows that differ, unet, value_residual and "
                "value_embeddings make them differ. Use --model.layers=auto."
            )

    @property
    def head_width(self) -> int:
        """K."""
        return self.width // self.num_heads

    @property
    def key_heads(self) -> int:
        """J: heads of keys and values."""
        return self.kv_heads or self.num_heads

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

    @property
    def layers_alike(self) -> bool:
        """Whether one compiled block can serve all layers."""
        same_windows = len({self.window(layer) for layer in range(self.num_layers)}) == 1
        return same_windows and self.unet == "none" and not self.value_residual and not self.value_embeddings

    @property
    def rotation_base(self) -> float:
        return 10_000.0 if self.rotary_base is None else self.rotary_base

    def window(self, layer: int) -> int | None:
        """How many tokens a layer sees, its own included; None: all."""
        window = self.long_window if self.windows[layer % len(self.windows)] == "L" else self.short_window
        return None if window is None or window >= self.context else window

    @property
    def value_tables(self) -> tuple[str, ...]:
        """The names of the tables of value embeddings."""
        return tuple(sorted({self._table_name(layer) for layer in range(self.num_layers)} - {"."}))

    def value_table(self, layer: int) -> int | None:
        """The number of the table that a layer reads; None: it reads none."""
        name = self._table_name(layer)
        return None if name == "." else self.value_tables.index(name)

    def _table_name(self, layer: int) -> str:
        pattern = self.value_embeddings or "."
        return pattern[layer % len(pattern)]

    def matrix_std(self, inputs: int) -> float:
        """Standard deviation of an initial matrix with this many inputs."""
        return self.init_std / math.sqrt(inputs) if self.init == "fan_in" else self.init_std

    def residual_std(self, inputs: int) -> float:
        """That of an initial projection into the residual stream."""
        return 0.0 if self.zero_init else self.matrix_std(inputs) / math.sqrt(2 * self.num_layers)

    @property
    def initial_embedding_std(self) -> float:
        default = self.init_std if self.init == "fixed" else 0.02
        return default if self.embedding_std is None else self.embedding_std

    @property
    def initial_head_std(self) -> float:
        default = 0.0 if self.zero_init else self.matrix_std(self.width)
        return default if self.head_std is None else self.head_std

    def flops_per_token(self, *, causal: bool) -> float:
        """FLOPs of one training token, forward and backward: 6 a matmul parameter, 12 N T D for attention.

        `causal=True` counts only the keys that each token sees, (T + 1) / 2 of T on average without a window; False
        is the convention of PaLM (appendix B) and nanoGPT. Recomputation is not counted.
        """
        attention_matrices = 2 * self.width**2 * (1 + self.key_heads / self.num_heads)
        block = attention_matrices + (3 if self.gated else 2) * self.width * self.hidden_width
        matmuls = self.num_layers * block + self.padded_vocab_size * self.width
        spans = [self._mean_span(layer) if causal else self.context for layer in range(self.num_layers)]
        return 6.0 * matmuls + 12 * self.width * sum(spans)

    def _mean_span(self, layer: int) -> float:
        """How many tokens a token sees on average: the first `window` see 1, 2, … of them, the others all."""
        window = self.window(layer) or self.context
        return window - window * (window - 1) / (2 * self.context)


NEEDS: tuple[tuple[str, str, str, Callable[[GPTConfig], Any]], ...] = (
    ("rotary_base", "positions", "rotary", lambda c: c.positions == "rotary"),
    ("rotary_dims", "positions", "rotary", lambda c: c.positions == "rotary"),
    ("long_window", "windows", "a pattern with an L", lambda c: "L" in c.windows),
    ("short_window", "windows", "a pattern with an S", lambda c: "S" in c.windows),
    ("unet", "num_layers", "at least 2", lambda c: c.num_layers > 1),
    ("residual_init", "x0_mix", "True", lambda c: c.x0_mix),
    ("x0_init", "x0_mix", "True", lambda c: c.x0_mix),
    ("value_residual", "num_layers", "at least 2", lambda c: c.num_layers > 1),
    (
        "value_residual",
        "value_embeddings",
        "a pattern with a dot for a later layer",
        lambda c: None in map(c.value_table, range(1, c.num_layers)),
    ),
    ("value_embeddings", "num_layers", "enough for a layer with a table", lambda c: c.value_tables),
    ("value_gate", "value_embeddings", "given", lambda c: c.value_embeddings),
    ("value_gate", "width", f"at least {GATE_CHANNELS}", lambda c: c.width >= GATE_CHANNELS),
    ("softcap_curve", "softcap", "given", lambda c: c.softcap is not None),
    ("head_std", "tied", "False", lambda c: not c.tied),
)
"""Fields that without another would change nothing, or could not be: (field, the other, what it has to be, whether it
is). A field at its default asks for nothing."""

_DEFAULTS = {field.name: field.default for field in fields(GPTConfig)}
