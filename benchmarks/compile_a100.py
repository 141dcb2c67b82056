"""Compile the GPT-2 124M step for 8 × A100-80GB without any device, and count what the program does.

    pip install jax-cuda12-plugin==JAXVERSION jax-cuda12-pjrt==JAXVERSION nvidia-cudnn-cu12
    LD_LIBRARY_PATH=<site-packages>/nvidia/cudnn/lib python benchmarks/compile_a100.py

Prints a row for each layout: temporary and argument bytes of a device, fused attention calls, collectives. Exits with 1
if a layer has other than one fused attention call forward and one backward, or if XLA had to rematerialise a whole
tensor to change its sharding. No kernel is tuned without a device: counts are exact, times would not be.
"""

import os
import re
import subprocess
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax import model, state
from gptjax.gpt_config import GPTConfig
from gptjax.layout import AXES, Layout
from gptjax.objective import NextToken
from gptjax.optim import AdamW, Muon
from gptjax.step import make_train_step

A100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 167936
  threads_per_core_limit: 2048 core_count: 108 fpus_per_core: 64 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 2039040000000 l2_cache_size: 41943040
  clock_rate_ghz: 1.41 device_memory_size: 85100068864 shared_memory_per_block_optin: 166912
  cuda_compute_capability { major: 8 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 } device_description_str: "A100-SXM4-80GB"
"""

CASES = {
    "data, scan": (Layout("data"), "scan", AdamW()),
    "data, unrolled": (Layout("data"), "unroll", AdamW()),
    "fsdp, scan": (Layout("fsdp"), "scan", AdamW()),
    "fsdp 4 × tensor 2, scan": (Layout("fsdp", tensor=2), "scan", AdamW()),
    "data, scan, Muon": (Layout("data"), "scan", Muon()),
    "fsdp 4 × tensor 2, scan, Muon": (Layout(fsdp=4, tensor=2), "scan", Muon()),
    "data 2 × fsdp 2 × tensor 2, scan, Muon": (Layout(data=2, fsdp=2, tensor=2), "scan", Muon()),
}
SEQUENCES_PER_DEVICE = 64
REMATERIALISED = "Involuntary full rematerialization"


def compile_case(name: str) -> None:
    """Print the counts of one case; XLA's own warnings go to stderr."""
    layout, layers, optimizer = CASES[name]
    layout = layout.resolve(8)
    # The kernel is chosen by the backend, which here is not the one that is compiled for.
    model.choose = lambda *_, **__: "cudnn"
    config = GPTConfig(bias=False, layers=layers)
    topology = topologies.get_topology_desc("", platform="cuda", target_config=A100, topology="1x8x1")
    mesh = Mesh(np.array(topology.devices).reshape(layout.sizes), AXES, axis_types=(AxisType.Explicit,) * 3)
    with jax.set_mesh(mesh):
        placed = lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
        transformation = optimizer.build(steps=1000, layout=layout)
        shapes = jax.eval_shape(
            lambda: state.fresh(model.GPT(config, key=jax.random.key(0), layout=layout), transformation)
        )
        start = jax.tree.map(lambda x: placed(x, x.sharding.spec if x.sharding else PartitionSpec()), shapes)
        tokens = jax.ShapeDtypeStruct((1, SEQUENCES_PER_DEVICE * layout.batch_devices, config.context), jnp.int32)
        rows = placed(tokens, layout.acts("GBT"))
        step = make_train_step(NextToken(), optimizer, steps=1000, seed=0, dropout=False, layout=layout)
        program = step.trace(start, {"tokens": rows, "targets": rows}).lower(lowering_platforms=("cuda",)).compile()
    memory, text = program.memory_analysis(), program.as_text()
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
    collectives = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}
    bodies = config.num_layers if layers == "unroll" else 1
    forward, backward = (len(re.findall(rf"__cudnn\$fmha{call}\W", text)) for call in ("Softmax", "SoftmaxBackward"))
    print(
        f"{name:<26} temporaries {memory.temp_size_in_bytes / 2**30:5.1f} GiB  "
        f"arguments {memory.argument_size_in_bytes / 2**30:5.2f} GiB  "
        f"fused attention a layer {forward / bodies:g} + {backward / bodies:g}  "
        + "  ".join(f"{kind} {count}" for kind, count in collectives.items() if count)
    )
    if (forward, backward) != (bodies, bodies):
        raise SystemExit(f"{name}: {forward} forward and {backward} backward calls for {bodies} compiled layers")


def main() -> int:
    failed = 0
    for name in CASES:
        # A process for each: XLA writes its warnings to the file descriptor, past Python.
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=False)
        count = done.stderr.count(REMATERIALISED)
        print(done.stdout.rstrip() + f"  rematerialised {count}", flush=True)
        if done.returncode or count:
            failed = 1
            print(done.stderr[-2000:], file=sys.stderr)
    return failed


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compile_case(sys.argv[1])
    else:
        raise SystemExit(main())
