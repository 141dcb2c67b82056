"""Text for everyone: the standard library of Python, and tiny Shakespeare."""

import contextlib
import hashlib
import http.client
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import REPLACED, Document, ReadContext, validate_utf8
from gptjax.core.errors import UserError, quote_error
from gptjax.core.files import cache_directory, write_atomically


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
        lenient = ReadContext(notes=context.notes)  # nobody can correct these files
        for path in (path for name, path in modules if _belongs(name)):
            yield validate_utf8(path.read_bytes(), lenient, where=str(path), note=REPLACED)
        with contextlib.suppress(ImportError):  # some distributions leave it out
            yield from (topic.encode() for _, topic in sorted(import_module("pydoc_data.topics").topics.items()))

    def identity(self) -> dict[str, Any]:
        return {"source": "stdlib", "python": sys.version.split()[0], "platform": sys.platform}


def _belongs(name: str) -> bool:
    """False for installed packages, tests, files of this one build, and the topics in the form of source."""
    parts = name.split("/")
    outside = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    return not outside & set(parts) and parts[0] != "pydoc_data" and not parts[-1].startswith("_sysconfigdata")


@dataclass(frozen=True)
class Shakespeare:
    """The 1,115,394 characters of karpathy/char-rnn's tiny Shakespeare, fetched once and checked by its SHA-256."""

    url: str = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    sha256: str = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    name: str = "shakespeare"

    def chunks(self, context: ReadContext) -> Iterator[Document]:
        path = cache_directory() / "tinyshakespeare.txt"
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != self.sha256:
            try:
                with urllib.request.urlopen(self.url, timeout=60) as reply:
                    content = reply.read()
                if hashlib.sha256(content).hexdigest() != self.sha256:
                    raise ValueError("its SHA-256 is wrong")
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise UserError(
                    f"source shakespeare: {self.url} cannot be fetched: {quote_error(error)}. "
                    "Fetch it by other means and name it: "
                    "--source=PATH/input.txt. Offline, --source=stdlib always works."
                ) from None
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        yield content

    def identity(self) -> dict[str, Any]:
        return {"source": "shakespeare", "sha256": self.sha256}
