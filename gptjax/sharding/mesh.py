"""Where arrays live: a mesh of (data, fsdp, tensor) and two tables that send letters to its axes.

The mesh has explicit axes: the type of an array inside `jit` says how it is sharded, so that a mistake is an
error while tracing, and optimizer moments and restore targets inherit their shardings. A layout is a frozen value that
modules keep as static data. Without a mesh (the default) every answer is `None` and the same code runs on one device.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import jax
import tyro
from jax import Array
from jax.sharding import AxisType, Mesh, PartitionSpec

from gptjax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")
WEIGHT_RULES = {"D": "fsdp", "E": "fsdp", "H": "tensor", "J": "tensor", "F": "tensor", "V": "tensor"}
ACTIVATION_RULES = {
    "B": ("data", "fsdp"),
    "M": ("data", "fsdp"),
    "H": "tensor",
    "J": "tensor",
    "F": "tensor",
    "V": "tensor",
}


@dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis has. An axis left at None has one; the `fill` axis has all that remain."""

    fill: Annotated[Literal["data", "fsdp", "tensor", "single"], tyro.conf.arg(name="")] = "data"
    """The axis that takes the devices which the others leave; `single` uses one device and no mesh."""
    data: int | None = None
    """Devices that hold the same weights and different rows (data parallelism)."""
    fsdp: int | None = None
    """Devices that hold different rows and share each weight's bytes (fully sharded data parallelism)."""
    tensor: int | None = None
    """Devices that share each row's heads, MLP columns and vocabulary (tensor parallelism)."""

    def __post_init__(self) -> None:
        for axis in AXES:
            if (size := getattr(self, axis)) is not None and size < 1:
                raise UserError(f"mesh.{axis} is {size}; an axis has at least 1 device.")

    def resolve(self, num_devices: int) -> "MeshConfig":
        """The same layout with every axis a number, for this many devices."""
        if self.fill == "single":
            if self.num_devices > 1:
                raise UserError(f"mesh=single has no axes, but {self.shape} were given. Drop one of the two.")
            return replace(self, data=1, fsdp=1, tensor=1)
        filled = self
        if getattr(self, self.fill) is None:
            if num_devices % self.num_devices:
                raise UserError(
                    f"mesh: {num_devices} devices do not split over {self.describe()}. "
                    f"Choose axis sizes whose product divides {num_devices}, or --mesh=single."
                )
            filled = replace(self, **{self.fill: num_devices // self.num_devices})
        if filled.num_devices > num_devices:
            raise UserError(
                f"mesh: {filled.describe()} wants {filled.num_devices} devices, but {num_devices} are here. "
                "Make an axis smaller, or --mesh=single."
            )
        return replace(filled, **filled.axis_sizes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Devices along (data, fsdp, tensor)."""
        return (self.data or 1, self.fsdp or 1, self.tensor or 1)

    @property
    def axis_sizes(self) -> dict[str, int]:
        """The same by the axis's name."""
        return dict(zip(AXES, self.shape, strict=True))

    @property
    def num_devices(self) -> int:
        """Devices in all."""
        return math.prod(self.shape)

    @property
    def num_batch_shards(self) -> int:
        """Over how many devices the rows of a batch are divided."""
        return self.shape[0] * self.shape[1]

    @property
    def is_sharded(self) -> bool:
        """Whether there is a mesh at all."""
        return self.num_devices > 1

    @property
    def is_data_parallel_only(self) -> bool:
        """Whether there is a mesh of which every device has all weights whole."""
        return self.num_devices > 1 and self.axis_sizes["data"] == self.num_devices

    def describe(self) -> str:
        return " × ".join(f"{axis}={size}" for axis, size in self.axis_sizes.items())

    def make_mesh(self, devices: Sequence[Any] | None = None) -> Mesh | None:
        """The mesh over the first `size` of these devices (those that are here), or None for one device."""
        if not self.is_sharded:
            return None
        chosen = (jax.devices() if devices is None else devices)[: self.num_devices]
        return jax.make_mesh(self.shape, AXES, axis_types=(AxisType.Explicit,) * len(AXES), devices=chosen)

    def activate(self, devices: Sequence[Any] | None = None) -> contextlib.AbstractContextManager[Any]:
        """Context in which arrays are created and programs compiled under this mesh.

        `devices` that are not here, such as those of a topology, can only be compiled for. Products of float32 are
        float32 in it: left alone, TPUs round their operands to bfloat16, recent GPUs to TF32.
        """
        stack = contextlib.ExitStack()
        stack.enter_context(jax.default_matmul_precision("highest"))
        if (mesh := self.make_mesh(devices)) is not None:
            stack.enter_context(jax.set_mesh(mesh))
        return stack

    def weight_spec(self, axis_names: str) -> PartitionSpec | None:
        """How a stored weight is sharded."""
        return self._spec(WEIGHT_RULES, axis_names)

    def unsharded_spec(self, axis_names: str) -> PartitionSpec | None:
        """How a weight is sharded while it is used: whole along fsdp."""
        return self._spec({letter: axis for letter, axis in WEIGHT_RULES.items() if axis != "fsdp"}, axis_names)

    def activation_spec(self, axis_names: str) -> PartitionSpec | None:
        """How an activation is sharded."""
        return self._spec(ACTIVATION_RULES, axis_names)

    def _spec(self, table: dict[str, Any], axis_names: str) -> PartitionSpec | None:
        if not self.is_sharded:
            return None

        def axes(letter: str) -> tuple[str, ...] | None:
            wanted = table.get(letter, ())
            wanted = (wanted,) if isinstance(wanted, str) else wanted
            return tuple(axis for axis in wanted if self.axis_sizes[axis] > 1) or None

        return PartitionSpec(*map(axes, axis_names))

    def shard_map(self, function: Callable[..., Any], ins: Any, outs: Any) -> Callable[..., Any]:
        """`function` seen by each device with its own shard: where the program says by hand what is communicated."""
        if not self.is_sharded:
            return function
        return jax.shard_map(function, in_specs=ins, out_specs=outs, check_vma=False)


def reshard(x: Array, spec: PartitionSpec | None) -> Array:
    """`x` sharded as `spec` says; `x` itself without a mesh."""
    return x if spec is None else jax.sharding.reshard(x, spec)
