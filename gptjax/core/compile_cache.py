"""Compiled programs are kept between runs, in `compiled/` of the cache directory.

JAX itself finds an entry by its program, its options, the device and jaxlib. That is not enough for programs that run
on the CPU: machines with other instruction sets, or another number of cores, may share a home directory. So each kind
of machine, version and user has a directory of its own.

JAX writes an entry in place, and leaves half of one on a full disk or after a kill. It is removed when it is read.
"""

import contextlib
import errno
import functools
import glob
import hashlib
import os
import platform
import re
import warnings
from pathlib import Path
from typing import Any

from gptjax.core.environment import describe_misspelt
from gptjax.core.errors import UserError
from gptjax.core.files import cache_directory
from gptjax.core.xla_flags import check_xla_flags
from gptjax.process.console import print_once

MAX_BYTES = 2**30
"""Size of `compiled/` from which on the programs that were not used for longest are deleted, at the next start."""
MIN_COMPILE_SECONDS = 0.0
"""Programs that take this long to compile are kept. JAX's default, 1 s, keeps 3 of the 17 that start a small run."""
_FAILED_ENTRY = re.compile(r"Error (read|writ)ing persistent compilation cache entry for '(.*?)': (.*)", re.DOTALL)
"""JAX's warning: for each program, and again at each start."""
_CPU_FIELDS = {
    *("vendor_id", "cpu family", "model", "model name", "flags"),  # x86
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),  # Arm
    *("isa", "uarch", "mvendorid", "marchid", "mimpid"),  # RISC-V
}
"""Lines of /proc/cpuinfo that decide which instructions a compiler may use. Others change, such as the frequency."""


def enable_compile_cache() -> None:
    """Let JAX keep compiled programs. Call it before the first compilation, after `initialize_distributed`.

    GPTJAX_COMPILE_CACHE=0 and JAX_ENABLE_COMPILATION_CACHE=false turn it off. A JAX_COMPILATION_CACHE_DIR that is set
    is used as JAX uses it. A directory that cannot be written, or made, is a note.

    A note tells of misspelt environment variables.

    Raises a UserError for XLA_FLAGS at which compiling would end the process.
    """
    check_xla_flags()
    import jax  # processes that only tokenize never import it

    print_once(*describe_misspelt(name.upper() for name in jax.config.values), to_stderr=True)
    if os.environ.get("GPTJAX_COMPILE_CACHE") == "0" or not jax.config.values["jax_enable_compilation_cache"]:
        return
    if (given := jax.config.values["jax_compilation_cache_dir"]) is not None:
        if "://" not in given and not Path(given).is_dir():
            _make_given_directory(given)
        _watch_entries(Path(given), removes=False)
        return
    try:
        root = cache_directory() / "compiled"
        directory = _make_own_directory(root / name_machine())
        prune(root)
    except (OSError, UserError) as error:
        hint = "Set GPTJAX_CACHE to a directory of yours to keep them."
        where = getattr(error, "filename", None) or "the cache directory"
        reason = f"{where}: {error.strerror}. {hint}" if isinstance(error, OSError) else str(error)
        print_once(f"note: compiled programs are not kept: {reason}", to_stderr=True)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    _watch_entries(directory, removes=True)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def _make_given_directory(path: str) -> None:
    """JAX makes it, too. Where it cannot, it would warn of each program, so the cache is turned off."""
    import jax

    try:
        Path(path).mkdir(parents=True)
    except OSError as error:
        print_once(f"note: compiled programs are not kept: {path}: {error.strerror}.", to_stderr=True)
        jax.config.update("jax_enable_compilation_cache", False)


@functools.cache
def _watch_entries(directory: Path, *, removes: bool) -> None:
    """Say once that entries cannot be read, or written, instead of JAX's warnings.

    JAX never replaces a damaged entry, and its warning names the program but not the file. So all entries of that
    program are removed if `removes`, which is for a directory that is gptjax's own. They are compiled again.
    """
    show, said = warnings.showwarning, set[str]()

    def show_once(message: Warning | str, *arguments: Any, **more: Any) -> None:
        if (found := _FAILED_ENTRY.match(str(message))) is None:
            show(message, *arguments, **more)
            return
        act, program, reason = found.groups()
        for path in directory.glob(f"{glob.escape(program)}-*-cache") if removes else ():
            with contextlib.suppress(OSError):
                path.unlink()
        if act not in said:
            said.add(act)
            what = "are not kept" if act == "writ" else "that cannot be read are compiled anew"
            print_once(f"note: compiled programs {what}: {directory}: {reason.splitlines()[0][:200]}", to_stderr=True)

    warnings.showwarning = show_once


def name_machine() -> str:
    """A short name for everything that compiled code depends on and JAX's own key may leave out, and for the user."""
    from importlib.metadata import version

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [platform.system(), platform.machine(), cores, os.getuid(), describe_cpu()]
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
    return f"jaxlib-{version('jaxlib')}-{platform.machine()}-{digest[:12]}"


def describe_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model and instruction sets of the processors; the name of this machine where the system does not tell them."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = {line for line in lines if line.partition(":")[0].strip() in _CPU_FIELDS}
    return "\n".join(sorted(found)) or platform.node()


def prune(root: Path, max_bytes: int = MAX_BYTES) -> None:
    """Delete the files that were not used for longest until the rest fits, and empty ones, left by a killed process."""
    files: list[tuple[Path, os.stat_result]] = []
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process prunes, too
            if path.is_file():
                files.append((path, path.stat()))
    files.sort(key=lambda file: max(file[1].st_atime, file[1].st_mtime), reverse=True)
    total = 0
    for path, status in files:
        total += status.st_size
        if total > max_bytes or status.st_size == 0:
            path.unlink(missing_ok=True)


def _make_own_directory(path: Path) -> Path:
    """The programs in it are run, so only this user may write there."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid() or not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return path
