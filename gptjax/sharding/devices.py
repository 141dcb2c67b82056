"""The accelerators of this machine: their peak FLOP/s, memory, bandwidth and a one-line description.

The peak of a device that is not in the table is None, and then no MFU is logged: no figure is better than a wrong one.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from gptjax.core.provenance import find_version
from gptjax.process.memory import keep_freed_memory, return_freed_memory

GPU_PLATFORMS = ("gpu", "cuda", "rocm")
"""The names of a GPU's platform."""
DType = Literal["bfloat16", "float16", "float32"]
"""Type of products' operands."""

_PEAK_FLOPS = (
    # NVIDIA data sheets: tensor cores, without sparsity (the sheets of Hopper and Ada print twice this).
    (r"(NVIDIA )?A100(-SXM4?|-PCIE)?-\d+GB", 312e12),
    (r"NVIDIA A100 80GB PCIe", 312e12),
    (r"NVIDIA H100 80GB HBM3", 989e12),
    (r"NVIDIA H100 PCIe", 756e12),
    (r"NVIDIA H100 NVL", 835e12),
    (r"NVIDIA H200", 989e12),
    (r"NVIDIA GH200 \d+GB", 989e12),
    (r"NVIDIA L4", 121e12),
    (r"NVIDIA L40S", 362e12),
    # Google's pages give chips. A JAX device is a chip from v4 on, and one of a chip's two cores before.
    (r"TPU v2", 22.5e12),
    (r"TPU v3", 61.5e12),
    (r"TPU v4", 275e12),
    (r"TPU v5( lite|e)", 197e12),
    (r"TPU v5p?", 459e12),
    (r"TPU v6( lite|e)", 918e12),
)
"""Dense bf16 FLOP/s of one JAX device. `device_kind` must match as a whole, so that no MIG slice counts as a GPU.

Missing on purpose: V100 and T4 (no bf16 tensor cores), A10 (its sheet and its measured rates disagree twofold).
"""


def get_peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one device with this `device_kind`; None if unknown."""
    return next((peak for kind, peak in _PEAK_FLOPS if re.fullmatch(kind, device_kind)), None)


def describe_devices() -> str:
    """The devices in one line, such as `8 × NVIDIA A100-SXM4-80GB, 312 TFLOP/s bf16 each`."""
    devices = jax.devices()
    kind = devices[0].device_kind
    peak = get_peak_flops(kind)
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    peak_text = " (peak unknown: no MFU)" if peak is None else f", {peak / 1e12:g} TFLOP/s bf16 each"
    return f"{len(devices)} × {kind}{hosts}{peak_text}"


def get_peak_memory() -> int | None:
    """Largest number of bytes that any local device has used so far; None on backends that do not count (CPU)."""
    statistics = [device.memory_stats() for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in statistics if found and "peak_bytes_in_use" in found]
    return max(peaks, default=None)


def preferred_dtype() -> DType:
    """The 16-bit type for whose products the target device has units, bfloat16 if both; float32 if it has none.

    bfloat16: TPUs, NVIDIA's GPUs from Ampere on, AMD's, and CPUs with AVX512-BF16 or AMX. float16: NVIDIA's Volta and
    Turing, such as V100 and T4.
    """
    device = target_device()
    if device.platform == "cpu":
        return "bfloat16" if {"avx512_bf16", "amx_bf16"} & _cpu_flags() else "float32"
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):  # a TPU has none, and AMD's are named, such as gfx90a
        return "bfloat16"
    return "bfloat16" if capability >= 8.0 else "float16" if capability >= 7.0 else "float32"


def has_units_for(dtype: DType) -> bool:
    """Whether the target device has units for products of this type; otherwise it computes in float32 and rounds."""
    preferred = preferred_dtype()
    if dtype == "float16":
        return preferred == "float16" or (preferred == "bfloat16" and target_device().platform in GPU_PLATFORMS)
    return dtype in (preferred, "float32")


def _cpu_flags() -> set[str]:
    """Names of this CPU's instruction sets, as Linux on x86 gives them; elsewhere none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def start_backend() -> None:
    """Start JAX's backend. Call it before anything else in the process computes.

    On CPUs memory that a step frees is kept for the next one. Commands set that as they start, when nobody knows the
    device yet, and so it is taken back for other devices. A program of the user's own has set nothing so far.
    """
    if keep_freed_memory() and jax.default_backend() != "cpu":
        return_freed_memory()


def target_device() -> Any:
    """The device that is compiled for: one of the active mesh, which need not be here, or else the default one."""
    here, target = jax.devices()[0], jax.sharding.get_abstract_mesh().abstract_device
    return here if target is None or target.platform == here.platform else target


def list_device_kinds() -> list[str]:
    """The kind of each device of all processes, such as `NVIDIA H200`."""
    return [device.device_kind for device in jax.devices()]


def describe_unused_gpu(environment: Mapping[str, str] = os.environ, *, root: Path = Path("/dev")) -> str | None:
    """A warning if this machine has a GPU and JAX computes on the CPU though nobody asked for that.

    Linux shows NVIDIA's as `nvidia0`, AMD's by `kfd` with `dri/renderD128`, and those of Windows by `dxg` (WSL).
    """
    amd = sorted(root.glob("dri/renderD*")) if (root / "kfd").exists() else []
    gpus = sorted(root.glob("nvidia[0-9]*")) or amd or sorted(root.glob("dxg"))
    hides = (environment.get(name) == "" for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"))
    asked = environment.get("JAX_PLATFORMS", "").startswith("cpu") or any(hides)
    if not gpus or asked or jax.default_backend() != "cpu":
        return None
    install = "rocm7-local" if gpus == amd else "cuda12"
    names = ("jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin")
    versions = [f"{name} {version}" for name in names if (version := find_version(name))]
    return (
        f"WARNING: this machine has {len(gpus)} GPU(s), and JAX does not use them: the run is on the CPU. Installed: "
        f"{', '.join(versions)}. The plugin must have jaxlib's version: pip install -U "
        f"'jax[{install}]'. JAX_PLATFORMS=cpu hides this warning."
    )
