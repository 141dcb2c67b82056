"""Export to Hugging Face's GPT-2: tensors and config.json.

GPT2LMHeadModel always has biases. A model without them is exported with zeros, and imported again it has biases and
computes the same.
"""

from dataclasses import fields
from typing import Any

import jax
import numpy as np
from flax import nnx

from gptjax.core.errors import UserError
from gptjax.huggingface.gpt2_mapping import (
    ACTIVATIONS,
    DTYPES,
    FIELDS,
    HEAD,
    REQUIRED,
    WEIGHT_MAP,
    DTypeName,
    HFOrigin,
    WeightMapping,
    format_path,
    get_axis_sizes,
    get_hf_shape,
    is_param,
)
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT

EXPORTABLE_FIELDS = {*FIELDS.values(), "activation", "bias", "dropout"}
"""Fields of GPTConfig that GPT2LMHeadModel can express. All others must have their defaults."""
IGNORED_SECTIONS = {"init", "compute"}
"""Sections of GPTConfig that do not change what given weights mean."""


def to_hf(model: GPT, *, dtype: DTypeName = "float32") -> dict[str, np.ndarray]:
    """All tensors of the model by Hugging Face's names, in host memory.

    Raises:
        UserError: GPT-2 lacks a part or a weight of the model, or a number is too large for float16.
    """
    check_exportable(model.config)
    parameters = {format_path(path): leaf for path, leaf in jax.tree.leaves_with_path(model, is_leaf=is_param)}
    if unknown := parameters.keys() - {row.path for row in WEIGHT_MAP}:
        raise UserError(
            f"Hugging Face's GPT-2 has no counterpart of the weights {', '.join(sorted(unknown))}, so the model cannot "
            "be exported as GPT-2. Keep it as a run directory."
        )
    out: dict[str, np.ndarray] = {}
    for row in WEIGHT_MAP:
        if row is not HEAD or row.path in parameters:
            out |= _export_weight(row, parameters.get(row.path), config=model.config, dtype=dtype)
    return out


def check_exportable(config: GPTConfig) -> None:
    """Raise `UserError` with the fields that GPT2LMHeadModel cannot express."""
    refused = [
        field.name
        for field in fields(config)
        if field.name not in EXPORTABLE_FIELDS | IGNORED_SECTIONS and getattr(config, field.name) != field.default
    ]
    if config.activation not in ACTIVATIONS.values():
        refused.append("activation")
    if refused:
        found = ", ".join(f"model.{name}={getattr(config, name)}" for name in refused)
        raise UserError(
            f"Hugging Face's GPT-2 cannot express {found}, so the model cannot be exported as GPT-2. Keep it as a run "
            "directory."
        )


def _export_weight(
    row: WeightMapping, parameter: nnx.Param[Any] | None, *, config: GPTConfig, dtype: DTypeName
) -> dict[str, np.ndarray]:
    """A row's tensors by name; zeros for a bias that the model lacks."""
    names = row.list_names(config)
    if parameter is None:
        return {name: np.zeros(get_hf_shape(row, config), DTYPES[dtype]) for name in names}
    weights = np.asarray(parameter[...])
    layers = weights if row.is_stacked else weights[None]
    return {
        name: _cast(_to_hf_axes(layer, row, axis_names=parameter.axis_names, config=config), dtype, name=name)
        for name, layer in zip(names, layers, strict=True)
    }


def _to_hf_axes(weight: np.ndarray, row: WeightMapping, *, axis_names: str, config: GPTConfig) -> np.ndarray:
    """A layer's weight without padding, its axes ordered and merged as in the tensor."""
    sizes = get_axis_sizes(config, padded=False)
    unpadded = weight[tuple(slice(sizes[axis]) for axis in axis_names)]
    ordered = unpadded.transpose([axis_names.index(axis) for axis in row.hf_axes.replace(" ", "")])
    return ordered.reshape(get_hf_shape(row, config))


def _cast(values: np.ndarray, dtype: DTypeName, *, name: str) -> np.ndarray:
    # ml_dtypes and numpy round to nearest even, so values that came from this type get their own bits back.
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(values, dtype=DTYPES[dtype])
    if dtype == "float16" and (np.isinf(out) & np.isfinite(values)).any():
        raise UserError(f"{name} holds {np.abs(values).max():.3g}, too large for float16. Use --dtype=bfloat16.")
    return out


def to_hf_config(
    config: GPTConfig, *, dtype: DTypeName, end_of_text: int | None, origin: HFOrigin | None = None
) -> dict[str, Any]:
    """The content of config.json. Fields of `origin` without a counterpart here keep their values.

    Args:
        end_of_text: the id that begins and ends a text, if there is one.

    Raises:
        UserError: GPT-2 lacks a part of the model.
    """
    check_exportable(config)
    content: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    content |= dict.fromkeys(("bos_token_id", "eos_token_id"), end_of_text) | REQUIRED
    content |= origin.config if origin else {}
    content |= {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": dtype}
    content |= {hf_field: getattr(config, field) for hf_field, field in FIELDS.items()}
    content["vocab_size"] = config.resolved_vocab_size
    if ACTIVATIONS.get(content.setdefault("activation_function", "gelu_new")) != config.activation:
        content["activation_function"] = next(hf for hf, name in ACTIVATIONS.items() if name == config.activation)
    if "torch_dtype" in content:  # as transformers 4 spells it
        content["torch_dtype"] = dtype
    return content
