"""GPT-2 774M on OpenWebText: the recipe of gpt2_124m at the learning rate of GPT-3's model of this size.

    bash launch/gpu_node.sh --config=configs/gpt2_774m.py

Model     36 layers × 1280, context 1,024, without biases; 600,000 steps of 491,520 tokens of gpt2_124m's data
Hardware  8 A100-80GB or H100; estimated at 40 % of the A100's peak: 18 days
Published OpenAI's released weights have a validation loss of 2.67 on OpenWebText (nanoGPT's README)
"""

from dataclasses import replace

from configs.gpt2_124m import config as base
from gptjax.sharding.mesh import MeshConfig

config = replace(
    base,
    name="gpt2_774m",
    model=replace(base.model, num_layers=36, embed_dim=1280, num_heads=20),
    optimizer=replace(base.optimizer, learning_rate=2.5e-4),
    mesh=MeshConfig("fsdp"),
)
