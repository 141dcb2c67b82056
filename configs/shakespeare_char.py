"""nanoGPT's baby example: a character-level GPT on Shakespeare, for one GPU.

    python -m gptjax.train --config=configs/shakespeare_char.py
    python -m gptjax.train --config=configs/shakespeare_char.py --data.source=input.txt     # without a network

Data      tiny Shakespeare, 1,003,854 characters to train on and 111,540 to validate; 65 distinct ones
Model     6 layers × 384, context 256, 10.65 M parameters, dropout 0.2
Published nanoGPT: best validation loss 1.4697 nats in about 3 minutes on one A100 (a minimum over noisy estimates)
Measured  not yet by us
"""

from data_pipelines.prepared import Prepared
from gptjax.checkpoint import Checkpoint
from gptjax.config import TrainConfig
from gptjax.data import Batch
from gptjax.evals import Samples, ValidationLoss
from gptjax.gpt_config import GPTConfig
from gptjax.optim import AdamW
from gptjax.schedules import Cosine

config = TrainConfig(
    name="shakespeare_char",
    steps=5000,
    batch=Batch(sequences=64),
    model=GPTConfig(num_layers=6, width=384, num_heads=6, context=256, vocab_size=65, bias=False, dropout=0.2),
    data=Prepared(source="shakespeare", tokenizer="chars", split="tail:0.1"),
    optimizer=AdamW(learning_rate=1e-3, beta2=0.99, schedule=Cosine(warmup=100, floor=0.1)),
    checkpoint=Checkpoint(every=250),
    evals=(ValidationLoss(every=250, sequences=64), Samples(every=1000, max_new_tokens=200)),
)
