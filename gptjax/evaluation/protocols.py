"""Protocols: how a text becomes windows. The presets are those of others, each equal to its original.

The same weights have many perplexities: split, unit, window and context decide. So a protocol says all of it in words.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from gptjax.core.errors import UserError, count_of, quote
from gptjax.evaluation.windows import EvalWindow, Ids, rolling_windows, strided_windows

FirstToken = Literal["context", "end-of-text"]
Documents = Literal["together", "alone"]
Words = Literal["words", "line-ends", "split"]
MODDED_TOKENS = 10_485_760


@dataclass(frozen=True)
class EvalProtocol:
    """Which tokens are read together, and which are scored."""

    name: str = "gptjax"
    window: int | None = None
    """Tokens that a row reads. None: the model's context."""
    stride: int | None = None
    """Tokens between the starts of windows. None: as many as a window has, so that no token is read twice."""
    offsets: tuple[int, ...] | None = None
    """Starts of the windows in the text, as nanoGPT draws them, instead of a stride. They may overlap."""
    first_token: FirstToken = "end-of-text"
    """`end-of-text` puts that token before each document, so that its first token is predicted, too; `context` adds
    nothing, and what opens a text is not predicted. Shards are taken as they are stored."""
    documents: Documents | None = None
    """`together` runs documents into one text; `alone` begins a text with each. None: texts run together, and
    conversations are scored each by itself."""
    full_windows: bool = False
    """What is left at the end, shorter than a window, is not scored."""
    whole_rows: bool = False
    """Documents are cut after one window; the rest is not scored (truncation)."""
    ends_with_text: bool = False
    """The last window is moved back to end with the text, so that it sees all that fits."""
    label_shift: bool = False
    """Weights of windows are as transformers' page has them: each window counts a token less than it scores."""
    tokens: int | None = None
    """Predictions, from the start. None: all."""
    max_documents: int | None = None
    """Documents, from the start. None: all."""
    rows: bool = False
    """Each line of a text file that is not blank is a document, with its line end."""
    words: Words = "words"
    """What word perplexity counts in the original text: words between blanks; `line-ends` counts those, too; `split` is
    the harness' count, which blanks at the ends of a document raise."""

    def resolve(self, context_length: int) -> "EvalProtocol":
        """With numbers for window and stride. Raises `UserError` if they do not fit."""
        window = context_length if self.window is None else self.window
        stride = window if self.stride is None else self.stride
        for name, value, most in (("window", window, context_length), ("stride", stride, window)):
            if not 1 <= value <= most:
                limit = "the model's context" if name == "window" else "the window"
                raise UserError(
                    f"the {name} of --protocol={self.name} is {value} tokens; it lies between 1 and {limit} of {most}. "
                    f"Give --{name}=N."
                )
        resolved = replace(self, window=window, stride=stride)
        resolved.check_options()
        return resolved

    def choose_documents(self, *, are_conversations: bool, name: str) -> "EvalProtocol":
        """With `documents` as they are for a text of this name.

        Raises:
            UserError: conversations would run together. None of them may see another.
        """
        if not are_conversations:
            return self
        given, advice = None, ""
        if self.offsets is not None:
            given, advice = "--offsets are places in one text", "Leave --offsets out, with --protocol=gptjax or harness"
        elif self.documents == "together":
            is_preset = self.name in PRESETS and PRESETS[self.name].documents == "together"
            given = f"{f'--protocol={self.name}' if is_preset else '--documents=together'} runs them together"
            advice = "Take --protocol=gptjax or harness" if is_preset else "Leave --documents out"
        if given is not None:
            raise UserError(f"{name}: holds conversations, which are scored each by itself, and {given}. {advice}.")
        return replace(self, documents="alone")

    def check_options(self) -> None:
        """Raise `UserError` for a part that the others would leave without effect. The protocol is resolved."""
        has_one_window = self.whole_rows and self.documents == "alone"
        if self.stride != self.window and (self.ends_with_text or has_one_window):
            reason = "scores one window of each document" if has_one_window else "puts its windows side by side"
            raise UserError(f"--protocol={self.name} {reason}, so it has no stride. Leave --stride out.")
        if self.offsets is None:
            return
        if self.documents == "alone":
            raise UserError(
                f"--offsets are places in one text, and --protocol={self.name} takes each document by itself. Take "
                "--protocol=nanogpt for a text, or leave --offsets out."
            )
        if self.stride != self.window or self.label_shift or self.ends_with_text or self.tokens is not None:
            raise UserError(
                f"--offsets says where windows begin and how many there are, and so does --protocol={self.name} with "
                "its stride or --tokens. Take --protocol=nanogpt without those."
            )

    def cut(self, tokens: Ids) -> Iterator[EvalWindow]:
        """The windows of a text, whose first token is not predicted. The protocol is resolved."""
        assert self.window is not None
        assert self.stride is not None
        if self.ends_with_text:
            yield from (w for w in rolling_windows(tokens, self.window) if self._takes(w))
            return
        # transformers' page counts the token that a row predicts last among those that it reads.
        length = self.window if self.label_shift else self.window + 1
        yield from (w for w in strided_windows(tokens, length, stride=self.stride) if self._takes(w, length=length))

    def _takes(self, window: EvalWindow, *, length: int | None = None) -> bool:
        """Whether a window is scored: every one, or those that are full."""
        length = (self.window or 0) + 1 if length is None else length
        return not self.full_windows or len(window.tokens) == length

    def describe(
        self,
        *,
        begin: str | None = "an end of text",
        is_stored: bool = False,
        scored: int | None = None,
        documents: int | None = None,
    ) -> str:
        """The protocol in words.

        Args:
            begin: what a document follows; None if the tokenizer has nothing of the kind.
            is_stored: whether the text is of shards.
            scored, documents: how many tokens were scored, and how many documents there are, where that is known.
        """
        alone = self.documents == "alone"
        together = "each document by itself" if alone else "documents run together"
        apart = "without overlap" if self.stride == self.window else f"{self.stride} apart"
        if self.offsets is not None:
            apart = f"at {count_of(len(self.offsets), 'given offsets')}"
        adds = self.first_token == "end-of-text" and begin is not None
        first = f"documents follow {begin}" if adds else "the first token is context"
        first = "tokens as they are stored" if is_stored else first
        parts = [f"{self.name}: windows of {self.window} {apart}", together, first]
        if self.whole_rows:
            parts.append("longer documents are cut")
        if self.full_windows:
            parts.append("full windows only")
        if self.ends_with_text:
            parts.append(f"the last window ends with {'its document' if alone else 'the text'}")
        if self.label_shift:
            parts.append("a window of n scored tokens has the weight n - 1, as on transformers' page")
        if self.rows and not is_stored:
            parts.append("each line that is not blank is a document")
        if (limit := self.max_documents) is not None:
            fewer = f" (there are {documents:,})" if documents is not None and documents < limit else ""
            parts.append(f"the first {count_of(limit, 'documents')}{fewer}")
        if (limit := self.tokens) is not None:
            fewer = f" ({scored:,} are scored)" if scored is not None and scored < limit else ""
            parts.append(f"the first {count_of(limit, 'tokens')}{fewer}")
        return ", ".join(parts)


