"""nanoGPT's first example: a character-level GPT on Shakespeare, for one GPU.

    python -m gptjax.train --config=configs/shakespeare_char.py
    python -m gptjax.train --config=configs/shakespeare_char.py --data.source=input.txt     # without a network

Data      tiny Shakespeare, 1,003,854 characters to train on and 111,540 to validate; 65 distinct ones
Model     6 layers × 384, context 256, 10.65 M parameters, dropout 0.2
Published nanoGPT: best validation loss 1.4697 nats in about 3 minutes on one A100 (a minimum over noisy estimates)
"""

from data_pipelines.prepared import Prepared
from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.config import TrainConfig
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.model.config import GPTConfig
from gptjax.optim import AdamW, Cosine

config = TrainConfig(
    name="shakespeare_char",
    steps=5000,
    batch_size=64,
    model=GPTConfig(
        num_layers=6, embed_dim=384, num_heads=6, context_length=256, vocab_size=65, bias=False, dropout=0.2
    ),
    data=Prepared(source="shakespeare", tokenizer="chars", split="tail:0.1"),
    optimizer=AdamW(learning_rate=1e-3, beta2=0.99, schedule=Cosine(warmup_steps=100, min_ratio=0.1)),
    checkpoint=CheckpointConfig(every=250),
    evaluators=(ValidationLoss(every=250, batch_size=64), Samples(every=1000, max_new_tokens=200)),
)
