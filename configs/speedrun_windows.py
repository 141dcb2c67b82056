"""Long rows, documents kept apart, windows that grow: the speedrun of January 2025, 3.28 on FineWeb with 0.7 B tokens.

    python -m data_pipelines.fetch fineweb_10b --output=data/fineweb_10b
    bash launch/gpu_node.sh --config=configs/speedrun_windows.py

Data      FineWeb in GPT-2 tokens, rows of 49,152; `<|endoftext|>` says where documents begin; the first 10,485,760
          validation tokens are judged, with the last windows
Model     12 layers × 768, 6 heads of 128, half of each turned: QK-norm, RMSNorm without gain, squared ReLU, learned
          U-Net skips, the embeddings mixed into every block, three tables of value embeddings for the outer layers,
          windows L S S S L S and back, the short ones half as long, logits capped at 15
Optimizer 1,770 steps of 393,216 tokens; Muon at 0.05 with momentum 0.85 → 0.95, Adam for each other group
Hardware  8 A100 or H100. No fast kernel knows documents here: attention is XLA's, in blocks, and slower
Published modded-nanogpt, record 21: 3.2787, the mean of 81 runs, 2.93 minutes on 8 H100. There the windows grow in 14
          steps of 128, here in 7 of 256 (a program is compiled for each); block 7 has no attention, ours has; tables of
          values start at N(0, 1), ours as the other weights; values of layers without one are scaled, ours are not; it
          judges one stream of 262,144 tokens, we rows of 49,152; its softmax is over 50,304 tokens, ours over 50,257.
          Muon's momentum is optax's here, an average without bias from the first step on: its first ten updates differ
Measured  not yet by us
"""

from dataclasses import replace

from configs.speedrun_unet import config as base
from gptjax.optim.optimizers import Muon, ParamGroup
from gptjax.optim.schedules import Constant, WarmupStableDecay
from gptjax.training.evaluators import ValidationLoss
from gptjax.training.stages import Stage

STEPS = 1770
WINDOWS = range(256, 1793, 256)

config = replace(
    base,
    name="speedrun_windows",
    steps=STEPS,
    batch_size=8,
    model=replace(
        base.model,
        context_length=49_152,
        rotary_fraction=0.5,
        rotary_base=1024.0,
        attention_scale=0.12,
        window_pattern="LSSSLSSLSSSL",
        long_window=WINDOWS[-1],
        short_window=WINDOWS[-1] // 2,
        intra_document_mask=True,
        value_residual=False,
        value_embeddings="012......012",
        logit_softcap=15.0,
        init=replace(base.model.init, std=0.5),
    ),
    stages=tuple(
        Stage(begin=i * STEPS // len(WINDOWS), long_window=window, short_window=window // 2)
        for i, window in enumerate(WINDOWS)
    ),
    optimizer=Muon(
        learning_rate=0.05,
        momentum_schedule=Constant(warmup_steps=300),
        beta1=0.8,
        embedding=ParamGroup(0.6),
        value_embedding=ParamGroup(0.6),
        head=ParamGroup(0.008),
        vector=ParamGroup(0.04),
        schedule=WarmupStableDecay(decay_fraction=0.4, min_ratio=0.1),
    ),
    evaluators=(ValidationLoss(every=250, tokens=10_485_760, batch_size=8),),
)
