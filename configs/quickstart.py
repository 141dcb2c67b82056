"""Learn Python by reading it: a small GPT on the standard library's sources, in minutes, on any machine.

    python -m gptjax.train --config=configs/quickstart.py

Data      text that every Python carries, prepared on first use with a byte-level BPE of 1,024 trained on it
Model     4 layers × 128, context 128
"""

from data_pipelines.prepared import Prepared
from gptjax.checkpoint import Checkpoint
from gptjax.config import TrainConfig
from gptjax.data import Batch
from gptjax.evals import Bigram, Samples, ValidationLoss
from gptjax.model import GPTConfig
from gptjax.optim import Muon
from gptjax.schedules import WarmupStableDecay

config = TrainConfig(
    name="quickstart",
    steps=1400,
    batch=Batch(sequences=8),
    model=GPTConfig(
        num_layers=4,
        width=128,
        num_heads=4,
        context=128,
        vocab_size=1024,
        bias=False,
        dtype="float32",
        remat="none",
        layers="unroll",
    ),
    data=Prepared(source="stdlib", tokenizer="bpe:1024", validation="documents:0.02"),
    optimizer=Muon(
        learning_rate=0.02,
        embedding_learning_rate=0.02,
        vector_learning_rate=0.02,
        schedule=WarmupStableDecay(warmup=20, decay_fraction=0.5),
        dtype="float32",
    ),
    checkpoint=Checkpoint(every=350),
    evals=(
        Bigram(),
        ValidationLoss(every=350),
        Samples(every=700, prompt="def ", max_new_tokens=80),
    ),
)
