"""Names of checkpoints: `runs/x` is a run and its newest one, `runs/x@best` and `runs/x@500` are others of it."""

from pathlib import Path

from gptjax.core.files import AnyPath, expand_path

CHECKPOINTS = "checkpoints"
"""The directory of a run whose directories, one a step, are its checkpoints."""
_MARK = "@"
"""As before the revision of a repository on the hub."""


def split_step(spec: AnyPath) -> tuple[Path, str]:
    """The absolute directory that a name means, and `latest`, `best` or a step's digits.

    `runs/x/checkpoints/500` is `runs/x@500`. A directory that is there under the whole name is that one. Raises a
    `UserError` for what is no path.
    """
    path = expand_path(spec).absolute()
    if path.parent.name == CHECKPOINTS and path.name.isdecimal():
        return path.parent.parent, path.name
    name, mark, which = path.name.rpartition(_MARK)
    if mark and name and (which in ("latest", "best") or which.isdecimal()) and not path.exists():
        return path.with_name(name), which
    return path, "latest"
