"""Join the processes of a run over several hosts."""

import os
from collections.abc import Mapping

import jax

from gptjax.core.errors import UserError


def initialize_distributed(environment: Mapping[str, str] = os.environ) -> None:
    """Call `jax.distributed.initialize` if the environment describes several processes; call this before any JAX work.

    Any one of these describes them:

    - `JAX_COORDINATOR_ADDRESS=host:port`, with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` unless JAX can detect
      those two itself (SLURM, Open MPI, Kubernetes);
    - a SLURM step of more than one task (`srun`);
    - a TPU slice of more than one host (several in `TPU_WORKER_HOSTNAMES` or `TPU_PROCESS_ADDRESSES`), or
      several slices (`MEGASCALE_COORDINATOR_ADDRESS`);
    - `GPTJAX_DISTRIBUTED=auto`, where only JAX's own detection knows (TPU VMs with a metadata server).

    Otherwise this does nothing. Raises a UserError for an incomplete or invalid description.
    """
    if not _has_several_processes(environment) or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            coordinator_address=environment.get("JAX_COORDINATOR_ADDRESS"),
            num_processes=_read_integer(environment, "JAX_NUM_PROCESSES"),
            process_id=_read_integer(environment, "JAX_PROCESS_ID"),
        )
    except ValueError as error:
        raise UserError(
            f"The environment asks for several processes, but describes them incompletely: {error} "
            "Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset the variable that asks."
        ) from error


def _has_several_processes(environment: Mapping[str, str]) -> bool:
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    # A batch script has SLURM_NTASKS too, but it is one process, however many tasks it may start.
    step_tasks = (_read_integer(environment, "SLURM_NTASKS") or 1) if "SLURM_STEP_NODELIST" in environment else 1
    return (
        bool(environment.get("JAX_COORDINATOR_ADDRESS"))
        or bool(environment.get("MEGASCALE_COORDINATOR_ADDRESS"))
        or environment.get("GPTJAX_DISTRIBUTED") == "auto"
        or step_tasks > 1
        or "," in hosts
    )


def _read_integer(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise UserError(f"The environment variable {name} is {text!r}; it must be a whole number.")
    return int(text)
