"""A model of another training program: its config, its tensors, and their counterparts here.

No pickle is executed: files of PyTorch are read by `torch.load(weights_only=True)`, which knows a closed list of types.
"""

import importlib.util
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.errors import UserError, quote
from gptjax.huggingface.architectures.weight_map import WeightMapping, get_shapes
from gptjax.huggingface.model_import import load_weights, select_rows
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.process.console import print_once

WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)+")
"""Prefixes of names that `torch.compile` and `DistributedDataParallel` add."""

DTYPES = ("float32", "bfloat16", "float16")
"""Of weights: those that become float32 without a loss."""
MODERN: dict[str, Any] = {
    "bias": False,
    "activation": "relu2",
    "positions": "rotary",
    "norm": "rms",
    "norm_scale": False,
    "norm_epsilon": float(np.finfo(np.float32).eps),
    "qk_norm": True,
}
"""Fields of the config that modded-nanogpt and the programs after it share. Their norms take PyTorch's epsilon."""


@dataclass(frozen=True)
class ForeignTensor:
    """A tensor of numpy or PyTorch, whose values are read when they are needed."""

    values: Any
    name: str = "a weight"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def dtype(self) -> str:
        return str(self.values.dtype).removeprefix("torch.")

    def read(self) -> np.ndarray:
        """The values in float32. Raises `UserError` if one is not finite, or of a type that this would round."""
        if self.dtype not in DTYPES:
            raise UserError(f"{self.name} is of type {self.dtype}; wanted: {', '.join(DTYPES)}. Convert it before.")
        values = self.values
        array = np.asarray(values.detach().float() if hasattr(values, "detach") else values, np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{self.name} holds values that are not finite (NaN or infinity).")
        return array


@dataclass(frozen=True)
class ForeignModel:
    """What a reader found in a file."""

    path: Path
    config: GPTConfig
    tensors: Mapping[str, ForeignTensor]
    rows: Sequence[WeightMapping]
    buffers: re.Pattern[str] = field(default=re.compile(r"(?!)"))
    """Names of tensors that are no weights."""

    def load(self) -> GPT:
        """The model, which computes in bfloat16 if all its tensors are bfloat16, else in float32.

        Raises:
            UserError: tensors are missing, not understood, or of another shape.
        """
        expected = get_shapes(select_rows(self.rows, self.config), self.config)
        found = {name: tensor for name, tensor in self.tensors.items() if not self.buffers.search(name)}
        if unknown := [name for name in found if name not in expected]:
            raise UserError(f"{self.path} holds {list_names(unknown)}, which is not understood.")
        if missing := [name for name in expected if name not in found]:
            raise UserError(f"{self.path} lacks {list_names(missing)}.")
        for name, shape in expected.items():
            if found[name].shape != shape:
                raise UserError(f"{self.path}: {name} has shape {found[name].shape}; wanted: {shape}.")
        types = {found[name].dtype for name in expected}
        compute = replace(self.config.compute, dtype="bfloat16" if types == {"bfloat16"} else "float32")
        return load_weights(replace(self.config, compute=compute), found, rows=self.rows)


def read_torch_file(path: Path) -> dict[str, Any]:
    """The dictionary in a file that `torch.save` wrote.

    Raises:
        UserError: torch is missing, the file is damaged, or it holds more than tensors, numbers, texts and containers.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{path} is a file of PyTorch. To read it, pip install 'gptjax[hf]'.")
    import torch  # pyright: ignore[reportMissingImports]

    if not path.is_file():
        found = "is no file" if path.exists() else "does not exist"
        files = ", ".join(quote(str(file)) for file in sorted(path.glob("*.pt"))[:3])
        raise UserError(f"{path} {found}. Give the file of a checkpoint{f': {files}' if files else ''}.")
    try:
        with warnings.catch_warnings(action="ignore"):  # of types that are refused below
            # Before PyTorch 1.6 a file was no archive, and those cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # pickle, zip and torch have errors of their own
        reason = str(error) or ("it is empty" if path.stat().st_size == 0 else type(error).__name__)
        raise UserError(f"{path} {_explain_unreadable(reason)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; wanted: a dictionary of tensors.")
    return content


def _explain_unreadable(reason: str) -> str:
    """What PyTorch's error means."""
    if found := re.search(r"GLOBAL ([\w.]+)", reason):
        return (
            f"holds {quote(found[1])}, and reading that can execute code. If you trust the file, load it with PyTorch, "
            "and save only its tensors, numbers and texts."
        )
    first = quote(reason.strip().partition("\n")[0].rstrip("."))
    return f"cannot be read as a file that torch.save wrote: {first}. If it was damaged on the way, copy it again."


def collect_tensors(state: Any, path: Path) -> dict[str, ForeignTensor]:
    """The tensors of a state dictionary by name, without the prefixes of wrappers."""
    import torch  # pyright: ignore[reportMissingImports]

    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds no dictionary of tensors where its weights should be.")
    plain = [WRAPPERS.sub("", str(name)) for name in state]
    if twice := [name for name, times in Counter(plain).items() if times > 1]:
        raise UserError(f"{path} holds {list_names(twice)} twice. Keep the one that is meant.")
    check_storage(dict(zip(plain, state.values(), strict=True)), path)
    found = {part for name in state if (prefix := WRAPPERS.match(str(name))) for part in prefix[0].split(".") if part}
    if found:
        names = " and ".join(f"{name}." for name in sorted(found))
        print_once(f"note: {path}: the names of its weights lose {names}, which a wrapper added", to_stderr=True)
    where = f"{path}: the weight "
    return {name: ForeignTensor(x, f"{where}{quote(name)}") for name, x in zip(plain, state.values(), strict=True)}


def check_storage(tensors: Mapping[str, Any], path: Path) -> None:
    """Raise `UserError` for tensors that hold no values of their own, or fewer than their shapes say.

    A few bytes may stand for gigabytes: `expand` repeats one value, and many tensors may share one storage. Weights
    share at most one, an embedding and its head.
    """
    stored: dict[int, int] = {}
    for name, tensor in tensors.items():
        if str(tensor.layout) != "torch.strided" or tensor.device.type != "cpu" or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}".removeprefix("torch.")
            raise UserError(f"{path}: the weight {quote(name)} is {kind}; wanted: a dense tensor with values.")
        storage = tensor.untyped_storage()
        if tensor.nbytes > storage.nbytes():
            raise UserError(
                f"{path}: the weight {quote(name)} has {tensor.nbytes:,} bytes by its shape, and {storage.nbytes():,} "
                "are stored: its values are repeated. Save it with .contiguous()."
            )
        stored[storage.data_ptr()] = storage.nbytes()
    if (size := sum(tensor.nbytes for tensor in tensors.values())) > 2 * sum(stored.values()):
        raise UserError(f"{path}: its weights have {size:,} bytes, and {sum(stored.values()):,} are stored.")


