"""nanoGPT's baby example for a laptop: the same Shakespeare, a smaller model, a few minutes on two cores.

    python -m gptjax.train --config=configs/shakespeare_char_cpu.py
    python -m gptjax.train --config=configs/shakespeare_char_cpu.py --data.source=input.txt     # without a network

Data      tiny Shakespeare, 1,003,854 characters to train on and 111,540 to validate; 65 distinct ones
Model     4 layers × 128, context 64, 0.8 M parameters; 2,000 steps of 12 windows, as nanoGPT's README has it
Published nanoGPT's README: 1.88, an estimate from 20 batches; its code run on two cores gave 1.921 over 200 batches
Measured  by us: 1.901 over the whole validation text (mean of seeds 1337, 1, 2; two shared cores, 3 minutes)
"""

from dataclasses import replace

from configs.shakespeare_char import config as base
from gptjax.data import Batch
from gptjax.evals import Samples, ValidationLoss

config = replace(
    base,
    name="shakespeare_char_cpu",
    steps=2000,
    batch=Batch(sequences=12),
    model=replace(
        base.model,
        num_layers=4,
        width=128,
        num_heads=4,
        context=64,
        dropout=0.0,
        dtype="float32",
        remat="none",
        layers="unroll",
    ),
    checkpoint=replace(base.checkpoint, every=500),
    evals=(ValidationLoss(every=500, sequences=64), Samples(every=2000, max_new_tokens=60)),
)
