"""Results of a benchmark as plain values: what `--json` writes. Times are seconds, memory is bytes of one device."""

import os
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal

import jax

from gptjax.benchmark.breakdown import Breakdown
from gptjax.benchmark.step_contestants import CompileTimes, Memory
from gptjax.benchmark.timing import Spread
from gptjax.config import TrainConfig
from gptjax.core.serialization import to_json
from gptjax.sharding.mesh import MeshConfig

FORMAT_VERSION = 1
"""Version of the JSON."""


@dataclass(frozen=True)
class Environment:
    """Where a benchmark ran."""

    date: str
    device: str
    platform: str
    num_devices: int
    mesh: str
    cores: int
    software: dict[str, str]
    """Versions by name."""

    @classmethod
    def describe(cls, mesh: MeshConfig) -> "Environment":
        device = jax.devices()[0]
        software = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")}
        return cls(
            date=time.strftime("%Y-%m-%d"),
            device=device.device_kind,
            platform=device.platform,
            num_devices=mesh.num_devices,
            mesh=mesh.describe(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            software={"python": platform.python_version()} | software,
        )


def note_load() -> list[str]:
    """A note if other work keeps the cores busy. Call it before the benchmark adds its own."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return [f"other work ran on this machine: load {load:.1f} on {cores} cores"] if load > 0.25 * cores else []


@dataclass(frozen=True)
class Utilization:
    """Model FLOPs utilization: `GPTConfig.flops_per_token` over time, as a share."""

    causal: float
    """Attention counted over the keys that a token sees."""
    palm: float
    """Attention counted over the whole context."""


@dataclass(frozen=True)
class OwnStep:
    """Our training step at the config's batch size."""

    tokens_per_step: int
    step: Spread
    """Seconds of a step whose batch is on the devices."""
    loop: Spread
    """Seconds of a step in the training loop, which reads data and writes the log."""
    host_overhead: Spread
    """loop - step, round by round."""
    data_wait: Spread
    """Seconds of a step in the loop that wait for the batch."""
    tokens_per_second: float
    mfu: Utilization | None
    """Of the devices' bf16 peak; None if it is unknown."""
    mfu_of_product: Utilization
    """Of the speed of a large matrix product in the same run."""
    product_flops: Spread
    """FLOP/s of that product, on all devices."""
    product_dtype: str
    memory: Memory | None
    peak_bytes: int | None
    """The most that a device has used, if the backend counts it (CPUs do not)."""
    compile: CompileTimes
    attention_kernel: str
    why_not_flash: str | None
    """Why it is not the flash kernel."""


@dataclass(frozen=True)
class ContestantResult:
    """One contestant of a comparison."""

    name: str
    rows: int
    """Sequences of a step, or texts."""
    tokens: int
    """Tokens of a step, or new tokens of all texts."""
    seconds: Spread
    """Of a step, or of a continuation of all texts."""
    tokens_per_second: float
    ours_over_theirs: Spread | None = None
    """Our tokens per second over theirs, round by round; None for ours."""
    bandwidth_share: float | None = None
    """Generation: bytes of weights and cache that the tokens need, over those that a large read takes."""
    about: dict[str, Any] | None = None


@dataclass(frozen=True)
class Comparison:
    """Contestants that ran in turn."""

    title: str
    contestants: tuple[ContestantResult, ...]
    tried: dict[str, dict[str, float | None]] | None = None
    """Best batch: tokens per second by contestant and batch size; None where it did not fit."""


@dataclass(frozen=True)
class Result:
    """A benchmark."""

    kind: Literal["train", "decode"]
    environment: Environment
    config: TrainConfig
    command: str
    notes: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    own: OwnStep | None = None
    """Training only."""
    breakdown: Breakdown | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"version": FORMAT_VERSION} | asdict(self) | {"config": to_json(self.config)}
