"""A 30M GPT on OpenWebText: the recipe of gpt2_124m at a size that one GPU trains in under an hour.

    python -m data_pipelines.prepare --source=openwebtext --output=data/openwebtext
    python -m gptjax.train --config=configs/owt_30m.py

Model     6 layers × 384, context 512, 29.9 M parameters without positions; 20,000 steps of 32,768 tokens
Published only guesses (perplexity 80 to 120); a model of this size should end near 3.9 nats
"""

from dataclasses import replace

from configs.gpt2_124m import config as base

config = replace(
    base,
    name="owt_30m",
    steps=20_000,
    batch_size=64,
    grad_accum=1,
    model=replace(base.model, num_layers=6, embed_dim=384, num_heads=6, context_length=512),
)
