"""What a run reads: one data set or a mixture of several, and how much of it a step takes.

Values for a config; reading itself is in shards.py (files), windows.py (rows) and batches.py (steps).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax

from gptjax.core.errors import UserError
from gptjax.data.checksums import check_documents, check_unchanged
from gptjax.data.manifest import Manifest, read_manifest
from gptjax.data.packing import Packing
from gptjax.data.shards import TokenStream, open_split
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class BatchSize:
    """How many windows one optimizer step sees."""

    size: int = 8
    """Windows per optimizer step, over all devices and accumulation groups."""
    grad_accum: int = 1
    """Groups into which they are divided: gradients of one group at a time are in memory."""

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.size), ("grad_accum", self.grad_accum)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1.")
        if self.size % self.grad_accum:
            raise UserError(
                f"batch_size {self.size} does not divide into grad_accum {self.grad_accum} equal "
                "groups. Use a multiple of it."
            )

    @property
    def microbatch(self) -> int:
        """Windows of one group."""
        return self.size // self.grad_accum

    def check_devices(self, mesh: MeshConfig) -> None:
        """Raise unless each group divides over the devices that share its rows, and every process has some."""
        processes, devices = jax.process_count(), jax.device_count()
        if processes > 1 and mesh.num_devices < devices:
            raise UserError(
                f"mesh: {mesh.describe()} uses {mesh.num_devices} of the {devices} devices of {processes} processes, "
                f"and every one must take part. Choose axes whose product is {devices}, or start fewer processes."
            )
        if self.microbatch % mesh.num_batch_shards:
            raise UserError(
                f"batch: {self.microbatch} sequences a group do not split over {mesh.num_batch_shards} devices "
                f"(data × fsdp). Use a multiple of {mesh.num_batch_shards} × grad_accum, or another --mesh."
            )


@dataclass(frozen=True)
class TokenShards:
    """A directory of token shards, as `data_pipelines.prepare` writes it and as FineWeb's are published."""

    path: str | None = None
    """Directory with `*train*.bin` and `*val*.bin`."""
    format: Literal["shards", "raw-uint16"] = "shards"
    """`shards`: 1,024-byte header (llm.c, modded-nanogpt); `raw-uint16`: nanoGPT's headerless files."""
    tokenizer: str | None = None
    """For shards without a tokenizer.json beside them: `gpt2`, `gpt2:DIR`, `bytes` or a tokenizer.json elsewhere."""
    packing: Packing = "concat"
    """How documents become rows: `straight` (GPT-2's windows), `documents` (each begins with one), `best_fit` (whole
    ones, padded) or `best_fit_cropped` (whole ones, the last of a row cropped); see packing.py for what each drops."""
    prefetch: int = 2
    """Batches read ahead by a thread."""

    def resolve(self) -> "TokenShards":
        """The shards themselves; a data set that must be prepared first overrides this."""
        if self.path is None:
            raise UserError("data.path is not given. Point it at a directory of shards: --data.path=DIR.")
        return replace(self, path=str(Path(self.path).expanduser().absolute()))

    def open_split(self, name: Literal["train", "val"]) -> TokenStream:
        return open_split(self._directory, name, format=self.format)

    def manifest(self) -> Manifest | None:
        """What `prepare` wrote beside the shards; None for foreign ones."""
        return read_manifest(self._directory)

    def load_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that made the shards; None for foreign ones of which nobody said."""
        beside = Path(self._directory) / "tokenizer.json"
        manifest = self.manifest()
        if manifest is None and not beside.is_file():
            return None if self.tokenizer is None else load_tokenizer(self.tokenizer)
        tokenizer = load_tokenizer(beside)
        if manifest is not None and tokenizer.fingerprint != manifest.fingerprint:
            raise UserError(
                f"{beside} is not the tokenizer that made the shards (fingerprint {tokenizer.fingerprint[:12]}, "
                f"manifest.json says {manifest.fingerprint[:12]}). Prepare them again."
            )
        if self.tokenizer is not None and load_tokenizer(self.tokenizer).fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"data.tokenizer is {self.tokenizer!r}, but the shards were made with {tokenizer.name} ({beside}). "
                "Leave it out, or give other shards."
            )
        check_unchanged(self._directory)
        for split in manifest.splits if manifest is not None else ():
            # A file of another tokenizer is named before a device is touched.
            check_documents(open_split(self._directory, split), tokenizer.end_of_text, each=16)
        return tokenizer

    @property
    def _directory(self) -> str:
        path = self.resolve().path
        assert path is not None
        return path


@dataclass(frozen=True)
class MixtureComponent:
    """One data set of a mixture."""

    data: TokenShards
    weight: float = 1.0
    """Its share of the rows, among the weights of all parts."""
    weight_schedule: tuple[tuple[int, float], ...] = ()
    """(step, weight) pairs: from that step on this weight. A coming change may be added to a run that resumes."""

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.weight_schedule]
        if steps != sorted(set(steps)) or min(steps, default=1) < 1:
            raise UserError(f"data.components: `later` has the steps {steps}; wanted ascending ones, from 1 on.")

    def weight_at(self, step: int) -> float:
        return next((weight for begin, weight in reversed(self.weight_schedule) if begin <= step), self.weight)


@dataclass(frozen=True)
class Mixture:
    """Several data sets in one run, each with its own order and epochs, in shares that may change at a step."""

    components: tuple[MixtureComponent, ...] = ()
    validation: int = 0
    """The part whose validation split is judged, counted from 0."""
    prefetch: int = 2
    """Batches read ahead by a thread."""

    def __post_init__(self) -> None:
        if not self.components or not 0 <= self.validation < len(self.components):
            raise UserError(
                f"data: a mixture of {len(self.components)} parts whose part {self.validation} is for validation; wanted at "
                "least one part, and the number of one of them, counted from 0."
            )

    @property
    def path(self) -> str:
        return " + ".join(str(part.data.path) for part in self.components)

    def resolve(self) -> "Mixture":
        """The same with every part prepared."""
        return replace(self, components=tuple(replace(part, data=part.data.resolve()) for part in self.components))

    def load_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of all parts; a UserError if they have different ones."""
        found = [(part.data.path, part.data.load_tokenizer()) for part in self.components]
        known = [(path, tokenizer) for path, tokenizer in found if tokenizer is not None]
        for path, tokenizer in known[1:]:
            if tokenizer.fingerprint != known[0][1].fingerprint:
                raise UserError(
                    f"data: {known[0][0]} was made with {known[0][1].name}, {path} with {tokenizer.name}. "
                    "Prepare all parts of a mixture with the same tokenizer."
                )
        return known[0][1] if known else None


