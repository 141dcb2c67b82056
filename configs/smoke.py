"""Check that everything works: a tiny GPT on bytes of the standard library, in seconds; it learns little.

    python -m gptjax.train --config=configs/smoke.py

Data      as quickstart, but as bytes: no tokenizer is trained
Model     2 layers × 64, context 64
Expected  2.3 nats a byte on the first 8,192 of validation, where the bigram model of all of it has 2.5
"""

from dataclasses import replace

from configs.quickstart import config as base
from gptjax.evaluators.bigram import BigramBaseline
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.optim import WarmupStableDecay

config = replace(
    base,
    name="smoke",
    steps=100,
    model=replace(
        base.model,
        num_layers=2,
        embed_dim=64,
        context_length=64,
        compute=replace(base.model.compute, scan_layers="auto"),
    ),
    data=replace(base.data, tokenizer="bytes"),
    optimizer=replace(base.optimizer, schedule=WarmupStableDecay(warmup_steps=5, decay_fraction=0.5)),
    checkpoint=replace(base.checkpoint, every=50),
    evaluators=(
        BigramBaseline(),
        ValidationLoss(every=50, tokens=8192),
        Samples(every=100, prompt="def", max_new_tokens=40),
    ),
)
