"""GPT-2 and AdamW at a size for two CPU cores: what modern_cpu is measured against.

    python -m gptjax.train --config=configs/gpt2_cpu.py
    python -m gptjax.train --config=configs/gpt2_cpu.py --data.source=books.txt                # your own text

Data      text that every Python carries, in a byte-level BPE of 4,096 learnt from it; or any text
Model     4 layers × 128, context 256, 1.3 M parameters without biases
Optimizer 1,200 steps of 2,048 tokens; nanoGPT's AdamW, at the best rate of a grid (benchmarks/loss_per_token.py)
Measured  by us on 142 books (16.6 M tokens of a BPE of 4,096), judged on five others: 4.854 nats a token, the mean of
          three seeds, at 0.004, the best rate of 0.002, 0.004 and 0.008
"""

from data_pipelines.prepared import Prepared
from gptjax.checkpoint import Checkpoint
from gptjax.config import TrainConfig
from gptjax.data import Batch
from gptjax.evals import Samples, ValidationLoss
from gptjax.gpt_config import GPTConfig
from gptjax.objective import NextToken
from gptjax.optim import AdamW
from gptjax.schedules import Cosine

config = TrainConfig(
    name="gpt2_cpu",
    steps=1200,
    batch=Batch(sequences=8),
    model=GPTConfig(
        num_layers=4,
        width=128,
        num_heads=4,
        context=256,
        vocab_size=4096,
        bias=False,
        dtype="float32",
        remat="none",
        layers="unroll",
    ),
    data=Prepared(source="stdlib", tokenizer="bpe:4096", split="hash:0.02"),
    objective=NextToken(chunk_tokens=512),
    optimizer=AdamW(learning_rate=4e-3, beta2=0.99, schedule=Cosine(warmup=100, floor=0.1)),
    checkpoint=Checkpoint(every=400),
    evals=(ValidationLoss(every=200, tokens=65_536), Samples(every=600, prompt="\n")),
)