def mixture_components(data: TokenShards | Mixture) -> tuple[MixtureComponent, ...]:
    """What a run trains on, one data set or several."""
    return data.components if isinstance(data, Mixture) else (MixtureComponent(data),)


def validation_data(data: TokenShards | Mixture) -> TokenShards:
    """The data set whose validation split is judged."""
    return data.components[data.validation].data if isinstance(data, Mixture) else data


def mixture_weights(data: TokenShards | Mixture, *, until: int | None = None) -> list[tuple[int, tuple[float, ...]]]:
    """(step, weights of all parts from it on), ascending from step 0; only those that begin before step `until`."""
    parts = mixture_components(data)
    steps = sorted({0, *(step for part in parts for step, _ in part.weight_schedule)})
    return [(s, tuple(part.weight_at(s) for part in parts)) for s in steps if until is None or s < until or s == 0]


def count_steps_by_part(begins: Sequence[int], steps: int) -> list[int]:
    """How many of the first `steps` steps lie in each part of a run, where the parts begin at these steps."""
    ends = [*begins[1:], steps]
    return [max(0, min(end, steps) - begin) for begin, end in zip(begins, ends, strict=True)]


def count_rows_before(step: int, changes: Sequence[tuple[int, BatchSize]]) -> int:
    """Windows read by all steps before this one; `changes` are (step, batch from it on), ascending from step 0."""
    counts = count_steps_by_part([begin for begin, _ in changes], step)
    return sum(count * batch.size for count, (_, batch) in zip(counts, changes, strict=True))


def fingerprint_data(data: TokenShards | Mixture) -> str:
    """SHA-256 of what is trained on and how it becomes rows; the order and the shares are in the config."""
    content = [(part.data.open_split("train").fingerprint, part.data.packing) for part in mixture_components(data)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
