"""nanoGPT's first example for a laptop: the text of shakespeare_char, a smaller model, minutes on two cores.

    python -m gptjax.train --config=configs/shakespeare_char_cpu.py

Data      as shakespeare_char
Model     4 layers × 128, context 64, 0.8 M parameters; 2,000 steps of 12 sequences, as in nanoGPT's README
Published nanoGPT's README: 1.88, an estimate from 20 batches; its code run on two cores gave 1.921 over 200 batches
Measured  by us: 1.901 over the whole validation text (mean of seeds 1337, 1, 2; two shared cores, 3 minutes)
"""

from dataclasses import replace

from configs.quickstart import config as cpu
from configs.shakespeare_char import config as base
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss

config = replace(
    base,
    name="shakespeare_char_cpu",
    steps=2000,
    batch_size=12,
    model=replace(cpu.model, context_length=64, vocab_size=base.model.vocab_size),
    checkpoint=replace(base.checkpoint, every=500),
    evaluators=(ValidationLoss(every=500, batch_size=64), Samples(every=2000, max_new_tokens=60)),
)
