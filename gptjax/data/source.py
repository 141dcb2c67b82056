"""The protocols by which a run reads data.

A data source is a function of (seed, row number), with rows counted through the whole run. A step reads the next rows
of that sequence. So nothing about the reader is saved, and a resumed run reads what the first one would have read.

A class of your own needs `open` alone: derive from `DataSource` and `RowReader`, and write it into the config.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from gptjax.data.batch_size import BatchSchedule, RowOffsets, locate_first_row
from gptjax.data.epoch_order import EpochSeeds
from gptjax.data.token_stream import TokenStream
from gptjax.tokenization.tokenizer import Tokenizer

Rows = dict[str, np.ndarray]
"""Arrays of shape (n, T), int32 or float32, by name; see `RowReader.read`."""
RowKind = Literal["text", "answers", "pairs"]
"""What an objective reads:

- `text`: any rows.
- `answers`: whole documents that do not see each other, with marks of what is scored.
- `pairs`: the same, where a chosen document and the rejected one after it are a pair.
"""


@dataclass(frozen=True)
class ReadSpec:
    """What a run asks of its training data."""

    context_length: int
    """Tokens of a row (T)."""
    seed: int
    """Decides the order of the rows."""
    vocab_size: int
    """Every token id lies below it."""
    end_of_text: int | None
    """The id that begins documents; None if the tokenizer has none or is unknown."""
    with_documents: bool
    """Read `segments` and `positions` too, for attention within documents."""
    batch_schedule: BatchSchedule
    """Turns steps into row numbers. Empty inside a mixture, where a component's rows do not follow the steps."""
    row_kind: RowKind = "text"
    """The kind of rows that the objective reads."""
    reference: Path | None = None
    """Directory of the reference's stored log-probabilities (`gptjax.runs.reference`), read as `reference`."""
    epoch_seeds: EpochSeeds = "mixed"
    """How seed and epoch give the order of an epoch after the first."""
    row_offsets: RowOffsets = ()
    """Rows that the run passes over, by step."""
    first_tokens: tuple[int, ...] = ()
    """Ids with one of which conversations and pairs begin. Empty: any may come first, or it is unknown."""

    def first_row(self, step: int) -> int:
        """The number of the first row that a step reads."""
        return locate_first_row(step, self.batch_schedule, self.row_offsets)


@runtime_checkable
class RowReader(Protocol):
    """An open data source."""

    name: str = "data"
    """A short name for metrics and messages."""
    fingerprint: str | None = None
    """Identifies what is read and how it becomes rows. A resumed run must have the same; None is not compared."""
    prefetch: int = 2
    """Batches that a thread reads ahead."""

    def read(self, rows: Int[np.ndarray, " n"]) -> Rows:
        """The rows of these numbers (n ≥ 1, from 0 on, without end), in this order.

        `tokens` and `targets` are (n, T), int32; targets are IGNORE_INDEX where nothing is scored. With documents also
        `segments` (number of the document within its row, from 1 on, 0 for padding) and `positions` (place within it).
        With `spec.reference` also `reference`, float32: the reference's log-probability of each scored target.
        """
        ...

    def epochs(self, rows: int) -> dict[str, float]:
        """Passes over the data after this many rows, by metric name: `epoch`, or several `epoch/NAME`."""
        return {}

    def describe(self) -> list[str]:
        """Lines for the head of a run: where the data is, its size, what is not used."""
        return []


@runtime_checkable
class RowSet(Protocol):
    """A number of rows, each of which can be read by its number."""

    stream: TokenStream

    @property
    def notes(self) -> list[str]:
        """What is cut or left out, a line each."""
        return []

    def __len__(self) -> int: ...

    def read(self, rows: Int[np.ndarray, " n"], *, with_documents: bool = False) -> Rows: ...


class Mismatch(NamedTuple):
    """Why data will not have a model's ids: the field under `data` that decides it, its value, and the difference."""

    field: str
    value: str
    reason: str


@runtime_checkable
class DataSource(Protocol):
    """What a config holds under `data`."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

    def resolve(self) -> "DataSource":
        """This source as the run directory records it: prepared, with absolute paths."""
        return self

    def load_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that made the tokens; None if it is unknown."""
        return None

    def foresee_mismatch(self, tokenizer: Tokenizer) -> Mismatch | None:
        """How the ids of data that `resolve` would have to make are unlike those of a model's tokenizer.

        None where they are alike, where that is not known before, and where nothing has to be made.
        """
        return None

    def open(self, spec: ReadSpec) -> RowReader:
        """Open the training data, once per run. Raise `UserError` for data that does not fit, here and not later."""
        ...

    def open_stream(self, split: str) -> TokenStream | None:
        """The split `val` or `train` as one stream of tokens, for evaluators; None if there is no such stream."""
        return None

    def open_rows(self, split: str, spec: ReadSpec) -> "RowSet | None":
        """The rows of a split in their order, of the kind `spec.row_kind`, for objectives that read whole documents."""
        return None

    def check(self) -> None:
        """Raise a `UserError` that names what has changed since the run opened the data. Called at every save."""

    def history_until(self, step: int) -> str:
        """What the steps before this one read, as far as the config decides it; compared when a run resumes."""
        return ""
