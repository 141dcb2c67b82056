"""See that everything works: a tiny GPT on bytes of the standard library, seconds on any machine; it learns little.

    python -m gptjax.train --config=configs/smoke.py

Data      text that every Python carries, as bytes: no tokenizer is trained
Model     2 layers × 64, context 64
Judged    the bigram, validation loss at the start, in the middle and at the end, and a sample
Expected  2.3 nats a byte on the first 8,192 of validation, where the bigram of the whole has 2.5
"""

from data_pipelines.prepared import Prepared
from gptjax.config import TrainConfig
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.optim import Muon
from gptjax.optim.schedules import WarmupStableDecay
from gptjax.training.checkpoint import CheckpointConfig
from gptjax.training.evaluators import BigramBaseline, Samples, ValidationLoss

config = TrainConfig(
    name="smoke",
    steps=100,
    batch_size=8,
    model=GPTConfig(
        num_layers=2,
        embed_dim=64,
        num_heads=4,
        context_length=64,
        vocab_size=None,
        bias=False,
        compute=ComputeConfig(dtype="float32", remat="none"),
    ),
    data=Prepared(source="stdlib", tokenizer="bytes", validation="documents:0.02"),
    optimizer=Muon(
        learning_rate=0.02,
        adam_learning_rate=0.02,
        schedule=WarmupStableDecay(warmup_steps=5, decay_fraction=0.5),
        ns_dtype="float32",
    ),
    checkpoint=CheckpointConfig(every=50),
    evaluators=(
        BigramBaseline(),
        ValidationLoss(every=50, tokens=8192),
        Samples(every=100, prompt="def ", max_new_tokens=40),
    ),
)
