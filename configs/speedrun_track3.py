"""The tuned Muon baseline of the speedruns' optimizer track: 3.28 on FineWeb with 1.7 B tokens.

    python -m data_pipelines.fetch fineweb_10b --output=data/fineweb_10b
    bash launch/gpu_node.sh --config=configs/speedrun_track3.py                 # 8 A100 or H100
    python -m gptjax.train --config=configs/speedrun_track3.py --grad-accum=8  # one GPU

Data      as speedrun_162m, sequences of 1,024
Model     12 layers × 768, 6 heads of 128, biases everywhere, RMSNorm with scale, rotary positions on half of each head,
          QK-norm, attention scale 0.12, squared ReLU, an untied head that starts at zero, logits capped at 15 by a
          square root, normalized embeddings (here without a scale)
Optimizer 3,250 steps of 524,288 tokens; Muon at 0.025 with 12 iterations of (2, -1.5, 0.5), Adam for all other
          parameter groups
Published modded-nanogpt, track 3: 3.2787, the mean of 10 runs, about 150 ms a step on 8 H100. Momentum here is optax's,
          an average without bias from the first step on, so the first ten updates differ
"""

import math
from dataclasses import replace

from configs.speedrun_162m import config as base
from gptjax.evaluators.validation import ValidationLoss
from gptjax.model.config import GPTConfig, InitConfig
from gptjax.optim import Muon, ParamGroup, WarmupStableDecay

config = replace(
    base,
    name="speedrun_track3",
    steps=3250,
    batch_size=512,
    grad_accum=1,
    model=GPTConfig(
        num_layers=12,
        embed_dim=768,
        num_heads=6,
        context_length=1024,
        vocab_size=50304,
        tie_embeddings=False,
        activation="relu2",
        positions="rotary",
        rotary_fraction=0.5,
        rotary_base=1024.0,
        norm="rms",
        embedding_norm=True,
        qk_norm=True,
        attention_scale=0.12,
        head_bias=True,
        logit_softcap=15.0,
        logit_softcap_curve="sqrt",
        init=InitConfig(scheme="fan_in", std=math.sqrt(0.33), embedding_std=1.0, zero_projections=True),
    ),
    optimizer=Muon(
        learning_rate=0.025,
        weight_decay=0.05,
        ns_steps=12,
        ns_coefficients=(2.0, -1.5, 0.5),
        beta1=0.8,
        beta2=0.95,
        embedding=ParamGroup(0.7, weight_decay=0.001),
        head=ParamGroup(0.004, weight_decay=0.001),
        vector=ParamGroup(0.015, weight_decay=0.001),
        schedule=WarmupStableDecay(decay_fraction=0.7),
    ),
    checkpoint=replace(base.checkpoint, every=500),
    evaluators=(ValidationLoss(every=250, tokens=10_485_760, batch_size=64),),
)
