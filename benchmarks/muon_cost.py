"""What a Muon update costs, counted in the program compiled for 8 × A100-80GB without any device (see compile_a100.py).

    LD_LIBRARY_PATH=<site-packages>/nvidia/cudnn/lib python benchmarks/muon_cost.py

For the matrices of GPT-2 124M, by layout and options: the FLOPs of all products on all devices over `muon.flops`, the
analytic count, and the bytes that a device receives in collectives over those of all the matrices in float32. Exits
with 1 if a ratio of FLOPs is not within 10 % of 1 (a Newton–Schulz done twice would show) or more is gathered than the
update.
"""

import math
import os
import re
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from compile_a100 import A100
from flax import nnx
from jax import numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

from gptjax.layout import AXES, Layout
from gptjax.muon import flops, scale_by_muon

MATRICES = {"DCHK": (768, 3, 12, 64), "HKD": (12, 64, 768), "DF": (768, 3072), "FD": (3072, 768)}
LAYERS = 12
LAYOUTS = (Layout(data=8), Layout(fsdp=8), Layout(fsdp=4, tensor=2), Layout(data=2, fsdp=2, tensor=2))
OPTIONS = {
    "defaults": {},
    "NorMuon, equilibrated": {"normuon_beta2": 0.95, "equilibrate": True},
    "by head": {"split": "heads"},
}


def compiled(layout: Layout, options: dict) -> tuple[jax.stages.Compiled, int]:
    """The update's program, and the FLOPs that it should have."""
    topology = topologies.get_topology_desc("", platform="cuda", target_config=A100, topology="1x8x1")
    mesh = Mesh(np.array(topology.devices).reshape(layout.sizes), AXES, axis_types=(AxisType.Explicit,) * 3)
    with jax.set_mesh(mesh):
        zeros = lambda letters, shape: jnp.zeros((LAYERS, *shape), out_sharding=layout.weights("N" + letters))
        weights = lambda: {name: nnx.Param(zeros(name, shape), letters=name) for name, shape in MATRICES.items()}
        muon = scale_by_muon(layout=layout, **options)
        placed = lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, x.sharding.spec if x.sharding else jax.P())
        )
        params = jax.tree.map(placed, jax.eval_shape(weights))
        state = jax.tree.map(placed, jax.eval_shape(muon.init, params))
        traced = jax.jit(muon.update, donate_argnums=(0, 1)).trace(params, state, step=0)
        program = traced.lower(lowering_platforms=("cuda",)).compile()
    return program, flops(params, split=options.get("split", "projections"))


def products(text: str) -> int:
    """FLOPs of the matrix products in a program, which runs each once, on one device."""
    numbers = lambda sizes: [int(size) for size in sizes.split(",") if size]
    shapes = {name: numbers(sizes) for name, sizes in re.findall(r"%([\w.-]+) = [a-z]+\d+\[([\d,]*)\]", text)}
    found = re.findall(r"= \w+\[([\d,]*)\]\S* dot\(%([\w.-]+),.*?lhs_contracting_dims=\{([\d,]*)\}", text)
    return sum(
        2 * math.prod(numbers(result)) * math.prod(shapes[left][dim] for dim in numbers(dims))
        for result, left, dims in found
    )


def received(text: str) -> dict[str, int]:
    """Bytes of the results of each kind of collective, for one device; of an asynchronous one, of what it ends with."""
    found: dict[str, int] = {}
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-done)?\(", text):
        for bits, sizes in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes):
            found[kind] = found.get(kind, 0) + int(bits) // 8 * math.prod(int(n) for n in sizes.split(",") if n)
    return found


def main() -> int:
    whole, failed = 4 * LAYERS * sum(math.prod(shape) for shape in MATRICES.values()), 0
    for layout in LAYOUTS:
        for name, options in OPTIONS.items():
            program, wanted = compiled(layout, options)
            text = program.as_text()
            ratio = products(text) * layout.size / wanted
            parts = {kind: size / whole for kind, size in received(text).items()}
            shown = "  ".join(f"{kind} {part:.3f}" for kind, part in parts.items())
            print(f"{layout.described():<28} {name:<22} {wanted:.3e} FLOPs × {ratio:.3f}  {shown}", flush=True)
            failed |= abs(ratio - 1) > 0.1 or parts.get("all-gather", 0) > 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
