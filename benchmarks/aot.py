"""Compile programs ahead of time for absent accelerators, and count FLOPs and collectives in them.

The target `cpu` needs no further package: it compiles for eight CPU devices. The others need

    pip install jax-cuda12-plugin==JAXVERSION jax-cuda12-pjrt==JAXVERSION nvidia-cudnn-cu12     # target a100
    export LD_LIBRARY_PATH=<site-packages>/nvidia/cudnn/lib
    pip install libtpu                                                                          # target v5e

Counts are exact. No time can be measured, and no kernel is tuned without a device.
`muon_cost.py` and `compile_recipes.py` import this module. It has no command of its own.
"""

import importlib.util
import itertools
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
from jax.experimental import topologies

from gptjax.core.errors import UserError
from gptjax.sharding.mesh import AXES, MeshConfig

NUM_DEVICES = 8
"""Devices of every target."""

os.environ["TPU_SKIP_MDS_QUERY"] = "1"
if _libtpu := importlib.util.find_spec("libtpu"):
    os.environ.setdefault("TPU_LIBRARY_PATH", str(Path(str(_libtpu.origin)).parent / "libtpu.so"))
jax.config.update("jax_platforms", "cpu")  # nothing runs on an accelerator, even if there is one
jax.config.update("jax_num_cpu_devices", NUM_DEVICES)

TargetName = Literal["a100", "v5e", "cpu"]
Collectives = dict[str, tuple[int, int]]
"""Kind of collective → (number, bytes of their results on one device)."""

A100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 167936
  threads_per_core_limit: 2048 core_count: 108 fpus_per_core: 64 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 2039040000000 l2_cache_size: 41943040
  clock_rate_ghz: 1.41 device_memory_size: 85100068864 shared_memory_per_block_optin: 166912
  cuda_compute_capability { major: 8 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 } device_description_str: "A100-SXM4-80GB"
"""


@dataclass(frozen=True)
class Target:
    """Eight devices of one kind."""

    platform: Literal["cuda", "tpu", "cpu"]
    memory_bytes: float
    """Memory of a device that a program may use."""
    max_tokens: int
    """Tokens of a micro-batch on one device from which the search for a fitting batch starts."""

    def list_devices(self) -> Sequence[Any]:
        """The devices of this run, or those of a topology description."""
        if self.platform == "cpu":
            return jax.devices("cpu")
        if self.platform == "tpu":
            return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
        return topologies.get_topology_desc("", platform="cuda", target_config=A100, topology="1x8x1").devices

    def compile(self, traced: jax.stages.Traced) -> jax.stages.Compiled:
        """Compile a program that was traced under a mesh of these devices."""
        return traced.lower(lowering_platforms=(self.platform,)).compile()


TARGETS: dict[TargetName, Target] = {
    "a100": Target("cuda", memory_bytes=0.92 * 85100068864, max_tokens=2**16),  # the share of launch/gpu_node.sh
    "v5e": Target("tpu", memory_bytes=15.75 * 2**30, max_tokens=2**13),
    "cpu": Target("cpu", memory_bytes=math.inf, max_tokens=2**13),
}


def parse_mesh(name: str) -> MeshConfig:
    """The mesh of a name, over all devices: `fsdp`, or sizes such as `fsdp4xtensor2`."""
    if name in AXES:
        return replace(MeshConfig(), **{name: NUM_DEVICES}).resolve(NUM_DEVICES)
    sizes = {axis: int(size) for axis, size in re.findall(rf"({'|'.join(AXES)})(\d+)", name)}
    if not sizes or "x".join(f"{axis}{size}" for axis, size in sizes.items()) != name:
        raise UserError(f"--meshes: {name!r} is invalid. Use {', '.join(AXES)}, or sizes such as fsdp4xtensor2.")
    return replace(MeshConfig(), **sizes).resolve(NUM_DEVICES)


def format_mesh(mesh: MeshConfig) -> str:
    """The inverse of `parse_mesh`, with sizes."""
    sizes = mesh.resolve(NUM_DEVICES).axis_sizes
    return "x".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1)


def count_matmul_flops(text: str, *, scope: str = "") -> int:
    """Count the FLOPs of the matrix products in the text of a compiled program, on one device.

    Products in a loop are counted once. TPU programs write them as convolutions.

    Args:
        scope: count only products made under a `jax.named_scope` of this name.
    """
    shapes = {name: _parse_sizes(sizes) for name, sizes in re.findall(r"%([\w.-]+) = [a-z]+\d+\[([\d,]*)\]", text)}
    total = 0
    for line in text.splitlines():
        match = re.search(r"= \w+\[([\d,]*)\]\S* (dot|convolution)\(%([\w.-]+), %([\w.-]+)\)", line)
        if match is None or scope not in line:
            continue
        result, left, right = _parse_sizes(match[1]), shapes[match[3]], shapes[match[4]]
        if match[2] == "dot":
            total += 2 * _count_dot_products(line, left, result=result)
        else:
            total += 2 * _count_convolution_products(line, left, right=right, result=result)
    return total


def _count_dot_products(line: str, left: list[int], *, result: list[int]) -> int:
    dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
    assert dims is not None
    return math.prod(result) * math.prod(left[dim] for dim in _parse_sizes(dims[1]))


def _count_convolution_products(line: str, left: list[int], *, right: list[int], result: list[int]) -> int:
    """Count the multiplications of a convolution, without those with padding or with zeros of a dilation."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line)
    assert labels is not None
    inputs, kernel, outputs = labels.groups()
    window = dict(re.findall(r"(\w+)=([\w-]+)", line[line.find("window={") :].partition("}")[0]))
    of_axis = lambda name, axis: int(window[name].split("x")[axis]) if name in window else 1
    count = result[outputs.index("b")] * result[outputs.index("f")] * right[kernel.index("i")]
    for axis in range(len(inputs) - 2):
        stride, dilation, input_dilation = (of_axis(name, axis) for name in ("stride", "rhs_dilate", "lhs_dilate"))
        padding = int(window["pad"].split("x")[axis].split("_")[0]) if "pad" in window else 0
        size = left[inputs.index(str(axis))]
        pairs = itertools.product(range(result[outputs.index(str(axis))]), range(of_axis("size", axis)))
        positions = (output * stride + tap * dilation - padding for output, tap in pairs)
        count *= sum(p % input_dilation == 0 and 0 <= p // input_dilation < size for p in positions)
    return count


def count_collectives(text: str) -> Collectives:
    """Count each kind of collective in the text of a compiled program. One in a loop is counted once.

    Of an asynchronous collective, only its end is counted. A TPU program may write one collective into several of the
    products that overlap with it. These share a chain_id.
    """
    counts: Collectives = {}
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    chains: set[str] = set()
    for shapes, kind, rest in re.findall(rf"= (.*?) ({kinds})(?:-done)?\((.*)", text):
        if chain := re.search(r'chain_id="\d+"', rest):
            if chain[0] in chains:
                continue
            chains.add(chain[0])
        arrays = re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes)
        size = sum(int(bits) // 8 * math.prod(_parse_sizes(sizes)) for bits, sizes in arrays)
        count, total = counts.get(kind, (0, 0))
        counts[kind] = (count + 1, total + size)
    return counts


def _parse_sizes(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
