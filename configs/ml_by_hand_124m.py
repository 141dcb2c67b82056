"""GPT-2 124M with its own tokenizer: a BPE of 50,257 trained from scratch, then 27.5 B tokens.

    python -m data_pipelines.train_tokenizer --source=openwebtext --vocab-size=50257 --output=data/own_bpe
    python -m data_pipelines.prepare --source=openwebtext --tokenizer=data/own_bpe/tokenizer.json --output=data/own_bpe
    bash launch/gpu_node.sh --config=configs/ml_by_hand_124m.py

Data      OpenWebText in tokens of its own: bits per byte can be compared with GPT-2's, nats per token cannot
Model     GPT-2 124M as published: learned positions, biases, a tied head
Optimizer 56,000 steps of 491,520 tokens; AdamW at 6e-4 with decay of every weight, cosine over 600,000 steps
Hardware  8 A100
Published ml-by-hand: validation loss 2.764 and 3.99 bits a token on its own tokens; LAMBADA 0.299, WikiText-103 1.004
          bits a byte. It validated on the last tenth, here the split is nanoGPT's; 49,990 of its tokens were merges,
          here 50,000; its code's example has 5,000 steps, the published run 56,000
"""

from dataclasses import replace

from configs.gpt2_124m import config as base
from gptjax.data.config import TokenShards
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.model.config import GPTConfig
from gptjax.optim import Cosine, ParamGroup

config = replace(
    base,
    name="ml_by_hand_124m",
    steps=56_000,
    grad_accum=1,
    model=GPTConfig(vocab_size=50257),
    data=TokenShards(path="data/own_bpe"),
    optimizer=replace(
        base.optimizer,
        epsilon=1e-7,
        vector=ParamGroup(weight_decay=0.1),
        schedule=Cosine(warmup_steps=1000, min_ratio=1 / 6, decay_steps=600_000),
    ),
    checkpoint=replace(base.checkpoint, every=2000),
    evaluators=(ValidationLoss(every=1000, tokens=6_144_000, batch_size=64), Samples(every=10_000)),
)
