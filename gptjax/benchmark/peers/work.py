"""What a peer is asked to do, as plain data that another process can read. No JAX and no torch is imported here."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PeerModel:
    """A GPT-2. It has learned positions and LayerNorm."""

    num_layers: int
    embed_dim: int
    num_heads: int
    context_length: int
    vocab_size: int
    """As ours is stored: padded."""
    mlp_dim: int
    activation: Literal["gelu_tanh", "gelu", "relu", "silu"]
    bias: bool
    dropout: float
    tie_embeddings: bool
    norm_epsilon: float
    dtype: Literal["bfloat16", "float32"]
    """Type of products; weights are float32 in training."""


@dataclass(frozen=True)
class AdamWSettings:
    """AdamW at a constant learning rate. A schedule takes no time."""

    learning_rate: float
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float | None


@dataclass(frozen=True)
class TrainingWork:
    """Training steps on random tokens."""

    model: PeerModel
    optimizer: AdamWSettings
    rows: int
    """Sequences of a micro-batch."""
    grad_accum: int
    seed: int = 0

    @property
    def sequences(self) -> int:
        """Sequences of a step."""
        return self.rows * self.grad_accum

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.sequences * self.model.context_length


@dataclass(frozen=True)
class DecodingWork:
    """Greedy continuations of random prompts, with a cache."""

    model: PeerModel
    rows: int
    prompt_tokens: int
    new_tokens: int
    seed: int = 0

    @property
    def sequences(self) -> int:
        """Texts at a time."""
        return self.rows

    @property
    def tokens(self) -> int:
        """New tokens of all texts."""
        return self.rows * self.new_tokens


@dataclass(frozen=True)
class TorchPeer:
    """A peer in torch."""

    library: Literal["transformers", "nanogpt"]
    compiled: bool
    """With torch.compile."""
    directory: str | None = None
    """nanoGPT: the directory that holds model.py."""

    @property
    def name(self) -> str:
        return f"{'nanoGPT' if self.library == 'nanogpt' else self.library}, {'compile' if self.compiled else 'eager'}"


Work = TrainingWork | DecodingWork
