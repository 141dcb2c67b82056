"""The machine: start its processes, name its chip, know its peak and its memory.

A peak that is not known for certain is None, and then no MFU is printed: a wrong one is worse than none.
"""

import os
import re
from collections.abc import Mapping

import jax

from gptjax.core.errors import UserError

_PEAKS = (
    # NVIDIA data sheets, tensor cores, without sparsity (the sheets of Hopper and Ada print twice this).
    (r"(NVIDIA )?A100(-SXM4?|-PCIE)?-\d+GB", 312e12),
    (r"NVIDIA A100 80GB PCIe", 312e12),
    (r"NVIDIA H100 80GB HBM3", 989e12),
    (r"NVIDIA H100 PCIe", 756e12),
    (r"NVIDIA H100 NVL", 835e12),
    (r"NVIDIA H200", 989e12),
    (r"NVIDIA GH200 \d+GB", 989e12),
    (r"NVIDIA L4", 121e12),
    (r"NVIDIA L40S", 362e12),
    # Google's pages give chips. JAX's device is a chip from v4 on, and one of a chip's two cores before.
    (r"TPU v2", 22.5e12),
    (r"TPU v3", 61.5e12),
    (r"TPU v4", 275e12),
    (r"TPU v5( lite|e)", 197e12),
    (r"TPU v5p?", 459e12),
    (r"TPU v6( lite|e)", 918e12),
)
"""Dense bf16 FLOP/s of one JAX device, by `device_kind`, matched whole so that a MIG slice is not taken for a chip.

Left out on purpose: V100 and T4 (no bf16 tensor cores), A10 (its sheet and its measured rates disagree twofold).
"""


def initialize_distributed(environment: Mapping[str, str] = os.environ) -> None:
    """Join the processes of a multi-host run, if the environment says that there are any; call it first.

    It says so by any of:

    - `JAX_COORDINATOR_ADDRESS=host:port`, with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` unless JAX can find
      those two out itself (SLURM, Open MPI, Kubernetes);
    - a SLURM step of more than one task (`srun`);
    - a TPU slice of more than one host (`TPU_WORKER_HOSTNAMES` or `TPU_PROCESS_ADDRESSES` with several), or
      several slices (`MEGASCALE_COORDINATOR_ADDRESS`);
    - `GPTJAX_DISTRIBUTED=auto`, where only JAX's own detection knows (TPU VMs, which ask their metadata server).

    Otherwise nothing happens. What the environment says wrongly is a `UserError`.
    """
    if not _is_one_of_many(environment) or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            coordinator_address=environment.get("JAX_COORDINATOR_ADDRESS"),
            num_processes=_whole_number(environment, "JAX_NUM_PROCESSES"),
            process_id=_whole_number(environment, "JAX_PROCESS_ID"),
        )
    except ValueError as error:
        raise UserError(
            f"The environment asks for a run of several processes, but does not describe one: {error} "
            "Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset what asks for it."
        ) from error


def _is_one_of_many(environment: Mapping[str, str]) -> bool:
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    # SLURM_NTASKS alone is set in a batch script too, which is one process however many tasks it may start.
    step_tasks = (_whole_number(environment, "SLURM_NTASKS") or 1) if "SLURM_STEP_NODELIST" in environment else 1
    return (
        bool(environment.get("JAX_COORDINATOR_ADDRESS"))
        or bool(environment.get("MEGASCALE_COORDINATOR_ADDRESS"))
        or environment.get("GPTJAX_DISTRIBUTED") == "auto"
        or step_tasks > 1
        or "," in hosts
    )


def _whole_number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise UserError(f"The environment variable {name} is {text!r}: a whole number is wanted.")
    return int(text)


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one device whose `device_kind` is this; None if it is not known for certain."""
    return next((peak for kind, peak in _PEAKS if re.fullmatch(kind, device_kind)), None)


def device_summary() -> str:
    """The devices in one line, such as `8 × NVIDIA A100-SXM4-80GB, 312 TFLOP/s bf16 each`."""
    devices = jax.devices()
    kind = devices[0].device_kind
    peak = peak_flops(kind)
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    if peak is None:
        return f"{len(devices)} × {kind}{hosts} (peak unknown: no MFU)"
    return f"{len(devices)} × {kind}{hosts}, {peak / 1e12:g} TFLOP/s bf16 each"


def peak_memory_bytes() -> int | None:
    """The most bytes that any local device has held so far; None where that is not counted (CPU)."""
    statistics = [device.memory_stats() for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in statistics if found and "peak_bytes_in_use" in found]
    return max(peaks, default=None)