PRESETS = {
    "gptjax": EvalProtocol(),
    "nanogpt": EvalProtocol("nanogpt", first_token="context", documents="together", full_windows=True),
    "modded-nanogpt": EvalProtocol("modded-nanogpt", documents="together", full_windows=True, tokens=MODDED_TOKENS),
    "hf-stride-512": EvalProtocol("hf-stride-512", stride=512, first_token="context", label_shift=True),
    "harness": EvalProtocol("harness", documents="alone", ends_with_text=True, words="split"),
    "wikitext2-rows": EvalProtocol(
        "wikitext2-rows",
        window=512,
        first_token="context",
        documents="alone",
        whole_rows=True,
        max_documents=100,
        rows=True,
    ),
}


def find_protocol(name: str) -> EvalProtocol:
    """A preset by name.

    - `gptjax`: windows side by side over the text, as `ValidationLoss` has them.
    - `nanogpt`: its `estimate_loss`, over all windows instead of random ones (`--offsets` takes those).
    - `modded-nanogpt`: the first 10,485,760 tokens of FineWeb's validation shard, side by side.
    - `hf-stride-512`: transformers' page on perplexity, windows 512 apart.
    - `harness`: lm-evaluation-harness' rolling log-likelihood.
    - `wikitext2-rows`: the first 100 rows of WikiText-2's validation text, each alone, cut at 512 tokens.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name.lower().replace("_", "-"), PRESETS, n=1)
        hint = f" Did you mean --protocol={close[0]}?" if close else ""
        raise UserError(f"--protocol={quote(name)} is unknown; wanted one of {', '.join(PRESETS)}.{hint}")
    return PRESETS[name]


class PlacedWindow(NamedTuple):
    """A window, and which document each of its scored tokens belongs to; -1: the token does not count."""

    window: EvalWindow
    documents: np.ndarray
    weight: float
    """Factor on its log-probabilities and on its count of tokens in figures per token."""


def place_windows(
    protocol: EvalProtocol,
    documents: Sequence[Ids],
    *,
    begin_of_text: int | None = None,
    masks: Sequence[np.ndarray] | None = None,
    name: str = "the text",
) -> list[PlacedWindow]:
    """The windows of all documents under a resolved protocol.

    Args:
        begin_of_text: goes before each document if the protocol wants it; None: documents are taken as they are.
        masks: for each token whether its prediction counts; for documents that are taken as they are.
        name: the text in messages.

    Raises:
        UserError: nothing is left to be predicted, or an offset lies outside the text.
    """
    if protocol.max_documents is not None:
        documents = documents[: protocol.max_documents]
    if protocol.whole_rows:
        documents = [tokens[: protocol.window] for tokens in documents]
    owners = [np.full(len(tokens), number) for number, tokens in enumerate(documents)]
    if masks is not None:
        owners = [np.where(mask[: len(owner)], owner, -1) for owner, mask in zip(owners, masks, strict=False)]
    if protocol.first_token == "end-of-text" and begin_of_text is not None:
        documents = [np.concatenate([np.array([begin_of_text], np.int32), tokens]) for tokens in documents]
        # That token belongs to its document, and counts as the next one does. An empty document is that token alone.
        firsts = [owner[:1] if len(owner) else [number] for number, owner in enumerate(owners)]
        owners = [np.concatenate([first, owner]).astype(np.int64) for first, owner in zip(firsts, owners, strict=True)]
    if protocol.documents == "alone":
        placed = _place_documents(protocol, documents, owners)
    else:
        placed = _place_text(protocol, *_join(documents, owners, tokens=protocol.tokens))
    if not placed:
        least = f"{(protocol.window or 0) + 1} are needed for a window" if protocol.full_windows else "2 are needed"
        raise UserError(f"{name}: has too few tokens to predict one; at least {least}.")
    return placed


def _place_documents(
    protocol: EvalProtocol, documents: Sequence[Ids], owners: Sequence[np.ndarray]
) -> list[PlacedWindow]:
    """The windows of documents that are scored each by itself, up to the protocol's number of tokens."""
    placed, left = [], protocol.tokens
    for tokens, owner in zip(documents, owners, strict=True):
        tokens = tokens if left is None else tokens[: left + 1]
        found = _place_windows(protocol, tokens, owner)
        placed += found
        if left is not None:
            left -= sum(p.window.scored for p in found)
    return placed


