"""Every source by its spec; docs/data.md lists the specs.

A source yields documents, always in the same order, and knows nothing of tokens. A name takes precedence over a file
of the same name; `./wikipedia` is the file.
"""

from collections.abc import Callable

from data_pipelines.readers.bundled import Shakespeare, Stdlib
from data_pipelines.readers.documents import Source
from data_pipelines.readers.files import Files, is_text_file, open_files
from data_pipelines.readers.hub import HubFiles, open_hub
from data_pipelines.readers.own_sources import open_own
from data_pipelines.readers.tfds_sets import open_tfds
from data_pipelines.readers.wikitext import PREFIX, Articles
from data_pipelines.recipes import RECIPES


def open_source(spec: str) -> Source:
    """Open the source that `spec` names. Local files must exist; nothing is fetched yet."""
    return next(source for opener in OPENERS if (source := opener(spec)) is not None)


def has_text_files(source: Source | None) -> bool:
    """Whether a source holds text files, which --separator cuts."""
    match source:
        case Files(paths=paths):
            return any(is_text_file(path.name) for path in paths)
        case HubFiles(files=files):
            return any(is_text_file(file.path) for file in files)
    return False


def count_local_bytes(source: Source) -> int:
    """The bytes of a source's files, as far as they are here."""
    return sum(path.stat().st_size for path in source.paths) if isinstance(source, Files) else 0


OPENERS: tuple[Callable[[str], Source | None], ...] = (
    {"stdlib": Stdlib(), "shakespeare": Shakespeare()}.get,
    lambda spec: open_source(RECIPES[spec].source) if spec in RECIPES else None,
    open_hub,
    open_tfds,
    lambda spec: Articles(open_source(spec.removeprefix(PREFIX))) if spec.startswith(PREFIX) else None,
    open_own,
    open_files,
)
"""Each opens the specs that it knows and returns None for others; the first that knows a spec opens it."""
