"""U-Net skips and twice the learning rate: the speedrun of November 2024, 3.28 on FineWeb with 1.57 B tokens.

    python -m data_pipelines.fetch fineweb_10b --output=data/fineweb_10b
    bash launch/gpu_node.sh --config=configs/speedrun_unet.py
    python -m gptjax.train --config=configs/speedrun_unet.py --grad_accum=8    # one GPU

Data      FineWeb in GPT-2 tokens, concatenated rows of 1,024; the first 10,485,760 validation tokens are judged
Model     12 layers × 768, 6 heads of 128: rotary positions, QK-norm, RMSNorm without gain, squared ReLU, learned U-Net
          skips, the embeddings mixed into every block, the first layer's values mixed into all, logits capped at 30
Optimizer 3,000 steps of 524,288 tokens; Muon at 0.04 with momentum 0.85 → 0.95, Adam for each other group; the last 900
          steps fall to zero
Hardware  8 A100 or H100
Published modded-nanogpt, record 11: 3.2753, 145 ms a step on 8 H100, 7.2 minutes. It mixes values by λ and 1 - λ,
          here the two numbers are learned apart, and the softmax is over 50,257 tokens instead of 50,304. Muon's
          momentum is optax's here, an average without bias from the first step on: its first ten updates differ
Measured  not yet by us
"""

from dataclasses import replace

from configs.speedrun_track3 import config as base
from gptjax.model.config import GPTConfig, InitConfig
from gptjax.optim.optimizers import Muon, ParamGroup
from gptjax.optim.schedules import Constant, WarmupStableDecay

config = replace(
    base,
    name="speedrun_unet",
    steps=3000,
    model=GPTConfig(
        num_layers=12,
        embed_dim=768,
        num_heads=6,
        context_length=1024,
        vocab_size=50257,
        bias=False,
        tie_embeddings=False,
        activation="relu2",
        positions="rotary",
        norm="rms",
        norm_scale=False,
        qk_norm=True,
        embedding_norm=True,
        unet_skips="learned",
        x0_mix=True,
        value_residual=True,
        logit_softcap=30.0,
        init=InitConfig(scheme="fan_in", std=base.model.init.std, embedding_std=1.0, zero_projections=True),
    ),
    optimizer=Muon(
        learning_rate=0.04,
        momentum_schedule=Constant(warmup_steps=500),
        embedding=ParamGroup(0.6),
        head=ParamGroup(0.008),
        vector=ParamGroup(0.04),
        schedule=WarmupStableDecay(decay_fraction=0.3),
    ),
)
