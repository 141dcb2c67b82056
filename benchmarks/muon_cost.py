"""What a Muon update costs, counted in the program compiled for 8 × A100-80GB without any device (aot.py).

    python benchmarks/muon_cost.py

For the matrices of GPT-2 124M, by layout and options: the FLOPs of all products on all devices over `muon.flops`, the
analytic count, and the bytes that a device receives in collectives over those of all the matrices in float32. Exits
with 1 if a ratio of FLOPs is not within 10 % of 1 (a Newton–Schulz done twice would show) or more is gathered than the
update.
"""

import math
import sys

import jax
from aot import TARGETS, collectives, products
from flax import nnx
from jax import numpy as jnp

from gptjax.optim.orthogonalize import count_muon_flops, scale_by_muon
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.state import with_sharding

MATRICES = {"DCHK": (768, 3, 12, 64), "HKD": (12, 64, 768), "DF": (768, 3072), "FD": (3072, 768)}
LAYERS = 12
LAYOUTS = (MeshConfig(data=8), MeshConfig(fsdp=8), MeshConfig(fsdp=4, tensor=2), MeshConfig(data=2, fsdp=2, tensor=2))
OPTIONS = {
    "defaults": {},
    "NorMuon, equilibrated": {"normuon_beta2": 0.95, "equilibrate": True},
    "by head": {"split": "heads"},
}


def compiled(mesh: MeshConfig, options: dict) -> tuple[str, int]:
    """The update's program, and the FLOPs that it should have."""
    target = TARGETS["a100"]
    with mesh.activate(target.devices()):
        zeros = lambda axis_names, shape: jnp.zeros((LAYERS, *shape), out_sharding=mesh.weight_spec("N" + axis_names))
        weights = lambda: {name: nnx.Param(zeros(name, shape), axis_names=name) for name, shape in MATRICES.items()}
        muon = scale_by_muon(mesh=mesh, **options)
        params = jax.tree.map(with_sharding, jax.eval_shape(weights))
        state = jax.tree.map(with_sharding, jax.eval_shape(muon.init, params))
        program = target.compiled(jax.jit(muon.update, donate_argnums=(0, 1)).trace(params, state, step=0))
    return program.as_text(), count_muon_flops(params, split=options.get("split", "projections"))


def main() -> int:
    whole, failed = 4 * LAYERS * sum(math.prod(shape) for shape in MATRICES.values()), 0
    for mesh in LAYOUTS:
        for name, options in OPTIONS.items():
            text, wanted = compiled(mesh, options)
            ratio = products(text) * mesh.num_devices / wanted
            parts = {kind: size / whole for kind, (_, size) in collectives(text).items()}
            shown = "  ".join(f"{kind} {part:.3f}" for kind, part in parts.items())
            print(f"{mesh.describe():<28} {name:<22} {wanted:.3e} FLOPs × {ratio:.3f}  {shown}", flush=True)
            failed |= abs(ratio - 1) > 0.1 or parts.get("all-gather", 0) > 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
