"""Texts that are scored: documents as tokens, with the words and bytes that figures are divided by."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gptjax.core.errors import UserError, count_of, quote
from gptjax.core.files import suggest_neighbour
from gptjax.data.readers import import_reader
from gptjax.data.token_stream import TokenStream
from gptjax.evaluation.figures import DocumentSums
from gptjax.evaluation.protocols import EvalProtocol, PlacedWindow, Words, place_windows
from gptjax.evaluation.scoring import DEFAULTS, ScoringOptions, score_windows
from gptjax.evaluation.windows import Ids
from gptjax.model.gpt import GPT
from gptjax.process.console import print_once
from gptjax.tokenization.special_names import compile_names
from gptjax.tokenization.tokenizer import END_OF_TEXT, Tokenizer

PARTS = 50
"""Parts of a single document that are drawn for its interval."""
NOTE_CHARACTERS = 400
"""Shown of a note on a text; it may name a path and the fields of a record."""
BATCHES_AT_ONCE = 256
"""Batches of windows whose scores are in memory at a time, sorted by length among themselves."""
COUNT_WORDS: dict[Words, Callable[[str], int]] = {
    "words": lambda text: len(text.split()),
    "line-ends": lambda text: len(text.split()) + text.count("\n"),
    "split": lambda text: len(re.split(r"\s+", text)),
}


@dataclass(frozen=True)
class Text:
    """Documents in tokens. Shards are taken as they are stored, with their ends of text."""

    name: str
    documents: Sequence[Ids]
    words: Sequence[int] | None
    """Words of each document; None if its text is unknown."""
    tokenizer: Tokenizer | None
    is_stored: bool = False
    """Whether the tokens hold their own ends of text, as shards do."""
    masks: Sequence[np.ndarray] | None = None
    """For each token whether its prediction counts; None: all count."""
    sizes: Sequence[np.ndarray] | None = None
    """Bytes of text behind each token; None: what the tokenizer says of its id."""
    fingerprints: Sequence[int] | None = None
    """A number for each document, made of its text, or of its tokens if that is unknown. None: its place tells it."""


def read_documents(
    path: Path,
    *,
    rows: bool = False,
    text_field: str | None = None,
    separator: str | None = None,
    told: set[str] | None = None,
) -> list[str]:
    """The documents of a file or directory, as `data_pipelines.prepare` reads them.

    What is skipped or replaced there is skipped or replaced here. Notes of that go to the error output.

    Args:
        rows: each line of a document that is not blank is a document, with its line end.
        text_field: key or column that holds the text of a record. Default: `text`.
        separator: what stands between the documents of plain text. `\\n` and `\\t` are a line end and a tab.
        told: notes that were printed before and are not printed again; those printed now are added.

    Raises:
        UserError: the file cannot be read, is in another format, or holds no text.
    """
    if separator is not None and (rows or not separator):
        raise UserError(f"--separator={quote(separator)}: wanted a text, and a protocol whose documents are no lines.")
    check_exists(path)
    documents, files = import_reader("documents"), import_reader("files")
    context = documents.ReadContext(text_field or "text", separator=documents.parse_separator(separator))
    chunks = files.open_files(str(path)).chunks(context)
    found = [str(document, "utf-8") for document in documents.iter_documents(chunks, context)]
    if not found:
        raise UserError(f"{path}: holds no text. {'; '.join(context.notes.lines())}".strip())
    _tell((quote(note, limit=NOTE_CHARACTERS) for note in context.notes.lines()), told)
    return [line for text in found for line in re.findall(r"[^\n]*\n|[^\n]+", text) if line.strip()] if rows else found


def check_exists(path: Path) -> None:
    """Raise a `UserError` for a text that is not there."""
    if not path.exists():
        raise UserError(f"{path} cannot be read: No such file or directory.{suggest_neighbour(path)}")


def _tell(notes: Iterable[str], told: set[str] | None) -> None:
    """Print the notes that are not among `told`, and add them."""
    told = set() if told is None else told
    for note in notes:
        if note not in told:
            told.add(note)
            print_once(f"note: {note}", to_stderr=True)


def encode_text(
    path: Path,
    tokenizer: Tokenizer,
    protocol: EvalProtocol,
    *,
    text_field: str | None = None,
    separator: str | None = None,
    told: set[str] | None = None,
) -> Text:
    """A file's documents, with the tokenizer. The other arguments are those of `read_documents`.

    Raises:
        UserError: also for a protocol of the harness and a tokenizer without the end of text that it begins with.
    """
    if protocol.ends_with_text and protocol.first_token == "end-of-text" and tokenizer.begin_of_text is None:
        raise UserError(
            f"--protocol={protocol.name} begins with an end of text, and the tokenizer has none. Give "
            "--first-token=context, which does not predict the first token "
            f'(in a config: EvalProtocol(first_token="context", …)).'
        )
    documents = read_documents(path, rows=protocol.rows, text_field=text_field, separator=separator, told=told)
    can_cut = path.is_dir() or import_reader("files").is_text_file(path.name)
    names = compile_names([END_OF_TEXT, *tokenizer.specials, *tokenizer.text_tokens])
    for mark, times in sorted(Counter(mark for document in documents for mark in names.findall(document)).items()):
        advice = f"; --separator='{mark}' cuts text files" if can_cut and mark == END_OF_TEXT else ""
        how = "this token, which is not special" if mark in tokenizer.text_tokens else f"text{advice}"
        _tell([count_of(times, f"times {mark} stands in text and is scored as {how}")], told)
    count = COUNT_WORDS[protocol.words]
    encoded, words = [tokenizer.encode_with_sizes(d) for d in documents], [count(d) for d in documents]
    tokens, sizes = [ids for ids, _ in encoded], None if tokenizer.keeps_text else [size for _, size in encoded]
    marks = [_fingerprint(d.encode()) for d in documents]
    return Text(str(path), tokens, words, tokenizer, sizes=sizes, fingerprints=marks)


def open_stored_text(stream: TokenStream, tokenizer: Tokenizer | None, protocol: EvalProtocol) -> Text:
    """The documents of a split: where its index says, else where an end of text stands, else one."""
    limit = len(stream) if protocol.tokens is None else min(len(stream), protocol.tokens + 1)
    tokens = stream.read(0, limit).astype(np.int32)
    end = None if tokenizer is None else tokenizer.end_of_text
    starts = stream.document_starts
    if starts is None:
        starts = np.zeros(0, np.int64) if end is None else np.flatnonzero(tokens == end)
    starts = np.unique(np.concatenate([[0], starts[starts < limit]]))
    documents = [part for part in np.split(tokens, starts[1:]) if len(part)]
    mask = stream.loss_mask
    masks = None if mask is None else np.split(mask[:limit] == 1, starts[1:])
    words, contents = None, [part.tobytes() for part in documents]
    if tokenizer is not None and int(tokens.max()) < tokenizer.vocab_size:
        count, special = COUNT_WORDS[protocol.words], np.array([*tokenizer.specials.values(), -1])
        texts = [tokenizer.decode(part[~np.isin(part, special)]) for part in documents]
        words, contents = [count(text) for text in texts], [text.encode() for text in texts]
    fingerprints = list(map(_fingerprint, contents))
    return Text(stream.name, documents, words, tokenizer, is_stored=True, masks=masks, fingerprints=fingerprints)


def _fingerprint(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def score_text(
    model: GPT,
    text: Text,
    protocol: EvalProtocol,
    *,
    options: ScoringOptions = DEFAULTS,
) -> DocumentSums:
    """The sums of each document under a resolved protocol. Call it under the model's mesh.

    Raises:
        UserError: the protocol would run conversations together.
    """
    protocol = fit_protocol(protocol, text)
    added = None if text.is_stored or text.tokenizer is None else text.tokenizer.begin_of_text
    placed = place_windows(protocol, text.documents, begin_of_text=added, masks=text.masks, name=text.name)
    return sum_documents(text, placed, _score_in_parts(model, placed, options), protocol=protocol)


def fit_protocol(protocol: EvalProtocol, text: Text) -> EvalProtocol:
    """The protocol for this text. Raises `UserError` if it would run conversations together."""
    return protocol.choose_documents(are_conversations=text.masks is not None, name=text.name)


def _score_in_parts(model: GPT, placed: Sequence[PlacedWindow], options: ScoringOptions) -> Iterator[np.ndarray]:
    """The nats of each window's scored tokens. Those of a part of the windows are in memory at a time."""
    at_once = BATCHES_AT_ONCE * model.mesh.round_up_rows(options.batch_size)
    for start in range(0, len(placed), at_once):
        report = options.progress
        shifted = None if report is None else lambda done, start=start, report=report: report(start + done)
        windows = [p.window for p in placed[start : start + at_once]]
        for score in score_windows(model, windows, options=replace(options, progress=shifted)):
            yield -score.log_probabilities.astype(np.float64)


