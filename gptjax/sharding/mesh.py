"""The device mesh, with axes (data, fsdp, tensor), and two tables that map axis names to its axes.

The mesh axes are explicit: inside `jit` the type of an array includes its sharding, so a mistake is an error while
tracing, and optimizer moments and restored checkpoints inherit the shardings. A MeshConfig is a frozen value that
modules keep as static data. Without a mesh all specs are None, and the same code runs on one device.
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

from gptjax.core.errors import UserError, count_of

AXES = ("data", "fsdp", "tensor")
WEIGHT_RULES = {"D": "fsdp", "E": "fsdp", "H": "tensor", "J": "tensor", "F": "tensor", "V": "tensor"}
"""Axis name → the mesh axis that shards it in parameters."""
ACTIVATION_RULES = {
    "B": ("data", "fsdp"),
    "M": ("data", "fsdp"),
    "H": "tensor",
    "J": "tensor",
    "F": "tensor",
    "V": "tensor",
}
"""Axis name → the mesh axes that shard it in activations."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis. Axes default to 1; the `strategy` axis takes all devices that the others leave."""

    strategy: Annotated[Literal["data", "fsdp", "tensor", "single"], tyro.conf.arg(name="")] = "data"
    """The mesh axis that takes all remaining devices; `single` uses one device and no mesh."""
    data: int | None = None
    """Devices with the same weights and different sequences (data parallelism)."""
    fsdp: int | None = None
    """Devices with different sequences and a shard of each weight (fully sharded data parallelism)."""
    tensor: int | None = None
    """Devices that divide the heads, MLP columns and vocabulary of each sequence (tensor parallelism)."""

    def __post_init__(self) -> None:
        for axis in AXES:
            if (size := getattr(self, axis)) is not None and size < 1:
                raise UserError(f"mesh.{axis} is {size}; an axis has at least 1 device.")

    def resolve(self, num_devices: int) -> "MeshConfig":
        """The same mesh with every axis a number, for this many devices. Raises a UserError if they do not fit."""
        if self.strategy == "single":
            if self.num_devices > 1:
                raise UserError(
                    f"mesh=single has no axes, but {self.describe()} was given. Drop --mesh=single or the axis sizes."
                )
            return replace(self, data=1, fsdp=1, tensor=1)
        resolved = self
        if getattr(self, self.strategy) is None:
            if num_devices % self.num_devices:
                raise UserError(
                    f"mesh: {num_devices} devices do not divide over {self.describe()}. "
                    f"Choose axis sizes whose product divides {num_devices}, or --mesh=single."
                )
            resolved = replace(self, **{self.strategy: num_devices // self.num_devices})
        if resolved.num_devices > num_devices:
            raise UserError(
                f"mesh: {resolved.describe()} needs {count_of(resolved.num_devices, 'devices')}, but {num_devices} are "
                "available. Make an axis smaller, or use --mesh=single."
            )
        return replace(resolved, **resolved.axis_sizes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Devices along (data, fsdp, tensor)."""
        return (self.data or 1, self.fsdp or 1, self.tensor or 1)

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Devices along each mesh axis, by its name."""
        return dict(zip(AXES, self.shape, strict=True))

    @property
    def num_devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.shape)

    @property
    def num_batch_shards(self) -> int:
        """Number of devices over which the sequences of a batch are divided."""
        return self.shape[0] * self.shape[1]

    def round_up_rows(self, rows: int) -> int:
        """The least multiple of the devices that share the rows."""
        return -(-rows // self.num_batch_shards) * self.num_batch_shards

    @property
    def is_sharded(self) -> bool:
        """Whether there is a mesh: more than one device."""
        return self.num_devices > 1

    @property
    def is_data_parallel_only(self) -> bool:
        """Whether there is a mesh and every device has all weights."""
        return self.num_devices > 1 and self.axis_sizes["data"] == self.num_devices

    def describe(self) -> str:
        """Such as `data=2 × fsdp=4 × tensor=1`."""
        return " × ".join(f"{axis}={size}" for axis, size in self.axis_sizes.items())

    def make_mesh(self, devices: Sequence[Any] | None = None) -> Mesh | None:
        """The mesh over the first `num_devices` of `devices` (by default those of this run); None for one device."""
        if not self.is_sharded:
            return None
        chosen = (jax.devices() if devices is None else devices)[: self.num_devices]
        return jax.make_mesh(self.shape, AXES, axis_types=(AxisType.Explicit,) * len(AXES), devices=chosen)

    def activate(self, devices: Sequence[Any] | None = None) -> contextlib.AbstractContextManager[Any]:
        """A context in which arrays are created and programs compiled under this mesh.

        For `devices` that are absent (those of a topology description), programs can be compiled but not run. Float32
        products have float32 precision here; by default TPUs round operands to bfloat16 and recent GPUs to TF32.
        """
        stack = contextlib.ExitStack()
        stack.enter_context(jax.default_matmul_precision("highest"))
        if (mesh := self.make_mesh(devices)) is not None:
            stack.enter_context(jax.set_mesh(mesh))
        return stack

    def weight_spec(self, axis_names: str) -> PartitionSpec | None:
        """Sharding of a stored parameter."""
        return self._spec(WEIGHT_RULES, axis_names)

    def unsharded_spec(self, axis_names: str) -> PartitionSpec | None:
        """Sharding of a parameter in use: gathered along fsdp, still sharded along tensor."""
        return self._spec({name: axis for name, axis in WEIGHT_RULES.items() if axis != "fsdp"}, axis_names)

    def activation_spec(self, axis_names: str) -> PartitionSpec | None:
        """Sharding of an activation."""
        return self._spec(ACTIVATION_RULES, axis_names)

    def _spec(self, rules: dict[str, Any], axis_names: str) -> PartitionSpec | None:
        if not self.is_sharded:
            return None

        def mesh_axes(name: str) -> tuple[str, ...] | None:
            axes = rules.get(name, ())
            axes = (axes,) if isinstance(axes, str) else axes
            return tuple(axis for axis in axes if self.axis_sizes[axis] > 1) or None

        return PartitionSpec(*map(mesh_axes, axis_names))

    def shard_map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`jax.shard_map` over all axes: each device calls `function` with its own shards. Identity without a mesh."""
        if not self.is_sharded:
            return function
        return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def reshard(x: Array, spec: PartitionSpec | None) -> Array:
    """`x` with the sharding `spec`; `x` itself without a mesh."""
    return x if spec is None else jax.sharding.reshard(x, spec)
