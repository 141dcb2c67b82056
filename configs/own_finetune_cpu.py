"""Few texts of your own, with a model that was trained before, such as an imported GPT-2, on a CPU.

    python -m data_pipelines.prepare --source=book.txt --tokenizer=gpt2-small --output=data/book
    python -m gptjax.train --config=configs/own_finetune_cpu.py --init-from=gpt2-small --data.path=data/book

Data      any directory of shards in the model's tokens; its validation loss is printed, if it has a validation split
Model     that of `--init-from`, in rows of 256 tokens; `--model.context-length=1024` reads longer ones
Optimizer 200 steps of AdamW at 3e-5, nanoGPT's rate for GPT-2; smaller models want a higher one
Measured  not yet on weights of a trained GPT-2
"""

from dataclasses import replace

from configs.own_text_cpu import config as base
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.optim import AdamW, Constant

config = replace(
    base,
    name="own_finetune_cpu",
    steps=200,
    optimizer=AdamW(learning_rate=3e-5, schedule=Constant(warmup_steps=10)),
    checkpoint=replace(base.checkpoint, every=50),
    evaluators=(ValidationLoss(every=50, tokens=16_384), Samples(every=200, max_new_tokens=100)),
)
