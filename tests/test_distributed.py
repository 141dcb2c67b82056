import jax
import pytest

from gptjax.core.errors import UserError
from gptjax.sharding.distributed import initialize_distributed


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Arguments of all calls of jax.distributed.initialize, which does nothing else."""
    calls: list[dict] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: bool(calls))
    return calls


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        {"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"JAX_NUM_PROCESSES": "4"},
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
    assert calls == [{"coordinator_address": None, "num_processes": None, "process_id": None}]


def test_three_variables_initialize_once(calls: list[dict]):
    environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    initialize_distributed(environment)
    initialize_distributed(environment)
    assert calls == [{"coordinator_address": "a:1", "num_processes": 2, "process_id": 1}]


def test_incomplete_environment_is_explained(monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: object) -> None:
        raise ValueError("The process id of the current process must be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match=r"process id .* must be defined\. Set .*JAX_PROCESS_ID"):
        initialize_distributed({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2"})


def test_variable_that_is_no_number_is_named(calls: list[dict]):
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is 'two'"):
        initialize_distributed({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two"})
