"""GPT-2 355M on OpenWebText: the recipe of gpt2_124m at the learning rate of GPT-3's model of this size.

    bash launch/gpu_node.sh --config=configs/gpt2_355m.py

Model     24 layers × 1024, context 1,024, without biases; 600,000 steps of 491,520 tokens of gpt2_124m's data
Hardware  8 A100-80GB or H100; estimated at 40 % of the A100's peak: 8 days
Published OpenAI's released weights have a validation loss of 2.84 on OpenWebText (nanoGPT's README)
"""

from dataclasses import replace

from configs.gpt2_124m import config as base

config = replace(
    base,
    name="gpt2_355m",
    model=replace(base.model, num_layers=24, embed_dim=1024, num_heads=16),
    optimizer=replace(base.optimizer, learning_rate=3e-4),
)
