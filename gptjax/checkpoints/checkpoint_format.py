"""The format of a checkpoint on disk, and reading it.

`checkpoints/STEP/` has the items `model`, `optimizer`, `counters` and, if the run keeps an average of the weights,
`ema`; models in float16 have `loss_scale`. Each holds arrays by name, such as `blocks.attention.qkv` or
`muon.inner_state.momentum.blocks.mlp.up`. The item `metadata` is JSON. A name does not depend on the place in a tuple,
and an array can be read onto any sharding. So neither the mesh nor the order of an optimizer chain is part of the
format.

A checkpoint is written as `STEP.unfinished`. It gets its own name once all of it is on the disk, with the sizes and
sums of its files in `checksums.json`. A step is complete if it has its name and every file has its size. Checkpoints
of an earlier gptjax have no sums; they are complete if Orbax says so.
"""

import errno
import functools
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from gptjax.checkpoints.integrity import (
    METADATA,
    check_step,
    complete_steps,
    describe_incomplete,
    find_damage_once,
    list_steps,
    suggest_anew,
    suggest_other,
)
from gptjax.core.errors import UserError, describe_errno
from gptjax.core.lazy import LazyModule
from gptjax.process.console import print_once
from gptjax.process.diagnosis import is_lost_peer
from gptjax.process.process_end import has_peers

if TYPE_CHECKING:
    import orbax.checkpoint as ocp
else:
    ocp = LazyModule("orbax.checkpoint")  # half a second

FORMAT_VERSION = 4
MODEL, OPTIMIZER, COUNTERS, EMA_ITEM, LOSS_SCALE = "model", "optimizer", "counters", "ema", "loss_scale"
ARRAY_ITEMS = (MODEL, OPTIMIZER, COUNTERS, EMA_ITEM, LOSS_SCALE)
"""The items that hold arrays."""
WEIGHTS = (MODEL, EMA_ITEM, METADATA)
"""What sampling, evaluating and exporting read."""
DEFAULT_METRIC = "val_loss"
"""The metric that decides which weights are the best, unless a config says otherwise."""
ARRAY_OPTIONS: dict[str, Any] = {"use_ocdbt": True, "use_zarr3": True, "use_compression": False}
"""All arrays of an item are in a few files (OCDBT), uncompressed.

Measured with a 353 MB AdamW state (29M parameters) over 8 devices, deleting an old checkpoint each time: 0.7 s and 40
files. With compression: 1.0 s and 8 % smaller. With a directory for each array: 2.5 s and 456 files.
"""
_PATTERN_CHARACTERS = "*?[\\"
NamedArrays = dict[str, Any]
"""Arrays, or their abstract stand-ins, by dotted name."""


def check_path(directory: Path) -> None:
    """Raise a `UserError` for a path in which Orbax could not save: it reads it as a pattern of file names.

    It would find none of the arrays that it has written, and end the save all the same.
    """
    path = str(Path(directory).absolute())
    if found := sorted({char for char in path if char in _PATTERN_CHARACTERS}):
        raise UserError(
            f"{path} has the characters {' '.join(found)} in it, and no checkpoint can be saved there. Choose another "
            "--name or --output-dir (for an import, another --output)."
        )


def find_step(directory: Path, which: int | str, *, items: Collection[str] | None = WEIGHTS) -> int:
    """Return the step that `latest`, `best` or a number stands for; the UserError lists the steps that exist.

    `latest` and `best` pass over a step of which these items (None: all) are damaged, and say so on stderr.
    """
    steps = complete_steps(directory, items=items)
    if which not in ("latest", "best"):
        return _find_number(directory, which, steps)
    problems = {s: describe_incomplete(Path(directory) / str(s), items=items) for s in list_steps(directory)}
    if which == "best":
        for s in steps:
            problems[s] = "; ".join(find_damage_once(Path(directory).absolute() / str(s), items=(METADATA,)))
    problems = {step: problem for step, problem in problems.items() if problem}
    for step in steps[::-1] if which == "latest" else rank_steps(directory, items=items):
        if not (damage := find_damage_once(Path(directory).absolute() / str(step), items=items)):
            for other, problem in problems.items():
                if other > step or which == "best":
                    _warn(f"warning: {problem}. Step {step} is used instead of {other}.")
            return step
        problems[step] = "; ".join(damage)
    found = f" Found: {'; '.join(problems.values())}." if problems else ""
    if whole := [step for step in steps if step not in problems]:  # `best` is asked for
        where = f"No undamaged checkpoint in {directory}" if problems else f"No checkpoint in {directory}"
        raise UserError(f"{where} has a validation loss (steps: {_list(whole)}).{found} Use `latest`.")
    raise UserError(f"{directory} has no complete checkpoint.{found} {suggest_anew(directory)}")


