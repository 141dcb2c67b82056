"""WikiText's lines joined into articles: `wikitext:SOURCE`, where SOURCE gives its rows, or its whole files.

The published rows are the lines of one long text; an empty row stands for a line of one space. Articles begin at each
heading ` = Title = ` that follows a blank line. Joined, they are the original byte for byte.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_pipelines.readers.documents import Document, ReadContext, Source, iter_documents

PREFIX = "wikitext:"
_TITLE = re.compile(r" = [^=\s](?:.*[^=\s])? = \s*")
"""One `=` on each side; sections of an article have more."""


@dataclass(frozen=True)
class Articles:
    """The articles of WikiText, whose lines another source gives."""

    lines: Source

    @property
    def name(self) -> str:
        return self.lines.name

    def chunks(self, context: ReadContext) -> Iterator[Document]:
        article: list[str] = []
        after_blank = True
        for line in _iter_lines(self.lines, context):
            if after_blank and _TITLE.fullmatch(line) and any(map(str.strip, article)):
                # The blank line before a title belongs to it, as in the original.
                begin = [article.pop()] if not article[-1].strip() else []
                yield "".join(article).encode()
                article = begin
            article.append(line)
            after_blank = not line.strip()
        if article:
            yield "".join(article).encode()

    def identity(self) -> dict[str, Any]:
        return self.lines.identity() | {"joined": "wikitext articles"}


def _iter_lines(source: Source, context: ReadContext) -> Iterator[str]:
    """Line by line, each with its end; a document is one line (a row) or a whole file."""
    for document in iter_documents(source.chunks(context), context):
        first, *lines = re.findall(r"[^\n]*\n|[^\n]+", str(document, "utf-8")) or [" "]
        yield first if first.endswith("\n") else f"{first}\n"  # without an end it is the only one
        yield from lines
