"""Your own text in GPT-2's tokens, on two CPU cores in about twenty minutes.

    python -m data_pipelines.prepare --source=books.jsonl --tokenizer=gpt2 --output=data/books
    python -m gptjax.train --config=configs/own_text_cpu.py --data.path=data/books

Data      any directory of shards; some ten million tokens are a good amount
Model     4 layers × 128, context 256, 7.3 M parameters, most of them the vocabulary; 3,500 steps of 1,024 tokens, Muon
Measured  by us on 142 books (14 M tokens), two cores, 19 minutes: 5.16 nats a token on five other books; bigram 5.29
"""

from dataclasses import replace

from configs.quickstart import config as base
from gptjax.data.config import TokenShards
from gptjax.evaluators.bigram import BigramBaseline
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.objectives.objective import NextToken

config = replace(
    base,
    name="own_text_cpu",
    steps=3500,
    batch_size=4,
    model=replace(base.model, context_length=256, compute=replace(base.model.compute, head_dtype="bfloat16")),
    data=TokenShards(),
    objective=NextToken(chunk_tokens=128),
    checkpoint=replace(base.checkpoint, every=500),
    evaluators=(BigramBaseline(), ValidationLoss(every=1000, tokens=65_536), Samples(every=1000, max_new_tokens=100)),
    require_validation=False,
)
