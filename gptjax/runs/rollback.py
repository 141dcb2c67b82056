"""Going back to the last good checkpoint with other rows, in a run that diverges.

The step number still decides everything: `row_offsets` of the config says from which step on rows are passed over. It
is part of config.json and of every checkpoint. So a resumed run reads what an uninterrupted run would have read.
"""

import contextlib
import json
from dataclasses import replace
from typing import Any

import jax
from jax.experimental import multihost_utils

from gptjax.checkpoints.checkpoint import CheckpointManager
from gptjax.checkpoints.rotation import set_aside_after
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.data.batch_size import RowOffsets, locate_first_row
from gptjax.process.console import print_once
from gptjax.runs.run_dir import CHECKPOINTS, write_run_files
from gptjax.supervision.divergence import Diverged
from gptjax.tokenization.tokenizer import Tokenizer


def roll_back(
    config: TrainConfig,
    checkpoints: CheckpointManager,
    divergence: Diverged,
    *,
    tokenizer: Tokenizer | None,
    source: str | None,
) -> tuple[TrainConfig, dict[str, Any]]:
    """The config with which the run goes on, and what metrics.jsonl says of it at the step that it goes back to.

    Checkpoints after that step are kept as `STEP.rolled_back`, and config.json says which rows are passed over.
    A run that is killed in between diverges and goes back again. All processes must call this.
    """
    with contextlib.suppress(UserError):  # a save that fails now is of no use
        checkpoints.wait()
    step = 0
    if jax.process_index() == 0:
        try:
            checkpoints.check_place()
        except OSError as error:
            raise UserError(
                f"step {divergence.step:,}: {divergence.reason}. The run cannot go back: {error.strerror}."
            ) from None
        step = set_aside_after(config.directory / CHECKPOINTS, divergence.last_good, why="rolled_back")
    if jax.process_count() > 1:
        step = int(multihost_utils.broadcast_one_to_all(step))
    offsets = add_offset(config, back_to=step, begun=divergence.step)
    rows = offsets[-1][1]
    print_once(
        f"step {divergence.step:,}: {divergence.reason}. Going back to step {step:,}; the rows read since are passed "
        f"over ({divergence.rollbacks} of at most {config.rollback.limit} times)"
    )
    record = {"rolled_back_from": divergence.step, "row_offset": rows, "reason": divergence.reason}
    record["rollbacks"] = divergence.rollbacks
    # `never` and a step to go back to are about the start of the command.
    resume = "force" if config.resume == "force" else "auto"
    config = replace(config, row_offsets=offsets, resume=resume)
    if jax.process_index() == 0:
        write_run_files(config.directory, config, tokenizer, source=source)
    return config, record


def add_offset(config: TrainConfig, *, back_to: int, begun: int) -> RowOffsets:
    """The run's offsets, with one more: step `back_to` reads the rows that step `begun` would have read."""
    schedule = tuple((phase.begin, phase.batch) for phase in config.phases)
    rows = locate_first_row(begun, schedule, config.row_offsets) - locate_first_row(back_to, schedule)
    return (*(offset for offset in config.row_offsets if offset[0] <= back_to), (back_to, rows))


def adopt_offsets(config: TrainConfig, saved: TrainConfig, step: int) -> RowOffsets:
    """The offsets of a run that resumes at `step`: those of its steps so far, and those that were set from there on.

    A run that went back and was killed before it saved again has the latter in config.json alone.
    """
    past = tuple(offset for offset in saved.row_offsets if offset[0] < step)
    given, recorded = (
        tuple(offset for offset in offsets if offset[0] >= step)
        for offsets in (config.row_offsets, _read_offsets(config))
    )
    return (*past, *(given or recorded))


def _read_offsets(config: TrainConfig) -> RowOffsets:
    try:
        content = json.loads((config.directory / "config.json").read_text(encoding="utf-8"))
        return tuple((int(begin), int(rows)) for begin, rows in content.get("row_offsets", ()))
    except (OSError, ValueError, TypeError, AttributeError):
        return ()
