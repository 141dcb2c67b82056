"""Count the FLOPs and the communication of a Muon update, in programs compiled ahead of time (see aot.py).

    python benchmarks/muon_cost.py                                                 # GPT-2 124M on 8 × A100-80GB
    python benchmarks/muon_cost.py --target cpu --layers 8 --embed-dim 32 --num-heads 4 --meshes data

Each line has a mesh and a configuration of Muon. It gives the FLOPs of all products on all devices over
`count_muon_flops`. It then gives the bytes that a device receives in each kind of collective, over the bytes of all
matrices in float32. Exits with 1 if a ratio of FLOPs differs from 1 by more than 10 % (devices would repeat work), or
if all-gathers receive more than the update. Results: RESULTS.md, "Muon cost".
"""

import math
import sys
from dataclasses import dataclass

import jax
import tyro
from aot import TARGETS, Target, TargetName, count_collectives, count_matmul_flops, parse_mesh
from flax import nnx
from jax import numpy as jnp

from gptjax.core.errors import exit_on_user_error
from gptjax.optim import Muon
from gptjax.optim.muon import scale_by_muon
from gptjax.optim.orthogonalize import count_muon_flops
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.state import with_sharding

Shapes = dict[str, tuple[int, ...]]

CONFIGS = {
    "defaults": Muon(),
    "NorMuon, row_normalize": Muon(normuon_beta2=0.95, row_normalize=True),
    "heads": Muon(matrix_split="heads"),
}


@dataclass(frozen=True)
class Options:
    """The target and the size of the model."""

    target: TargetName = "a100"
    layers: int = 12
    embed_dim: int = 768
    num_heads: int = 12
    meshes: tuple[str, ...] = ("data", "fsdp", "fsdp4xtensor2", "data2xfsdp2xtensor2")

    def list_shapes(self) -> Shapes:
        """Axis names of each matrix of a block → its shape, with the layers in front."""
        width, heads = self.embed_dim, self.num_heads
        head_dim = width // heads
        shapes = {
            "DCHK": (width, 3, heads, head_dim),
            "HKD": (heads, head_dim, width),
            "DF": (width, 4 * width),
            "FD": (4 * width, width),
        }
        return {axis_names: (self.layers, *shape) for axis_names, shape in shapes.items()}


def compile_update(target: Target, mesh: MeshConfig, *, config: Muon, shapes: Shapes) -> tuple[str, int]:
    """Compile an update. Returns the text of the program and the FLOPs that it should have."""

    def make_params() -> dict[str, nnx.Param]:
        zeros = lambda names, shape: jnp.zeros(shape, out_sharding=mesh.weight_spec("N" + names))  # pyright: ignore[reportCallIssue]
        return {names: nnx.Param(zeros(names, shape), axis_names=names) for names, shape in shapes.items()}

    with mesh.activate(target.list_devices()):
        muon = scale_by_muon(config, steps=1, mesh=mesh)
        params = jax.tree.map(with_sharding, jax.eval_shape(make_params))
        state = jax.tree.map(with_sharding, jax.eval_shape(muon.init, params))
        program = target.compile(jax.jit(muon.update, donate_argnums=(0, 1)).trace(params, state, step=0))
    return program.as_text() or "", count_muon_flops(params, matrix_split=config.matrix_split)


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    target, shapes = TARGETS[options.target], options.list_shapes()
    size, failed = 4 * sum(map(math.prod, shapes.values())), False
    for mesh in map(parse_mesh, options.meshes):
        for name, config in CONFIGS.items():
            text, wanted = compile_update(target, mesh, config=config, shapes=shapes)
            ratio = count_matmul_flops(text) * mesh.num_devices / wanted
            received = {kind: count / size for kind, (_, count) in count_collectives(text).items()}
            shown = "  ".join(f"{kind} {part:.3f}" for kind, part in received.items())
            print(f"{mesh.describe():<28} {name:<22} {wanted:.3e} FLOPs × {ratio:.3f}  {shown}", flush=True)
            failed |= abs(ratio - 1) > 0.1 or received.get("all-gather", 0) > 1
    return int(failed)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
