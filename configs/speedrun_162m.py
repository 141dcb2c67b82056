"""A GPT-2 124M's loss from a fraction of its tokens on one A100: modern blocks, Muon, 786 M tokens of FineWeb.

    python -m data_pipelines.fetch fineweb_10b --output=data/fineweb_10b
    python -m gptjax.train --config=configs/speedrun_162m.py
    bash launch/gpu_node.sh --config=configs/speedrun_162m.py --grad-accum=1                     # 8 GPUs

Data      FineWeb in GPT-2 tokens; validation on the first 10,485,760 tokens of its split, as in the speedruns
Model     12 layers × 768, context 2,048, 162,201,600 parameters: rotary positions, QK-norm, RMSNorm without scale,
          squared ReLU, plain U-Net skips, logits capped at 30, an untied head; the first loss is about ln 50,304 = 10.8
Optimizer 1,500 steps of 524,288 tokens; Muon at 0.02 and Adam at 0.006, cosine to 15 % over the last 60 %
Hardware  one A100-80GB
Published about 195,000 tokens/s, 78 minutes; its validation loss was never shown. The head's initial 0.005 is ours
Choice    The published count of parameters is taken at its word: the head has a matrix of its own. The authors' code
          ties it to the token table and counts that twice; `convert from-speedrun` reads weights of that form
"""

from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.config import TrainConfig
from gptjax.data.config import TokenShards
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.model.config import GPTConfig, InitConfig
from gptjax.optim import Muon, WarmupStableDecay

config = TrainConfig(
    name="speedrun_162m",
    steps=1500,
    batch_size=256,
    grad_accum=8,
    model=GPTConfig(
        num_layers=12,
        embed_dim=768,
        num_heads=12,
        context_length=2048,
        vocab_size=50304,
        bias=False,
        tie_embeddings=False,
        activation="relu2",
        positions="rotary",
        norm="rms",
        norm_scale=False,
        qk_norm=True,
        unet_skips="plain",
        logit_softcap=30.0,
        init=InitConfig(head_std=0.005),
    ),
    data=TokenShards(path="data/fineweb_10b"),
    optimizer=Muon(
        learning_rate=0.02,
        adam_learning_rate=0.006,
        schedule=WarmupStableDecay(warmup_steps=100, decay_fraction=0.6, min_ratio=0.15, shape="cosine"),
    ),
    checkpoint=CheckpointConfig(every=250),
    evaluators=(ValidationLoss(every=250, tokens=10_485_760, batch_size=32), Samples(every=500)),
)
