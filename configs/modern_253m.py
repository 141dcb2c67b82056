"""A modern 253M model to pretrain, instruct and align: SwiGLU, RMSNorm, rotary positions, attention sinks.

    for set in wikipedia wikitext103 tinystories; do
        python -m data_pipelines.prepare --source=$set --output=data/$set
    done
    bash launch/gpu_node.sh --config=configs/modern_253m.py
    python -m gptjax.train --config=configs/modern_253m.py --grad-accum=4                        # one GPU

Data      Wikipedia, WikiText-103 and TinyStories in GPT-2 tokens, each with its own epochs. Validation is on
          WikiText-103's articles, which Wikipedia has too: compare only models trained on the same data
Model     12 layers × 1,024, 16 heads of 64, SwiGLU 4,096, context 1,024, 253 M parameters, 4 sinks a layer
Optimizer 80,000 steps of 131,072 tokens; AdamW at 3e-4, 500 steps of warm-up, cosine to zero
Hardware  one 80 GB GPU; with sinks, cuDNN attention takes heads of twice the width, 5 % of the step's FLOPs more
Published the recipe's own report: WikiText-2 perplexity 27.0 (GPT-2 40.6, DistilGPT-2 44.5 by the same script), about
          20 hours on one H100, its sinks switched off. The shares of the three sets are ours
"""

from dataclasses import replace

from configs.gpt2_124m import config as base
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.optim import AdamW, Cosine

SHARES = {"data/wikipedia": 0.8, "data/wikitext103": 0.1, "data/tinystories": 0.1}

config = replace(
    base,
    name="modern_253m",
    steps=80_000,
    batch_size=128,
    grad_accum=1,
    model=replace(
        base.model,
        embed_dim=1024,
        num_heads=16,
        mlp_dim=4096,
        activation="silu",
        gated_mlp=True,
        positions="rotary",
        norm="rms",
        norm_epsilon=1e-6,
        num_sinks=4,
    ),
    data=Mixture(
        tuple(MixtureComponent(TokenShards(path=path), share) for path, share in SHARES.items()), validation=1
    ),
    optimizer=AdamW(
        learning_rate=3e-4, beta2=0.999, weight_decay=0.01, schedule=Cosine(warmup_steps=500, min_ratio=0.0)
    ),
    checkpoint=replace(base.checkpoint, every=2000),
    evaluators=(ValidationLoss(every=2000, batch_size=32), Samples(every=10_000)),
)
