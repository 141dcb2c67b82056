"""Long sequences, separate documents, growing windows: the speedrun of January 2025, 3.28 on FineWeb with 0.7 B tokens.

    python -m data_pipelines.fetch fineweb_10b --output=data/fineweb_10b
    bash launch/gpu_node.sh --config=configs/speedrun_windows.py

Data      as speedrun_162m, sequences of 49,152; a document begins at each `<|endoftext|>`; validation has the last
          windows
Model     as speedrun_unet with rotary positions on half of each head, three tables of value embeddings for the outer
          layers, logits capped at 15, and windows LSSSLSSLSSSL, the short ones half as long
Optimizer 1,770 steps of 393,216 tokens; Muon at 0.05 with momentum 0.85 → 0.95, Adam for all other parameter groups
Hardware  8 H100, where attention within documents is cuDNN's; on A100s it is XLA's, in blocks, and slower
Published modded-nanogpt, record 21: 3.2787, the mean of 81 runs, 2.93 minutes on 8 H100. There the windows grow in 14
          steps of 128, here in 7 of 256 (a program is compiled for each); block 7 has no attention, here it has; tables
          of values start at N(0, 1), here like other weights; values of layers without one are scaled, here not;
          validation is on one stream of 262,144 tokens, here on sequences of 49,152; the softmax is over 50,304 tokens,
          here over 50,257. Momentum here is optax's, an average without bias from the first step on, so the first ten
          updates differ
"""

from dataclasses import replace

from configs.speedrun_unet import config as base
from gptjax.evaluators.validation import ValidationLoss
from gptjax.optim import Constant, ParamGroup, WarmupStableDecay
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
    optimizer=replace(
        base.optimizer,
        learning_rate=0.05,
        momentum_schedule=Constant(warmup_steps=300),
        beta1=0.8,
        value_embedding=ParamGroup(0.6),
        schedule=WarmupStableDecay(decay_fraction=0.4, min_ratio=0.1),
    ),
    evaluators=(ValidationLoss(every=250, tokens=10_485_760, batch_size=8),),
)
