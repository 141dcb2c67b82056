"""The second stage of `modern_253m`: supervised fine-tuning on instructions.

    python -m data_pipelines.prepare_chat --source=alpaca.json --tokenizer=gpt2 --split=hash:0.02 --output=data/alpaca
    python -m gptjax.train --config=configs/modern_253m_sft.py

Data      Alpaca, 52,000 instructions, packed without seeing each other. Preparation adds two role tokens, whose rows
          begin as the mean of all others
Model     that of `modern_253m`
Optimizer 10,000 steps, AdamW at 1e-5; a row holds about six conversations, so 12 rows are the recipe's batch of 64
Published the recipe's own report: WikiText-2 perplexity 34.1 after this stage. Not yet measured by us; checked at a
          small width on made data
"""

from dataclasses import replace

from configs.modern_253m import config as base
from gptjax.data.config import TokenShards
from gptjax.evaluators.validation import ValidationLoss
from gptjax.objectives.objective import SFT
from gptjax.optim import AdamW, Cosine

config = replace(
    base,
    name="modern_253m_sft",
    init_from="runs/modern_253m",
    steps=10_000,
    batch_size=12,
    model=replace(base.model, intra_document_mask=True),
    data=TokenShards(path="data/alpaca", packing="best_fit_truncate"),
    objective=SFT(),
    optimizer=AdamW(
        learning_rate=1e-5, beta2=0.999, weight_decay=0.01, schedule=Cosine(warmup_steps=500, min_ratio=0.0)
    ),
    checkpoint=replace(base.checkpoint, every=1000),
    evaluators=(ValidationLoss(every=500, batch_size=12),),
)
