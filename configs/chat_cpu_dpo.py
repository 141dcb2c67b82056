"""The third stage of `chat_cpu`: direct preference optimization towards answers that begin with "Sure: ".

    python -m data_pipelines.prepare_preferences --source=data/small_world/pairs.jsonl --tokenizer=data/small_world \\
        --split=hash:0.2 --output=data/small_world/pairs
    python -m gptjax.train --config=configs/chat_cpu_dpo.py

Data      pairs of right answers of the same length; only how they begin differs
Model     that of `chat_cpu_sft`, which is also the reference
"""

from dataclasses import replace

from configs.chat_cpu_sft import ANSWERS
from configs.chat_cpu_sft import config as base
from gptjax.data.preferences import PreferenceShards
from gptjax.evaluators.validation import ValidationLoss
from gptjax.objectives.preference import DPO
from gptjax.optim import AdamW, Cosine

config = replace(
    base,
    name="chat_cpu_dpo",
    init_from="runs/chat_cpu_sft",
    steps=20,
    batch_size=8,
    data=PreferenceShards(path="data/small_world/pairs"),
    optimizer=AdamW(learning_rate=5e-5, schedule=Cosine(warmup_steps=5), weight_decay=0.0),
    objective=DPO(beta=0.1, chunk_tokens=256),
    evaluators=(ValidationLoss(every=10), replace(ANSWERS, every=10)),
)
