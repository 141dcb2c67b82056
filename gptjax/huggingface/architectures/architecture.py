"""An architecture: a model class of another program, its tensors, its fields of config.json, and what they are here.

The export and the import read the same tables. What an architecture cannot express is found by field of `GPTConfig`: a
field that no table names must have its default.
"""

import dataclasses
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gptjax.core.errors import UserError, quote
from gptjax.huggingface.architectures.weight_map import WeightMapping
from gptjax.model.config import GPTConfig
from gptjax.model.positions import POSITIONS
from gptjax.sharding.devices import DType

CONFIG_FILE = "config.json"
HEAD, EMBEDDING = "head", "token_embedding"
"""Paths of the output head and of the embedding, which may be tied."""
LONGEST_REASON = 400
"""Characters shown of why a config is none; it may hold a value of config.json."""
NOT_COMPUTED = frozenset({"init", "compute", "dropout", "intra_document_mask"})
"""Fields of `GPTConfig` that do not change what given weights compute for one text."""


@dataclass(frozen=True)
class HFOrigin:
    """Facts that an import keeps for a later export."""

    config: dict[str, Any]
    """The content of config.json."""
    dtype: DType
    """Type of the tensors; float32 if they were of several."""


@dataclass(frozen=True)
class Architecture:
    """One class of models. A subclass adds what a table cannot say."""

    model_type: str
    """As config.json names it; also the name of the architecture on the command line."""
    hf_class: str
    """The class in transformers."""
    weights: tuple[WeightMapping, ...]
    fields: Mapping[str, str]
    """Field of config.json → field of GPTConfig."""
    activation_field: str
    activations: Mapping[str, str]
    """Activation of config.json → activation here. The export uses the first that fits."""
    implied: Mapping[str, Any] = field(default_factory=dict)
    """Fields of GPTConfig that have this value in every model of the architecture."""
    free: frozenset[str] = frozenset()
    """Other fields of GPTConfig that may have any value: a subclass writes them, or zeros and ones stand for them."""
    required: Mapping[str, Any] = field(default_factory=dict)
    """Fields of config.json that would change the computation, with the value that is supported."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of `fields` that config.json may omit; the others must be there."""
    prefix: str = ""
    """Of the names of tensors. Base models are saved without it."""
    buffers: re.Pattern[str] = re.compile(r"(?!)")
    """Names of tensors that are no weights."""

    @property
    def title(self) -> str:
        """The architecture in a message."""
        return f"{self.hf_class} of Hugging Face"

    @property
    def code(self) -> Path | None:
        """A Python file that transformers needs to load the model; None: it has the class itself."""
        return None

    # --- export ---

    def list_refused(self, config: GPTConfig) -> list[str]:
        """The fields of a config, as flags with their values, that this architecture cannot express."""
        config = drop_ineffective(config)
        known = {*self.fields.values(), *self.free, *NOT_COMPUTED, "activation"}
        refused = [
            found.name
            for found in dataclasses.fields(config)
            if found.name not in known and getattr(config, found.name) != self.implied.get(found.name, found.default)
        ]
        if config.activation not in self.activations.values():
            refused.append("activation")
        if config.positions not in POSITIONS.builtin and "positions" not in refused:
            refused.append("positions")
        return [f"model.{name}={getattr(config, name)}" for name in refused]

    def check(self, config: GPTConfig) -> None:
        """Raise `UserError` with the fields that this architecture cannot express."""
        if refused := self.list_refused(config):
            raise UserError(
                f"{self.title} cannot express {', '.join(refused)}, so the model cannot be exported as "
                f"{self.model_type}. Use --architecture=auto, or keep it as a run directory."
            )

    def write_config(self, config: GPTConfig) -> dict[str, Any]:
        """The architecture as fields of config.json."""
        content: dict[str, Any] = {"architectures": [self.hf_class], "model_type": self.model_type}
        content |= {**self.required} | {hf_field: getattr(config, name) for hf_field, name in self.fields.items()}
        content["vocab_size"] = config.resolved_vocab_size
        found = next(hf_name for hf_name, name in self.activations.items() if name == config.activation)
        return content | {self.activation_field: found}

    def list_losses(self, config: GPTConfig) -> list[str]:
        """What the export, or another program that reads it, leaves out of this model; one sentence each."""
        if config.intra_document_mask:
            return ["The model was trained with documents hidden from each other. There, a text is one document."]
        return []

    # --- import ---

    def read_config(self, content: Mapping[str, Any], *, path: Path) -> GPTConfig:
        """The config that config.json at `path` describes. Raises `UserError` with a field that is not supported."""
        for name, value in self.required.items():
            if content.get(name, value) != value:
                raise UserError(
                    f"{path}: {name} is {quote(repr(content[name]))}, a variant that is not supported; wanted: {value}."
                )
        activation = content.get(self.activation_field, next(iter(self.activations)))
        if not isinstance(activation, str) or activation not in self.activations:
            raise UserError(
                f"{path}: {self.activation_field} is {quote(repr(activation))}; supported: "
                f"{', '.join(self.activations)}."
            )
        values = {name: self._read_field(content, hf_field, path=path) for hf_field, name in self.fields.items()}
        try:
            return GPTConfig(**{**self.implied, **values, "activation": self.activations[activation]})
        except UserError as error:
            raise UserError(f"{path}: {quote(str(error), limit=LONGEST_REASON)}") from None

    def _read_field(self, content: Mapping[str, Any], hf_field: str, *, path: Path) -> Any:
        """A field's value, of the type that the field of `GPTConfig` has."""
        if hf_field not in content and hf_field not in self.defaults:
            raise UserError(f"{path} lacks {hf_field}. Give the config of a saved {self.model_type} model.")
        value, hint = content.get(hf_field, self.defaults.get(hf_field)), HINTS[self.fields[hf_field]]
        if (
            type(value) is int
            and abs(value) < 2**53
            and not matches_type(value, hint)
            and matches_type(float(value), hint)
        ):
            return float(value)
        if not matches_type(value, hint):
            words = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
            wanted = ", ".join(words) or getattr(hint, "__name__", str(hint))
            raise UserError(f"{path}: {hf_field} is {quote(repr(value))}; wanted: {wanted}.")
        return value


HINTS = typing.get_type_hints(GPTConfig)
"""The type of each field of `GPTConfig`."""


def matches_type(value: Any, hint: Any) -> bool:
    """True if a value read from JSON is of this type: a plain type, one of several, or one of a few words."""
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if arguments := typing.get_args(hint):
        return any(matches_type(value, argument) for argument in arguments)
    return type(value) is hint


def drop_ineffective(config: GPTConfig) -> GPTConfig:
    """The config with defaults in place of values that compute the same."""
    changes: dict[str, Any] = {}
    if config.num_kv_heads == config.num_heads:
        changes["num_kv_heads"] = None
    default_scale = replace(config, attention_scale=None).resolved_attention_scale
    if math.isclose(config.resolved_attention_scale, default_scale, rel_tol=1e-12):
        changes["attention_scale"] = None
    if not any(map(config.window, range(config.num_layers))):
        changes |= {"window_pattern": "L", "long_window": None, "short_window": None}
    return replace(config, **changes)
