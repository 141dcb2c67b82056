"""Preference data: the same prompt with a better and a worse completion, read as pairs.

Pairs are the documents of an ordinary split: document 2i is the chosen one of pair i, document 2i + 1 the rejected one.
Both contain the prompt; the loss mask scores the completion only.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from gptjax.core.errors import UserError
from gptjax.core.files import AnyPath
from gptjax.data.manifest import read_manifest
from gptjax.data.splits import open_split
from gptjax.data.token_stream import TokenStream

KIND = "preferences"
"""The kind that the manifest of such shards records in its request."""


class PreferencePair(NamedTuple):
    """Prompt and completion, twice; a mask is 1 where a token belongs to the completion."""

    chosen: Int32[np.ndarray, " chosen"]
    chosen_loss_mask: UInt8[np.ndarray, " chosen"]
    rejected: Int32[np.ndarray, " rejected"]
    rejected_loss_mask: UInt8[np.ndarray, " rejected"]


class PreferencePairs:
    """Random access to the pairs of a split: `pairs[i]`, of `len(pairs)`."""

    def __init__(self, stream: TokenStream) -> None:
        if stream.document_starts is None or stream.loss_mask is None or len(stream.document_starts) % 2:
            raise UserError(
                f"{stream.name}: not preference data: wanted an even number of documents, their starts, a loss mask. "
                "Make it with python -m data_pipelines.prepare_preferences."
            )
        self._stream, self._loss_mask = stream, stream.loss_mask
        self._bounds = np.append(stream.document_starts, len(stream))

    def __len__(self) -> int:
        return (len(self._bounds) - 1) // 2

    def __getitem__(self, index: int) -> PreferencePair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return PreferencePair(*self._read_document(2 * index), *self._read_document(2 * index + 1))

    def _read_document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = int(self._bounds[index]), int(self._bounds[index + 1])
        return self._stream.read(start, end - start).astype(np.int32), np.array(self._loss_mask[start:end])


def open_preferences(directory: AnyPath, split: str) -> PreferencePairs:
    """The pairs of one split of a directory that `data_pipelines.prepare_preferences` wrote."""
    check_kind(directory, pairs=True)
    return PreferencePairs(open_split(directory, split))


def check_kind(directory: AnyPath, *, pairs: bool) -> None:
    """Raise unless the shards of a directory are pairs, or are not, as wanted."""
    manifest = read_manifest(directory)
    found = "without manifest.json" if manifest is None else f"of {manifest.request.get('kind', 'text')}"
    if pairs and found != f"of {KIND}":
        raise UserError(
            f"{Path(directory)}: holds no preference data, but shards {found}. "
            "Make some with python -m data_pipelines.prepare_preferences."
        )
    if not pairs and found == f"of {KIND}":
        raise UserError(
            f"{Path(directory)}: holds preference pairs, whose rejected texts are not to be learned. Read them with "
            "data=PreferenceShards(path=...) and an objective such as DPO()."
        )
