"""Compile the training step of every recipe for 8 × A100-80GB and a TPU v5e slice of 8, without any device (aot.py).

    python benchmarks/compile_recipes.py                                # all that are made for accelerators
    python benchmarks/compile_recipes.py gpt2_124m speedrun_162m --targets v5e --meshs fsdp fsdp4xtensor2

A device that has no room for a recipe as it is takes its batch in more groups, then computes every block again for the
gradient: the first that fits is told. Prints for each parameters, the tokens of a device, its temporaries and
arguments, calls of fused attention, how many collectives of each kind and the bytes that a device receives by them
(those in a loop counted once), and for Muon the FLOPs of its products on all devices over those of one machine alone.

Exits with 1 if something does not compile or does not fit; if XLA rematerialised a whole tensor to change its sharding;
if attention is not fused where that kernel can run: one call forward and one backward for a compiled layer (and one
forward again, where blocks are computed again); or if Muon's products are not within 10 % of their count, with as many
whole matrices of each shape on every device: devices that do the same Newton–Schulz would show.
"""

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import tyro
from aot import TARGETS, Target, collectives, products
from gptjax.core.settings import available_configs

from gptjax import model, state
from gptjax.config import load_config
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.data.batch_size import BatchSize
from gptjax.data.loader import abstract_batch
from gptjax.model.attention import select_kernel
from gptjax.optim import Muon
from gptjax.optim.orthogonalize import count_muon_flops
from gptjax.sharding.mesh import AXES, MeshConfig
from gptjax.train import make_phase_step

DEVICES = 8
REMATERIALISED = "Involuntary full rematerialization"


@dataclass(frozen=True)
class Request:
    """What to compile."""

    recipes: tyro.conf.Positional[tuple[str, ...]] = ()
    """Configs by name; none: all that compute in bfloat16. The others are made for CPUs."""
    targets: tuple[Literal["a100", "v5e"], ...] = ("a100", "v5e")
    meshes: tuple[str, ...] = ()
    """Such as `data`, `fsdp` or `fsdp4xtensor2`; none: each recipe's own."""
    accumulate: int | None = None
    """Groups of a batch; by default as many as the recipe says, or more until they fit."""
    remat: Literal["none", "light", "full"] | None = None
    """What is computed again for the gradient; by default as the recipe says, or `full` if nothing else fits."""
    stages: Literal["ends", "all"] = "ends"
    """Of a recipe in stages: the first and the last, or all."""
    case: tuple[str, str, str, int] | None = None
    """(For the benchmark itself: target, recipe, layout and step of the one to compile.)"""


def layout_of(name: str) -> MeshConfig:
    """The layout of a name, over all devices."""
    if name in AXES:
        return MeshConfig(name).resolve(DEVICES)
    sizes = {axis: int(size) for axis, size in re.findall(rf"({'|'.join(AXES)})(\d+)", name)}
    if not sizes or "x".join(f"{axis}{size}" for axis, size in sizes.items()) != name:
        raise UserError(f"--meshs: {name!r} is none. Use {', '.join(AXES)}, or sizes such as fsdp4xtensor2.")
    return MeshConfig(**sizes).resolve(DEVICES)


def name_of(mesh: MeshConfig) -> str:
    sizes = mesh.resolve(DEVICES).axis_sizes
    return "x".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1)


