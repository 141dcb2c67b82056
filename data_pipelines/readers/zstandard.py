"""Zstandard files (.zst): by pyarrow or, for windows that it refuses, by Python's own library.

A window is what the decoder may look back to. `zstd --long=31` writes windows of 2 GiB, as public dumps have them.
"""

import functools
import importlib
from pathlib import Path
from typing import Any

from data_pipelines.readers.optional_packages import import_pyarrow
from data_pipelines.readers.paths import tell_once
from gptjax.core.errors import UserError

ARROW_WINDOW = 2**27
"""Largest window that pyarrow reads, in bytes."""
MAX_WINDOW_LOG = 31
_FRAME, _SKIPPED_FRAME = 0xFD2FB528, range(0x184D2A50, 0x184D2A60)


def open_zstandard(path: Path) -> Any:
    """The decompressed bytes as a stream. A file that is cut off raises `OSError` or `EOFError` where it ends."""
    window = read_window(path)
    if window > ARROW_WINDOW and (library := _find_library()) is not None:
        tell_once(f"note: {path}: reading takes up to {window >> 20:,} MiB of memory, the window it was packed with")
        return library.ZstdFile(path, options={library.DecompressionParameter.window_log_max: MAX_WINDOW_LOG})
    # pyarrow, unlike the package zstandard, notices a file that is cut off.
    pyarrow = import_pyarrow(what=f"{path}: reading .zst")
    if window > ARROW_WINDOW:
        raise UserError(
            f"{path}: was packed with a window of {window >> 20:,} MiB. pip install backports.zstd, which reads it, or "
            f"unpack it first: zstd -d --long=31 {path.name}"
        )
    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


def read_window(path: Path) -> int:
    """Bytes of the window of the first frame (RFC 8878, 3.1.1.1); 0 if the frame is its own window, or is damaged."""
    with path.open("rb") as file:
        while len(start := file.read(8)) == 8 and int.from_bytes(start[:4], "little") in _SKIPPED_FRAME:
            file.seek(int.from_bytes(start[4:], "little"), 1)
    is_single_segment = len(start) < 6 or start[4] & 0x20
    if is_single_segment or int.from_bytes(start[:4], "little") != _FRAME:
        return 0
    base = 1 << (10 + (start[5] >> 3))
    return base + base // 8 * (start[5] & 7)


def error_classes() -> tuple[type[Exception], ...]:
    """What that library raises for damaged bytes."""
    library = _find_library()
    return () if library is None else (library.ZstdError,)


@functools.cache
def _find_library() -> Any:
    """The module of Python 3.14, or its backport; None if there is neither."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
