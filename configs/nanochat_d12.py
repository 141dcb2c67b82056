"""nanochat's pretraining by one number, the depth: width, heads, tokens, batch and learning rates follow from it.

    python -m data_pipelines.train_tokenizer --source=fineweb_edu_10b --vocab-size=32768 --pattern=gpt4 \\
        --output=data/fineweb_edu
    python -m data_pipelines.prepare --source=fineweb_edu_10b --tokenizer=data/fineweb_edu/tokenizer.json \\
        --output=data/fineweb_edu
    bash launch/gpu_node.sh --config=configs/nanochat_d12.py                    # 8 A100 or H100

Another depth is a file of two lines: `from configs.nanochat_d12 import nanochat` and `config = nanochat(20)`.

Data      any text in 32,768 tokens of its own; sequences begin with a document and are packed by best fit with cropping
Model     depth 12: 12 layers × 768, 6 heads of 128, context 2,048, windows SSSL, gated value embeddings in every other
          layer, 286 M parameters, of which 110 M multiply
Optimizer 2,520 steps of 524,288 tokens; NorMuon by Polar Express with cautious decay, Adam for all other groups
Published nanochat's README: about 5 minutes on 8 H100 for d12, its scale for trying things; no loss. Missing here: its
          smear gate, mid-layer subtraction and the norm after row normalization. Gates start at zero and have Adam's
          rate; weights are drawn from normal distributions, there from uniform ones of the same spread; NorMuon
          normalizes outputs, as in its paper. Validation is on 10.5 M tokens in concatenated sequences, there on 41.9 M
          in packed ones. Packing chooses each document among 65,536, there among 1,000, and it reports that 35 % of the
          tokens are cropped. Its tokenizer splits digits in twos (gpt4's pattern in threes) and is trained on 2 B
          characters, at most 10,000 of a document
"""

import math
import string

from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.model.config import GPTConfig, InitConfig
from gptjax.optim import Cosine, Muon, NamedGroup, ParamGroup, WarmupStableDecay

VOCAB_SIZE, CONTEXT_LENGTH, TOKENS_PER_WEIGHT = 32_768, 2048, 12
REFERENCE_BATCH = 2**19
"""Tokens per step at depth 12, for which the learning rates were tuned."""


def choose_embed_dim(depth: int) -> int:
    """64 for each layer, rounded up to heads of 128."""
    return math.ceil(64 * depth / 128) * 128


def count_training_tokens(depth: int) -> int:
    """TOKENS_PER_WEIGHT for each weight of the blocks' matrices and of the head."""
    embed_dim = choose_embed_dim(depth)
    return TOKENS_PER_WEIGHT * (12 * depth * embed_dim**2 + VOCAB_SIZE * embed_dim)


def nanochat(depth: int) -> TrainConfig:
    """The config of a depth from 2 to 52, by nanochat's rules of August 2026."""
    if not 2 <= depth <= len(string.ascii_letters):
        raise UserError(f"nanochat({depth}): the depth must be from 2 to {len(string.ascii_letters)}.")
    tokens = count_training_tokens(depth)
    growth = tokens / count_training_tokens(12)
    batch_tokens = 2 ** round(math.log2(REFERENCE_BATCH * growth**0.383))
    lr_factor = math.sqrt(batch_tokens / REFERENCE_BATCH)
    width_factor = math.sqrt(768 / choose_embed_dim(depth))
    return TrainConfig(
        name=f"nanochat_d{depth}",
        steps=tokens // batch_tokens,
        batch_size=batch_tokens // CONTEXT_LENGTH,
        model=make_model(depth),
        data=TokenShards(path="data/fineweb_edu", packing="bos_best_fit"),
        optimizer=make_optimizer(lr_factor, wide_lr_factor=lr_factor * width_factor, growth=growth),
        checkpoint=CheckpointConfig(every=500),
        evaluators=(ValidationLoss(every=250, tokens=10_485_760, batch_size=32), Samples(every=500)),
    )


def make_model(depth: int) -> GPTConfig:
    # Every other layer has its own table of value embeddings, the last layer among them.
    tables = [string.ascii_letters[layer] if (depth - layer) % 2 else "." for layer in range(depth)]
    return GPTConfig(
        num_layers=depth,
        embed_dim=choose_embed_dim(depth),
        num_heads=choose_embed_dim(depth) // 128,
        context_length=CONTEXT_LENGTH,
        vocab_size=VOCAB_SIZE,
        bias=False,
        tie_embeddings=False,
        activation="relu2",
        positions="rotary",
        rotary_base=100_000.0,
        norm="rms",
        norm_scale=False,
        qk_norm=True,
        embedding_norm=True,
        attention_scale=1.2**2 / math.sqrt(128),
        window_pattern="".join("SSSL"[layer % 4] for layer in range(depth - 1)) + "L",
        short_window=512,
        x0_mix=True,
        value_embeddings="".join(tables),
        value_gate=True,
        logit_softcap=15.0,
        init=InitConfig(
            scheme="fan_in",
            std=1.0,
            embedding_std=0.8,
            head_std=0.001,
            mlp_scale=0.4,
            zero_projections=True,
            residual_mix=(1.15, 1.05),
            x0_mix=(0.20, 0.05),
        ),
    )


def make_optimizer(lr_factor: float, *, wide_lr_factor: float, growth: float) -> Muon:
    """`lr_factor` is for the batch, `wide_lr_factor` for the width, too. `growth` is that of the tokens."""
    return Muon(
        learning_rate=0.02 * lr_factor,
        momentum=0.97,
        momentum_min=0.85,
        momentum_schedule=WarmupStableDecay(
            warmup_steps=400, decay_fraction=0.65, min_ratio=(0.90 - 0.85) / (0.97 - 0.85)
        ),
        ns_coefficients="polar_express",
        row_normalize=True,
        normuon_beta2=0.9,
        weight_decay=0.28 * lr_factor / growth,
        weight_decay_schedule=Cosine(min_ratio=0.0),
        cautious_decay=True,
        adam_learning_rate=0.02 * lr_factor,
        embedding=ParamGroup(0.3 * wide_lr_factor, beta1=0.8, beta2=0.995, weight_decay=0.001),
        value_embedding=ParamGroup(0.15 * wide_lr_factor, beta1=0.8, beta2=0.995, weight_decay=0.01),
        head=ParamGroup(0.008 * wide_lr_factor, beta1=0.8, beta2=0.96, weight_decay=0.01),
        named_groups=(
            NamedGroup("residual_mix", ParamGroup(0.005 * lr_factor, beta1=0.8, beta2=0.95, weight_decay=0.05)),
            NamedGroup("x0_mix", ParamGroup(0.5 * lr_factor, beta1=0.96, beta2=0.95)),
        ),
        schedule=WarmupStableDecay(warmup_steps=40, decay_fraction=0.65, min_ratio=0.05),
    )


config = nanochat(12)
