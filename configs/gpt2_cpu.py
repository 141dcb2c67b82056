"""GPT-2 and AdamW at a size for two CPU cores: the baseline of modern_cpu.

    python -m gptjax.train --config=configs/gpt2_cpu.py
    python -m gptjax.train --config=configs/gpt2_cpu.py --data.source=books.txt                # your own text

Data      as quickstart, in a byte-level BPE of 4,096; or any text
Model     4 layers × 128, context 256, 1.3 M parameters without biases
Optimizer 1,200 steps of 2,048 tokens; nanoGPT's AdamW, at the best rate of a grid (benchmarks/loss_per_token.py)
Measured  by us on 142 books (16.6 M tokens of a BPE of 4,096), evaluated on five others: 4.854 nats a token, the mean
          of three seeds, at 0.004, the best rate of 0.002, 0.004 and 0.008
"""

from dataclasses import replace

from configs.quickstart import config as base
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.objectives.objective import NextToken
from gptjax.optim import AdamW, Cosine

config = replace(
    base,
    name="gpt2_cpu",
    model=replace(base.model, context_length=256),
    data=replace(base.data, tokenizer="bpe:4096"),
    objective=NextToken(chunk_tokens=512),
    optimizer=AdamW(learning_rate=4e-3, beta2=0.99, schedule=Cosine(warmup_steps=100, min_ratio=0.1)),
    checkpoint=replace(base.checkpoint, every=400),
    evaluators=(ValidationLoss(every=200, tokens=65_536), Samples(every=600, prompt="\n")),
)