@functools.cache
def _warn(line: str) -> None:
    """Print a warning once: a command asks for its step several times."""
    print_once(line, to_stderr=True)


def _find_number(directory: Path, which: int | str, steps: list[int]) -> int:
    if not steps and not list_steps(directory):
        raise UserError(f"{directory} has no complete checkpoint.")
    if not str(which).isdecimal() or int(which) not in list_steps(directory):
        raise UserError(f"{directory} has no step {which}. Use one of {_list(steps)}, or `latest` or `best`.")
    return int(which)


def _list(steps: list[int]) -> str:
    return ", ".join(map(str, steps))


def find_best_step(directory: Path, *, items: Collection[str] | None = None) -> int | None:
    """The complete step whose own weights had the lowest loss, the earliest of equals; None if none was evaluated.

    Only values of the metric that the newest of them has are compared.
    """
    ranked = rank_steps(directory, items=items)
    return ranked[0] if ranked else None


def rank_steps(directory: Path, *, items: Collection[str] | None = None) -> list[int]:
    """The complete steps that have a value of the newest one's metric, from the best to the worst."""
    found: list[tuple[int, str, float]] = []
    for step in complete_steps(directory, items=items):
        with suppress(UserError):  # unreadable metadata
            metadata = read_metadata(directory, step)
            if metadata["best_value"] is not None:
                found.append((step, metadata.get("best_metric", DEFAULT_METRIC), metadata["best_value"]))
    newest = found[-1][1] if found else None
    return [step for step, metric, _ in sorted(found, key=lambda row: (row[2], row[0])) if metric == newest]


def has_item(directory: Path, step: int, *, item: str) -> bool:
    """Whether the checkpoint has an item that not every run has."""
    return (Path(directory) / str(step) / item).is_dir()


def read_metadata(directory: Path, step: int) -> dict[str, Any]:
    """Return the metadata of a step, with its `step`, `best_value` and `format_version`.

    Raises a UserError if the checkpoint is incomplete, unreadable or of another format version.
    """
    path = Path(directory) / str(step)
    version, content = None, {}
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads((path / METADATA / METADATA).read_text(encoding="utf-8"))
        version = content["format_version"]
        if version == FORMAT_VERSION and "best_value" not in content:
            version = None
    if version not in (None, FORMAT_VERSION):
        raise UserError(
            f"{path} has checkpoint format {version}, but this version of gptjax reads format {FORMAT_VERSION} only. "
            "Use the version of gptjax that wrote it, or train again."
        )
    if problem := describe_incomplete(path, items=(METADATA,)):
        raise UserError(f"{path} is not a complete checkpoint: {problem}. {suggest_other(directory, step)}")
    check_step(directory, step, items=(METADATA,))
    if version is None:
        raise UserError(f"{path / METADATA / METADATA} cannot be read. {suggest_other(directory, step)}")
    return content


def flatten_by_name(tree: Any) -> NamedArrays:
    """Return the leaves of a pytree by dotted path, such as `blocks.attention.qkv` or `adam.mu.token_embedding`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
    return {name(path): leaf for path, leaf in leaves}


def unflatten_by_name(abstract: Any, arrays: NamedArrays) -> Any:
    """Return a tree like `abstract` with the array of the same name at each leaf."""
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in flatten_by_name(abstract)])


def make_save_args(
    items: dict[str, NamedArrays],
    metadata: dict[str, Any],
    *,
    step: int,
    best_value: float | None = None,
    best_metric: str = DEFAULT_METRIC,
) -> "ocp.args.Composite":
    """Orbax's arguments for saving a step: the items that have arrays, and the metadata with our own fields."""
    own = {"format_version": FORMAT_VERSION, "step": step, "best_value": best_value, "checksums": True}
    own |= {"best_metric": best_metric} if best_metric != DEFAULT_METRIC else {}
    arrays = {item: ocp.args.PyTreeSave(arrays) for item, arrays in items.items() if arrays}  # pyright: ignore[reportCallIssue]
    return ocp.args.Composite(**arrays, **{METADATA: ocp.args.JsonSave(metadata | own)})  # pyright: ignore[reportCallIssue]


