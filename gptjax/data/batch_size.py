"""How many sequences an optimizer step sees, and how steps become row numbers of the run."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from gptjax.core.errors import UserError
from gptjax.sharding.mesh import MeshConfig


@dataclass(frozen=True)
class BatchSize:
    """The sequences of one optimizer step."""

    size: int = 8
    """Sequences per optimizer step, over all devices and micro-batches."""
    grad_accum: int = 1
    """Micro-batches into which they are divided; gradients of one at a time are in memory."""

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.size), ("grad_accum", self.grad_accum)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1.")
        if self.size % self.grad_accum:
            raise UserError(
                f"batch_size {self.size} does not divide into grad_accum {self.grad_accum} equal micro-batches. "
                "Use a multiple of it."
            )

    @property
    def microbatch(self) -> int:
        """Sequences of one micro-batch."""
        return self.size // self.grad_accum

    def check_devices(self, mesh: MeshConfig) -> None:
        """Raise unless each micro-batch divides over the devices that share it, and every process has some of them."""
        processes, devices = jax.process_count(), jax.device_count()
        if processes > 1 and mesh.num_devices < devices:
            raise UserError(
                f"mesh: {mesh.describe()} uses {mesh.num_devices} of the {devices} devices of {processes} processes, "
                f"and every one must take part. Choose axes whose product is {devices}, or start fewer processes."
            )
        if self.microbatch % mesh.num_batch_shards:
            raise UserError(
                f"batch_size: {self.microbatch} sequences per micro-batch do not split over {mesh.num_batch_shards} "
                f"devices (data × fsdp). Use a multiple of {mesh.num_batch_shards} × grad_accum, or another --mesh."
            )


BatchSchedule = Sequence[tuple[int, BatchSize]]
"""(step, batch size from that step on), ascending from step 0."""

RowOffsets = tuple[tuple[int, int], ...]
"""(step, rows that the run passes over before it), ascending; the last that has begun holds. None at first."""


def count_steps_by_part(begins: Sequence[int], steps: int) -> list[int]:
    """How many of the first `steps` steps lie in each part of a run, where the parts begin at these steps."""
    ends = [*begins[1:], steps]
    return [max(0, min(end, steps) - begin) for begin, end in zip(begins, ends, strict=False)]


def count_rows_before(step: int, schedule: BatchSchedule) -> int:
    """Sequences that all steps before this one read."""
    counts = count_steps_by_part([begin for begin, _ in schedule], step)
    return sum(count * batch.size for count, (_, batch) in zip(counts, schedule, strict=True))


def locate_first_row(step: int, schedule: BatchSchedule, offsets: RowOffsets = ()) -> int:
    """The number of the first row that a step reads: those of all steps before it, and those passed over."""
    passed_over = next((rows for begin, rows in reversed(offsets) if begin <= step), 0)
    return count_rows_before(step, schedule) + passed_over
