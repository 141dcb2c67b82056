"""Your own text in GPT-2's tokens, on two CPU cores in about twenty minutes.

    python -m data_pipelines.prepare --source=books.jsonl --tokenizer=gpt2 --output=data/books
    python -m gptjax.train --config=configs/own_text_cpu.py --data.path=data/books

Data      any directory of shards with a validation split; some ten million tokens are a good amount
Model     4 layers × 128, context 256, 7.3 M parameters, most of them the vocabulary; 2,200 steps of 1,024 tokens, Muon
Measured  not yet to its end by us: half of it took 7 minutes on two shared cores and gave 5.7 nats on books
"""

from gptjax.checkpoint import Checkpoint
from gptjax.config import TrainConfig
from gptjax.data import Batch, TokenShards
from gptjax.evals import Samples, ValidationLoss
from gptjax.model import GPTConfig
from gptjax.optim import Muon
from gptjax.schedules import WarmupStableDecay

config = TrainConfig(
    name="own_text_cpu",
    steps=2200,
    batch=Batch(sequences=4),
    model=GPTConfig(
        num_layers=4,
        width=128,
        num_heads=4,
        context=256,
        vocab_size=None,
        bias=False,
        dtype="float32",
        head_dtype="bfloat16",
        remat="none",
        layers="unroll",
    ),
    data=TokenShards(),
    optimizer=Muon(
        learning_rate=0.02,
        embedding_learning_rate=0.02,
        vector_learning_rate=0.02,
        schedule=WarmupStableDecay(warmup=20, decay_fraction=0.5),
        dtype="float32",
    ),
    checkpoint=Checkpoint(every=500),
    evals=(ValidationLoss(every=500, tokens=65_536), Samples(every=1000, max_new_tokens=100)),
)
