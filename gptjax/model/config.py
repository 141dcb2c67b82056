"""The architecture of a GPT and how it computes, as one value. The defaults are GPT-2 124M.

Each field is one idea and combines with all others. Combinations that cannot work are refused on construction.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Annotated, Any, Literal

import tyro

from gptjax.core.errors import UserError
from gptjax.model.layers import ACTIVATIONS
from gptjax.model.positions import POSITIONS, PositionScheme
from gptjax.model.requirements import OTHER_NAMES, REQUIREMENTS
from gptjax.sharding.devices import DType

VOCABULARY_MULTIPLE = 128
"""The stored vocabulary is a multiple of this: GPT-2's 50,257 rows multiply far slower than 50,304."""

AttentionImpl = Literal["auto", "cudnn", "splash", "xla"]


def _choices(names: Iterable[str]) -> Any:
    """How `--help` shows the names that a field accepts."""
    return tyro.conf.arg(metavar="{" + ",".join(names) + "}")


@dataclass(frozen=True)
class InitConfig:
    """Initial weights."""

    scheme: Literal["fixed", "fan_in"] = "fixed"
    """`fixed` draws matrices with `std`; `fan_in` divides `std` by the square root of a matrix's inputs."""
    std: float = 0.02
    """Standard deviation of initial weights. Residual projections use this divided by √(2 · num_layers)."""
    zero_projections: bool = False
    """Start projections into the residual stream, and an untied head, at zero."""
    embedding_std: float | None = None
    """Standard deviation of the token and position tables. None: 0.02 or, if `fixed`, `std`."""
    head_std: float | None = None
    """Standard deviation of an untied head. None: same as other matrices, or zero if `zero_projections`."""
    mlp_scale: float = 1.0
    """Factor on the initial weights that lead into the MLP."""
    residual_mix: tuple[float, float] = (1.0, 1.0)
    """α of `x0_mix` at the first and the last layer; linear in between."""
    x0_mix: tuple[float, float] = (0.0, 0.0)
    """β of `x0_mix` at the first and the last layer; linear in between."""

    def __post_init__(self) -> None:
        for name in ("std", "embedding_std", "head_std", "mlp_scale"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise UserError(f"model.init.{name} is {value}; it must not be negative, and finite.")
        for name in ("residual_mix", "x0_mix"):
            if not all(map(math.isfinite, getattr(self, name))):
                raise UserError(f"model.init.{name} is {getattr(self, name)}; it must be two finite numbers.")


@dataclass(frozen=True)
class ComputeConfig:
    """How a model computes. Nothing here changes its weights."""

    dtype: DType | Literal["auto"] = "bfloat16"
    """Type of products' operands and, except on CPUs, of activations; all else is float32. `auto`: bfloat16 where the
    device multiplies it fast, else float16, else float32. float16 is for GPUs before Ampere. A run keeps its type."""
    head_dtype: DType | None = None
    """Type of the head's operands in the loss. None: `dtype`. bfloat16 is faster on CPUs with units for it."""
    attention_impl: AttentionImpl = "auto"
    """Attention kernel: `cudnn` (NVIDIA), `splash` (TPU) or `xla`. `auto` takes the fastest that can run and tells."""
    query_block: int | None = None
    """Queries that the `xla` kernel computes at a time in longer rows. None: 512; on
    CPUs 64 in rows of up to 512 tokens, else 128, and 256 where no gradient is taken."""
    remat: Literal["none", "light", "full"] = "light"
    """Recomputation in the backward pass: nothing, norms and activations (0.1 % more FLOPs, a quarter of the memory),
    or whole blocks (about 18 % more FLOPs)."""
    scan_layers: Literal["auto", "on", "off"] = "auto"
    """Compile one block and scan it over the layers, or unroll all layers (longer to compile, sometimes faster). `auto`
    scans if all layers are alike, which `on` needs."""
    deterministic: bool = False
    """On GPUs, compute training steps whose bits are the same each time; they are slower. Elsewhere nothing is set."""

    def __post_init__(self) -> None:
        if self.query_block is not None and self.query_block < 1:
            raise UserError(f"model.compute.query_block is {self.query_block}; it must be at least 1.")


MAX_LAYERS = 10_000
"""Far more layers than any model has."""


@dataclass(frozen=True)
class GPTConfig:
    """Architecture of a GPT and how it computes; the defaults are GPT-2 124M."""

    num_layers: int = 12
    """N: blocks, each of attention and an MLP."""
    embed_dim: int = 768
    """D, the embedding dimension: channels of the residual stream."""
    num_heads: int = 12
    """H: heads of attention; each has embed_dim / num_heads channels."""
    context_length: int = 1024
    """T: the longest training text, in tokens."""
    vocab_size: int | None = 50257
    """V before padding; None takes the tokenizer's."""
    mlp_dim: int | None = None
    """F; None means 4 · embed_dim."""
    bias: bool = True
    """Biases in LayerNorms and projections (GPT-2 has them; nanoGPT's own recipe has none)."""
    tie_embeddings: bool = True
    """Use the token embedding, transposed, as the output head."""
    activation: Annotated[str, _choices(ACTIVATIONS)] = "gelu_tanh"
    """Activation of the MLP, a name in `gptjax.model.layers.ACTIVATIONS`."""
    norm_epsilon: float = 1e-5
    """Added to the variance (LayerNorm) or the mean square (RMSNorm) under the root."""
    dropout: float = 0.0
    """Share dropped of embeddings, attention probabilities and both branches' outputs, in training only."""

    # What later models changed: positions and norms.
    positions: Annotated[str, _choices(POSITIONS)] = "learned"
    """Positional scheme, a name in `gptjax.model.positions.POSITIONS`: `learned` adds a table of embeddings, `rotary`
    rotates queries and keys (RoPE)."""
    rotary_base: float | None = None
    """RoPE: the slowest pair turns by about 1 / base a position. None: 10000, or the base of the weights that a run
    starts from."""
    rotary_fraction: float = 1.0
    """RoPE: share of a head's channel pairs that turns, the fastest ones. Below 1 the slowest of them turns by exactly
    1 / base a position."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm, or RMSNorm, which neither centres nor has a bias."""
    norm_scale: bool = True
    """Learned gain in norms. Without it LayerNorm has no bias either."""
    qk_norm: bool = False
    """RMSNorm over each head of the queries and keys."""
    qk_norm_scale: bool = False
    """Learned gain in `qk_norm`, one for all heads of a layer (Qwen3)."""
    embedding_norm: bool = False
    """RMSNorm without gain over the embeddings, before the first block."""

    # Attention.
    num_kv_heads: int | None = None
    """Heads of keys and values, each for num_heads / num_kv_heads queries (grouped-query attention); None: all."""
    attention_scale: float | None = None
    """Factor on q kᵀ; None: 1 / √K."""
    window_pattern: str = "L"
    """Attention window of each layer, a pattern repeated over the layers: L `long_window`, S `short_window`."""
    long_window: int | None = None
    """Tokens that layers marked L see, the query's own included; None: all."""
    short_window: int | None = None
    """Tokens that layers marked S see, the query's own included."""
    num_sinks: int = 0
    """Learned keys and values of each layer and head that every token sees besides the text (attention sinks)."""
    intra_document_mask: bool = False
    """A token sees only its own document. The loader then gives the documents of each row."""

    # The MLP, and connections around the blocks.
    gated_mlp: bool = False
    """Multiply the activation with a second projection: with `silu` this is SwiGLU."""
    unet_skips: Literal["none", "plain", "learned", "inputs"] = "none"
    """Skips from the first half of the layers to the second, the last first: outputs of layers as they are, outputs
    times a learned weight, or inputs as they are."""
    x0_mix: bool = False
    """Each block reads α x + β x0, with learned numbers α and β and the embeddings x0."""
    value_residual: bool = False
    """Every later layer mixes its values with the first layer's, by two learned numbers."""
    value_embeddings: str = ""
    """Layers that mix an embedding of the token into their values, as a pattern repeated over the layers. `.` is none,
    any other character names a table: `012......012`. Empty: no layer."""
    value_gate: bool = False
    """Add value embeddings times a gate 3 σ(W x), one for each head, instead of mixing them by learned numbers."""

    # The head.
    head_bias: bool = False
    """A bias in the head, a learned number for each token."""
    logit_softcap: float | None = None
    """Squeeze logits into (-softcap, softcap); None leaves them."""
    logit_softcap_curve: Literal["tanh", "sqrt"] = "tanh"
    """Curve of the softcap c: c tanh(z / c), or z / √(1 + (z / c)²)."""

    init: InitConfig = InitConfig()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        registries = (("activation", "ACTIVATIONS", ACTIVATIONS), ("positions", "POSITIONS", POSITIONS))
        for name, registry, known in registries:
            if (value := getattr(self, name)) not in known:
                names = ", ".join(known) + OTHER_NAMES.get(value, "")
                raise UserError(
                    f"model.{name} is {value!r}; it must be one of {names}, or a name that your own file gives: "
                    f"{registry}[{str(getattr(value, '__name__', value))!r}] = … in the config file, "
                    "and --import=FILE.py for commands that read the run."
                )
        self._check_numbers()
        self._check_windows()
        _ = self.position_scheme  # checks its own fields
        for name, other, wanted, is_met in REQUIREMENTS:
            if (value := attrgetter(name)(self)) != attrgetter(name)(GPTConfig) and not is_met(self):
                raise UserError(
                    f"model.{name} is {value!r}, which needs model.{other} to be {wanted}; it is "
                    f"{getattr(self, other)!r}. Change one of the two."
                )
        if self.compute.scan_layers == "on" and not self.layers_are_identical:
            raise UserError(
                "model.compute.scan_layers=on needs layers that are alike; windows that differ, unet_skips, "
                "value_residual and value_embeddings make them differ. Use --model.compute.scan-layers=auto."
            )

    def _check_numbers(self) -> None:
        counts = ("num_layers", "embed_dim", "num_heads", "context_length", "vocab_size", "mlp_dim")
        for name in (*counts, "num_kv_heads", "long_window", "short_window"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"model.{name} is {value}; it must be at least 1.")
        if self.num_layers > MAX_LAYERS:  # or listing them for a check would not end
            raise UserError(f"model.num_layers is {self.num_layers}; at most {MAX_LAYERS:,} can be.")
        for name in ("rotary_base", "logit_softcap", "attention_scale", "norm_epsilon"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise UserError(f"model.{name} is {value}; it must be positive and finite.")
        if self.norm_epsilon > 1:  # it would outweigh what is normalized
            raise UserError(f"model.norm_epsilon is {self.norm_epsilon}; it must be at most 1, such as 1e-5.")
        if self.num_sinks < 0:
            raise UserError(f"model.num_sinks is {self.num_sinks}; it must not be negative.")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout is {self.dropout}; it must be in [0, 1).")
        if self.embed_dim % self.num_heads:
            raise UserError(
                f"model.embed_dim {self.embed_dim} does not split over model.num_heads {self.num_heads}. "
                f"Use a multiple of {self.num_heads}."
            )
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"model.num_heads {self.num_heads} is no multiple of model.num_kv_heads {self.num_kv_heads}."
            )

    def _check_windows(self) -> None:
        if not self.window_pattern or set(self.window_pattern) - set("LS"):
            raise UserError(
                f"model.window_pattern is {self.window_pattern!r}; it must be a pattern of L and S, such as SSSL."
            )
        if "S" in self.window_pattern and self.short_window is None:
            raise UserError(
                f"model.window_pattern is {self.window_pattern!r}, but model.short_window is not given. Give a number."
            )

    @property
    def head_dim(self) -> int:
        """K."""
        return self.embed_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """J: heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def hidden_dim(self) -> int:
        """F."""
        return self.mlp_dim or 4 * self.embed_dim

    @property
    def resolved_vocab_size(self) -> int:
        """V before padding, once it is known."""
        if self.vocab_size is None:
            raise UserError(
                "model.vocab_size is not known, for there is no tokenizer. python -m data_pipelines.index_shards puts "
                "one beside shards of others; or give --model.vocab-size."
            )
        return self.vocab_size

    @property
    def padded_vocab_size(self) -> int:
        """V as it is stored. The columns beyond the vocabulary never take part in a softmax."""
        return -(-self.resolved_vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def resolved_attention_scale(self) -> float:
        """The factor on q kᵀ."""
        return 1.0 / math.sqrt(self.head_dim) if self.attention_scale is None else self.attention_scale

    @property
    def position_scheme(self) -> PositionScheme:
        """The positional scheme, made from the fields of its own names."""
        scheme = POSITIONS[self.positions]
        return scheme(**{field.name: getattr(self, field.name) for field in fields(scheme)})

    @property
    def layers_are_identical(self) -> bool:
        """One compiled block can serve all layers."""
        same_windows = len({self.window(layer) for layer in range(self.num_layers)}) == 1
        return same_windows and self.unet_skips == "none" and not self.value_residual and not self.value_embeddings

    @property
    def scans_layers(self) -> bool:
        """The layers are scanned, not unrolled."""
        return self.compute.scan_layers == "on" or (self.compute.scan_layers == "auto" and self.layers_are_identical)

    def window(self, layer: int) -> int | None:
        """Tokens that a layer sees, the query's own included; None: all."""
        window = self.long_window if self.window_pattern[layer % len(self.window_pattern)] == "L" else self.short_window
        return None if window is None or window >= self.context_length else window

    @property
    def value_table_names(self) -> tuple[str, ...]:
        """The names of the tables of value embeddings."""
        return tuple(sorted({self._table_name(layer) for layer in range(self.num_layers)} - {"."}))

    def value_table_index(self, layer: int) -> int | None:
        """The index of the table that a layer reads; None: it reads none."""
        name = self._table_name(layer)
        return None if name == "." else self.value_table_names.index(name)

    def _table_name(self, layer: int) -> str:
        pattern = self.value_embeddings or "."
        return pattern[layer % len(pattern)]

    def matrix_std(self, inputs: int) -> float:
        """Standard deviation of an initial matrix with this many inputs."""
        return self.init.std / math.sqrt(inputs) if self.init.scheme == "fan_in" else self.init.std

    def residual_std(self, inputs: int) -> float:
        """Standard deviation of an initial projection into the residual stream."""
        return 0.0 if self.init.zero_projections else self.matrix_std(inputs) / math.sqrt(2 * self.num_layers)

    @property
    def initial_embedding_std(self) -> float:
        default = self.init.std if self.init.scheme == "fixed" else 0.02
        return default if self.init.embedding_std is None else self.init.embedding_std

    @property
    def initial_head_std(self) -> float:
        default = 0.0 if self.init.zero_projections else self.matrix_std(self.embed_dim)
        return default if self.init.head_std is None else self.init.head_std

    def flops_per_token(self, *, causal: bool) -> float:
        """FLOPs of one training token, forward and backward: 6 a matmul parameter, 12 N T D for attention.

        `causal=True` counts only the keys that each token sees. False is the convention of PaLM (appendix B) and
        nanoGPT. Recomputation is not counted.
        """
        attention_matrices = 2 * self.embed_dim**2 * (1 + self.kv_heads / self.num_heads)
        block = attention_matrices + (3 if self.gated_mlp else 2) * self.embed_dim * self.hidden_dim
        matmuls = self.num_layers * block + self.padded_vocab_size * self.embed_dim
        return 6.0 * matmuls + 12 * self.embed_dim * sum(self.count_attended_tokens(causal=causal))

    def count_attended_tokens(self, *, causal: bool) -> list[float]:
        """Keys that a token is multiplied with in each layer: all T or, if `causal`, those that it sees on average."""
        length, layers = float(self.context_length), range(self.num_layers)
        windows = [float(self.window(layer) or length) if causal else length for layer in layers]
        # The first `window` tokens see 1, 2, … of them, the others all.
        return [window - causal * window * (window - 1) / (2 * length) for window in windows]
