"""Checkpoints of llm.c: `model.bin`, a header of 256 int32 and all weights in one fixed order."""

import math
from pathlib import Path

import ml_dtypes
import numpy as np

from gptjax.core.errors import UserError
from gptjax.importers.foreign import ForeignModel, ForeignTensor, make_config
from gptjax.importers.nanogpt import ROWS
from gptjax.model.config import GPTConfig

MAGIC, HEADER_BYTES = 20240326, 1024
DTYPES = {3: np.dtype(np.float32), 5: np.dtype(ml_dtypes.bfloat16)}
"""Type of the weights by version."""
LARGEST = 2**24
"""Of the numbers in a header."""


def read_llmc(path: Path) -> ForeignModel:
    """The model of a `model.bin`. Rows that pad the vocabulary are left out."""
    if not path.is_file():
        raise UserError(f"{path} does not exist. Give the model.bin that llm.c wrote.")
    header = np.fromfile(path, np.int32, 256)
    if len(header) < 256 or header[0] != MAGIC or int(header[1]) not in DTYPES:
        found = header[:2].tolist()
        raise UserError(f"{path} begins with {found}; wanted: {MAGIC} and version 3 or 5, a model.bin of llm.c.")
    length, vocab, layers, heads, width, padded = map(int, header[2:8])
    if not all(0 < number <= LARGEST for number in (length, vocab, layers, heads, width, padded)) or vocab > padded:
        raise UserError(f"{path}: its header says {header[2:8].tolist()}, which is no model.")
    config = make_config(
        path, num_layers=layers, num_heads=heads, embed_dim=width, context_length=length, vocab_size=vocab
    )
    return ForeignModel(path, config, _read_tensors(path, config, padded, DTYPES[int(header[1])]), ROWS)


def _read_tensors(path: Path, config: GPTConfig, padded: int, dtype: np.dtype) -> dict[str, ForeignTensor]:
    """The tensors, mapped into memory."""
    layers, width = config.num_layers, config.embed_dim
    shapes = {
        "transformer.wte.weight": (padded, width),
        "transformer.wpe.weight": (config.context_length, width),
        "ln_1.weight": (layers, width),
        "ln_1.bias": (layers, width),
        "attn.c_attn.weight": (layers, 3 * width, width),
        "attn.c_attn.bias": (layers, 3 * width),
        "attn.c_proj.weight": (layers, width, width),
        "attn.c_proj.bias": (layers, width),
        "ln_2.weight": (layers, width),
        "ln_2.bias": (layers, width),
        "mlp.c_fc.weight": (layers, 4 * width, width),
        "mlp.c_fc.bias": (layers, 4 * width),
        "mlp.c_proj.weight": (layers, width, 4 * width),
        "mlp.c_proj.bias": (layers, width),
        "transformer.ln_f.weight": (width,),
        "transformer.ln_f.bias": (width,),
    }
    wanted = HEADER_BYTES + dtype.itemsize * sum(map(math.prod, shapes.values()))
    if (size := path.stat().st_size) != wanted:
        raise UserError(f"{path} has {size:,} bytes; its header implies {wanted:,}. Copy the file again.")
    tensors, offset = {}, HEADER_BYTES
    for name, shape in shapes.items():
        values = np.memmap(path, dtype, "r", offset, shape)
        offset += values.nbytes
        if name.startswith("transformer."):
            tensors[name] = ForeignTensor(values[: config.vocab_size] if "wte" in name else values)
        else:
            tensors |= {f"transformer.h.{i}.{name}": ForeignTensor(values[i]) for i in range(layers)}
    return tensors
