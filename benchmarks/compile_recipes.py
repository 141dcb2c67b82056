"""Compile the training step of every recipe for 8 × A100-80GB and a TPU v5e slice of 8, without any device.

    pip install jax-cuda12-plugin==JAXVERSION jax-cuda12-pjrt==JAXVERSION nvidia-cudnn-cu12 libtpu
    LD_LIBRARY_PATH=<site-packages>/nvidia/cudnn/lib python benchmarks/compile_recipes.py
    python benchmarks/compile_recipes.py a100 speedrun_162m                    # one of them

Prints for each: parameters, a device's temporary and argument bytes, fused attention calls, collectives. Exits with 1
if something does not compile, if XLA had to rematerialise a whole tensor to change its sharding, or if Muon's update
is not gathered at all (muon_cost.py counts its FLOPs and bytes). Counts are exact; times would not be: no kernel is
tuned without a device.
"""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
if found := importlib.util.find_spec("libtpu"):
    os.environ.setdefault("TPU_LIBRARY_PATH", str(Path(str(found.origin)).parent / "libtpu.so"))

import jax
import jax.numpy as jnp
import numpy as np
from compile_a100 import A100, REMATERIALISED
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax import model, state
from gptjax.attention import choose
from gptjax.config import TrainConfig, load_config
from gptjax.layout import AXES, Layout
from gptjax.optim import Muon
from gptjax.step import make_train_step

RECIPES = (
    "gpt2_124m", "speedrun_162m", "speedrun_track3", "speedrun_unet", "speedrun_windows", "modern_253m", "nanochat_d12",
    "ml_by_hand_124m",
)  # fmt: skip
TARGETS = {"a100": ("gpu", 2**16), "v5e": ("tpu", 2**13)}
"""The backend that chooses the attention kernel, and the most tokens of a device at a time."""


def topology(target: str) -> topologies.TopologyDescription:
    if target == "a100":
        return topologies.get_topology_desc("", platform="cuda", target_config=A100, topology="1x8x1")
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")


def grouped(config: TrainConfig, layout: Layout, most: int) -> TrainConfig:
    """The recipe with its batch in as many groups as a device's memory asks for."""
    rows = config.batch.sequences // layout.batch_devices
    groups = (
        n for n in range(1, rows + 1) if rows % n == 0 and (rows // n * config.model.context <= most or n == rows)
    )
    return replace(config, batch=replace(config.batch, accumulate=next(groups)))


def compile_recipe(target: str, name: str) -> None:
    """Print the counts of one; XLA's own warnings go to stderr."""
    backend, most = TARGETS[target]
    layout = Layout("data").resolve(8)
    config = grouped(load_config(name), layout, most)
    model.choose = lambda config, **_: choose(config, backend=backend)
    mesh = Mesh(
        np.array(topology(target).devices).reshape(layout.sizes), AXES, axis_types=(AxisType.Explicit,) * len(AXES)
    )
    with jax.set_mesh(mesh):
        placed = lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
        transformation = config.optimizer.build(steps=config.steps, layout=layout)
        weights = lambda: model.GPT(config.model, key=jax.random.key(0), layout=layout)
        new = lambda: state.fresh(weights(), transformation, averaged=config.averaging.kept)
        start = jax.tree.map(
            lambda x: placed(x, x.sharding.spec if x.sharding else PartitionSpec()), jax.eval_shape(new)
        )
        groups = config.batch.accumulate
        shape = (groups, config.batch.sequences // groups, config.model.context)
        rows = placed(jax.ShapeDtypeStruct(shape, jnp.int32), layout.acts("GBT"))
        names = ("tokens", "targets", *(("segments", "positions") if config.model.document_mask else ()))
        own = {"steps": config.steps, "seed": 0, "dropout": False, "layout": layout, "averaging": config.averaging}
        step = make_train_step(config.objective, config.optimizer, **own)
        platform = {"gpu": "cuda", "tpu": "tpu"}[backend]
        program = step.trace(start, dict.fromkeys(names, rows)).lower(lowering_platforms=(platform,)).compile()
    memory, text = program.memory_analysis(), program.as_text()
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}
    flash = len(re.findall(r"__cudnn\$fmhaSoftmax(?:Backward)?\W", text))
    print(
        f"{target:<5} {name:<16} {model.num_parameters(config.model) / 1e6:6.1f} M  "
        f"{config.batch.accumulate} × {shape[1] // 8} × {shape[2]} a device  "
        f"temporaries {memory.temp_size_in_bytes / 2**30:5.1f} GiB  "
        f"arguments {memory.argument_size_in_bytes / 2**30:5.2f} GiB  fused attention {flash}  "
        + "  ".join(f"{kind} {count}" for kind, count in counts.items() if count)
    )
    if isinstance(config.optimizer, Muon) and not counts["all-gather"]:
        raise SystemExit(f"{name}: no all-gather, so every device must have orthogonalised everything")


def main() -> int:
    failed = 0
    for target in TARGETS:
        for name in RECIPES:
            # A process for each: XLA writes its warnings to the file descriptor, past Python.
            command = [sys.executable, __file__, target, name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            count = done.stderr.count(REMATERIALISED)
            print((done.stdout.rstrip() or f"{target} {name}: failed") + f"  rematerialised {count}", flush=True)
            if done.returncode or count:
                failed = 1
                print(done.stderr[-2000:], file=sys.stderr)
    return failed


if __name__ == "__main__":
    if len(sys.argv) > 2:
        compile_recipe(*sys.argv[1:3])
    else:
        raise SystemExit(main())
