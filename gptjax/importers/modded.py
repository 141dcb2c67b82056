"""Checkpoints of modded-nanogpt's record 11 (2024-11-10, U-Net and doubled rates): `state_stepNNNNNN.pt`.

Rotary positions turn the other way, so the halves of each head of q and k are exchanged. Its numbers lie otherwise than
here: `lamb` mixes the first layer's values in, `lambdas` are α and β, and the skip weights begin at the innermost pair.
It rounds the tables of its rotary positions to bfloat16, and here they are float32.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gptjax.core.errors import UserError
from gptjax.huggingface.architectures.weight_map import WeightMapping
from gptjax.importers.foreign import (
    MODERN,
    ForeignModel,
    ForeignTensor,
    collect_tensors,
    count_layers,
    list_names,
    make_config,
    read_torch_file,
)
from gptjax.importers.nanochat import LAYER
from gptjax.importers.nanochat import ROWS as NANOCHAT_ROWS
from gptjax.process.console import print_once

ROWS = [
    *NANOCHAT_ROWS,
    WeightMapping(f"{LAYER}.attn.mix", "blocks.attention.value_mix.mix", "C"),
    WeightMapping(f"{LAYER}.residual_mix", "blocks.mix.residual_mix", ""),
    WeightMapping(f"{LAYER}.x0_mix", "blocks.mix.x0_mix", ""),
    WeightMapping("skip_weights", "unet.skip_weights", "N"),
]
HEAD_DIM = 128


def read_modded(path: Path, *, num_heads: int | None = None, context_length: int | None = None) -> ForeignModel:
    """The model of a `state_step….pt`. The file does not say how many heads there are, nor the context.

    Args:
        num_heads: None takes heads of 128 channels, as the records have.
        context_length: None takes 1024.
    """
    content = read_torch_file(path)
    if "flex_attention" in str(content.get("code")):  # records 12 and 13, with the same weights
        seen = "a window of one document (flex_attention), and here the whole context"
        print_once(f"note: {path}: the attention of its record sees {seen}", to_stderr=True)
    tensors = _translate(collect_tensors(content.get("model"), path))
    embedding = tensors.get("transformer.wte.weight")
    layers = count_layers(tensors, r"transformer\.h\.(\d{1,9})\.")
    if embedding is None or len(embedding.shape) != 2 or layers < 2:
        found = list_names(list(tensors)) or "nothing"
        raise UserError(f"{path} is not of record 11, with transformer.wte.weight and layers: it holds {found}.")
    vocab, width = embedding.shape
    config = make_config(
        path,
        num_layers=layers,
        num_heads=num_heads or max(width // HEAD_DIM, 1),
        embed_dim=width,
        context_length=context_length or 1024,
        vocab_size=vocab,
        tie_embeddings=False,
        embedding_norm=True,
        unet_skips="learned",
        x0_mix=True,
        value_residual=True,
        logit_softcap=30.0,
        **MODERN,
    )
    return ForeignModel(path, config, tensors, ROWS)


def _translate(tensors: Mapping[str, ForeignTensor]) -> dict[str, ForeignTensor]:
    """The tensors with the learned numbers as here."""
    out: dict[str, ForeignTensor] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        size = math.prod(tensor.shape)
        if kind == "lamb" and size == 1:
            share = tensor.read().reshape(())
            out[f"{layer}.mix"] = ForeignTensor(np.stack([1 - share, share]))
        elif kind == "lambdas" and tensor.shape == (2,):
            residual, x0 = tensor.read()
            out |= {f"{layer}.residual_mix": ForeignTensor(residual), f"{layer}.x0_mix": ForeignTensor(x0)}
        elif name == "skip_weights" and len(tensor.shape) == 1:
            out[name] = ForeignTensor(tensor.read()[::-1])
        else:
            out[name] = tensor
    return out
