"""Readers: in which order the sequences of a data set are read, and how several data sets are read as one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from gptjax.core.errors import UserError, count_of
from gptjax.core.files import hash_json
from gptjax.data.checksums import check_documents
from gptjax.data.epoch_order import EpochOrder
from gptjax.data.mixture import MixtureSchedule
from gptjax.data.sequences import Sequences, check_documents_known
from gptjax.data.source import ReadSpec, RowReader, Rows
from gptjax.data.token_stream import TokenStream

CHECKED_TOKENS = 2**16
"""Tokens at the beginning of each file that are compared with the vocabulary before training."""


class SequenceReader(RowReader):
    """The sequences of one split, without replacement, in an order of its own for each epoch."""

    def __init__(self, sequences: Sequences, spec: ReadSpec, *, packing: str, prefetch: int) -> None:
        self.sequences, self.prefetch = sequences, prefetch
        self.name = sequences.stream.paths[0].parent.name
        self.fingerprint = hash_json([sequences.stream.fingerprint, packing])
        self._with_documents = spec.with_documents
        self._order = EpochOrder(len(sequences), seed=spec.seed, epoch_seeds=spec.epoch_seeds)

    def read(self, rows: Int[np.ndarray, " n"]) -> Rows:
        return self.sequences.read(self._order.locate(rows), with_documents=self._with_documents)

    def epochs(self, rows: int) -> dict[str, float]:
        return {"epoch": rows / len(self.sequences)}

    def describe(self) -> list[str]:
        sequences, stream = self.sequences, self.sequences.stream
        return [
            f"{stream.paths[0].parent}: {len(stream):,} tokens in {count_of(len(sequences), 'sequences')}"
            + (f", {sequences.dropped:.2%} of the tokens not used" if sequences.dropped > 0.001 else "")
            + (f", {sequences.padding:.2%} padding" if sequences.padding > 0 else "")
            + ("" if stream.has_manifest else "; without a manifest.json, changes of the files are not detected"),
            *sequences.notes,
        ]


class MixtureReader(RowReader):
    """Rows of several readers; each is read in its own order."""

    def __init__(self, readers: Sequence[RowReader], schedule: MixtureSchedule, *, prefetch: int) -> None:
        self.readers, self.prefetch = tuple(readers), prefetch
        self.name = " + ".join(reader.name for reader in readers)
        self.fingerprint = hash_json([reader.fingerprint for reader in readers])
        self._schedule = schedule

    def read(self, rows: Int[np.ndarray, " n"]) -> Rows:
        components, numbers = self._schedule.locate(rows)
        found: Rows = {}
        for i in np.unique(components):
            own = np.flatnonzero(components == i)
            for name, values in self.readers[i].read(numbers[own]).items():
                found.setdefault(name, np.empty((len(rows), values.shape[1]), values.dtype))[own] = values
        return found

    def epochs(self, rows: int) -> dict[str, float]:
        names = [reader.name for reader in self.readers]
        unique = [name if names.count(name) == 1 else f"{name}.{i}" for i, name in enumerate(names)]
        parts = zip(unique, self.readers, self._schedule.count_rows(rows).tolist(), strict=True)
        return {
            key.replace("epoch", f"epoch/{name}", 1): value
            for name, reader, count in parts
            for key, value in reader.epochs(count).items()
        }

    def describe(self) -> list[str]:
        return [line for reader in self.readers for line in reader.describe()]


def check_stream(stream: TokenStream, spec: ReadSpec) -> None:
    """Raise for a split that a run cannot read: cheap checks, before a device is used.

    The first tokens of every file lie below the vocabulary, documents begin as the tokenizer says, and it is known
    where they begin if the run asks for that.
    """
    for path, begin, end in stream.list_file_spans():
        check_token_ids(stream.read(begin, min(end - begin, CHECKED_TOKENS)), spec.vocab_size, source=str(path))
    check_documents(stream, spec.end_of_text, first_tokens=spec.first_tokens, per_file=16)
    if spec.with_documents:
        check_documents_known(stream, spec.end_of_text)
    if spec.row_kind != "text" and stream.loss_mask is None:
        raise UserError(
            f"{stream.name}: no file says which tokens are answers, so this objective has nothing to learn. Prepare "
            "conversations with python -m data_pipelines.prepare_chat, or pairs with prepare_preferences."
        )


def check_token_ids(tokens: np.ndarray, vocab_size: int, *, source: str) -> None:
    """Raise for an id outside the vocabulary: on a device it would silently read a wrong embedding."""
    for found in (int(tokens.min()), int(tokens.max())) if tokens.size else ():
        if not 0 <= found < vocab_size:
            raise UserError(
                f"token id {found} in {source} is beyond model.vocab_size {vocab_size}. "
                "The shards were made with another tokenizer: prepare them again, or set --model.vocab-size."
            )
