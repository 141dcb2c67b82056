"""Adapters in PEFT's format, merged into the model that they belong to: what `peft_export` writes, and others' LoRA.

Merging happens among the tensors of the model's architecture: a linear layer gains B A · alpha / r, GPT-2's Conv1D its
transpose. Rows of trained tokens, and weights that were saved whole, replace those of the model.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.errors import UserError, quote
from gptjax.finetuning.vocabulary import grow_vocabulary
from gptjax.huggingface.architectures.architecture import EMBEDDING, HEAD, Architecture
from gptjax.huggingface.architectures.custom import CUSTOM
from gptjax.huggingface.architectures.selection import choose_architecture
from gptjax.huggingface.model_export import to_hf
from gptjax.huggingface.model_import import load_weights
from gptjax.huggingface.safetensors_dir import open_tensors, read_json
from gptjax.model.gpt import GPT

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B, ROWS = "base_model.model.", ".lora_A.weight", ".lora_B.weight", ".token_adapter.trainable_tokens_delta"
EMBEDDING_A, EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
PARTNERS = {A: B, EMBEDDING_A: EMBEDDING_B}
"""How the names of the two matrices of an adapter end."""
WRAPPERS = (".token_adapter", ".base_layer")
"""Parts of the name of a weight that is saved whole, as a resized embedding is."""
CHANGED = ("use_dora", "use_qalora", "layer_replication", "alora_invocation_tokens", "lora_bias", "target_parameters")
"""Fields of variants that compute something else."""
KEEPS_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` under which the frozen weights stay those of the base."""

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class PeftAdapter:
    """What a directory of PEFT holds."""

    directory: Path
    content: dict[str, Any]
    """Its config."""
    tensors: Tensors
    """By name, without `base_model.model.`; float32."""

    @property
    def base(self) -> str | None:
        """Name or directory of the model that it belongs to."""
        found = self.content.get("base_model_name_or_path")
        return found if isinstance(found, str) and found else None

    @property
    def num_tokens(self) -> int:
        """The least vocabulary that has all tokens whose rows it holds."""
        listed = [token for _, tokens in self.list_trained_rows() for token in tokens]
        saved = [len(array) for name, array in self.tensors.items() if name.endswith(("wte.weight", "tokens.weight"))]
        return max([*(token + 1 for token in listed), *saved], default=0)

    def list_trained_rows(self) -> Iterator[tuple[str, list[int]]]:
        """Yield modules with the tokens whose rows are trained; the embedding is called ''."""
        found = self.content.get("trainable_token_indices") or {}
        for module, tokens in (found if isinstance(found, dict) else {"": found}).items():
            if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
                raise self.refuse(f"trainable_token_indices is {quote(repr(tokens), limit=80)}; wanted a list of ids")
            yield module, tokens

    def get_scale(self, module: str, rank: int) -> float:
        """The factor on B A of a module."""
        alpha, patterns = self.content.get("lora_alpha"), self.content.get("alpha_pattern") or {}
        matches = [key for key in patterns if module == key or module.endswith(f".{key}")]
        alpha = patterns[matches[0]] if matches else alpha
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise self.refuse(f"lora_alpha is {quote(repr(alpha), limit=80)}; wanted a number")
        return alpha / (math.sqrt(rank) if self.content.get("use_rslora") else rank)

    def refuse(self, why: str) -> UserError:
        return UserError(f"{self.directory}: {why}. Merge it with PEFT (merge_and_unload), and use convert from-hf.")


def read_adapter(directory: Path) -> PeftAdapter:
    """Read a directory that PEFT or `convert to-peft` wrote. Raises `UserError` for what cannot be merged here."""
    if not (directory / CONFIG_FILE).is_file():
        raise UserError(f"{directory} has no {CONFIG_FILE}. Give the directory of an adapter that PEFT saved.")
    if not (directory / WEIGHTS_FILE).is_file():
        raise UserError(
            f"{directory} has no {WEIGHTS_FILE}. Files named *.bin are pickles, and loading one can run any code: if "
            "you trust it, load it with PEFT and save_pretrained() it again."
        )
    with open_tensors(directory, file=WEIGHTS_FILE) as stored:
        tensors = {_shorten(name): tensor.read().astype(np.float32) for name, tensor in stored.items()}
    adapter = PeftAdapter(directory, read_json(directory / CONFIG_FILE), tensors)
    content = adapter.content
    if (kind := content.get("peft_type")) != "LORA":
        raise adapter.refuse(f"peft_type is {quote(repr(kind), limit=80)}; wanted 'LORA'")
    if changed := [name for name in CHANGED if content.get(name)]:
        raise adapter.refuse(f"{changed[0]} is set, a variant that is not supported")
    if (initial := content.get("init_lora_weights", True)) not in KEEPS_BASE:
        raise adapter.refuse(f"init_lora_weights is {quote(repr(initial), limit=80)}, which changes the base's weights")
    if any(set(key) & set("^$*+?()[]{}|\\") for key in content.get("alpha_pattern") or {}):
        raise adapter.refuse("alpha_pattern has a regular expression; wanted names of modules")
    return adapter


