"""The third stage of `modern_253m`: direct preference optimization on helpful and harmless answers.

    python -m data_pipelines.prepare_preferences --source=hh_rlhf.jsonl --tokenizer=data/alpaca --split=hash:0.01 \\
        --output=data/hh_rlhf
    python -m gptjax.train --config=configs/modern_253m_dpo.py

Data      HH-RLHF, 161,000 pairs; both answers of a pair are in one row of 1,024 tokens
Model     that of `modern_253m_sft`, which is also the reference; its log-probabilities are computed once
Optimizer 6,000 steps, AdamW at 5e-7, β 0.1; a row holds about two pairs, so 16 rows are the recipe's batch of 32
Published the recipe's own report: WikiText-2 perplexity 34.3 after this stage; its code has 3,000 steps and a rate of
          5e-6. Not yet measured by us; checked at a small width on made data
"""

from dataclasses import replace

from configs.modern_253m_sft import config as base
from gptjax.data.preferences import PreferenceShards
from gptjax.evaluators.validation import ValidationLoss
from gptjax.objectives.preference import DPO
from gptjax.optim import AdamW, Cosine

config = replace(
    base,
    name="modern_253m_dpo",
    init_from="runs/modern_253m_sft",
    steps=6000,
    batch_size=16,
    data=PreferenceShards(path="data/hh_rlhf"),
    objective=DPO(beta=0.1),
    optimizer=AdamW(
        learning_rate=5e-7, beta2=0.999, weight_decay=0.01, schedule=Cosine(warmup_steps=300, min_ratio=0.0)
    ),
    evaluators=(ValidationLoss(every=500, batch_size=16),),
)
