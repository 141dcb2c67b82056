"""Adapters in PEFT's format, beside a GPT-2 in Hugging Face's format: `adapter_model.safetensors` and its config.

PEFT adds (B A)ᵀ · alpha / r to the weight of a Conv1D, whose inputs come first. Rows of added tokens are stored whole,
under `trainable_token_indices`. A base that lacks the added tokens must be resized to the tokenizer's size first.
"""

from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.errors import UserError
from gptjax.huggingface.forms import FORMS
from gptjax.huggingface.safetensors_dir import write_json, write_safetensors
from gptjax.model.gpt import GPT

MODULES = {
    "blocks.attention.qkv": "attn.c_attn",
    "blocks.attention.out": "attn.c_proj",
    "blocks.mlp.up": "mlp.c_fc",
    "blocks.mlp.down": "mlp.c_proj",
}
"""Our name of a stack of weights → GPT-2's name in each layer."""


def write_adapters(directory: Path, model: GPT, *, base: str | None) -> None:
    """Write the adapters of a model into a directory that exists.

    Args:
        base: name or directory of the model that they belong to, for `base_model_name_or_path`.

    Raises:
        UserError: the model has no adapters, or is no GPT-2.
    """
    if model.adapters is None:
        raise UserError("the run has no adapters (lora.rank is 0). Use python -m gptjax.convert to-hf.")
    FORMS["gpt2"].check(model.config)
    lora, tensors = model.adapters.lora, {}
    for name in model.adapters.names:
        a, b = (np.asarray(array[...], np.float32) for array in model.adapters.get_pair(name))
        for layer in range(model.config.num_layers):
            prefix = f"base_model.model.transformer.h.{layer}.{MODULES[name]}"
            tensors[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(a[layer].reshape(-1, lora.rank).T)
            tensors[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(b[layer].reshape(lora.rank, -1).T)
    content: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": True,
        "target_modules": [MODULES[name] for name in model.adapters.names],
        "inference_mode": True,
    }
    if lora.new_tokens:
        rows = np.asarray(model.tokens[...])[list(lora.new_tokens)] + np.asarray(model.adapters.rows[...])
        tensors["base_model.model.transformer.wte.token_adapter.trainable_tokens_delta"] = np.ascontiguousarray(rows)
        content["trainable_token_indices"] = list(lora.new_tokens)
    write_safetensors(directory / "adapter_model.safetensors", tensors)
    write_json(directory / "adapter_config.json", content)
