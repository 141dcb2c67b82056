"""Fine-tune released GPT-2 weights (or any run of yours) on Shakespeare, by nanoGPT's recipe.

    python -m gptjax.convert from-hf --model=gpt2-xl --output=runs/gpt2-xl      # or a directory on disk
    python -m gptjax.train --config=configs/finetune_shakespeare.py --start-from=runs/gpt2-xl
    ... --data.source=input.txt                                                 # without a network
    ... --start-from=runs/mine --data.tokenizer=runs/mine/tokenizer.json        # a run of yours, in its own tokens

Data      tiny Shakespeare in GPT-2 tokens, 301,966 to train on and 36,059 to validate
Model     the one that it starts from; a shorter --model.context crops it
Published no loss; nanoGPT takes 20 steps of 32,768 tokens at 3e-5 on one GPU
Measured  not yet by us
"""

from data_pipelines.prepared import Prepared
from gptjax.checkpoint import Checkpoint
from gptjax.config import TrainConfig
from gptjax.data import Batch
from gptjax.evals import Samples, ValidationLoss
from gptjax.optim import AdamW
from gptjax.schedules import Constant

config = TrainConfig(
    name="finetune_shakespeare",
    start_from="runs/gpt2-xl",
    steps=20,
    batch=Batch(sequences=32, accumulate=4),
    data=Prepared(source="shakespeare", tokenizer="gpt2", split="tail:0.1"),
    optimizer=AdamW(learning_rate=3e-5, schedule=Constant()),
    checkpoint=Checkpoint(every=5),
    evals=(ValidationLoss(every=5, sequences=4), Samples(every=20, prompt="ROMEO:", max_new_tokens=100)),
)
