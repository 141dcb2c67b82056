"""nanochat's pretraining by one number, the depth: width, heads, tokens, batch and learning rates follow from it.

    python -m data_pipelines.train_tokenizer --source=fineweb_edu_10b --vocab-size=32768 --pattern=gpt4 \\
        --output=data/fineweb_edu
    python -m data_pipelines.prepare --source=fineweb_edu_10b --tokenizer=data/fineweb_edu/tokenizer.json \\
        --output=data/fineweb_edu
    bash launch/gpu_node.sh --config=configs/nanochat_d12.py

Another depth is a file of two lines: `from configs.nanochat_d12 import nanochat` and `config = nanochat(20)`.

Data      any text in 32,768 tokens of our own; rows begin with a document and are filled by best fit, the last cropped
Model     depth 12: 12 layers × 768, 6 heads of 128, context 2,048, windows SSSL, gated value embeddings in every other
          layer, 286 M parameters, of which 110 M multiply
Optimizer 2,520 steps of 524,288 tokens; NorMuon by Polar Express with cautious decay, Adam for each other group
Hardware  8 A100 or H100
Published nanochat's README: about 5 minutes on 8 H100 for d12, its scale for trying things; no loss. Not here: its
          smear gate, mid-layer subtraction and the norm after row equilibration. Gates start at zero and have Adam's
          rate, weights are drawn from normal distributions where it has uniform ones of the same spread, NorMuon
          evens outputs, as its paper does, and 10.5 M tokens are judged, in concatenated rows, not 41.9 M in rows like
          those of training. It chooses each document of a row among 1,000, we among 65,536; it counts about 35 % of the
          tokens as cropped off. Its tokenizer takes digits in twos, from 2 B characters and at most 10,000 of a
          document; gpt4's pattern takes them in threes
Measured  not yet by us
"""

import math
import string

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.model.config import GPTConfig, InitConfig
from gptjax.optim.optimizers import Muon, NamedGroup, ParamGroup
from gptjax.optim.schedules import Cosine, WarmupStableDecay
from gptjax.training.checkpoint import CheckpointConfig
from gptjax.training.evaluators import Samples, ValidationLoss

VOCABULARY, CONTEXT, TOKENS_PER_WEIGHT = 32_768, 2048, 12
REFERENCE_BATCH = 2**19
"""Tokens a step at depth 12, for which the learning rates were tuned."""


def width_of(depth: int) -> int:
    """64 for each layer, in heads of 128."""
    return math.ceil(64 * depth / 128) * 128


def budget(depth: int) -> int:
    """Training tokens: so many for each weight of the blocks' matrices and of the head."""
    width = width_of(depth)
    return TOKENS_PER_WEIGHT * (12 * depth * width**2 + VOCABULARY * width)


def nanochat(depth: int) -> TrainConfig:
    """The run of a depth from 2 to 52, by nanochat's rules of August 2026."""
    if not 2 <= depth <= len(string.ascii_letters):
        raise UserError(f"nanochat({depth}): wanted a depth from 2 to {len(string.ascii_letters)}.")
    width, tokens, growth = width_of(depth), budget(depth), budget(depth) / budget(12)
    batch = 2 ** round(math.log2(REFERENCE_BATCH * growth**0.383))
    rate = math.sqrt(batch / REFERENCE_BATCH)
    wide = rate * math.sqrt(768 / width)
    # Every other layer has a table of its own, the last among them.
    tables = [string.ascii_letters[layer] if (depth - layer) % 2 else "." for layer in range(depth)]
    windows = ["SSSL"[layer % 4] for layer in range(depth - 1)]
    return TrainConfig(
        name=f"nanochat_d{depth}",
        steps=tokens // batch,
        batch_size=batch // CONTEXT,
        model=GPTConfig(
            num_layers=depth,
            embed_dim=width,
            num_heads=width // 128,
            context_length=CONTEXT,
            vocab_size=VOCABULARY,
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
            window_pattern="".join([*windows, "L"]),
            short_window=512,
            x0_mix=True,
            value_embeddings="".join(tables),
            value_gate=True,
            logit_softcap=15.0,
            init=InitConfig(
                residual_mix=(1.15, 1.05),
                x0_mix=(0.20, 0.05),
                scheme="fan_in",
                std=1.0,
                embedding_std=0.8,
                head_std=0.001,
                mlp_scale=0.4,
                zero_projections=True,
            ),
        ),
        data=TokenShards(path="data/fineweb_edu", packing="bos_best_fit"),
        optimizer=Muon(
            learning_rate=0.02 * rate,
            momentum=0.97,
            momentum_min=0.85,
            momentum_schedule=WarmupStableDecay(
                warmup_steps=400, decay_fraction=0.65, min_ratio=(0.90 - 0.85) / (0.97 - 0.85)
            ),
            ns_coefficients="polar_express",
            row_normalize=True,
            normuon_beta2=0.9,
            weight_decay=0.28 * rate / growth,
            weight_decay_schedule=Cosine(min_ratio=0.0),
            cautious_decay=True,
            adam_learning_rate=0.02 * rate,
            embedding=ParamGroup(0.3 * wide, beta1=0.8, beta2=0.995, weight_decay=0.001),
            value_embedding=ParamGroup(0.15 * wide, beta1=0.8, beta2=0.995, weight_decay=0.01),
            head=ParamGroup(0.008 * wide, beta1=0.8, beta2=0.96, weight_decay=0.01),
            named_groups=(
                NamedGroup("residual_mix", ParamGroup(0.005 * rate, beta1=0.8, beta2=0.95, weight_decay=0.05)),
                NamedGroup("x0_mix", ParamGroup(0.5 * rate, beta1=0.96, beta2=0.95)),
            ),
            schedule=WarmupStableDecay(warmup_steps=40, decay_fraction=0.65, min_ratio=0.05),
        ),
        checkpoint=CheckpointConfig(every=500),
        evaluators=(ValidationLoss(every=250, tokens=10_485_760, batch_size=32), Samples(every=500)),
    )


config = nanochat(12)
