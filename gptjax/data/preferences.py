"""Preference data: the same prompt with a better and a worse completion, read as pairs.

Pairs are the documents of an ordinary split: document 2i is the chosen one of pair i, document 2i + 1 the rejected one.
Both contain the prompt; the loss mask scores the completion only.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt8

from gptjax.core.errors import UserError, count_of
from gptjax.core.files import AnyPath, expand_path
from gptjax.data.checksums import check_unchanged
from gptjax.data.file_array import FileArray
from gptjax.data.manifest import PREFERENCES, read_manifest
from gptjax.data.packing import PackingPlan, pack_units
from gptjax.data.row_readers import SequenceReader, check_stream
from gptjax.data.sequences import BestFitSequences, count_scored, describe_cuts
from gptjax.data.source import DataSource, ReadSpec
from gptjax.data.splits import find_split_files, open_split
from gptjax.data.token_stream import TokenStream
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer


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

    def __iter__(self) -> Iterator[PreferencePair]:
        return (self[index] for index in range(len(self)))

    def _read_document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = int(self._bounds[index]), int(self._bounds[index + 1])
        return self._stream.read(start, end - start).astype(np.int32), self._loss_mask[start:end]


def open_preferences(directory: AnyPath, split: str) -> PreferencePairs:
    """The pairs of one split of a directory that `data_pipelines.prepare_preferences` wrote."""
    check_kind(directory, pairs=True)
    return PreferencePairs(open_split(directory, split))


def holds_pairs(directory: AnyPath) -> bool:
    """Whether the manifest of a directory says that its documents are pairs."""
    manifest = read_manifest(directory)
    return manifest is not None and manifest.request.get("kind") == PREFERENCES


def check_kind(directory: AnyPath, *, pairs: bool) -> None:
    """Raise unless the shards of a directory are pairs, or are not, as wanted."""
    manifest = read_manifest(directory)
    if pairs and manifest is None:
        find_split_files(directory, "train")
    found = "without manifest.json" if manifest is None else f"of {manifest.request.get('kind', 'text')}"
    if pairs and found != f"of {PREFERENCES}":
        raise UserError(
            f"{Path(directory)}: holds no preference data, but shards {found}. "
            "Make some with python -m data_pipelines.prepare_preferences."
        )
    if not pairs and found == f"of {PREFERENCES}":
        raise UserError(
            f"{Path(directory)}: holds preference pairs, whose rejected texts are not to be learned. Read them with "
            "data=PreferenceShards(path=...) and an objective such as DPO(), as --config=modern_253m_dpo does with "
            "--init-from=RUN."
        )


def read_log_probs(directory: Path, split: str, stream: TokenStream) -> FileArray:
    """The reference's log-probability of each token of a split, float32, as `gptjax.runs.reference` stored it."""
    path = directory / f"{split}.npy"
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}. Start the run again; the file is computed again.") from None
    if found.shape != (len(stream),) or found.dtype != np.float32:
        raise UserError(f"{path} does not fit {stream.name}. Start the run again; the file is computed again.")
    return FileArray(path, found.dtype, offset=found.offset, count=len(found))


@dataclass(frozen=True)
class PreferenceShards(DataSource):
    """A directory of preference pairs, as `data_pipelines.prepare_preferences` writes it, for objectives such as DPO.

    Both documents of a pair are in one row of T tokens, beside other pairs. A pair longer than a row is cut.
    """

    path: str | None = None
    """Directory of the shards."""
    prefetch: int = 2
    """Batches read ahead by a thread."""

    def resolve(self) -> "PreferenceShards":
        if self.path is None:
            raise UserError("data.path is not given. Point it at a directory of preference pairs: --data.path=DIR.")
        return replace(self, path=str(expand_path(self.path).absolute()))

    def load_tokenizer(self) -> Tokenizer | None:
        check_kind(self._directory, pairs=True)
        return load_tokenizer(Path(self._directory) / "tokenizer.json")

    def open(self, spec: ReadSpec) -> SequenceReader:
        return SequenceReader(self.open_rows("train", spec), spec, packing="pairs", prefetch=self.prefetch)

    def open_rows(self, split: str, spec: ReadSpec) -> "PairSequences":
        if spec.row_kind != "pairs":
            raise UserError(
                f"{self._directory} holds preference pairs, but the objective does not read pairs: it would learn the "
                "rejected texts, too. Use an objective such as DPO()."
            )
        stream = self.open_stream(split)
        check_stream(stream, spec)
        log_probs = None if spec.reference is None else read_log_probs(spec.reference, split, stream)
        rows = PairSequences(stream, spec.context_length, end_of_text=spec.end_of_text, log_probs=log_probs)
        if len(rows) == 0:
            raise UserError(
                f"{stream.name}: no pair has answers within {spec.context_length} tokens. Use a longer row."
            )
        return rows

    def open_stream(self, split: str) -> TokenStream:
        """A split, once all files of the directory are known to be as the manifest says."""
        check_kind(self._directory, pairs=True)
        stream = open_split(self._directory, split)
        check_unchanged(self._directory)
        _ = PreferencePairs(stream)
        return stream

    def check(self) -> None:
        check_unchanged(self._directory, while_read=True)

    @property
    def _directory(self) -> str:
        path = self.resolve().path
        assert path is not None
        return path


