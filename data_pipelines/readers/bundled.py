"""Text for everyone: the standard library of Python, and tiny Shakespeare."""

import importlib
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import REPLACED, Document, Notes, ReadContext, Source, validate_utf8
from data_pipelines.readers.downloads import cache_directory, download
from gptjax.core.errors import UserError


def open_bundled(spec: str) -> Source | None:
    """The source named `stdlib` or `shakespeare`; None for another spec."""
    sources: dict[str, Source] = {"stdlib": Stdlib(), "shakespeare": Shakespeare()}
    return sources.get(spec)


@dataclass(frozen=True)
class Stdlib:
    """The sources of Python's standard library and its language reference, without a download.

    Each module is a document, and so is each of pydoc's topics. Tests are left out: they repeat what they test. The
    text differs between Python versions, so no expected loss can be pinned to it.
    """

    name: str = "stdlib"

    def chunks(self, context: ReadContext) -> Iterator[Document]:
        root = Path(sysconfig.get_path("stdlib"))
        modules = sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py"))
        kept = [path for name, path in modules if _belongs(name)]
        if not kept:
            raise UserError(f"source stdlib: this Python keeps no sources in {root}. Use another source.")
        lenient = ReadContext(notes=context.notes)  # nobody can mend these files
        for path in kept:
            yield validate_utf8(path.read_bytes(), lenient, where=str(path), note=REPLACED)
        yield from _pydoc_topics(context.notes)

    def identity(self) -> dict[str, Any]:
        return {"source": "stdlib", "python": sys.version.split()[0], "platform": sys.platform}


def _belongs(name: str) -> bool:
    """False for installed packages, tests, files of this one build, and the topics in the form of source."""
    parts = name.split("/")
    outside = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    return not outside & set(parts) and parts[0] != "pydoc_data" and not parts[-1].startswith("_sysconfigdata")


def _pydoc_topics(notes: Notes) -> Iterator[Document]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions leave it out
        notes["language reference missing from this Python"] += 1
        return
    for _, topic in sorted(topics.items()):
        yield topic.encode()


@dataclass(frozen=True)
class Shakespeare:
    """The 1,115,394 characters of karpathy/char-rnn's tiny Shakespeare, fetched once and checked by its SHA-256."""

    url: str = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    sha256: str = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    name: str = "shakespeare"

    def chunks(self, context: ReadContext) -> Iterator[Document]:
        try:
            yield download(self.url, cache_directory() / "tinyshakespeare.txt", sha256=self.sha256)
        except UserError as error:
            raise UserError(
                f"source shakespeare: {error} Or fetch the file by other means and name it: "
                "--source=PATH/input.txt. Offline, --source=stdlib always works."
            ) from None

    def identity(self) -> dict[str, Any]:
        return {"source": "shakespeare", "sha256": self.sha256}
