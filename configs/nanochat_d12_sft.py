"""Supervised fine-tuning of `nanochat_d12`: one epoch of conversations at a fraction of the pretraining's rates.

    python -m data_pipelines.prepare_chat --source=smoltalk/ --tokenizer=data/fineweb_edu --split=hash:0.01 \\
        --output=data/smoltalk
    python -m gptjax.train --config=configs/nanochat_d12_sft.py

Data      conversations such as SmolTalk, 460,000 in all, packed without seeing each other
Model     that of `nanochat_d12`, with the template's two role tokens added
Optimizer as in pretraining, every rate times 0.02 and falling to zero; 32 rows of 2,048 tokens a step
Published no loss. The number of steps is ours. Not yet measured by us; checked at a small width on made data
"""

from dataclasses import replace

from configs.nanochat_d12 import config as base
from configs.nanochat_d12 import make_optimizer
from gptjax.data.config import TokenShards
from gptjax.evaluators.validation import ValidationLoss
from gptjax.objectives.objective import SFT
from gptjax.optim import WarmupStableDecay

INITIAL_RATE = 0.02
"""Learning rates relative to pretraining."""

config = replace(
    base,
    name="nanochat_d12_sft",
    init_from="runs/nanochat_d12",
    steps=4000,
    batch_size=32,
    model=replace(base.model, intra_document_mask=True),
    data=TokenShards(path="data/smoltalk", packing="best_fit_truncate"),
    objective=SFT(),
    optimizer=replace(
        make_optimizer(INITIAL_RATE, wide_lr_factor=INITIAL_RATE, growth=1.0),
        schedule=WarmupStableDecay(decay_fraction=1.0),
        weight_decay=0.0,
    ),
    evaluators=(ValidationLoss(every=200, batch_size=32),),
)
