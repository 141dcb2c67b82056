"""The second stage of `chat_cpu`: supervised fine-tuning on questions and answers about the small world.

    python -m data_pipelines.prepare_chat --source=data/small_world/chat.jsonl --tokenizer=data/small_world \\
        --split=hash:0.05 --output=data/small_world/chat
    python -m gptjax.train --config=configs/chat_cpu_sft.py

Data      85 % of all facts, each asked in two ways; the other facts are held out, to be answered exactly
Model     that of `chat_cpu`
"""

from dataclasses import replace

from configs.chat_cpu import config as base
from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.data.config import TokenShards
from gptjax.evaluators.exact_match import ExactMatch
from gptjax.evaluators.validation import ValidationLoss
from gptjax.objectives.objective import SFT
from gptjax.optim import Muon, WarmupStableDecay

ANSWERS = ExactMatch(path="data/small_world/held_out.jsonl", every=200, max_new_tokens=24, opening="Sure: ")

config = replace(
    base,
    name="chat_cpu_sft",
    init_from="runs/chat_cpu",
    steps=400,
    batch_size=16,
    data=TokenShards(path="data/small_world/chat", packing="best_fit_truncate"),
    optimizer=Muon(
        learning_rate=0.004,
        adam_learning_rate=0.002,
        schedule=WarmupStableDecay(warmup_steps=20, decay_fraction=0.5),
    ),
    objective=SFT(chunk_tokens=256),
    checkpoint=CheckpointConfig(every=200),
    evaluators=(ValidationLoss(every=200), ANSWERS),
)
