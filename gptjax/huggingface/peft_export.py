"""Adapters in PEFT's format: `adapter_model.safetensors` and its config, beside a model in Hugging Face's format.

PEFT adds B A · alpha / r to the weight of a linear layer, and its transpose to that of GPT-2's Conv1D, whose inputs
come first. A matrix here may be several modules there: the adapter of `qkv` becomes those of q_proj, k_proj and v_proj,
which share their A. Rows of added tokens are stored whole, under `trainable_token_indices`. A base that lacks the added
tokens must be resized to the tokenizer's size first.
"""

from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.errors import UserError
from gptjax.finetuning.adapters import Adapters
from gptjax.huggingface.architectures.architecture import EMBEDDING, HEAD, Architecture
from gptjax.huggingface.architectures.custom import CUSTOM
from gptjax.huggingface.architectures.selection import choose_architecture
from gptjax.huggingface.architectures.weight_map import WeightMapping, order_channels
from gptjax.huggingface.safetensors_dir import write_json, write_safetensors
from gptjax.model.gpt import GPT

Tensors = dict[str, np.ndarray]


def write_adapters(directory: Path, model: GPT, *, base: str | None) -> None:
    """Write the adapters of a model into a directory that exists.

    Args:
        base: name or directory of the model that they belong to, for `base_model_name_or_path`.

    Raises:
        UserError: the model has no adapters, or is of no class that transformers knows.
    """
    if model.adapters is None:
        raise UserError("the run has no adapters (lora.rank is 0). Use python -m gptjax.convert to-hf.")
    architecture, lora = choose_architecture(model.config), model.adapters.lora
    if architecture is CUSTOM:
        raise UserError(
            "PEFT adapts the modules of classes that transformers knows, and none can express this model "
            "(python -m gptjax.convert to-hf --architecture=llama names what it lacks). Export it merged, with to-hf."
        )
    if {HEAD, EMBEDDING} & {*model.adapters.names} and model.adapters.rows is not None:
        raise UserError(
            "PEFT cannot train both an adapter and rows of an embedding or a head, and this run did (lora.targets, "
            "lora.new_tokens). Export it merged, with to-hf."
        )
    tensors, modules = Tensors(), list[str]()
    for name in model.adapters.names:
        rows = [row for row in architecture.weights if row.path == name]
        for row in rows:
            modules.append(_module(row).rpartition("{}.")[2])
            tensors |= _split_adapter(row, model.adapters, name=name)
    rows = _list_trained_rows(model, model.adapters, architecture=architecture)
    for module, array in rows.items():
        tensors[f"base_model.model.{module}.token_adapter.trainable_tokens_delta"] = array
    content: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": architecture.model_type == "gpt2",
        "target_modules": modules,
        "inference_mode": True,
    }
    if rows:
        content["trainable_token_indices"] = {module.rpartition(".")[2]: list(lora.trained_rows) for module in rows}
    write_safetensors(directory / "adapter_model.safetensors", tensors)
    write_json(directory / "adapter_config.json", content)


def _module(row: WeightMapping) -> str:
    """The module that owns the tensor of a row."""
    return row.hf_name.removesuffix(".weight")


def _split_adapter(row: WeightMapping, adapters: Adapters, *, name: str) -> Tensors:
    """A and B of a row's module, in each layer if it is one of the blocks: (r, inputs) and (outputs, r)."""
    a, b = adapters.get_pair(name)
    config, words = adapters.config, row.hf_axes.split()
    ins, outs = a.axis_names[:-1], b.axis_names[1:]
    inputs = next(word for word in words if set(word) <= set(ins))
    outputs = next(word for word in words if word != inputs)
    a, b = np.asarray(a[...], np.float32), np.asarray(b[...], np.float32)
    if not row.is_stacked:  # an embedding or a head, without its rows of padding
        size = config.resolved_vocab_size
        a, b = (a[None, :size], b[None]) if name == EMBEDDING else (a[None], b[None, :, :size])
    if row.entry is not None:
        b, outs = b.take(row.entry, axis=2 + outs.index("C")), outs.replace("C", "")
    if row.head_order != "halves":
        b = b.take(order_channels(config.head_dim, row.head_order), axis=2 + outs.index("K"))
    a = a.transpose(0, a.ndim - 1, *(1 + ins.index(axis) for axis in inputs))
    b = np.transpose(b, [0, *(2 + outs.index(axis) for axis in outputs), 1])
    rank, part = adapters.lora.rank, "lora_embedding_{}" if name == EMBEDDING else "lora_{}.weight"
    found: Tensors = {}
    for layer in range(len(a)):
        module = f"base_model.model.{_module(row).format(layer)}"
        found[f"{module}.{part.format('A')}"] = np.ascontiguousarray(a[layer].reshape(rank, -1))
        found[f"{module}.{part.format('B')}"] = np.ascontiguousarray(b[layer].reshape(-1, rank))
    return found


def _list_trained_rows(model: GPT, adapters: Adapters, *, architecture: Architecture) -> Tensors:
    """The rows of added tokens, by the module that has them: of the embedding and, if it is untied, of the head."""
    if adapters.rows is None:
        return {}
    tokens, module = list(adapters.lora.trained_rows), {row.path: _module(row) for row in architecture.weights}
    rows = {module[EMBEDDING]: np.asarray(model.token_embedding[...])[tokens] + np.asarray(adapters.rows[...])}
    if model.head is not None and adapters.head_rows is not None:
        rows[module[HEAD]] = np.asarray(model.head[...]).T[tokens] + np.asarray(adapters.head_rows[...])
    return {name: np.ascontiguousarray(array) for name, array in rows.items()}
