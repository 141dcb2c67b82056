"""nanoGPT's first example by a modern recipe: text, batch and size of shakespeare_char, a quarter of its steps.

    python -m gptjax.train --config=configs/shakespeare_modern.py

Data      as shakespeare_char; 1,250 steps of 16,384 characters are 20 epochs of it, so dropout stays at 0.2
Model     6 layers × 384, context 256, 10.6 M parameters, with the changes of modern_cpu
Optimizer Muon at 0.02 with weight decay against overfitting, Adam at 0.01, linear to zero over the last 60 %
Hardware  one GPU, minutes
Published nothing; shakespeare_char's 1.4697 is the loss to reach, with a third of its steps at most
"""

from dataclasses import replace

from configs.modern_cpu import MODERN
from configs.shakespeare_char import config as base
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.optim import Muon, WarmupStableDecay

config = replace(
    base,
    name="shakespeare_modern",
    steps=1250,
    model=replace(base.model, **MODERN),
    optimizer=Muon(
        learning_rate=0.02,
        adam_learning_rate=0.01,
        weight_decay=0.1,
        schedule=WarmupStableDecay(warmup_steps=20, decay_fraction=0.6),
    ),
    checkpoint=replace(base.checkpoint, every=125),
    evaluators=(ValidationLoss(every=125, batch_size=64), Samples(every=625, max_new_tokens=200)),
)
