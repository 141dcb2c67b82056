import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from gptjax.sharding import devices
from gptjax.sharding.devices import describe_devices, get_peak_flops, get_peak_memory, has_units_for, preferred_dtype


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["nvidia0", "nvidia1", "nvidiactl", "kfd", "dri/renderD128"], "has 2 GPU.*jax.cuda12"),
        (["kfd", "dri/renderD128"], "has 1 GPU.*jax.rocm7-local"),
        (["dxg"], "has 1 GPU.*jax.cuda12"),
        (["kfd", "dri/card0"], None),
        (["dri/renderD128"], None),
    ],
)
def test_gpu_that_jax_does_not_use_is_found_by_its_device_file(files: list[str], words: str | None, tmp_path: Path):
    (tmp_path / "dri").mkdir()
    for name in files:
        (tmp_path / name).touch()
    warning = devices.describe_unused_gpu({}, root=tmp_path)
    assert (warning is None) if words is None else re.search(words, warning or "")
    assert devices.describe_unused_gpu({"JAX_PLATFORMS": "cpu"}, root=tmp_path) is None
    assert devices.describe_unused_gpu({"HIP_VISIBLE_DEVICES": ""}, root=tmp_path) is None


PEAKS = {
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
UNKNOWN = [
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
]


@dataclass
class Device:
    device_kind: str = "NVIDIA A100-SXM4-80GB"
    memory_stats: Callable[[], dict | None] = lambda: None


def test_peak_flops_of_known_devices():
    assert {kind: get_peak_flops(kind) for kind in PEAKS} == PEAKS


def test_peak_flops_of_unknown_devices_is_none():
    assert {kind: get_peak_flops(kind) for kind in UNKNOWN} == dict.fromkeys(UNKNOWN)


def test_describe_devices_on_this_machine():
    count, kind = jax.device_count(), jax.devices()[0].device_kind
    assert describe_devices().startswith(f"{count} × {kind}")
    assert ("peak unknown: no MFU" in describe_devices()) == (get_peak_flops(kind) is None)


def test_describe_devices_gives_the_peak_of_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "devices", lambda: [Device()] * 8)
    assert describe_devices() == "8 × NVIDIA A100-SXM4-80GB, 312 TFLOP/s bf16 each"


@pytest.mark.parametrize(
    ("statistics", "expected"),
    [([None, None], None), ([{"peak_bytes_in_use": 5}, {"peak_bytes_in_use": 9}], 9), ([{"other": 1}], None)],
)
def test_peak_memory_is_that_of_the_fullest_device(
    monkeypatch: pytest.MonkeyPatch, statistics: list[dict | None], expected: int | None
):
    devices = [Device(memory_stats=lambda found=found: found) for found in statistics]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert get_peak_memory() == expected


@pytest.mark.parametrize(
    ("platform", "capability", "flags", "wanted", "others"),
    [
        ("gpu", "6.1", set(), "float32", set()),
        ("gpu", "7.5", set(), "float16", {"float32"}),
        ("gpu", "8.0", set(), "bfloat16", {"float32", "float16"}),
        ("gpu", "gfx90a", set(), "bfloat16", {"float32", "float16"}),
        ("tpu", None, set(), "bfloat16", {"float32"}),
        ("cpu", None, {"avx512_bf16", "fma"}, "bfloat16", {"float32"}),
        ("cpu", None, {"amx_bf16"}, "bfloat16", {"float32"}),
        ("cpu", None, {"avx512f", "fma"}, "float32", set()),
    ],
)
def test_preferred_dtype_has_units_on_the_device(
    platform: str,
    capability: str | None,
    flags: set[str],
    wanted: str,
    others: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = SimpleNamespace(platform=platform, **({} if capability is None else {"compute_capability": capability}))
    monkeypatch.setattr(devices, "target_device", lambda: device)
    monkeypatch.setattr(devices, "_cpu_flags", lambda: flags)
    assert preferred_dtype() == wanted
    assert {dtype for dtype in ("float32", "float16", "bfloat16") if has_units_for(dtype)} == {wanted, *others}
