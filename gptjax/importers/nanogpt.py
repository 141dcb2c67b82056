"""Checkpoints of nanoGPT: `ckpt.pt` with `model` and `model_args`."""

import re
from pathlib import Path

from gptjax.core.errors import UserError
from gptjax.huggingface.architectures.gpt2 import WEIGHTS as GPT2_WEIGHTS
from gptjax.huggingface.architectures.weight_map import WeightMapping
from gptjax.importers.foreign import (
    ForeignModel,
    check_tied,
    collect_tensors,
    make_config,
    read_number,
    read_torch_file,
)

TRANSPOSED = {"D CHK": "CHK D", "HK D": "D HK", "D F": "F D", "F D": "D F"}
ROWS = [
    WeightMapping(row.hf_name, row.path, TRANSPOSED.get(row.hf_axes, row.hf_axes))
    for row in GPT2_WEIGHTS
    if row.path != "head"
]
"""GPT-2's tensors, by `nn.Linear`, which stores (out, in)."""


def read_nanogpt(path: Path) -> ForeignModel:
    """The model of a `ckpt.pt`. Its GELU is the exact one (`nn.GELU`), also for weights of GPT-2."""
    content = read_torch_file(path)
    settings = content.get("model_args")
    if not isinstance(settings, dict):
        raise UserError(f"{path} has no model_args. Give the ckpt.pt that nanoGPT's train.py wrote.")
    config = make_config(
        path,
        num_layers=read_number(settings, "n_layer", path),
        num_heads=read_number(settings, "n_head", path),
        embed_dim=read_number(settings, "n_embd", path),
        context_length=read_number(settings, "block_size", path),
        vocab_size=read_number(settings, "vocab_size", path),
        bias=settings.get("bias", True) is True,
        activation="gelu",
    )
    tensors = collect_tensors(content.get("model"), path)
    tensors = check_tied(tensors, path, head="lm_head.weight", embedding="transformer.wte.weight")
    return ForeignModel(path, config, tensors, ROWS, buffers=re.compile(r"\.attn\.(masked_)?bias$"))
