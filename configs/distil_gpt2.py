"""DistilGPT-2 anew: half of GPT-2's layers, taught by all of them on OpenWebText.

    python -m gptjax.convert from-hf --model=gpt2 --output=runs/gpt2
    python -m data_pipelines.prepare --source=openwebtext --tokenizer=gpt2 --output=data/openwebtext
    bash launch/gpu_node.sh --config=configs/distil_gpt2.py

Data      OpenWebText in GPT-2 tokens, as DistilGPT-2 had it
Model     layers 0, 2, 4, 7, 9 and 11 of GPT-2: 6 layers × 768, 82 M parameters
Objective 5 · KL to the teacher at temperature 2, 2 · cross-entropy, 1 · cosine of the final hidden states
Published DistilGPT-2's WikiText-2 perplexity by the modern 253M model's script is 44.5, GPT-2's 40.6. Batch, rate and
          length are ours. Not yet measured by us; checked at a small width on made data
"""

from dataclasses import replace

from configs.gpt2_124m import config as base
from gptjax.objectives.distillation import Distillation
from gptjax.optim import AdamW, Cosine

config = replace(
    base,
    name="distil_gpt2",
    init_from="runs/gpt2",
    init_layers=(0, 2, 4, 7, 9, 11),
    steps=100_000,
    batch_size=128,
    grad_accum=1,
    model=replace(base.model, num_layers=6, bias=True),
    objective=Distillation(teacher="runs/gpt2"),
    optimizer=AdamW(learning_rate=2.5e-4, schedule=Cosine(warmup_steps=2000, min_ratio=0.1)),
)
