"""Tiny GPT-2s in Hugging Face's format with drawn weights, made without torch or transformers."""

import json
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]
CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_layer": 3,
    "n_head": 3,
    "n_embd": 30,
    "n_positions": 13,
    "vocab_size": 251,
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "tie_word_embeddings": True,
    "attn_pdrop": 0.1,
    "summary_type": "cls_index",
    "bos_token_id": 7,
    "eos_token_id": 7,
    "dtype": "float32",
}
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def make_hf_config(**changes: Any) -> dict[str, Any]:
    return CONFIG | changes


def list_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors by name, as transformers documents them."""
    width, inner = config["n_embd"], config["n_inner"] or 4 * config["n_embd"]
    block = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.c_attn.weight": (width, 3 * width),
        "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width),
        "attn.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (width, inner),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (inner, width),
        "mlp.c_proj.bias": (width,),
    }
    out = {"wte.weight": (config["vocab_size"], width), "wpe.weight": (config["n_positions"], width)}
    out |= {f"h.{i}.{name}": shape for i in range(config["n_layer"]) for name, shape in block.items()}
    out |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    out = {f"transformer.{name}": shape for name, shape in out.items()}
    return out if config["tie_word_embeddings"] else out | {"lm_head.weight": (config["vocab_size"], width)}


def draw_tensors(config: dict[str, Any], *, seed: int = 0, dtype: str = "float32") -> Tensors:
    """All tensors, biases too, large enough to matter. The stream of `RandomState` never changes."""
    out = {}
    for name, shape in list_shapes(config).items():
        noise = np.random.RandomState(zlib.crc32(f"{seed} {name}".encode())).standard_normal(shape)
        centre = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        out[name] = (centre + 0.2 * noise).astype(DTYPES[dtype])
    return out


def write_model_dir(directory: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def are_identical(left: Tensors, right: Tensors) -> bool:
    """True if the tensors have the same names, types, shapes and bytes."""
    describe = lambda tensors: {name: (t.dtype.name, t.shape, t.tobytes()) for name, t in tensors.items()}
    return describe(left) == describe(right)
