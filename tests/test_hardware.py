"""Which environments start processes, which chips have a known peak, and what a machine without counters says."""

import jax
import pytest

from gptjax import hardware
from gptjax.core.errors import UserError
from gptjax.sharding.devices import device_summary, initialize_distributed, peak_flops, peak_memory_bytes


@pytest.fixture
def started(monkeypatch):
    """What jax.distributed.initialize was asked for."""
    calls: list[dict] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **words: calls.append(words))
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
def test_one_process_starts_nothing(started, environment):
    initialize_distributed(environment)
    assert started == []


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
def test_a_cluster_that_jax_knows_is_left_to_jax(started, environment):
    initialize_distributed(environment)
    assert started == [{"coordinator_address": None, "num_processes": None, "process_id": None}]


def test_three_variables_describe_any_cluster_and_start_it_once(started):
    environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    initialize_distributed(environment)
    initialize_distributed(environment)
    assert started == [{"coordinator_address": "a:1", "num_processes": 2, "process_id": 1}]


def test_a_cluster_that_jax_cannot_make_out_is_explained(monkeypatch):
    def refuse(**_):
        raise ValueError("The process id of the current process must be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match=r"process id .* must be defined\. Set .*JAX_PROCESS_ID"):
        initialize_distributed({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2"})


def test_a_variable_that_is_no_number_is_named(started):
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is 'two'"):
        initialize_distributed({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two"})


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
    ],
)
def test_known_chips(kind, teraflops):
    assert peak_flops(kind) == teraflops * 1e12


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "",
        "Tesla T4",
        "Tesla V100-SXM2-16GB",
        "NVIDIA A10",
        "NVIDIA RTX A1000",
        "NVIDIA A1000",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA H100 80GB HBM3 MIG 2g.20gb",
        "NVIDIA H200 NVL",
        "NVIDIA H20",
        "TPU v7x",
    ],
)
def test_an_unknown_chip_has_no_peak(kind):
    assert peak_flops(kind) is None


def test_summary_of_this_machine():
    count, kind = jax.device_count(), jax.devices()[0].device_kind
    assert device_summary().startswith(f"{count} × {kind}")
    assert ("peak unknown: no MFU" in device_summary()) == (peak_flops(kind) is None)


def test_summary_gives_the_peak_of_one_device(monkeypatch):
    class Device:
        device_kind = "NVIDIA A100-SXM4-80GB"

    monkeypatch.setattr(hardware.jax, "devices", lambda: [Device()] * 8)
    assert device_summary() == "8 × NVIDIA A100-SXM4-80GB, 312 TFLOP/s bf16 each"


@pytest.mark.parametrize(
    ("statistics", "expected"),
    [([None, None], None), ([{"peak_bytes_in_use": 5}, {"peak_bytes_in_use": 9}], 9), ([{"other": 1}], None)],
)
def test_memory_is_the_peak_of_the_fullest_device(monkeypatch, statistics, expected):
    class Device:
        def __init__(self, found):
            self.memory_stats = lambda: found

    monkeypatch.setattr(hardware.jax, "local_devices", lambda: [Device(found) for found in statistics])
    assert get_peak_memory() == expected