def groupings(batch: BatchSize, context_length: int, mesh: MeshConfig, most: int) -> list[BatchSize]:
    """The batch in as many groups as it says or, with more tokens of a device than `most` at a time, in more; then with
    half as many tokens, and so on."""
    rows = batch.size // mesh.num_batch_shards
    possible = [n for n in range(batch.grad_accum, rows + 1) if rows % n == 0]
    fewest = lambda limit: next((n for n in possible if rows // n * context_length <= limit), rows)
    return [replace(batch, grad_accum=n) for n in dict.fromkeys(fewest(most >> i) for i in range(most.bit_length()))]


def compile_case(asked: Request, target_name: str, recipe: str, layout_name: str, step: int) -> None:
    """Print the counts of one; XLA's own warnings go to stderr."""
    target, mesh, config = TARGETS[target_name], layout_of(layout_name), load_config(recipe)
    phase = next(phase for phase in config.phases if phase.begin == step)
    shape, batch = phase.model, replace(phase.batch, grad_accum=asked.accumulate or phase.batch.grad_accum)
    replace(config, batch=batch, stages=()).check_mesh(mesh)
    batches = [batch] if asked.accumulate else groupings(batch, shape.context_length, mesh, target.tokens)
    remats = [asked.remat] if asked.remat else dict.fromkeys([shape.remat, "full"])
    # The kernel is chosen by the backend, which here is not the one that is compiled for.
    model.choose = lambda config, **_: select_kernel(config, backend=target.platform)

    with mesh.activate(target.devices()):
        optimizer = config.optimizer.build(steps=config.steps, mesh=mesh)
        start = state.abstract_state(config.model, optimizer, mesh=mesh, has_ema=config.ema.enabled)
        for remat, batch in itertools.product(remats, batches):
            rows = abstract_batch(batch, shape.context_length, mesh=mesh, with_documents=shape.intra_document_mask)
            tried = replace(
                phase,
                batch=batch,
                model=replace(shape, compute=replace(shape.compute, remat=remat)),
            )
            traced = make_phase_step(config, mesh, tried).trace(start, rows)
            program, problem = compiled(target, traced)
            if not problem:
                break
    if program is None:
        raise SystemExit(problem)
    memory, text, failures = program.memory_analysis(), program.as_text(), [problem] if problem else []

    layers = 1 if shape.layers != "unroll" and shape.layers_are_identical else shape.num_layers
    layers *= select_kernel(shape, backend=target.platform) == "cudnn"
    wanted = [layers * (2 if remat == "full" else 1), layers]
    flash = [len(re.findall(rf"__cudnn\$fmha{call}\W", text)) for call in ("Softmax", "SoftmaxBackward")]
    if flash != wanted:
        failures.append(f"{flash} calls of fused attention, forward and backward, where {wanted} are needed")
    counts = [f"{kind} {count} ({size / 2**30:.2f} GiB)" for kind, (count, size) in collectives(text).items()]
    if isinstance(config.optimizer, Muon):
        own = config.optimizer
        needed = partial(
            count_muon_flops,
            start.optimizer["muon"].inner_state.momentum,
            ns_steps=own.ns_steps,
            matrix_split=own.matrix_split,
        )
        done = products(text, scope="newton_schulz") * mesh.num_devices
        whole = needed(devices=mesh.num_devices)
        counts.append(f"Muon's products × {done / needed():.3f}, × {done / whole:.3f} of whole matrices")
        if abs(done / whole - 1) > 0.1:
            failures.append(f"Muon's products have {done:.3e} FLOPs where {whole:.3e} are needed")
    print(
        f"{target_name:<5} {recipe:<20} {f'from {step}' if config.stages else '':<9} {layout_name:<20}"
        f"{model.count_parameters(config.model) / 1e6:7.1f} M  "
        f"{batch.grad_accum} × {batch.microbatch // mesh.num_batch_shards} × {shape.context_length} tokens a device  remat {remat}  "
        f"temporaries {memory.temp_size_in_bytes / 2**30:5.2f} GiB  "
        f"arguments {memory.argument_size_in_bytes / 2**30:5.2f} GiB  "
        + "  ".join([f"fused attention {flash[0]} + {flash[1]}"] * (layers > 0) + counts)
    )
    if failures:
        raise SystemExit("; ".join(failures))


def compiled(target: Target, traced: jax.stages.Traced) -> tuple[jax.stages.Compiled | None, str]:
    """The program, if there is one, and why a device has no room for it, if it has none."""
    try:
        program = target.compiled(traced)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error).partition("\n")[0]
    memory = program.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    fits = needed <= target.memory
    return program, "" if fits else f"{needed / 2**30:.1f} GiB do not fit into {target.memory / 2**30:.2f}"


def cases(asked: Request) -> Iterator[tuple[str, str, str, int]]:
    """All that is asked for: target, recipe, layout, and the step from which a stage holds."""
    named = {name: load_config(name) for name in asked.recipes or available_configs()}
    chosen = {
        name: config for name, config in named.items() if asked.recipes or config.model.compute.dtype == "bfloat16"
    }
    for (name, config), target in itertools.product(chosen.items(), asked.targets):
        for mesh in map(layout_of, asked.layouts or [name_of(config.mesh)]):
            phases = config.phases if asked.stages == "all" else (config.phases[0], config.phases[-1])
            for begin in sorted({phase.begin for phase in phases}):
                yield target, name, name_of(mesh), begin


def main() -> int:
    asked = tyro.cli(Request, description=__doc__)
    if asked.case is not None:
        compile_case(asked, *asked.case)
        return 0
    failed = 0
    for case in cases(asked):
        # A process for each: XLA writes its warnings to the file descriptor, past Python.
        given = [f"--{name}={value}" for name in ("grad_accum", "remat") if (value := getattr(asked, name)) is not None]
        command = [sys.executable, __file__, *given, "--case", *map(str, case)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        count = done.stderr.count(REMATERIALISED)
        print((done.stdout.rstrip() or f"{case}: failed") + f"  rematerialised {count}", flush=True)
        if done.returncode or count:
            failed = 1
            print(done.stderr[-2000:], file=sys.stderr)
    return failed


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
