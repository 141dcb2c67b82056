"""Checkpoints of the speedrun on one A100 (github.com/shehab-ashraf/GPT-2): `pytorch_model.pt` and `nanogpt-….pt`.

The first is a dictionary of tensors alone; the second has them under `model`, beside `config`. A skip of its U-Net is
what a layer of the first half reads. Attention's output is divided by √(2 · layers), which here is part of the weight.
It rounds the tables of its rotary positions to bfloat16, and here they are float32.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.errors import UserError, quote
from gptjax.huggingface.architectures.weight_map import WeightMapping
from gptjax.importers.foreign import (
    MODERN,
    ForeignModel,
    ForeignTensor,
    collect_tensors,
    count_layers,
    list_names,
    make_config,
    read_number,
    read_torch_file,
)

LAYER = "blocks.{}"
ROWS = [
    WeightMapping("wte.weight", "token_embedding", "V D"),
    WeightMapping(f"{LAYER}.attn.c_attn.weight", "blocks.attention.qkv", "CHK D"),
    WeightMapping(f"{LAYER}.attn.c_proj.weight", "blocks.attention.out", "D HK"),
    WeightMapping(f"{LAYER}.mlp.c_fc.weight", "blocks.mlp.up", "F D"),
    WeightMapping(f"{LAYER}.mlp.c_proj.weight", "blocks.mlp.down", "D F"),
    WeightMapping("lm_head.weight", "head", "V D"),
]
HEAD_DIM, CONTEXT_LENGTH, SOFTCAP = 64, 2048, 30.0
"""What the run has, where a file does not say it."""


def read_speedrun(path: Path, *, num_heads: int | None = None, context_length: int | None = None) -> ForeignModel:
    """The model of a `pytorch_model.pt`. The head is tied if its tensor is that of the embedding.

    Args:
        num_heads: None takes those of the file's config or, without one, heads of 64 channels.
        context_length: None takes that of the file's config or, without one, 2048.
    """
    content = read_torch_file(path)
    settings = content.get("config")
    tensors = collect_tensors(content if settings is None else content.get("model"), path)
    layers = count_layers(tensors, r"blocks\.(\d{1,9})\.")
    embedding, head = tensors.get("wte.weight"), tensors.get("lm_head.weight")
    if embedding is None or head is None or len(embedding.shape) != 2 or layers < 2 or layers % 2:
        found = list_names(list(tensors)) or "nothing"
        raise UserError(f"{path} holds {found}; wanted: wte.weight, lm_head.weight and an even number of blocks.")
    vocab, width = embedding.shape
    read = lambda name, default: default if settings is None else read_number(settings, name, path)
    is_tied = head.shape == embedding.shape and np.array_equal(head.read(), embedding.read())
    config = make_config(
        path,
        num_layers=layers,
        num_heads=num_heads or read("num_heads", max(width // HEAD_DIM, 1)),
        embed_dim=width,
        context_length=context_length or read("max_seq_len", CONTEXT_LENGTH),
        vocab_size=vocab,
        tie_embeddings=is_tied,
        unet_skips="inputs",
        logit_softcap=_read_softcap(settings, path),
        **MODERN,
    )
    if is_tied:
        del tensors["lm_head.weight"]
    for layer in range(layers):
        if (output := tensors.get(name := f"blocks.{layer}.attn.c_proj.weight")) is not None:
            tensors[name] = ForeignTensor(output.read() / math.sqrt(2 * layers))
    return ForeignModel(path, config, tensors, ROWS)


def _read_softcap(settings: Any, path: Path) -> float:
    value = SOFTCAP if settings is None else settings.get("logit_softcap") if isinstance(settings, dict) else None
    if not isinstance(value, float) or not 0 < value < math.inf:
        raise UserError(f"{path}: its setting logit_softcap is {quote(repr(value))}; wanted: a positive number.")
    return value
