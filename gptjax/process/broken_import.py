"""Says in one line why an import fails: a file beside the command is in its way, or JAX refuses a variable.

`python -m` looks for modules in the current directory first: a script of one's own called `random.py` or `jax.py` there
breaks everything that imports the real one. This module itself imports nothing that could be affected.
"""

import os
import sys
from types import TracebackType

_PACKAGES = ("flax", "grain", "jax", "jaxlib", "matplotlib", "numpy", "optax", "orbax", "tokenizers", "tyro")


def find_shadow(error: BaseException) -> str | None:
    """The file of the current directory that has probably caused an error by its name; None if there is none."""
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        return None
    names = sys.stdlib_module_names.union(_PACKAGES)
    paths = []
    place = error.__traceback__
    while place is not None:  # its own content fails
        frame = place.tb_frame
        path = frame.f_code.co_filename
        # A config or a script of that name is run under another name, and stands in for nothing.
        if _find_module(path) == str(frame.f_globals.get("__name__")).partition(".")[0]:
            paths.append(path)
        place = place.tb_next
    if isinstance(error, ImportError | AttributeError):
        paths += [getattr(sys.modules.get(name), "__file__", None) or "" for name in sorted(names)]
    for path in map(os.path.abspath, filter(None, paths)):
        if os.path.dirname(path.removesuffix(f"{os.sep}__init__.py")) == here and _find_module(path) in names:
            return path
    return None


def _find_module(path: str) -> str:
    """The name under which a file beside the command is imported: `jax` of `jax.py` and of `jax/__init__.py`."""
    return os.path.basename(path.removesuffix(".py").removesuffix(f"{os.sep}__init__"))


def explain_broken_import(error: BaseException) -> str | None:
    """What the file is and what to do, in a sentence; None if an error has another cause."""
    if (path := find_shadow(error)) is None:
        return None
    first = (str(error).splitlines() or [""])[0][:160]
    return (
        f"{path} has the name of a module, and Python imports it in place of that one. Rename it, or start in another "
        f"directory. ({type(error).__name__}: {first})"
    )


def explain_wrong_variable(error: BaseException) -> str | None:
    """Which environment variable JAX refuses at its import, in a sentence; None if an error has another cause."""
    found, place = None, error.__traceback__
    while isinstance(error, ValueError) and place is not None:
        frame = place.tb_frame
        if frame.f_code.co_filename.endswith(os.path.join("jax", "_src", "config.py")):
            names = [str(frame.f_locals.get(name)).upper() for name in ("varname", "name")]
            found = next((name for name in names if name in os.environ), found)
        place = place.tb_next
    if found is None:
        return None
    shown = os.environ[found][:40].encode("unicode_escape").decode()
    first = (str(error).splitlines() or [""])[0][:160]
    return (
        f"the environment variable {found} of JAX has a value that it does not take: {shown}. Correct or unset it. "
        f"({first})"
    )


def report_broken_import(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    """A `sys.excepthook` for the imports of an entry point, before it has one of its own."""
    message = explain_broken_import(error) or explain_wrong_variable(error)
    if message is None or os.environ.get("GPTJAX_TRACEBACK", "0") not in ("", "0"):
        sys.__excepthook__(kind, error, place)
    if message is not None:
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
        os._exit(2)


if sys.argv[:1] == ["-m"]:  # now, for the imports that come next may fail
    sys.excepthook = report_broken_import
