"""Few chats of your own, from a small run, on two CPU cores in seconds: the model learns its answers by heart.

    python -m data_pipelines.prepare_chat --source=mine.jsonl --tokenizer=runs/quickstart --split=none \\
        --output=data/mine
    python -m gptjax.train --config=configs/own_chats_cpu.py --init-from=runs/quickstart --data.path=data/mine

Data      any directory of `prepare_chat`; its validation loss is printed, if it has a validation split
Model     that of `--init-from`
Optimizer 100 steps of AdamW at 1e-3, for models as small as the quickstart's; an imported GPT-2 wants about 1e-5
Measured  by us on ten chats and 300 steps of the quickstart, two cores: 11 s, most of them for compiling; the last loss
          is 0.02 nats
"""

from dataclasses import replace

from configs.quickstart import config as base
from gptjax.data.config import TokenShards
from gptjax.evaluators.validation import ValidationLoss
from gptjax.objectives.objective import SFT
from gptjax.optim import AdamW, Constant

config = replace(
    base,
    name="own_chats_cpu",
    steps=100,
    batch_size=2,
    model=replace(base.model, intra_document_mask=True),
    data=TokenShards(packing="best_fit_truncate"),
    optimizer=AdamW(learning_rate=1e-3, schedule=Constant(warmup_steps=5)),
    objective=SFT(),
    evaluators=(ValidationLoss(every=25),),
    require_validation=False,
)
