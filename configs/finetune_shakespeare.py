"""Fine-tune released GPT-2 weights (or any run of yours) on Shakespeare, by nanoGPT's recipe.

    python -m gptjax.convert from-hf --model=gpt2-xl --output=runs/gpt2-xl      # or a directory on disk
    python -m gptjax.train --config=configs/finetune_shakespeare.py --init-from=runs/gpt2-xl
    ... --data.source=input.txt                                                 # without a network
    ... --init-from=runs/mine --data.tokenizer=runs/mine/tokenizer.json        # a run of yours, in its own tokens

Data      tiny Shakespeare in GPT-2 tokens, 301,966 to train on and 36,059 to validate
Model     that of the run it starts from; a shorter --model.context-length crops it
Published no loss; nanoGPT takes 20 steps of 32,768 tokens at 3e-5 on one GPU
"""

from data_pipelines.prepared import Prepared
from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.config import TrainConfig
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.optim import AdamW, Constant

config = TrainConfig(
    name="finetune_shakespeare",
    init_from="runs/gpt2-xl",
    steps=20,
    batch_size=32,
    grad_accum=4,
    data=Prepared(source="shakespeare", tokenizer="gpt2", split="tail:0.1"),
    optimizer=AdamW(learning_rate=3e-5, schedule=Constant()),
    checkpoint=CheckpointConfig(every=5),
    evaluators=(ValidationLoss(every=5, batch_size=4), Samples(every=20, prompt="ROMEO:", max_new_tokens=100)),
)
