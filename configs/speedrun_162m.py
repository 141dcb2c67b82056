"""A GPT-2 124M's loss from a fraction of its tokens on one A100: modern blocks, Muon, 786 M tokens of FineWeb.

    python -m data_pipelines.fetch fineweb_10b --output=data/fineweb_10b
    python -m gptjax.train --config=configs/speedrun_162m.py
    bash launch/gpu_node.sh --config=configs/speedrun_162m.py --batch.accumulate=1                     # 8 GPUs

Data      FineWeb in GPT-2 tokens; the first 10,485,760 tokens of its validation shard are judged, as in the speedruns
Model     12 layers × 768, context 2,048, 162,201,600 parameters: rotary positions, QK-norm, RMSNorm without gain,
          squared ReLU, U-Net skips without weights, logits capped at 30, a head of its own; the first loss is about
          ln 50,304 = 10.8
Optimizer 1,500 steps of 524,288 tokens; Muon at 0.02 and Adam at 0.006, cosine to 15 % over the last 60 %
Hardware  one A100-80GB
Published about 195,000 tokens/s, 78 minutes; its validation loss was never shown. The head's initial 0.005 is ours
Measured  not yet by us
"""

from gptjax.checkpoint import Checkpoint
from gptjax.config import TrainConfig
from gptjax.data import Batch, TokenShards
from gptjax.evals import Samples, ValidationLoss
from gptjax.gpt_config import GPTConfig
from gptjax.optim import Muon
from gptjax.schedules import WarmupStableDecay

config = TrainConfig(
    name="speedrun_162m",
    steps=1500,
    batch=Batch(sequences=256, accumulate=8),
    model=GPTConfig(
        num_layers=12,
        width=768,
        num_heads=12,
        context=2048,
        vocab_size=50304,
        bias=False,
        tied=False,
        activation="relu2",
        positions="rotary",
        norm="rms",
        norm_gain=False,
        qk_norm=True,
        unet="plain",
        softcap=30.0,
        head_std=0.005,
    ),
    data=TokenShards(path="data/fineweb_10b"),
    optimizer=Muon(
        learning_rate=0.02,
        adam_learning_rate=0.006,
        schedule=WarmupStableDecay(warmup=100, decay_fraction=0.6, floor=0.15, shape="cosine"),
    ),
    checkpoint=Checkpoint(every=250),
    evals=(ValidationLoss(every=250, tokens=10_485_760, sequences=32), Samples(every=500)),
)