def make_config(path: Path, **options: Any) -> GPTConfig:
    """The config with these fields. A `UserError` names the file that they come from."""
    try:
        return GPTConfig(**options)
    except UserError as error:
        raise UserError(f"{path}: its sizes make no model: {error}") from None


def count_layers(tensors: Mapping[str, ForeignTensor], pattern: str) -> int:
    """Layers in the names of tensors; `pattern` has the number as its group."""
    numbers = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    return 1 + max(numbers, default=-1)


def read_number(settings: Any, name: str, path: Path) -> int:
    """A positive number in a dictionary of settings."""
    value = settings.get(name) if isinstance(settings, dict) else None
    if type(value) is not int or not 0 < value < 2**31:
        raise UserError(f"{path}: its setting {name} is {quote(repr(value))}; wanted: a positive number.")
    return value


def check_tied(tensors: dict[str, ForeignTensor], path: Path, *, head: str, embedding: str) -> dict[str, ForeignTensor]:
    """The tensors without a head that equals the embedding. Raises `UserError` if it does not."""
    if head not in tensors or embedding not in tensors:
        return tensors
    if not np.array_equal(tensors[head].read(), tensors[embedding].read()):
        raise UserError(f"{path}: {head} differs from {embedding}, though they are tied in this program.")
    return {name: tensor for name, tensor in tensors.items() if name != head}


def list_names(names: Sequence[str]) -> str:
    """The first names of tensors, quoted, for a message."""
    return ", ".join(map(quote, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
