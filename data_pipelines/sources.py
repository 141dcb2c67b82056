"""Where text comes from: files, folders and patterns of files, what Python itself brings along, tiny Shakespeare.

The one idea: a source yields documents, always in the same order, one string at a time; it knows nothing of tokens. It
also says what it is (`identity`), so that prepared data is found again, and prepared anew when the files have changed.

Text is taken byte for byte: no line end is translated, no byte-order mark removed. Bytes that are not UTF-8 are
replaced by U+FFFD in text files, and counted; in JSON lines, whose standard demands UTF-8, they are an error.
"""

import glob
import gzip
import hashlib
import importlib
import json
import os
import sys
import sysconfig
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gptjax.errors import UserError
from gptjax.tokenizer import replace_surrogates

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst", ".txt.gz", ".md.gz")
JSON_SUFFIXES = (".jsonl", ".jsonl.gz")
REPLACED = "files had bytes that are not UTF-8 (replaced by U+FFFD)"
_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

Notes = Counter[str]
"""Things worth a line in the report, and how often they happened."""


class Source(Protocol):
    """Any sequence of documents that can be read more than once."""

    @property
    def name(self) -> str:
        """One word, for the name of a cache directory."""
        ...

    def documents(self, notes: Notes) -> Iterator[str]:
        """Yield every document; may yield empty ones."""
        ...

    def identity(self) -> dict[str, Any]:
        """What, in JSON, distinguishes this text from another."""
        ...


def open_source(spec: str, *, strict: bool = False) -> Source:
    """`stdlib`, `shakespeare`, a file, a directory (read recursively) or a pattern such as `books/*.jsonl.gz`."""
    if spec in ("stdlib", "shakespeare"):
        return Stdlib() if spec == "stdlib" else Shakespeare()
    path = Path(spec)
    if path.is_dir():
        suffixes = TEXT_SUFFIXES + JSON_SUFFIXES
        found = sorted(p for p in path.rglob("*") if p.name.lower().endswith(suffixes) and p.is_file())
        if not found:
            raise UserError(f"source {spec}: the directory holds no {', '.join(suffixes)} files.")
        return Files(spec, tuple(found), strict)
    if path.exists():
        return Files(spec, (path,), strict)
    matches = sorted(Path(match) for match in glob.glob(spec, recursive=True) if os.path.isfile(match))
    if not matches:
        raise UserError(f"source {spec!r}: no such file, directory or pattern. Or use stdlib, or shakespeare.")
    return Files(spec, tuple(matches), strict)


@dataclass(frozen=True)
class Files:
    """Text files, one document each, and JSON lines, one document a line; plain or gzipped; in the order given."""

    spec: str
    paths: tuple[Path, ...]
    strict: bool = False

    @property
    def name(self) -> str:
        return Path(self.spec.split("*")[0].rstrip("/") or "files").name.split(".")[0] or "files"

    def documents(self, notes: Notes) -> Iterator[str]:
        for path in self.paths:
            try:
                if path.name.lower().endswith(JSON_SUFFIXES):
                    yield from _json_lines(path, notes, strict=self.strict)
                else:
                    yield from _text(path, notes)
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{path}: cannot be read: {error}.") from None

    def identity(self) -> dict[str, Any]:
        """Names, sizes and times of change: cheap, and enough to notice a change."""
        files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in self.paths]
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        return {"source": self.spec, "files": len(files), "names_sizes_times": digest}


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _text(path: Path, notes: Notes) -> Iterator[str]:
    with _open(path) as file:
        yield _decode(file.read(), notes)


def _decode(content: bytes, notes: Notes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        notes[REPLACED] += 1
        return content.decode("utf-8", errors="replace")


def _json_lines(path: Path, notes: Notes, *, strict: bool) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    text = _text_of(line, where=f"{path}:{number}")
                except UserError:
                    if strict:
                        raise
                    notes["broken lines skipped"] += 1
                    continue
                yield text


def _text_of(line: bytes, *, where: str) -> str:
    try:
        content = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{where}: not a line of JSON in UTF-8: {error}.") from None
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str):
        raise UserError(f'{where}: wanted an object with a string "text", got {str(content)[:80]}.')
    return replace_surrogates(text)


@dataclass(frozen=True)
class Stdlib:
    """The text that every Python brings along: its standard library's sources and its language reference.

    Each module is one document, its docstrings where they stand, and so is each of pydoc's topics. Tests are left
    out: they repeat what they test. The text differs between Python versions, so no expected loss can be pinned to it.
    """

    name: str = "stdlib"

    def documents(self, notes: Notes) -> Iterator[str]:
        root = Path(sysconfig.get_path("stdlib"))
        modules = sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py"))
        kept = [path for name, path in modules if _belongs(name)]
        if not kept:
            raise UserError(f"source stdlib: this Python keeps no sources in {root}. Use another source.")
        for path in kept:
            yield _decode(path.read_bytes(), notes)
        yield from _pydoc_topics(notes)

    def identity(self) -> dict[str, Any]:
        return {"source": "stdlib", "python": sys.version.split()[0], "platform": sys.platform}


def _belongs(name: str) -> bool:
    """Not installed packages, nor tests, nor files of this one build, nor the topics in the form of source."""
    parts = name.split("/")
    outside = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    return not outside & set(parts) and parts[0] != "pydoc_data" and not parts[-1].startswith("_sysconfigdata")


def _pydoc_topics(notes: Notes) -> Iterator[str]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions leave it out
        notes["language reference missing from this Python"] += 1
        return
    for _, topic in sorted(topics.items()):
        yield topic


@dataclass(frozen=True)
class Shakespeare:
    """The 1,115,394 characters of karpathy/char-rnn's tiny Shakespeare, fetched once and checked by its SHA-256."""

    name: str = "shakespeare"

    def documents(self, notes: Notes) -> Iterator[str]:
        path = cache_directory() / "tinyshakespeare.txt"
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != _SHAKESPEARE_SHA256:
            _fetch(path)
        yield path.read_bytes().decode("utf-8")

    def identity(self) -> dict[str, Any]:
        return {"source": "shakespeare", "sha256": _SHAKESPEARE_SHA256}


def _fetch(path: Path) -> None:
    try:
        with urllib.request.urlopen(_SHAKESPEARE_URL, timeout=30) as reply:
            content = reply.read()
    except OSError as error:
        raise UserError(
            f"source shakespeare: {_SHAKESPEARE_URL} did not answer ({error}). Bring the file here by other means and "
            "name it: --source=PATH/input.txt. Offline, --source=stdlib always works."
        ) from None
    if hashlib.sha256(content).hexdigest() != _SHAKESPEARE_SHA256:
        raise UserError(f"{_SHAKESPEARE_URL}: the downloaded text is not tiny Shakespeare (its SHA-256 differs).")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def cache_directory() -> Path:
    """Where things made once are kept: `$GPTJAX_CACHE`, else `~/.cache/gptjax`."""
    return Path(os.environ.get("GPTJAX_CACHE") or Path.home() / ".cache" / "gptjax")
