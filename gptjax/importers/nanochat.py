"""Checkpoints of nanochat's first version: a directory with `model_STEP.pt` and `meta_STEP.json`.

Its rotary positions turn the other way, so the halves of each head of q and k are exchanged. Its norms have no gain
and take the smallest epsilon of float32. It rounds the tables of its rotary positions to bfloat16, and here they are
float32.
"""

from dataclasses import replace
from pathlib import Path

from gptjax.core.errors import UserError
from gptjax.huggingface.architectures.llama import map_projections
from gptjax.huggingface.architectures.weight_map import WeightMapping
from gptjax.huggingface.safetensors_dir import read_json
from gptjax.importers.foreign import MODERN, ForeignModel, collect_tensors, make_config, read_number, read_torch_file

LAYER = "transformer.h.{}"
ROWS = [
    WeightMapping("transformer.wte.weight", "token_embedding", "V D"),
    *map_projections({name: f"{LAYER}.attn.c_{name}.weight" for name in "qkv"}, head_order="swapped"),
    WeightMapping(f"{LAYER}.attn.c_proj.weight", "blocks.attention.out", "D HK"),
    WeightMapping(f"{LAYER}.mlp.c_fc.weight", "blocks.mlp.up", "F D"),
    WeightMapping(f"{LAYER}.mlp.c_proj.weight", "blocks.mlp.down", "D F"),
    WeightMapping("lm_head.weight", "head", "V D"),
]
VOCAB_MULTIPLE = 64
"""Since December 2025 it pads embedding and head to such a number of rows."""


def read_nanochat(directory: Path) -> ForeignModel:
    """The model of the last step in a directory. Rows that pad the vocabulary are left out.

    Raises:
        UserError: also for a later form, whose weights (such as `resid_lambdas`) are named.
    """
    files = sorted(directory.glob("model_*.pt"))
    if not files:
        raise UserError(f"{directory} has no model_STEP.pt. Give a directory of nanochat's checkpoints.")
    path = files[-1]
    meta = path.with_name(path.name.replace("model_", "meta_")).with_suffix(".json")
    settings = read_json(meta).get("model_config")
    number = lambda name: read_number(settings, name, meta)
    config = make_config(
        path,
        num_layers=number("n_layer"),
        num_heads=number("n_head"),
        num_kv_heads=None if number("n_kv_head") == number("n_head") else number("n_kv_head"),
        embed_dim=number("n_embd"),
        context_length=number("sequence_len"),
        vocab_size=(vocab := number("vocab_size")),
        tie_embeddings=False,
        embedding_norm=True,
        logit_softcap=15.0,
        **MODERN,
    )
    tensors = collect_tensors(read_torch_file(path), path)
    padded = -(-vocab // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    for name in ("transformer.wte.weight", "lm_head.weight"):
        if name in tensors and tensors[name].shape[:1] == (padded,):
            tensors[name] = replace(tensors[name], values=tensors[name].values[:vocab])
    return ForeignModel(path, config, tensors, ROWS)
