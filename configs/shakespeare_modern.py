"""nanoGPT's baby example by a modern recipe: the text, batch and size of shakespeare_char, a quarter of its steps.

    python -m gptjax.train --config=configs/shakespeare_modern.py
    python -m gptjax.train --config=configs/shakespeare_modern.py --data.source=input.txt     # without a network

Data      as shakespeare_char; 1,250 steps of 16,384 characters are 20 epochs of it, so dropout stays at 0.2
Model     6 layers × 384, context 256, 10.6 M parameters: rotary positions, RMSNorm without gain, QK-norm, squared ReLU;
          projections start at zero
Optimizer Muon at 0.02 with decay against overfitting, Adam at 0.01, linear to zero over the last 60 %
Hardware  one GPU, minutes
Published nothing; the mark to beat is shakespeare_char's 1.4697, with a third of its steps at most
Measured  not yet by us
"""

from dataclasses import replace

from configs.shakespeare_char import config as base
from gptjax.optim import Muon
from gptjax.optim.schedules import WarmupStableDecay
from gptjax.training.evaluators import Samples, ValidationLoss

MODERN = {
    "positions": "rotary",
    "norm": "rms",
    "norm_scale": False,
    "qk_norm": True,
    "activation": "relu2",
    "zero_init": True,
}

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