def _join(
    documents: Sequence[Ids], owners: Sequence[np.ndarray], *, tokens: int | None
) -> tuple[Ids, np.ndarray, np.ndarray]:
    """One text up to this many predictions: its tokens, the document of each, and which of them begin a document."""
    text = np.concatenate([*documents, np.zeros(0, np.int32)])
    begins = np.zeros(len(text) + 1, bool)
    begins[np.cumsum([0, *map(len, documents)])] = True
    end = len(text) if tokens is None else tokens + 1
    return text[:end], np.concatenate([*owners, np.zeros(0, np.int64)]), begins[: len(text)][:end]


def _place_text(protocol: EvalProtocol, text: Ids, owner: np.ndarray, begins: np.ndarray) -> list[PlacedWindow]:
    """The windows of a text whose tokens belong to the documents `owner`, and which `begins` divides."""
    length, offsets = protocol.window or 1, protocol.offsets
    if offsets is None:
        return _place_windows(protocol, text, owner, begins=begins)
    if wrong := [i for i in offsets if not 0 <= i < len(text) - length]:
        raise UserError(f"--offsets: {wrong[0]} is outside the text; wanted 0 to {len(text) - length - 1}.")
    windows = [EvalWindow(text[i : i + length + 1], length, begins[i : i + length]) for i in offsets]
    return [_place(protocol, w, owner[i + 1 : i + 1 + length]) for w, i in zip(windows, offsets, strict=True)]


def _place_windows(
    protocol: EvalProtocol, tokens: Ids, owner: np.ndarray, *, begins: np.ndarray | None = None
) -> list[PlacedWindow]:
    placed, seen = [], 1
    for window in protocol.cut(tokens):
        end = seen + window.scored
        if begins is not None:
            window = window._replace(begins=begins[end - len(window.tokens) : end - 1])
        placed.append(_place(protocol, window, owner[seen:end]))
        seen = end
    return placed


def _place(protocol: EvalProtocol, window: EvalWindow, documents: np.ndarray) -> PlacedWindow:
    overlaps = window.scored < len(window.inputs)
    weight = (window.scored - 1) / window.scored if protocol.label_shift and overlaps else 1.0
    return PlacedWindow(window, documents, weight)
