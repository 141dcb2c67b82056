"""GPT-2 and its training as Flax's and Optax's tutorials write them: NNX modules, `nnx.Optimizer`, `nnx.jit`.

It is a peer for benchmarks and shares nothing with `gptjax.model`.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gptjax.benchmark.peers.work import AdamWSettings, PeerModel, TrainingWork

NUM_BATCHES = 4
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": nnx.gelu,
    "gelu": lambda x: nnx.gelu(x, approximate=False),
    "relu": nnx.relu,
    "silu": nnx.silu,
}


class Block(nnx.Module):
    """Attention and an MLP, each behind a LayerNorm and beside a residual connection."""

    def __init__(self, config: PeerModel, rngs: nnx.Rngs) -> None:
        width, dtype = config.embed_dim, jnp.dtype(config.dtype)
        self.norm1 = nnx.LayerNorm(width, epsilon=config.norm_epsilon, use_bias=config.bias, dtype=dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=config.num_heads,
            in_features=width,
            dropout_rate=config.dropout,
            use_bias=config.bias,
            decode=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = nnx.LayerNorm(width, epsilon=config.norm_epsilon, use_bias=config.bias, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(width, config.mlp_dim, use_bias=config.bias, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(config.mlp_dim, width, use_bias=config.bias, dtype=dtype, rngs=rngs)
        self.dropout1 = nnx.Dropout(config.dropout, rngs=rngs)
        self.dropout2 = nnx.Dropout(config.dropout, rngs=rngs)
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.dropout1(self.attention(self.norm1(x), mask=mask))
        return x + self.dropout2(self.down(self.activation(self.up(self.norm2(x)))))


class GPT2(nnx.Module):
    """Token ids (B, T) → float32 logits (B, T, V)."""

    def __init__(self, config: PeerModel, rngs: nnx.Rngs) -> None:
        width, vocab, dtype = config.embed_dim, config.vocab_size, jnp.dtype(config.dtype)
        self.tokens = nnx.Embed(vocab, width, dtype=dtype, rngs=rngs)
        self.positions = nnx.Embed(config.context_length, width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.norm = nnx.LayerNorm(width, epsilon=config.norm_epsilon, use_bias=config.bias, dtype=dtype, rngs=rngs)
        self.head = None if config.tie_embeddings else nnx.Linear(width, vocab, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        mask = nnx.make_causal_mask(tokens)
        x = self.dropout(self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))[None])
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        logits = self.tokens.attend(x) if self.head is None else self.head(x)
        return logits.astype(jnp.float32)


def make_optimizer(settings: AdamWSettings, *, grad_accum: int) -> optax.GradientTransformation:
    """Clipping and AdamW. Matrices decay, vectors do not."""
    decays = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)
    adamw = optax.adamw(
        settings.learning_rate, settings.beta1, settings.beta2, weight_decay=settings.weight_decay, mask=decays
    )
    clip = optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)
    chain = optax.chain(clip, adamw)
    return chain if grad_accum == 1 else optax.MultiSteps(chain, grad_accum).gradient_transformation()


@nnx.jit
def train_step(model: GPT2, optimizer: nnx.Optimizer, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """One micro-batch (B, T). Returns the mean loss in nats."""

    def compute_loss(model: GPT2) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(inputs), targets).mean()

    loss, gradients = nnx.value_and_grad(compute_loss)(model)
    optimizer.update(model, gradients)
    return loss


class FlaxTraining:
    """The training loop as a contestant."""

    name = "flax"

    def __init__(self, work: TrainingWork) -> None:
        self.rows, self.tokens = work.sequences, work.tokens
        self.model = GPT2(work.model, nnx.Rngs(work.seed))
        self.model.train()
        optimizer = make_optimizer(work.optimizer, grad_accum=work.grad_accum)
        self.optimizer = nnx.Optimizer(self.model, optimizer, wrt=nnx.Param)
        shape = (NUM_BATCHES, work.grad_accum, work.rows, work.model.context_length + 1)
        tokens = jax.random.randint(jax.random.key(work.seed), shape, 0, work.model.vocab_size)
        self.batches = [[(rows[:, :-1], rows[:, 1:]) for rows in batch] for batch in tokens]

    def run(self, count: int) -> float:
        """Run steps and wait for them. Returns seconds. Float32 products have float32 precision."""
        began_at, loss = time.perf_counter(), jnp.float32(0)
        with jax.default_matmul_precision("highest"):
            for index in range(count):
                for inputs, targets in self.batches[index % NUM_BATCHES]:
                    loss = train_step(self.model, self.optimizer, inputs, targets)
        jax.block_until_ready(loss)
        jax.block_until_ready(nnx.state(self.model))
        return time.perf_counter() - began_at

    def close(self) -> None:
        """Free the memory of the devices."""
        del self.model, self.optimizer, self.batches
