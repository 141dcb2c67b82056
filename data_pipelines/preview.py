"""What a model will read of prepared data, in the terminal: `python -m data_pipelines.preview DATA`.

    python -m data_pipelines.preview data/chat --context-length=1024
    python -m data_pipelines.preview data/pairs --rows=2

Context is dim, and what is trained on is green; special tokens stand out. Red lines say where a row cuts a document.
Without colours, what is trained on stands between ⟦ and ⟧. Preferences are shown pair by pair.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from data_pipelines.runtime.options import require_at_least, run_command
from gptjax.core.constants import IGNORE_INDEX
from gptjax.core.errors import UserError, count_of
from gptjax.data.config import TokenShards
from gptjax.data.packing import Packing
from gptjax.data.preferences import PairSequences, holds_pairs, open_preferences
from gptjax.data.sequences import Sequences, open_sequences
from gptjax.data.splits import open_split
from gptjax.tokenization.tokenizer import Tokenizer

Kind = Literal["context", "trained", "special", "trained_special", "padding", "cut"]
COLORS: dict[Kind, str] = {
    "context": "2",
    "trained": "32",
    "special": "2;36",
    "trained_special": "1;32",
    "padding": "2;3",
    "cut": "31",
}
"""SGR codes of a terminal."""


@dataclass(frozen=True)
class Preview:
    """Show some rows of prepared data as training reads them."""

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Directory of shards."""
    split: Literal["train", "val"] = "train"
    """Split of the shards."""
    rows: int = 4
    """Rows, or pairs of preferences, to show."""
    first: int = 0
    """Number of the first one."""
    context_length: int = 1024
    """Tokens of a row: model.context_length of the run."""
    packing: Packing | None = None
    """How documents become rows: data.packing of the run. Default: best_fit_truncate for chats, else concat."""
    color: Literal["auto", "always", "never"] = "auto"
    """Colours: by default in a terminal, unless NO_COLOR is set."""

    def __post_init__(self) -> None:
        require_at_least(1, rows=self.rows)
        require_at_least(0, first=self.first)
        require_at_least(2, context_length=self.context_length)


@dataclass(frozen=True)
class Painter:
    """Text with colours, or with marks instead."""

    has_colors: bool

    def paint(self, text: str, kind: Kind) -> str:
        """One piece of text. Control characters but line ends are escaped: the text is a stranger's."""
        shown = "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
        if self.has_colors:
            return f"\x1b[{COLORS[kind]}m{shown}\x1b[0m"
        return f"⟦{shown}⟧" if kind.startswith("trained") else shown


def preview(request: Preview) -> None:
    """Print the rows."""
    is_terminal = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    painter = Painter(request.color == "always" or (request.color == "auto" and is_terminal))
    legend: dict[Kind, str] = {"context": "context", "trained": "trained on", "special": "special token", "cut": "cut"}
    lines = (iter_pairs if holds_pairs(request.data) else iter_rows)(request, painter)
    first = next(lines)  # an error comes before anything is printed
    print(", ".join(painter.paint(text, kind) for kind, text in legend.items()), first, sep="\n")
    for line in lines:
        print(line)


def iter_rows(request: Preview, painter: Painter) -> Iterator[str]:
    """Yield a heading and the text of each row."""
    shards = TokenShards(path=str(request.data))
    tokenizer, stream = _require_tokenizer(shards), shards.open_stream(request.split)
    packing = request.packing or ("concat" if stream.loss_mask is None else "best_fit_truncate")
    sequences = open_sequences(stream, request.context_length, packing, end_of_text=tokenizer.end_of_text)
    if request.first >= len(sequences):
        raise UserError(
            f"{request.data}: {request.split} has {len(sequences):,} rows of {request.context_length:,} tokens; "
            f"there is no row {request.first}. Use a smaller --first or --context-length."
        )
    for note in sequences.notes:
        yield f"note: {note}"
    for row in range(request.first, min(len(sequences), request.first + request.rows)):
        yield from _iter_row(sequences, row, tokenizer, painter)