def read_items(directory: Path, step: int, *, items: dict[str, NamedArrays]) -> dict[str, NamedArrays]:
    """Read the items onto the shardings of their abstract arrays.

    Raises a UserError if a checkpoint is unreadable, if a file of these items has changed since it was written, or if
    names, shapes or types are not the wanted ones.
    """
    read_metadata(directory, step)
    path = Path(directory).absolute() / str(step)
    check_step(directory, step, items=(*items, METADATA))
    with report_read_errors(directory, step):
        found = {item: read_shapes(path / item) for item in items}
    for item, wanted in items.items():
        _check_shapes(path / item, found=found[item], wanted={n: _format_shape(array) for n, array in wanted.items()})
    with report_read_errors(directory, step):
        return {item: _read_arrays(path / item, arrays) for item, arrays in items.items()}


def read_shapes(path: Path) -> dict[str, str]:
    """Return name → type and shape, such as `float32[64, 32]`, of each array in the directory of an item."""
    if not path.is_dir():
        return {}
    tree: Any = ocp.PyTreeCheckpointHandler(**ARRAY_OPTIONS).metadata(path).tree  # pyright: ignore[reportArgumentType]
    return {name: _format_shape(array) for name, array in tree.items()}


def _read_arrays(path: Path, arrays: NamedArrays) -> NamedArrays:
    if not arrays:
        return {}
    args = ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
        item=arrays, restore_args=ocp.checkpoint_utils.construct_restore_args(arrays)
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**ARRAY_OPTIONS)) as checkpointer:
        return checkpointer.restore(path, args=args)


def _format_shape(array: Any) -> str:
    return f"{jax.numpy.dtype(array.dtype).name}{list(array.shape)}"


def _check_shapes(path: Path, *, found: dict[str, str], wanted: dict[str, str]) -> None:
    """Raise a UserError unless the checkpoint has exactly the wanted arrays."""
    missing = [f"{name} {shape}" for name, shape in wanted.items() if name not in found]
    unexpected = [f"{name} {shape}" for name, shape in found.items() if name not in wanted]
    different = [f"{n} {found[n]} (wanted {shape})" for n, shape in wanted.items() if found.get(n, shape) != shape]
    problems = {"missing": missing, "unexpected": unexpected, "different": different}
    lines = [f"{problem}: {_shorten_list(names)}" for problem, names in problems.items() if names]
    if lines:
        raise UserError(
            f"{path} has other arrays than those to be restored. {'; '.join(lines)}. Use the model, optimizer and data "
            "that it was saved with, or start a new run from its weights alone."
        )


def _shorten_list(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


@contextmanager
def report_read_errors(directory: Path, step: int) -> Iterator[None]:
    """Turn an error into a UserError that names the unreadable checkpoint and the one to use instead.

    One that says that another process is gone stays as it is.
    """
    try:
        yield
    except (UserError, jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:  # Orbax has no exception class of its own for damaged arrays
        if has_peers() and is_lost_peer(error):
            raise
        raise UserError(
            f"{Path(directory) / str(step)} cannot be read: {describe_cause(error)}. {suggest_other(directory, step)}"
        ) from error


@contextmanager
def report_write_errors(directory: Path) -> Iterator[None]:
    """Turn an error of a save into a UserError. One that says that another process is gone stays as it is."""
    try:
        yield
    except (OSError, ValueError) as error:
        if has_peers() and is_lost_peer(error):
            raise
        raise UserError(f"A checkpoint in {directory} could not be written: {describe_cause(error)}.") from error


_STORAGE_ERROR = re.compile(r"os_error_code='(\d+)'|^NOT_FOUND: ")
"""What tensorstore says behind several paths, in a ValueError; of a directory that was deleted, it says the latter."""


def is_of_storage(error: BaseException) -> bool:
    """Whether an error of Orbax says that a file could not be read or written, and is no bug."""
    causes = (error, error.__cause__)
    return any(isinstance(cause, OSError) or _STORAGE_ERROR.search(str(cause)) for cause in causes)


def describe_cause(error: BaseException) -> str:
    """Why a file could not be read or written, in a few words."""
    cause = error.__cause__ or error
    if found := _STORAGE_ERROR.search(str(cause)):
        return describe_errno(int(found[1] or errno.ENOENT))
    if isinstance(cause, OSError) and cause.errno and cause.strerror == os.strerror(cause.errno):
        return describe_errno(cause.errno)
    if isinstance(cause, OSError) and cause.strerror:  # what another process said
        return cause.strerror
    return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"[:200]