def _shorten(name: str) -> str:
    """The name of a tensor without what PEFT adds to the base model's."""
    name = name.removeprefix(PREFIX)
    if not name.endswith(ROWS):
        for part in WRAPPERS:
            name = name.replace(part, "")
    return name


def merge_adapter(model: GPT, adapter: PeftAdapter, *, vocab_size: int | None = None) -> GPT:
    """The model with the adapter added to its weights, and with at least `vocab_size` tokens.

    Raises:
        UserError: no class of transformers can express the model, or the adapter does not fit it.
    """
    architecture = choose_architecture(model.config)
    if architecture is CUSTOM:
        raise UserError("PEFT adapts classes that transformers knows, and none can express the base model.")
    wanted = max(vocab_size or 0, adapter.num_tokens)
    if wanted > model.config.resolved_vocab_size:
        model = grow_vocabulary(model, wanted)
    base = {name: np.array(tensor) for name, tensor in to_hf(model, architecture=architecture).items()}
    modules = {row.path: row.hf_name.removesuffix(".weight") for row in architecture.weights}
    rows = dict(adapter.list_trained_rows())
    for name, array in adapter.tensors.items():
        if not name.endswith((A, B, EMBEDDING_A, EMBEDDING_B, ROWS)):
            _replace_whole(base, array, name=name, adapter=adapter, modules=modules)
    for name, array in adapter.tensors.items():
        if (end := next((end for end in PARTNERS if name.endswith(end)), None)) is not None:
            module = name.removesuffix(end)
            if (b := adapter.tensors.get(f"{module}{PARTNERS[end]}")) is None:
                raise adapter.refuse(f"{quote(name)} has no lora_B beside it")
            if end == EMBEDDING_A and model.config.tie_embeddings:
                raise adapter.refuse(f"{quote(name)} adapts an embedding that is tied to the head, and not the head")
            _add_product(base, array, b, module=module, adapter=adapter, architecture=architecture)
        elif name.endswith(ROWS):
            _replace_rows(base, array, rows, module=name.removesuffix(ROWS), adapter=adapter, modules=modules)
    return load_weights(model.config, {name: _Held(array) for name, array in base.items()}, rows=architecture.weights)


@dataclass(frozen=True)
class _Held:
    """A tensor in memory, as `load_weights` reads it."""

    array: np.ndarray

    def read(self) -> np.ndarray:
        return self.array


def _add_product(
    base: Tensors, a: np.ndarray, b: np.ndarray, *, module: str, adapter: PeftAdapter, architecture: Architecture
) -> None:
    """Add B A of a module, (outputs, r) times (r, inputs)."""
    embedding = next(row.hf_name for row in architecture.weights if row.path == EMBEDDING)
    name = f"{module}.weight"
    is_turned = name == embedding or (architecture.model_type == "gpt2" and module != "lm_head")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not len(a):
        raise adapter.refuse(f"the adapters of {quote(module)} have shapes {a.shape} and {b.shape}")
    shape = (b.shape[0], a.shape[1])[:: -1 if is_turned else 1]
    if name not in base or base[name].shape != shape:
        has = f"has shape {base[name].shape}" if name in base else "is no weight"
        raise adapter.refuse(f"an adapter of shape {shape} is for {quote(name)}, which {has} of the base model")
    product = b @ a * np.float32(adapter.get_scale(module, len(a)))
    base[name] += product.T if is_turned else product


def _replace_rows(
    base: Tensors,
    array: np.ndarray,
    rows: Mapping[str, list[int]],
    *,
    module: str,
    adapter: PeftAdapter,
    modules: Mapping[str, str],
) -> None:
    """Write the rows of trained tokens, which are stored whole."""
    named = [tokens for key, tokens in rows.items() if key and (module == key or module.endswith(f".{key}"))]
    named += [tokens for key, tokens in rows.items() if not key and module == modules[EMBEDDING]]
    weight = base.get(f"{module}.weight")
    if module == modules[HEAD] and weight is None:
        weight, named = base[f"{modules[EMBEDDING]}.weight"], named or list(rows.values())  # tied to the embedding
    if weight is None or not named or array.shape != (len(named[0]), weight.shape[1]):
        raise adapter.refuse(f"trained rows of {quote(module)} do not fit trainable_token_indices and the base model")
    weight[named[0]] = array


def _replace_whole(
    base: Tensors, array: np.ndarray, *, name: str, adapter: PeftAdapter, modules: Mapping[str, str]
) -> None:
    """Put a weight that was saved whole in place of the base's."""
    if name == f"{modules[HEAD]}.weight" and name not in base:  # tied: it must be the embedding
        if not np.array_equal(array, adapter.tensors.get(f"{modules[EMBEDDING]}.weight", array)):
            raise adapter.refuse(f"{quote(name)} differs from the embedding, to which the base model ties it")
        name = f"{modules[EMBEDDING]}.weight"
    if name not in base or base[name].shape != array.shape:
        has = f"has shape {base[name].shape}" if name in base else "is no weight"
        raise adapter.refuse(f"it holds {quote(name)} of shape {array.shape}, which {has} of the base model")
    base[name] = array
