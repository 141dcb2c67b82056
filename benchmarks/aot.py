"""Programs compiled ahead of time, for accelerators that are not there, and what can be counted in them.

    pip install jax-cuda12-plugin==JAXVERSION jax-cuda12-pjrt==JAXVERSION nvidia-cudnn-cu12 libtpu
    export LD_LIBRARY_PATH=<site-packages>/nvidia/cudnn/lib

Counts are exact; times would not be: no kernel is tuned without a device.
"""

import importlib.util
import itertools
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

os.environ["TPU_SKIP_MDS_QUERY"] = "1"
if found := importlib.util.find_spec("libtpu"):
    os.environ.setdefault("TPU_LIBRARY_PATH", str(Path(str(found.origin)).parent / "libtpu.so"))

import jax
from jax.experimental import topologies

jax.config.update("jax_platforms", "cpu")  # whatever is here, nothing runs on it

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
    """Eight accelerators of a kind."""

    platform: Literal["cuda", "tpu"]
    memory: float
    """Bytes of a device that a program may have."""
    tokens: int
    """The most tokens of a device in one group that are worth a try."""

    def devices(self) -> list[jax.Device]:
        if self.platform == "tpu":
            return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
        return topologies.get_topology_desc("", platform="cuda", target_config=A100, topology="1x8x1").devices

    def compiled(self, traced: jax.stages.Traced) -> jax.stages.Compiled:
        """The program, for this platform instead of the one that is here."""
        return traced.lower(lowering_platforms=(self.platform,)).compile()


TARGETS = {
    "a100": Target("cuda", memory=0.92 * 85100068864, tokens=2**16),  # the share that launch/gpu_node.sh takes
    "v5e": Target("tpu", memory=15.75 * 2**30, tokens=2**13),
}


def _numbers(text: str, separator: str = ",") -> list[int]:
    return [int(number) for number in text.split(separator) if number]


def products(text: str, *, scope: str = "") -> int:
    """FLOPs of the matrix products in a program's text, on one device; those in a loop are counted once.

    `scope` takes only those made under a `jax.named_scope` of that name. TPU programs write them as convolutions.
    """
    shapes = {name: _numbers(sizes) for name, sizes in re.findall(r"%([\w.-]+) = [a-z]+\d+\[([\d,]*)\]", text)}
    total = 0
    for line in text.splitlines():
        found = re.search(r"= \w+\[([\d,]*)\]\S* (dot|convolution)\(%([\w.-]+), %([\w.-]+)\)", line)
        if found is None or scope not in line:
            continue
        result, kind, left, right = _numbers(found[1]), found[2], shapes[found[3]], shapes[found[4]]
        if kind == "dot":
            dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
            assert dims is not None
            total += 2 * math.prod(result) * math.prod(left[dim] for dim in _numbers(dims[1]))
        else:
            total += 2 * _convolved(line, left, right, result)
    return total


def _convolved(line: str, left: list[int], right: list[int], result: list[int]) -> int:
    """Multiplications of a convolution, without those by padding and by the holes of a dilation."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line)
    assert labels is not None
    inputs, kernel, outputs = labels.groups()
    window = dict(re.findall(r"(\w+)=([\w-]+)", line[line.find("window={") :].partition("}")[0]))
    of_axis = lambda name, axis: int(window[name].split("x")[axis]) if name in window else 1
    count = result[outputs.index("b")] * result[outputs.index("f")] * right[kernel.index("i")]
    for axis in range(len(inputs) - 2):
        stride, dilation, holes = (of_axis(name, axis) for name in ("stride", "rhs_dilate", "lhs_dilate"))
        before = int(window["pad"].split("x")[axis].split("_")[0]) if "pad" in window else 0
        size = left[inputs.index(str(axis))]
        ends = itertools.product(range(result[outputs.index(str(axis))]), range(of_axis("size", axis)))
        places = (output * stride + point * dilation - before for output, point in ends)
        count *= sum(place % holes == 0 and 0 <= place // holes < size for place in places)
    return count


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Each kind of collective: how many, and the bytes of their results for one device; in a loop, counted once.

    Of an asynchronous one, what it ends with. TPU programs may write one into each of the products that run beside it;
    they tell by a chain's number that it is the same.
    """
    found: dict[str, tuple[int, int]] = {}
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    chains: set[str] = set()
    for shapes, kind, rest in re.findall(rf"= (.*?) ({kinds})(?:-done)?\((.*)", text):
        if chain := re.search(r'chain_id="\d+"', rest):
            if chain[0] in chains:
                continue
            chains.add(chain[0])
        arrays = re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes)
        size = sum(int(bits) // 8 * math.prod(_numbers(sizes)) for bits, sizes in arrays)
        count, before = found.get(kind, (0, 0))
        found[kind] = (count + 1, before + size)
    return found
