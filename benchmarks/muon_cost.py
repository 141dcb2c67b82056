"""The cost of a Muon update, counted in the program compiled for 8 × A100-80GB without a device (aot.py).

    python benchmarks/muon_cost.py

For the matrices of GPT-2 124M, by mesh and options: the FLOPs of all products on all devices over
`count_muon_flops`, and the bytes that a device receives in collectives over those of all matrices in float32. Exits
with 1 if a ratio of FLOPs differs from 1 by more than 10 % (a repeated iteration would show), or if more than the
update is gathered.
"""

import math
import sys

import jax
from aot import TARGETS, collectives, products
from flax import nnx
from jax import numpy as jnp

from gptjax.optim import Muon
from gptjax.optim.muon import scale_by_muon
from gptjax.optim.orthogonalize import count_muon_flops
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.state import with_sharding

MATRICES = {"DCHK": (768, 3, 12, 64), "HKD": (12, 64, 768), "DF": (768, 3072), "FD": (3072, 768)}
LAYERS = 12
MESHES = (MeshConfig(data=8), MeshConfig(fsdp=8), MeshConfig(fsdp=4, tensor=2), MeshConfig(data=2, fsdp=2, tensor=2))
CONFIGS = {
    "defaults": Muon(),
    "NorMuon, row_normalize": Muon(normuon_beta2=0.95, row_normalize=True),
    "heads": Muon(matrix_split="heads"),
}


def compile_update(mesh: MeshConfig, config: Muon) -> tuple[str, int]:
    """The text of the compiled update, and the FLOPs that it should have."""
    target = TARGETS["a100"]
    with mesh.activate(target.devices()):
        zeros = lambda axis_names, shape: jnp.zeros((LAYERS, *shape), out_sharding=mesh.weight_spec("N" + axis_names))
        weights = lambda: {name: nnx.Param(zeros(name, shape), axis_names=name) for name, shape in MATRICES.items()}
        muon = scale_by_muon(config, steps=1, mesh=mesh)
        params = jax.tree.map(with_sharding, jax.eval_shape(weights))
        state = jax.tree.map(with_sharding, jax.eval_shape(muon.init, params))
        program = target.compiled(jax.jit(muon.update, donate_argnums=(0, 1)).trace(params, state, step=0))
    return program.as_text(), count_muon_flops(params, matrix_split=config.matrix_split)


def main() -> int:
    size, failed = 4 * LAYERS * sum(math.prod(shape) for shape in MATRICES.values()), 0
    for mesh in MESHES:
        for name, config in CONFIGS.items():
            text, wanted = compile_update(mesh, config)
            ratio = products(text) * mesh.num_devices / wanted
            received = {kind: count / size for kind, (_, count) in collectives(text).items()}
            shown = "  ".join(f"{kind} {part:.3f}" for kind, part in received.items())
            print(f"{mesh.describe():<28} {name:<22} {wanted:.3e} FLOPs × {ratio:.3f}  {shown}", flush=True)
            failed |= abs(ratio - 1) > 0.1 or received.get("all-gather", 0) > 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
