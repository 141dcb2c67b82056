"""The tokenizer beside a run's checkpoints. A damaged one is replaced by the same one from where the run began."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptjax.core.errors import UserError
from gptjax.core.file_sums import SUMS_FILE, find_damage, read_sums
from gptjax.core.serialization import Modules, from_json
from gptjax.data.source import DataSource
from gptjax.process.console import warn_once
from gptjax.runs.checkpoint_spec import split_step
from gptjax.tokenization.tokenizer import SAVED_FILES, Tokenizer, load_tokenizer
from gptjax.tokenization.tokenizer_json import FILE_NAME

Candidate = tuple[str, Callable[[], Tokenizer | None]]
"""Where the same tokenizer may be, in words, and what reads it."""


def read_saved_tokenizer(
    directory: Path, damaged: Mapping[str, str], candidates: Collection[Candidate], *, goes_on: bool
) -> Tokenizer | None:
    """The tokenizer of a run; None if it has none.

    Args:
        damaged: by name, what is wrong with files of the run.
        candidates: tokenizers that take the place of a damaged one, if they write the same bytes.
        goes_on: the run is trained on, so a tokenizer that was removed is missed, too.

    Raises:
        UserError: it is damaged, and no candidate is the same.
    """
    lines = {name: damaged[name] for name in SAVED_FILES if name in damaged}
    for where, load in candidates if lines else ():
        with contextlib.suppress(UserError, OSError):
            if (found := _restore(directory, lines, load())) is not None:
                warn_once(*(f"{line}. That of {where} is used, which is the same" for line in lines.values()))
                return found
    if wrong := [name for name in lines if goes_on or (directory / name).exists()]:
        raise UserError(
            f"{lines[wrong[0]]}. Put the right one back. If you changed it yourself, remove {directory / SUMS_FILE}."
        )
    warn_once(*lines.values())
    return load_tokenizer(directory / FILE_NAME) if (directory / FILE_NAME).is_file() else None


def list_recorded(content: Mapping[str, Any], modules: Modules) -> Iterator[Candidate]:
    """The tokenizers of the data and of the first weights that a run's config.json names."""

    def load_of_data() -> Tokenizer | None:
        return from_json(content["data"], DataSource, modules=modules, where="data").resolve().load_tokenizer()

    if "data" in content:
        yield "the data", load_of_data
    if isinstance(start := content.get("init_from"), str):
        yield start, lambda: load_tokenizer(split_step(start)[0])


def _restore(directory: Path, lost: Collection[str], candidate: Tokenizer | None) -> Tokenizer | None:
    """The tokenizer with files that a candidate writes in place of these; None if they are not byte for byte those."""
    sums, _ = read_sums(directory) or ({}, {})
    with tempfile.TemporaryDirectory() as temporary:
        restored = Path(temporary)
        if candidate is not None:
            candidate.save(restored)
        if find_damage(restored, {name: sums[name] for name in lost}):
            return None
        for name in set(SAVED_FILES).difference(lost):
            (restored / name).unlink(missing_ok=True)
            if (directory / name).is_file():
                shutil.copyfile(directory / name, restored / name)
        return load_tokenizer(restored / FILE_NAME)
