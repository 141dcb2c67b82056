"""Export of a model: tensors and config.json in one of the architectures."""

from typing import Any

import numpy as np

from gptjax.core.errors import UserError
from gptjax.huggingface.architectures.architecture import Architecture, HFOrigin
from gptjax.huggingface.architectures.selection import choose_architecture
from gptjax.huggingface.architectures.weight_map import DTYPES, WeightMapping, list_parameters
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.sharding.devices import DType


def to_hf(model: GPT, *, architecture: Architecture | None = None, dtype: DType = "float32") -> dict[str, np.ndarray]:
    """All tensors of the model by the architecture's names, in host memory. Default: the first architecture that fits.

    Raises:
        UserError: the architecture lacks a part or a weight of the model, or a number is too large for float16.
    """
    architecture = architecture or choose_architecture(model.config)
    architecture.check(model.config)
    return export_tensors(model, architecture.weights, title=architecture.title, dtype=dtype)


def export_tensors(model: GPT, rows: tuple[WeightMapping, ...], *, title: str, dtype: DType) -> dict[str, np.ndarray]:
    """The tensors of a weight map by name."""
    parameters = list_parameters(model)
    if unknown := parameters.keys() - {row.path for row in rows}:
        raise UserError(
            f"{title} has no counterpart of the weights {', '.join(sorted(unknown))}, so the model cannot be exported. "
            "Keep it as a run directory."
        )
    out: dict[str, np.ndarray] = {}
    for row in rows:
        if row.path in parameters or row.default is not None:
            out |= _export_weight(row, parameters.get(row.path), config=model.config, dtype=dtype)
    return out


def _export_weight(row: WeightMapping, parameter: Any, *, config: GPTConfig, dtype: DType) -> dict[str, np.ndarray]:
    """A row's tensors by name."""
    names = row.list_names(config)
    if parameter is None:
        return {name: np.full(row.get_hf_shape(config), row.default, DTYPES[dtype]) for name in names}
    weights = np.asarray(parameter[...])
    layers = weights if row.is_stacked else weights[None]
    return {
        name: cast_tensor(row.to_hf(layers[i, ...], axis_names=parameter.axis_names, config=config), dtype, name=name)
        for i, name in enumerate(names)
    }


def cast_tensor(values: np.ndarray, dtype: DType, *, name: str) -> np.ndarray:
    """The values in another type. Raises `UserError` for a number that is too large for float16."""
    # ml_dtypes and numpy round to nearest even, so values that came from this type get their own bits back.
    with np.errstate(over="ignore"):
        out = np.asarray(values, dtype=DTYPES[dtype])
    if dtype == "float16" and (np.isinf(out) & np.isfinite(values)).any():
        raise UserError(f"{name} holds {np.abs(values).max():.3g}, too large for float16. Use --dtype=bfloat16.")
    return out


def to_hf_config(
    config: GPTConfig,
    *,
    architecture: Architecture | None = None,
    dtype: DType,
    end_of_text: int | None,
    begin_of_text: int | None = None,
    origin: HFOrigin | None = None,
) -> dict[str, Any]:
    """The content of config.json. Fields of `origin` without a counterpart here keep their values.

    Args:
        end_of_text: the id that ends a text, if there is one.
        begin_of_text: the id that begins a text. None: that which ends it.

    Raises:
        UserError: the architecture lacks a part of the model.
    """
    architecture = architecture or choose_architecture(config)
    architecture.check(config)
    begin = end_of_text if begin_of_text is None else begin_of_text
    content: dict[str, Any] = {"bos_token_id": begin, "eos_token_id": end_of_text}
    written = architecture.write_config(config) | {"dtype": dtype}
    if origin is None or origin.config.get("model_type") != architecture.model_type:
        return content | written
    kept = origin.config
    spelling = kept.get(architecture.activation_field, next(iter(architecture.activations)))
    if architecture.activations.get(spelling) == config.activation:
        written[architecture.activation_field] = spelling  # one of several names
    if "torch_dtype" in kept:  # as transformers 4 spells it
        written["torch_dtype"] = dtype
    training_only = {name for name in written if name.endswith(("_pdrop", "_dropout"))}
    return content | written | kept | {name: value for name, value in written.items() if name not in training_only}