class PairSequences(BestFitSequences):
    """Rows of whole pairs, packed by best fit. `log_probs` are the reference's, for every token of the stream."""

    def __init__(
        self,
        stream: TokenStream,
        context_length: int,
        *,
        end_of_text: int | None = None,
        log_probs: FileArray | None = None,
    ) -> None:
        super().__init__(stream, context_length, end_of_text=end_of_text)
        self._log_probs = log_probs

    @functools.cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts and lengths (pairs, 2) as they are read, and which pairs are read at all."""
        starts = self._document_starts.astype(np.int64)
        whole = np.diff(starts, append=len(self.stream)).reshape(-1, 2)
        starts, lengths = starts.reshape(-1, 2), cut_pairs(whole, self.context_length)
        scored = count_scored(self.stream.loss_mask, (starts + 1).reshape(-1), (starts + lengths).reshape(-1))
        kept = np.logical_and(*(scored.reshape(-1, 2) > 0).T)
        for pair in np.flatnonzero(kept & (lengths != whole).any(axis=1)).tolist():
            kept[pair] = not self._is_same(starts[pair], lengths[pair])
        return starts, lengths, kept

    def _is_same(self, starts: np.ndarray, lengths: np.ndarray) -> bool:
        """Whether what is left of a pair is the same text."""
        one, other = (self.stream.read(int(a), int(n)) for a, n in zip(starts, lengths, strict=True))
        return np.array_equal(one, other)

    @functools.cached_property
    def plan(self) -> PackingPlan:
        starts, lengths, kept = self._pairs
        ends = np.ones((int(kept.sum()), 2), bool)
        return pack_units(starts[kept], lengths[kept], ends, context_length=self.context_length)

    def find_pair(self, number: int) -> tuple[list[int], bool]:
        """(tokens of the chosen and the rejected document that fit a row, whether the pair is read at all)."""
        _, lengths, kept = self._pairs
        return lengths[number].tolist(), bool(kept[number])

    @property
    def num_pairs(self) -> int:
        """Pairs that are read."""
        return int(self._pairs[2].sum())

    @property
    def notes(self) -> list[str]:
        starts, lengths, kept = self._pairs
        whole = np.diff(self._document_starts, append=len(self.stream)).reshape(-1, 2)
        cut = int((lengths != whole).any(axis=1).sum())
        own = [f"{count_of(self.num_pairs, 'pairs')}, {self.num_pairs / len(self):.1f} in a row"]
        why = "no answer or no difference is left of them"
        return own + describe_cuts(
            "pairs", len(starts), cut=cut, left_out=int((~kept).sum()), limit=self.context_length, why=why
        )

    def find_targets(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n T"]:
        """The place in the stream of each target of these rows; -1 where there is none."""
        at = self._locate(rows)
        places = np.full(len(rows) * self.context_length, -1, np.int64)
        places[at.place] = at.source + 1
        places[at.place[at.last]] = -1
        return places.reshape(len(rows), self.context_length)

    def _read_more(self, source: np.ndarray, scored: np.ndarray) -> dict[str, tuple[np.ndarray, int]]:
        if self._log_probs is None:
            return {}
        targets = np.minimum(source + 1, len(self.stream) - 1)
        return {"reference": (np.where(scored, self._log_probs[targets], np.float32(0)), 0)}


def cut_pairs(lengths: Int[np.ndarray, "pairs 2"], limit: int) -> Int[np.ndarray, "pairs 2"]:
    """Lengths that are together at most `limit`: the longer document is cut first, none below half of the limit."""
    shorter, half = lengths.min(axis=1), limit // 2
    longest = np.where(shorter > half, half, limit - shorter)
    return np.minimum(lengths, longest[:, None])
