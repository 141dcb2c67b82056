"""Join the processes of a run over several hosts."""

import os
import re
import socket
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its client and place are in no public module
from jax.experimental import multihost_utils

from gptjax.core.errors import UserError, quote
from gptjax.core.xla_flags import check_xla_flags
from gptjax.process.early_exit import REQUEUE_STATUS, set_early_announcement
from gptjax.process.native_output import NativeOutput, hold_native_output, read_native_output, release_native_output
from gptjax.process.process_end import end_at_abort, end_process, set_peers
from gptjax.sharding.joining import CLIENT_SECONDS, JoinWatch, check_listening, end_registration, without_proxies
from gptjax.sharding.liveness import ProcessWatch
from gptjax.sharding.preemption import take_jax_handler
from gptjax.sharding.start_marker import StartMarker

WAIT_SECONDS = 300
"""Time in which all processes of a run must have started, by JAX's default. `GPTJAX_JOIN_SECONDS` sets another."""
BARRIER_SECONDS = 24 * 3600
"""Longer than any wait for a save. The watchdog and `ProcessWatch` end it earlier."""
HEARTBEAT_SECONDS = 300
"""Later than `ProcessWatch`, JAX ends all processes by an abort."""
_LAUNCHERS = (
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpirun", "PMI_SIZE", "PMI_RANK"),
    ("mpirun", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    ("horovodrun", "HOROVOD_SIZE", "HOROVOD_RANK"),
)
"""Launchers of several processes, with the variables of their number and of the number of this one."""


def initialize_distributed(
    environment: Mapping[str, str] = os.environ,
    *,
    command: str = "the same command",
    resumes: bool = False,
    marker: StartMarker | None = None,
    runs: Path | None = None,
) -> None:
    """Call `jax.distributed.initialize` if the environment describes several processes; call this before any JAX work.

    Any one of these describes them:

    - `JAX_COORDINATOR_ADDRESS=host:port`, with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` unless JAX can detect
      those two itself (SLURM, Open MPI, Kubernetes);
    - a SLURM step of more than one task (`srun`);
    - a TPU slice of more than one host (several in `TPU_WORKER_HOSTNAMES` or `TPU_PROCESS_ADDRESSES`), or
      several slices (`MEGASCALE_COORDINATOR_ADDRESS`);
    - `GPTJAX_DISTRIBUTED=auto`, where only JAX's own detection knows (TPU VMs with a metadata server).

    Otherwise this does nothing. `command` resumes the run; `resumes` says that it has begun before. `marker` tells
    of the others, and is removed once all have joined. Without one, it is left in the directory `runs` as soon as JAX
    knows the number of this process. Raises a UserError for an incomplete or invalid description.
    """
    check_xla_flags()
    check_launcher(environment)
    if not has_several_processes(environment) or jax.distributed.is_initialized():
        if marker is not None:
            marker.close()
        return
    address, count, process = _read_slurm(environment) or (
        environment.get("JAX_COORDINATOR_ADDRESS"),
        _read_integer(environment, "JAX_NUM_PROCESSES"),
        _read_integer(environment, "JAX_PROCESS_ID"),
    )
    total = count or _read_integer(environment, "SLURM_NTASKS")
    seconds = WAIT_SECONDS if (asked := _read_integer(environment, "GPTJAX_JOIN_SECONDS")) is None else max(1, asked)
    if total is not None:
        rank = process if process is not None else environment.get("SLURM_PROCID", "?")
        print(
            f"process {rank} of {total}: waiting for all of them at {address or 'the coordinator'}, for up to "
            f"{seconds} s",
            file=sys.stderr,
            flush=True,
        )
    if process == 0 and address:
        check_listening(environment.get("JAX_COORDINATOR_BIND_ADDRESS") or f"[::]:{address.rpartition(':')[2]}")
    native = hold_native_output()
    waiting = JoinWatch(
        address=address,
        index=process,
        count=total,
        seconds=seconds,
        resumes=resumes,
        marker=marker,
        command=command,
        runs=runs,
    )
    _join(native, waiting, seconds=seconds, coordinator_address=address, num_processes=count, process_id=process)
    _watch_others(native, command, waiting.hosts)


def _join(native: NativeOutput, waiting: JoinWatch, *, seconds: int, **place: Any) -> None:
    """Join the others, or end with the reason. `place` goes to JAX."""
    try:
        with (
            waiting,
            warnings.catch_warnings(),
            end_registration(seconds),
            without_proxies(),
            end_at_abort(native, lambda: waiting.explain(read_native_output())),
        ):
            # JAX looks for Kubernetes even if all is given, and warns in seven lines that it lacks a package for it.
            warnings.filterwarnings("ignore", "Kubernetes environment detected")
            jax.distributed.initialize(
                **place,
                initialization_timeout=seconds + CLIENT_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
            if threading.current_thread() is threading.main_thread():
                take_jax_handler()  # it stops only a training of several processes, which then calls it
    except RuntimeError as error:
        message, status = waiting.explain(str(error))
        if status == REQUEUE_STATUS:
            end_process(message, status=status)
        raise UserError(f"{message} ({str(error).splitlines()[0][:200]})") from error
    except ValueError as error:
        raise UserError(
            f"The environment asks for several processes, but describes them incompletely: {error} "
            "Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset the variable that asks."
        ) from error


def _watch_others(native: NativeOutput, command: str, hosts: Mapping[int, str]) -> None:
    state = distributed.global_state
    if state.num_processes == 1:
        release_native_output()
    else:
        index, count = state.process_id, state.num_processes
        others = ProcessWatch(state.client, index=index, count=count, resume=command, native=native, hosts=hosts)
        others.start()
        set_peers(others)
        set_early_announcement(others.announce_end, seconds=others.announce_seconds)


def count_processes() -> int:
    """Processes of the run. Starts no JAX backend: a config may be wrong, and its error should come first."""
    return distributed.global_state.num_processes if jax.distributed.is_initialized() else 1


def wait_for_processes(place: str) -> None:
    """Return once all processes have come to this place of the run, which none passes twice.

    The devices take no part. If another process ends before, so does this one.
    """
    if (client := distributed.global_state.client) is not None:
        client.wait_at_barrier(f"gptjax/{place}", BARRIER_SECONDS * 1000)


def collect_failures(place: str, error: str | None) -> dict[str, str]:
    """Return once all processes have come to this place, with what went wrong on those that say so, by their names.

    `error` is what went wrong here. The name is "" where there is only one process. None passes a place twice.
    """
    client = distributed.global_state.client
    if client is None:
        return {} if error is None else {"": error}
    failures = f"gptjax_failures/{place}/"
    if error is not None:
        client.key_value_set(failures + name_process(), error)
    wait_for_processes(place)
    return {key[len(failures) :]: text for key, text in client.key_value_dir_get(failures)}


def share_floats(values: Sequence[float]) -> list[float]:
    """The first process's values, bit for bit, on all processes."""
    if jax.process_count() == 1:
        return list(values)
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(values))))
    own = np.asarray(values, np.float64) if jax.process_index() == 0 else np.zeros(count)
    # JAX would round float64 to float32.
    return np.asarray(multihost_utils.broadcast_one_to_all(own.view(np.uint32))).view(np.float64).tolist()