def _iter_row(sequences: Sequences, row: int, tokenizer: Tokenizer, painter: Painter) -> Iterator[str]:
    numbers = np.array([row])
    found, places = sequences.read(numbers), sequences.locate_tokens(numbers)[0]
    tokens, targets = found["tokens"][0], found["targets"][0]
    count = int((places >= 0).sum())
    trained = np.zeros(len(tokens), bool)
    trained[1:] = targets[:-1] != IGNORE_INDEX
    trained[1:] &= targets[:-1] == tokens[1:]
    scored = int((targets != IGNORE_INDEX).sum())
    starts = sequences.stream.document_starts
    starts = np.array([0]) if starts is None else starts
    document = np.searchsorted(starts, places[:count], side="right")
    pieces = [*(np.flatnonzero(np.diff(places[:count]) != 1) + 1).tolist()]
    borders = sorted({0, count, *pieces, *(np.flatnonzero(np.diff(document)) + 1).tolist()})
    yield f"\n── row {row}: {count:,} tokens, {count_of(len(borders) - 1, 'documents')}, {scored:,} trained on"
    for begin, end in itertools.pairwise(borders):
        if places[begin] not in starts:
            yield painter.paint("✂ a document goes on that began before", "cut")
        yield paint_tokens(tokens[begin:end], trained[begin:end], tokenizer, painter)
        next_place = places[end - 1] + 1
        if next_place < len(sequences.stream) and next_place not in starts:
            left = int(np.append(starts, len(sequences.stream))[document[begin]] - next_place)
            yield painter.paint(f"✂ cut here: {left:,} tokens of this document are not in this row", "cut")
    if count < len(tokens):
        yield painter.paint(f"({len(tokens) - count:,} positions of padding)", "padding")


def iter_pairs(request: Preview, painter: Painter) -> Iterator[str]:
    """Yield the two documents of each pair, cut as training cuts them."""
    shards = TokenShards(path=str(request.data))
    tokenizer, pairs = _require_tokenizer(shards), open_preferences(request.data, request.split)
    sequences = PairSequences(open_split(request.data, request.split), request.context_length)
    if request.first >= len(pairs):
        raise UserError(
            f"{request.data}: {request.split} has {count_of(len(pairs), 'pairs')}; there is no pair {request.first}."
        )
    for number in range(request.first, min(len(pairs), request.first + request.rows)):
        pair, (lengths, is_read) = pairs[number], sequences.find_pair(number)
        for name, tokens, mask, length in (
            ("chosen", pair.chosen, pair.chosen_loss_mask, lengths[0]),
            ("rejected", pair.rejected, pair.rejected_loss_mask, lengths[1]),
        ):
            trained = mask[:length].astype(bool) & is_read
            yield f"\n── pair {number}, {name}: {len(tokens):,} tokens, {int(trained.sum()):,} trained on"
            yield paint_tokens(tokens[:length], trained, tokenizer, painter)
            if len(tokens) > length:
                yield painter.paint(f"✂ cut here: {len(tokens) - length:,} tokens do not fit beside the other", "cut")
        if not is_read:
            yield painter.paint("left out in training: what is left of the answers does not differ, or is none", "cut")


def paint_tokens(tokens: np.ndarray, trained: np.ndarray, tokenizer: Tokenizer, painter: Painter) -> str:
    """Text of tokens, neighbours of one kind together."""
    specials = set(tokenizer.specials.values())
    kinds: dict[tuple[bool, bool], Kind] = {
        (False, False): "context",
        (True, False): "trained",
        (False, True): "special",
        (True, True): "trained_special",
    }
    marked = zip(tokens.tolist(), trained.tolist(), strict=True)

    def find_kind(one: tuple[int, bool]) -> Kind:
        return kinds[bool(one[1]), one[0] in specials]

    shown, before = list[str](), list[int]()
    for kind, group in itertools.groupby(marked, key=find_kind):
        ids = [token for token, _ in group]
        shown.append(painter.paint(tokenizer.decode_after(before, ids), kind))
        before += ids
    return "".join(shown)


def _require_tokenizer(shards: TokenShards) -> Tokenizer:
    tokenizer = shards.load_tokenizer()
    if tokenizer is None:
        raise UserError(f"{shards.path}: has no tokenizer.json, so its tokens cannot be shown as text.")
    return tokenizer


if __name__ == "__main__":
    run_command(preview, Preview)
