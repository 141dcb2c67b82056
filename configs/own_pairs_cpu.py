"""Few pairs of your own, from a run that was trained on chats, on two CPU cores in seconds.

    python -m data_pipelines.prepare_preferences --source=pairs.jsonl --tokenizer=runs/own_chats_cpu --split=none \\
        --output=data/pairs
    python -m gptjax.train --config=configs/own_pairs_cpu.py --init-from=runs/own_chats_cpu --data.path=data/pairs

Data      any directory of `prepare_preferences`; its validation loss is printed, if it has a validation split
Model     that of `--init-from`, which is also the reference
Optimizer 20 steps of AdamW at 1e-4, for models as small as the quickstart's; larger ones want less
Measured  by us on three pairs, after `own_chats_cpu`, two cores: 12 s, most of them for compiling; the loss falls from
          0.69 to 0.005
"""

from dataclasses import replace

from configs.own_chats_cpu import config as base
from gptjax.data.preferences import PreferenceShards
from gptjax.evaluators.validation import ValidationLoss
from gptjax.objectives.preference import DPO
from gptjax.optim import AdamW, Constant

config = replace(
    base,
    name="own_pairs_cpu",
    steps=20,
    batch_size=8,
    data=PreferenceShards(),
    optimizer=AdamW(learning_rate=1e-4, schedule=Constant(warmup_steps=2), weight_decay=0.0),
    objective=DPO(beta=0.1, chunk_tokens=256),
    evaluators=(ValidationLoss(every=5),),
)