def name_process() -> str:
    """This process, as the others would call it."""
    if count_processes() == 1:
        return "this process"
    return f"process {distributed.global_state.process_id} of {count_processes()} on {socket.gethostname()}"


def check_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Raise a UserError for variables of a launcher that describe the processes wrongly or not at all."""
    if (value := environment.get("GPTJAX_DISTRIBUTED", "")) not in ("", "auto"):
        raise UserError(f"GPTJAX_DISTRIBUTED is {quote(value)}; wanted auto, or nothing for a single process.")
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    host, _, port = (address or "").rpartition(":")
    is_port = port.isdecimal() and 0 < int(port) < 2**16  # JAX crashes at one like 22x
    if address and not (is_port and re.fullmatch(r"[^\s/]+", host)):
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS is {quote(address)}; wanted HOST:PORT, the same for all processes, such as "
            "node1:12355."
        )
    workers = environment.get("WORLD_SIZE", "1")
    by_torch = "TORCHELASTIC_RUN_ID" in environment or {"RANK", "MASTER_ADDR"} <= environment.keys()
    if by_torch and workers != "1" and "JAX_COORDINATOR_ADDRESS" not in environment:
        raise UserError(
            f"torchrun or a launcher like it has started {workers} processes, but one process of JAX uses all devices "
            "of a machine. Start python -m gptjax.train without it. Several machines, one process each: set "
            "JAX_COORDINATOR_ADDRESS=$MASTER_ADDR:12355 JAX_NUM_PROCESSES=$WORLD_SIZE JAX_PROCESS_ID=$RANK."
        )
    processes, index = _read_integer(environment, "JAX_NUM_PROCESSES"), _read_integer(environment, "JAX_PROCESS_ID")
    if not has_several_processes(environment) and ((processes or 1) > 1 or (index or 0) > 0):
        found = f"JAX_NUM_PROCESSES is {processes}" if processes else f"JAX_PROCESS_ID is {index}"
        raise UserError(
            f"{found} without JAX_COORDINATOR_ADDRESS, and each process would train the whole run. Set "
            "JAX_COORDINATOR_ADDRESS=HOST:12355, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset all of them."
        )
    for launcher, size, rank in _LAUNCHERS:
        if environment.get(size, "1") != "1" and not has_several_processes(environment):
            raise UserError(
                f"{launcher} has started {environment[size][:9]} processes ({size}), and each would train the whole "
                "run. Start python -m gptjax.train without it: one process uses all devices of a machine. Several "
                "machines, one process each: set "
                f"JAX_COORDINATOR_ADDRESS=HOST:12355 JAX_NUM_PROCESSES=${size} JAX_PROCESS_ID=${rank}."
            )


def _read_slurm(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """(coordinator, processes, number of this one) for a list of nodes that JAX reads wrongly, such as `n[3-4]-ib`."""
    # The first entry, up to a comma outside of brackets, such as rack[1-2]node[3,5].
    entry = re.match(r"(?:[^\[,]|\[[^\]]*\])*", environment.get("SLURM_STEP_NODELIST", ""))
    found = entry and re.fullmatch(r"[^\[]*\[[^\]]*\][^\[]+(\[.*)?", entry[0])
    count, process = _read_integer(environment, "SLURM_NTASKS"), _read_integer(environment, "SLURM_PROCID")
    if found is None or count is None or process is None or "JAX_COORDINATOR_ADDRESS" in environment:
        return None
    # The port that JAX derives from the job's number, too.
    port = (_read_integer(environment, "SLURM_JOB_ID") or 0) % 2**12 + (65535 - 2**12 + 1)
    first = re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", found[0])
    return f"{first}:{port}", count, process


def has_several_processes(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment describes several processes, in one of the ways of `initialize_distributed`."""
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
