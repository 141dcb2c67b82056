"""U-Net skips and twice the learning rate: the speedrun of November 2024, 3.28 on FineWeb with 1.57 B tokens.

    python -m data_pipelines.fetch fineweb_10b --output=data/fineweb_10b
    bash launch/gpu_node.sh --config=configs/speedrun_unet.py                   # 8 A100 or H100
    python -m gptjax.train --config=configs/speedrun_unet.py --grad-accum=8    # one GPU

Data      as speedrun_162m, sequences of 1,024
Model     12 layers × 768, 6 heads of 128: the blocks of speedrun_162m with learned U-Net skips, normalized embeddings
          that are mixed into every block, and the first layer's values mixed into all
Optimizer 3,000 steps of 524,288 tokens; Muon at 0.04 with momentum 0.85 → 0.95, Adam for all other parameter groups;
          linear to zero over the last 900 steps
Published modded-nanogpt, record 11: 3.2753, 145 ms a step on 8 H100, 7.2 minutes. It mixes values by λ and 1 - λ, here
          the two numbers are learned apart; its softmax is over 50,304 tokens, here over 50,257. Momentum here is
          optax's, an average without bias from the first step on, so the first ten updates differ
"""

from dataclasses import replace

from configs.speedrun_162m import config as blocks
from configs.speedrun_track3 import config as base
from gptjax.optim import Constant, Muon, ParamGroup, WarmupStableDecay

config = replace(
    base,
    name="speedrun_unet",
    steps=3000,
    model=replace(
        blocks.model,
        num_heads=6,
        context_length=1024,
        vocab_size=50257,
        embedding_norm=True,
        unet_skips="learned",
        x0_mix=True,
        value_residual=True,
        init=base.model.init,
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
