"""GPT-2 124M on OpenWebText by nanoGPT's recipe: the common baseline.

    python -m data_pipelines.prepare --source=openwebtext --output=data/openwebtext
    python -m gptjax.train --config=configs/gpt2_124m.py
    bash launch/gpu_node.sh --config=configs/gpt2_124m.py                       # 8 GPUs, one process

Data      OpenWebText, 9.04 B training tokens; or any directory of shards in GPT-2 tokens
Model     12 layers × 768, context 1,024, 123.7 M parameters without biases
Hardware  8 A100; on one GPU give --grad-accum=40 for the same batch in 40 micro-batches
Published nanoGPT: validation loss about 2.85 after 600,000 steps of 491,520 tokens, four days on 8 A100-40GB
"""

from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.config import TrainConfig
from gptjax.data.config import TokenShards
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.model.config import GPTConfig
from gptjax.optim import AdamW, Cosine

config = TrainConfig(
    name="gpt2_124m",
    steps=600_000,
    batch_size=480,
    grad_accum=5,
    model=GPTConfig(num_layers=12, embed_dim=768, num_heads=12, context_length=1024, vocab_size=50257, bias=False),
    data=TokenShards(path="data/openwebtext"),
    optimizer=AdamW(
        learning_rate=6e-4, beta2=0.95, weight_decay=0.1, schedule=Cosine(warmup_steps=2000, min_ratio=0.1)
    ),
    checkpoint=CheckpointConfig(every=1000),
    evaluators=(ValidationLoss(every=1000, batch_size=64), Samples(every=10_000)),
)
