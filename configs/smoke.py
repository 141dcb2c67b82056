"""See that everything works: a tiny GPT on bytes of the standard library, seconds on any machine; it learns little.

    python -m gptjax.train --config=configs/smoke.py

Data      text that every Python carries, as bytes: no tokenizer is trained
Model     2 layers × 64, context 64
Judged    the bigram, validation loss at the start, in the middle and at the end, and a sample
Expected  2.3 nats a byte on the first 8,192 of validation, where the bigram of the whole has 2.5
"""

from data_pipelines.prepared import Prepared
from gptjax.checkpoint import Checkpoint
from gptjax.config import TrainConfig
from gptjax.data import Batch
from gptjax.evals import Bigram, Samples, ValidationLoss
from gptjax.gpt_config import GPTConfig
from gptjax.optim import Muon
from gptjax.schedules import WarmupStableDecay

config = TrainConfig(
    name="smoke",
    steps=100,
    batch=Batch(sequences=8),
    model=GPTConfig(
        num_layers=2, width=64, num_heads=4, context=64, vocab_size=None, bias=False, dtype="float32", remat="none"
    ),
    data=Prepared(source="stdlib", tokenizer="bytes", split="hash:0.02"),
    optimizer=Muon(
        learning_rate=0.02,
        adam_learning_rate=0.02,
        schedule=WarmupStableDecay(warmup=5, decay_fraction=0.5),
        dtype="float32",
    ),
    checkpoint=Checkpoint(every=50),
    evals=(Bigram(), ValidationLoss(every=50, tokens=8192), Samples(every=100, prompt="def ", max_new_tokens=40)),
)
