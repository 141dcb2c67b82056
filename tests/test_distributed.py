import os

import jax
import pytest

from gptjax.core.errors import UserError
from gptjax.process.native_output import NativeOutput
from gptjax.sharding import distributed
from gptjax.sharding.distributed import initialize_distributed

TIMES = {"initialization_timeout": 305, "heartbeat_timeout_seconds": 300}


class NoOutput(NativeOutput):
    """Nothing is held back."""

    def __init__(self) -> None:
        return

    def find_abort(self) -> None:
        return None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Arguments of all calls of jax.distributed.initialize, which does nothing else."""
    calls: list[dict] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: bool(calls))
    monkeypatch.setattr(distributed, "hold_native_output", NoOutput)
    return calls


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        {"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    ],
)
def test_single_process_does_not_initialize(calls: list[dict], environment: dict[str, str]):
    initialize_distributed(environment)
    assert calls == []


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "2"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"TPU_PROCESS_ADDRESSES": "a:1,b:1"},
        {"MEGASCALE_COORDINATOR_ADDRESS": "a:1"},
        {"GPTJAX_DISTRIBUTED": "auto"},
    ],
)
def test_known_clusters_are_left_to_jax(calls: list[dict], environment: dict[str, str]):
    initialize_distributed(environment)
    assert calls == [{"coordinator_address": None, "num_processes": None, "process_id": None, **TIMES}]


def test_three_variables_initialize_once(calls: list[dict]):
    environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    initialize_distributed(environment)
    initialize_distributed(environment)
    assert calls == [{"coordinator_address": "a:1", "num_processes": 2, "process_id": 1, **TIMES}]


def test_incomplete_environment_is_explained(monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: object) -> None:
        raise ValueError("The process id of the current process must be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setattr(distributed, "hold_native_output", NoOutput)
    with pytest.raises(UserError, match=r"process id .* must be defined\. Set .*JAX_PROCESS_ID"):
        initialize_distributed({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2"})


def test_variable_that_is_no_number_is_named(calls: list[dict]):
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is 'two'"):
        initialize_distributed({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two"})


def test_number_of_the_job_that_is_none_is_named(calls: list[dict]):
    environment = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "5x", "SLURM_STEP_NODELIST": "n[1-2]-ib"}
    with pytest.raises(UserError, match="SLURM_JOB_ID is '5x'"):
        initialize_distributed(environment)


def test_launcher_that_starts_too_many_processes_is_refused(calls: list[dict]):
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_RANK": "0"}
    operator = {"MASTER_ADDR": "a", "WORLD_SIZE": "8", "RANK": "0"}
    for environment in (torchrun, operator):
        with pytest.raises(UserError, match="torchrun or a launcher like it has started 8 processes"):
            initialize_distributed(environment)
    initialize_distributed(torchrun | {"WORLD_SIZE": "1"})
    assert calls == []


@pytest.mark.parametrize("environment", [{"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, {"JAX_PROCESS_ID": "1"}])
def test_one_of_several_processes_without_a_coordinator_is_refused(calls: list[dict], environment: dict[str, str]):
    with pytest.raises(UserError, match=r"JAX_(NUM_PROCESSES is 2|PROCESS_ID is 1) without JAX_COORDINATOR_ADDRESS"):
        initialize_distributed(environment)
    assert calls == []
    initialize_distributed(environment | {"GPTJAX_DISTRIBUTED": "auto"})
    assert len(calls) == 1, "where JAX knows the coordinator"


def test_other_word_than_auto_is_refused(calls: list[dict]):
    with pytest.raises(UserError, match="GPTJAX_DISTRIBUTED is yes; wanted auto"):
        initialize_distributed({"GPTJAX_DISTRIBUTED": "yes"})
    assert calls == []


@pytest.mark.parametrize("size", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "HOROVOD_SIZE"])
def test_mpirun_without_a_coordinator_is_refused(calls: list[dict], size: str):
    with pytest.raises(UserError, match=rf"run has started 4 processes \({size}\).*JAX_NUM_PROCESSES=\${size}"):
        initialize_distributed({size: "4"})
    initialize_distributed({size: "1"})
    assert calls == []
    initialize_distributed({size: "4", "JAX_COORDINATOR_ADDRESS": "a:1"})
    assert len(calls) == 1


@pytest.mark.parametrize("address", ["localhost", "localhost:22x", ":5", "http://node1:5", "localhost:70000"])
def test_address_without_a_port_is_refused(calls: list[dict], address: str):
    with pytest.raises(UserError, match=f"JAX_COORDINATOR_ADDRESS is {address}; wanted HOST:PORT"):
        initialize_distributed({"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"})
    assert calls == []


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[3-4]-ib", "node3-ib"),
        ("rack[1-2]node[3-4]", "rack1node3"),
        ("c[007,9-11]-[2,5]x,other[1-2]", "c007-2x"),
    ],
)
def test_node_list_with_text_behind_its_bracket_names_the_first_node(calls: list[dict], nodes: str, first: str):
    environment = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "5000"}
    initialize_distributed(environment | {"SLURM_STEP_NODELIST": nodes})
    (arguments,) = calls
    assert arguments["coordinator_address"] == f"{first}:{5000 % 4096 + 61440}"
    assert (arguments["num_processes"], arguments["process_id"]) == (2, 1)


def test_waiting_says_for_whom_and_how_long(calls: list[dict], capsys: pytest.CaptureFixture[str]):
    initialize_distributed({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"})
    assert "process 2 of 4: waiting for all of them at a:1, for up to 300 s" in capsys.readouterr().err


def test_other_processes_are_not_looked_for_through_a_proxy(monkeypatch: pytest.MonkeyPatch):
    during: list[str | None] = []
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: during.append(os.environ.get("http_proxy")))
    monkeypatch.setattr(distributed, "hold_native_output", NoOutput)
    monkeypatch.setattr(distributed, "_watch_others", lambda *_: None)
    initialize_distributed({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"})
    assert during == [None]
    assert os.environ["http_proxy"] == "http://proxy:3128"


def test_process_that_does_not_come_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def initialize(**_: object) -> None:
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(distributed, "hold_native_output", NoOutput)
    environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}
    with pytest.raises(UserError, match=r"not all 4 processes came within 7 s\..*\(DEADLINE_EXCEEDED"):
        initialize_distributed(environment | {"GPTJAX_JOIN_SECONDS": "7"})