def sum_documents(
    text: Text, placed: Sequence[PlacedWindow], nats: Iterable[np.ndarray], *, protocol: EvalProtocol
) -> DocumentSums:
    """Sums over each document that has a scored token. One document alone is divided into parts.

    Args:
        nats: of each window's scored tokens, in order.
    """
    scored = np.zeros(len(text.documents), np.int64)
    for p in placed:
        np.add.at(scored, p.documents[p.documents >= 0], 1)
    known = np.flatnonzero(scored)
    if not len(known):
        raise UserError(f"{text.name}: none of its next tokens is scored. Take more.")
    sizes_of = _find_sizes(text, placed, protocol)
    one = known if len(known) == 1 and scored[known[0]] >= 2 * PARTS else None
    known = _add_empty_documents(known, text, protocol)
    pairs = zip(known.tolist(), scored[known].tolist(), strict=True)
    counts = np.array([_count_scored_words(text, document, tokens) for document, tokens in pairs])
    unit, divide = "documents", None
    if one is not None:
        unit, known, counts = "equal parts of the one document", one, np.full(PARTS, counts.sum() / PARTS)
        total = float(sum(sizes.sum() for sizes in sizes_of))
        divide = EvenParts(total or float(scored.sum()), has_bytes=total > 0)
    sums = np.zeros((5, len(counts)))
    for p, sizes, values in zip(placed, sizes_of, nats, strict=True):
        is_counted = p.documents >= 0
        values, ones = values[is_counted], np.ones(int(is_counted.sum()))
        group = np.searchsorted(known, p.documents[is_counted]) if divide is None else divide.place(sizes)
        for row, x in zip(sums, (values, values * p.weight, ones * p.weight, ones, sizes), strict=True):
            np.add.at(row, group, x)
    own_nats, weighted, tokens, scored_tokens, size = sums
    owners = np.repeat(known, 1 if one is None else PARTS).tolist()
    keys = number_repeats(owners, text.fingerprints or range(len(text.documents)))
    return DocumentSums(own_nats, weighted, tokens, scored_tokens, size, counts, unit, keys)


