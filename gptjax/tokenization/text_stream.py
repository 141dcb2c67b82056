"""Text of tokens that arrive one after another: whole characters only, and nothing that may become a stop text."""

from collections.abc import Iterable, Sequence

from gptjax.tokenization.tokenizer import Tokenizer


class TextStream:
    """Decodes ids as they come. After a stop text, which is not part of the text, `stopped` is True."""

    def __init__(self, tokenizer: Tokenizer, *, after: Sequence[int] = (), stop_texts: Sequence[str] = ()) -> None:
        """`after` are the ids that they follow, such as a prompt."""
        self._tokenizer, self._stop_texts = tokenizer, [text for text in stop_texts if text]
        self._after, self._decoder = after, tokenizer.make_decoder(after)
        self._held = ""
        self.text = ""
        """All text so far."""
        self.stopped = False

    def add(self, ids: Iterable[int]) -> str:
        """The text that is certain with these ids."""
        return self._take(self._decoder.add(ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids from the first on, whatever was added before."""
        return self._tokenizer.decode_after(self._after, ids)

    def finish(self) -> str:
        """The text that was held back. Bytes of an unfinished character become U+FFFD."""
        new = self._take(self._decoder.finish())
        rest, self._held = ("" if self.stopped else self._held), ""
        self.text += rest
        return new + rest

    def _take(self, new: str) -> str:
        if self.stopped:
            return ""
        self._held += new
        ends = [place for text in self._stop_texts if (place := self._held.find(text)) >= 0]
        self.stopped = bool(ends)
        length = min(ends) if ends else len(self._held) - max(map(self._count_begun, self._stop_texts), default=0)
        certain, self._held = self._held[:length], self._held[length:]
        self.text += certain
        return certain

    def _count_begun(self, stop: str) -> int:
        """Characters at the end with which a stop text begins."""
        return next((n for n in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:n])), 0)
