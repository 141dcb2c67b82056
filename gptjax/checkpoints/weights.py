"""Checkpoints of weights alone: reading them out of a whole one, and writing one without moments."""

import errno
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from gptjax.checkpoints.checkpoint_format import (
    MODEL,
    check_path,
    describe_cause,
    flatten_by_name,
    is_of_storage,
    make_save_args,
    read_items,
    unflatten_by_name,
)
from gptjax.checkpoints.integrity import UNFINISHED, commit_checkpoint
from gptjax.checkpoints.joint_save import JointCheckpointer
from gptjax.core.files import make_directories
from gptjax.core.lazy import LazyModule

if TYPE_CHECKING:
    from gptjax.model import gpt
    from gptjax.training import state as training_state
else:
    training_state = LazyModule("gptjax.training.state")  # reading a run's config needs no flax


def restore_model(directory: Path, abstract_model: "gpt.GPT", *, step: int, item: str = MODEL) -> "gpt.GPT":
    """Read only the weights of a checkpoint, or their average (`item=EMA_ITEM`), sharded as `abstract_model` is.

    Call it under `mesh.activate()`.
    """
    target = jax.tree.map(training_state.with_sharding, abstract_model)
    return unflatten_by_name(target, read_items(directory, step, items={item: flatten_by_name(target)})[item])


def save_model(directory: Path, model: "gpt.GPT", *, step: int, metadata: dict[str, Any]) -> None:
    """Write a checkpoint with weights only. Returns when it is on disk. Raises an OSError if it cannot be written."""
    check_path(directory)
    args = make_save_args({MODEL: flatten_by_name(model)}, metadata, step=step)
    path = Path(directory).absolute() / str(step)
    make_directories(path.parent)
    unfinished = path.with_name(path.name + UNFINISHED)
    with closing(JointCheckpointer()) as checkpointer:
        try:
            checkpointer.save(unfinished, args, name=f"save {path}")
            checkpointer.finish(lambda: commit_checkpoint(unfinished, path))
        except (OSError, ValueError) as error:
            checkpointer.settle()
            if not is_of_storage(error):
                raise
            raise OSError(errno.EIO, describe_cause(error)) from error
