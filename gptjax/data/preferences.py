"""Preference data: the same prompt with a better and a worse completion, read as pairs.

The one idea: pairs need no format of their own. They are the documents of an ordinary split: document 2i is the chosen
one of pair i and document 2i + 1 the rejected one, each with its prompt, and scored is the completion only.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from gptjax.core.errors import UserError
from gptjax.data.manifest import AnyPath, read_manifest
from gptjax.data.shards import TokenStream, open_split

KIND = "preferences"
"""What the request in the manifest of such shards says it is."""


class Pair(NamedTuple):
    """Prompt and completion, twice; a mark is 1 where a token belongs to the completion."""

    chosen: Int32[np.ndarray, " chosen"]
    chosen_scored: UInt8[np.ndarray, " chosen"]
    rejected: Int32[np.ndarray, " rejected"]
    rejected_scored: UInt8[np.ndarray, " rejected"]


class Pairs:
    """Random access to the pairs of a split: `pairs[i]`, of `len(pairs)`."""

    def __init__(self, stream: TokenStream) -> None:
        if stream.document_starts is None or stream.loss_mask is None or len(stream.document_starts) % 2:
            raise UserError(
                f"{stream.name}: is not preference data: wanted an even number of documents, their starts and marks of "
                "what is scored. Make it with python -m data_pipelines.prepare_preferences."
            )
        self._stream, self._scored = stream, stream.loss_mask
        self._borders = np.append(stream.document_starts, len(stream))

    def __len__(self) -> int:
        return (len(self._borders) - 1) // 2

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return Pair(*self._document(2 * index), *self._document(2 * index + 1))

    def _document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = int(self._borders[index]), int(self._borders[index + 1])
        return self._stream.read(start, end - start).astype(np.int32), np.array(self._scored[start:end])


def open_pairs(directory: AnyPath, split: str) -> Pairs:
    """The pairs of one split of a directory that `data_pipelines.prepare_preferences` wrote."""
    manifest = read_manifest(directory)
    found = "without manifest.json" if manifest is None else manifest.request.get("kind", "text")
    if found != KIND:
        raise UserError(
            f"{Path(directory)}: holds no preference data, but shards {found if manifest is None else f'of {found}'}. "
            "Make some with python -m data_pipelines.prepare_preferences."
        )
    return Pairs(open_split(directory, split))