def _add_empty_documents(known: np.ndarray, text: Text, protocol: EvalProtocol) -> np.ndarray:
    """The documents that count: those with a scored token, and empty ones in which the harness counts a word."""
    if text.words is None:
        return known
    end = len(text.documents) if protocol.tokens is None else int(known[-1])
    places = range(min(end, protocol.max_documents or end))
    return np.union1d(known, [i for i in places if not len(text.documents[i]) and text.words[i]]).astype(np.int64)


def number_repeats(documents: Iterable[int], fingerprints: Sequence[int]) -> list[tuple[int, int]]:
    """The fingerprint of each document, and how often it came before: for equal documents, and parts of one."""
    times: Counter[int] = Counter()
    keys = []
    for document in documents:
        fingerprint = fingerprints[document]
        keys.append((fingerprint, times[fingerprint]))
        times[fingerprint] += 1
    return keys


def _find_counted(p: PlacedWindow) -> Ids:
    """The scored tokens of a window that count."""
    return p.window.targets[p.documents >= 0]


def _find_sizes(text: Text, placed: Sequence[PlacedWindow], protocol: EvalProtocol) -> list[np.ndarray]:
    """The bytes of text behind the counted tokens of each window; zeros if those of one are unknown."""
    counted = [_find_counted(p) for p in placed]
    largest = max(int(tokens.max()) for tokens in counted if len(tokens))
    if text.tokenizer is None or largest >= text.tokenizer.vocab_size:
        return [np.zeros(len(tokens)) for tokens in counted]
    if text.sizes is None:
        sizes = text.tokenizer.bytes_per_token.astype(np.float64)
        return [sizes[tokens] for tokens in counted]
    begin = None if text.is_stored or text.tokenizer.begin_of_text is None else 0  # that token is of no text
    same = place_windows(protocol, text.sizes, begin_of_text=begin, masks=text.masks, name=text.name)
    return [_find_counted(p).astype(np.float64) for p in same]


@dataclass
class EvenParts:
    """Divides a document into parts, as equal in bytes as tokens allow: the same parts for any tokenizer."""

    whole: float
    """Bytes of all tokens or, where they are unknown, their number."""
    has_bytes: bool
    before: float = 0.0
    """Those of the tokens that have been placed."""

    def place(self, sizes: np.ndarray) -> np.ndarray:
        """The part of each of the next tokens."""
        extents = sizes if self.has_bytes else np.ones(len(sizes))
        ends = self.before + np.cumsum(extents)
        self.before = float(ends[-1]) if len(ends) else self.before
        return np.minimum(PARTS - 1, ((ends - extents / 2) * PARTS // self.whole).astype(np.int64))


def _count_scored_words(text: Text, document: int, scored: int) -> float:
    """The words of a document; of one that was scored in part, or several times, as large a share."""
    if text.words is None:
        return 0.0
    length = len(text.documents[document])
    whole = length - 1 <= scored <= length + (0 if text.is_stored else 1)
    return float(text.words[document]) * (1.0 if whole else scored / max(1, length))
