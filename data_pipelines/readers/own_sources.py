"""A user's own source of documents: `FILE.py:NAME`, a class or a value in a Python file of the user's.

The class is called without arguments. It needs what `documents.Source` names, and no change of this package.
"""

import functools
import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from data_pipelines.readers.documents import Chunk, Document, DocumentBlock, ReadContext, Source, validate_utf8
from gptjax.cli.config_files import run_file
from gptjax.core.errors import UserError, quote_error
from gptjax.core.files import expand_path, file_sha256

_SPEC = re.compile(r"(?P<path>.+\.py):(?P<attribute>\w+)")


def open_own(spec: str) -> "OwnSource | None":
    """Run the file of a spec such as `my_reader.py:Mails`; None for other specs.

    Raises:
        UserError: the file, or what it names, is missing, has a fault, or is no source.
    """
    if (found := _SPEC.fullmatch(spec)) is None:
        return None
    path = expand_path(found["path"]).resolve()
    if not path.is_file():
        raise UserError(f"source {spec!r}: there is no file {path}. Give FILE.py:NAME, where NAME is your class.")
    digest = file_sha256(path)
    module = _load(path, digest)
    source = getattr(module, found["attribute"], None)
    if source is None:
        classes = [name for name, value in vars(module).items() if isinstance(value, type) and hasattr(value, "chunks")]
        raise UserError(f"source {spec!r}: the file has no {found['attribute']}; its sources: {classes or 'none'}.")
    if isinstance(source, type):
        try:
            source = source()
        except TypeError as error:
            raise UserError(
                f"source {spec!r}: {quote_error(error)}. Give every field a default, or name a value."
            ) from None
    if lacking := [name for name in ("name", "chunks", "identity") if not hasattr(source, name)]:
        raise UserError(
            f"source {spec!r}: it has no {' and no '.join(lacking)}. A source has name, chunks(context) and identity() "
            "(docs/extending.md shows one)."
        )
    return OwnSource(spec, path, digest, source)


@functools.cache
def _load(path: Path, digest: str) -> ModuleType:
    """The file as a module, in this process or in a worker. It is run once for each content."""
    return run_file(path)


@dataclass(frozen=True)
class OwnSource:
    """A user's source, with what it yields checked."""

    spec: str
    path: Path
    digest: str
    """SHA-256 of the file as it was run."""
    source: Source

    @property
    def name(self) -> str:
        return self.source.name

    def chunks(self, context: ReadContext) -> Iterator[Chunk]:
        for number, chunk in enumerate(self.source.chunks(context)):
            where = f"source {self.spec}: chunk {number}"
            if isinstance(chunk, DocumentBlock):
                read = functools.partial(_read_block, self.path, self.digest, self._pack(chunk), where)
                yield DocumentBlock(chunk.size, read)
            else:
                yield check_document(chunk, context, where=where)

    def _pack(self, block: DocumentBlock) -> bytes:
        try:
            return pickle.dumps(block.read)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                f"source {self.spec}: the `read` of a DocumentBlock cannot be sent to another process: "
                f"{quote_error(error)}. "
                "Use a function of the file, or functools.partial of one."
            ) from None

    def identity(self) -> dict[str, Any]:
        """The source's own identity, and the content of the file: other code may give other documents."""
        own = self.source.identity()
        try:
            json.dumps(own)
        except TypeError as error:
            raise UserError(f"source {self.spec}: its identity() is not JSON: {quote_error(error)}.") from None
        return {"source": f"{self.path}:{self.spec.rpartition(':')[2]}", "code": file_sha256(self.path), "own": own}


def _read_block(path: Path, digest: str, read: bytes, where: str, context: ReadContext) -> Iterator[Document]:
    """The documents of a user's block, also in a worker, which runs the user's file first."""
    _load(path, digest)
    for number, document in enumerate(pickle.loads(read)(context)):
        yield check_document(document, context, where=f"{where}, document {number}")


def check_document(document: Any, context: ReadContext, *, where: str) -> Document:
    """Return the document as valid UTF-8; raise `UserError` for anything but bytes."""
    if not isinstance(document, bytes | bytearray | memoryview):
        hint = " Encode it: text.encode()." if isinstance(document, str) else ""
        raise UserError(
            f"{where}: is of type {type(document).__name__}, wanted bytes of UTF-8, or a DocumentBlock.{hint}"
        )
    return validate_utf8(document, context, where=where)
