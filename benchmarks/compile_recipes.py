"""Compile the training step of each config for eight absent accelerators (see aot.py), and count what is in it.

    python benchmarks/compile_recipes.py                                # all configs that compute in bfloat16
    python benchmarks/compile_recipes.py gpt2_124m speedrun_162m --targets v5e --meshes fsdp fsdp4xtensor2
    python benchmarks/compile_recipes.py gpt2_cpu --targets cpu         # needs no further package

Each case is compiled in a process of its own. If a program does not fit into the memory of a device, grad_accum is
raised, and then remat is set to full. The first program that fits is printed: parameters; grad_accum × sequences ×
context_length of a device; remat; temporaries and arguments; calls of fused attention, forward + backward; and the
number of collectives of each kind, with the bytes that a device receives. A collective in a loop is counted once. For
Muon, the FLOPs of its products on all devices are divided by the count for one device, and by the count in whole
matrices on every device. (XLA:CPU drops the name of products where a device has a single matrix of a shape, so on
`cpu` these are missing.) Results: RESULTS.md, "Compilation for accelerators".

Exits with 1 if

- a program does not compile or does not fit,
- XLA rematerialised a whole tensor to change its sharding,
- attention is not fused where the kernel can run: per compiled layer one call forward (two with remat=full) and one
  backward,
- the FLOPs of Muon's products differ by more than 10 % from the count in whole matrices (devices would repeat work).
"""

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import tyro
from aot import TARGETS, Target, TargetName, count_collectives, count_matmul_flops, format_mesh, parse_mesh

from gptjax.cli.config_files import list_configs
from gptjax.config import TrainConfig, load_config
from gptjax.core.errors import exit_on_user_error
from gptjax.data.batch_size import BatchSize
from gptjax.data.loader import abstract_batch
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import count_parameters
from gptjax.model.kernels import select_kernel
from gptjax.optim import Muon
from gptjax.optim.orthogonalize import count_muon_flops
from gptjax.runs.startup import make_phase_step, make_read_spec
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.stages import Phase
from gptjax.training.state import TrainState, abstract_state

Remat = Literal["none", "light", "full"]
REMATERIALIZED = "Involuntary full rematerialization"


class Case(NamedTuple):
    """One program to compile."""

    target: TargetName
    recipe: str
    mesh: str
    step: int
    """First step of the phase to compile."""


@dataclass(frozen=True)
class Options:
    """Programs to compile."""

    recipes: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names or files of configs. None: all installed ones that compute in bfloat16; the others are for CPUs."""
    targets: tuple[TargetName, ...] = ("a100", "v5e")
    meshes: tuple[str, ...] = ()
    """Such as `data`, `fsdp` or `fsdp4xtensor2`. None: the mesh of each config."""
    grad_accum: int | None = None
    """Micro-batches of a batch. By default the config's number, or the next larger one that fits."""
    remat: Remat | None = None
    """What is recomputed for the gradient. By default as the config says, or `full` if nothing else fits."""
    stages: Literal["ends", "all"] = "ends"
    """Of a config with stages: its first and last phase, or all."""
    case: tuple[TargetName, str, str, int] | None = None
    """(Used by the benchmark itself: the one case to compile.)"""


class Compiled(NamedTuple):
    """A program for a phase of a run, and the settings that it was compiled with."""

    program: jax.stages.Compiled
    phase: Phase
    state: TrainState
    """The abstract state."""
    problem: str
    """Why it does not fit; empty if it does."""

    @property
    def text(self) -> str:
        return self.program.as_text() or ""


def list_batch_sizes(batch: BatchSize, context_length: int, *, mesh: MeshConfig, max_tokens: int) -> list[BatchSize]:
    """The batch with ever more micro-batches.

    The first has at most `max_tokens` tokens of a micro-batch on one device, if sequences are short enough, and no
    fewer micro-batches than the config says. Each next one has about half of the tokens.
    """
    rows = batch.size // mesh.num_batch_shards
    divisors = [n for n in range(batch.grad_accum, rows + 1) if rows % n == 0]
    find_fewest = lambda limit: next((n for n in divisors if rows // n * context_length <= limit), rows)
    counts = dict.fromkeys(find_fewest(max_tokens >> i) for i in range(max_tokens.bit_length()))
    return [replace(batch, grad_accum=n) for n in counts]


def compile_first_fit(
    options: Options, config: TrainConfig, *, phase: Phase, target: Target, mesh: MeshConfig
) -> Compiled:
    """Compile with less and less memory until a program fits. Returns the last one if none does."""
    model, first = phase.model_config, replace(phase.batch, grad_accum=options.grad_accum or phase.batch.grad_accum)
    replace(config, batch_size=first.size, grad_accum=first.grad_accum, stages=()).check_mesh(mesh)
    sizes = list_batch_sizes(first, model.context_length, mesh=mesh, max_tokens=target.max_tokens)
    remats: list[Remat] = [options.remat] if options.remat else list(dict.fromkeys([model.compute.remat, "full"]))
    compiled, problem = None, ""
    with mesh.activate(target.list_devices()):
        optimizer = config.optimizer.build(steps=config.steps, mesh=mesh)
        state = abstract_state(config.model, optimizer, mesh=mesh, has_ema=config.ema.enabled)
        for remat, batch in itertools.product(remats, [first] if options.grad_accum else sizes):
            rows = abstract_batch(batch, make_read_spec(config, None), mesh=mesh)
            compute = replace(model.compute, remat=remat)
            variant = replace(phase, batch=batch, model_config=replace(model, compute=compute))
            program, problem = try_compile(target, make_phase_step(config, mesh, variant).trace(state, rows))
            if program is not None:
                compiled = Compiled(program, variant, state, problem)
            if not problem:
                break
    if compiled is None:
        raise SystemExit(problem)
    return compiled


def try_compile(target: Target, traced: jax.stages.Traced) -> tuple[jax.stages.Compiled | None, str]:
    """(program, why it does not fit into a device's memory). The program is None if XLA refuses it for that reason."""
    try:
        program = target.compile(traced)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error).partition("\n")[0]
    temporaries, arguments = measure_memory(program)
    needed = temporaries + arguments
    fits = needed <= target.memory_bytes
    return program, "" if fits else f"{needed / 2**30:.1f} GiB do not fit into {target.memory_bytes / 2**30:.2f}"


def measure_memory(program: jax.stages.Compiled) -> tuple[int, int]:
    """Bytes of (temporaries, arguments) on one device."""
    memory: Any = program.memory_analysis()
    return memory.temp_size_in_bytes, memory.argument_size_in_bytes


def count_attention_calls(
    model: GPTConfig, target: Target, *, mesh: MeshConfig, text: str
) -> tuple[list[int], list[int]]:
    """Calls of fused attention (forward, backward): those in a program, and those that it should have."""
    with mesh.activate(target.list_devices()):
        kernel = select_kernel(model)
    layers = (1 if model.scans_layers else model.num_layers) * (kernel != "xla")
    wanted = [layers * (2 if model.compute.remat == "full" or kernel == "cudnn_packed" else 1), layers]
    cudnn = [rf"__cudnn\$fmha(ScaleBias)?{call}\W" for call in ("Softmax", "SoftmaxBackward")]
    calls = [r"%splash_mha_fwd\S* =", r"%splash_mha_dkv\S* ="] if target.platform == "tpu" else cudnn
    return [len(re.findall(call, text)) for call in calls], wanted


def compare_muon_flops(muon: Muon, compiled: Compiled, *, mesh: MeshConfig) -> tuple[float, float]:
    """FLOPs of Muon's products on all devices, over the count (for one device, in whole matrices on every device)."""
    momentum = compiled.state.optimizer["muon"].inner_state.momentum
    count = partial(count_muon_flops, momentum, ns_steps=muon.ns_steps, matrix_split=muon.matrix_split)
    done = count_matmul_flops(compiled.text, scope="newton_schulz") * mesh.num_devices
    return done / count(), done / count(devices=mesh.num_devices)


def compile_case(options: Options, case: Case) -> None:
    """Compile one case and print its counts. Exits with a message if a condition of the benchmark does not hold."""
    target, mesh, config = TARGETS[case.target], parse_mesh(case.mesh), load_config(case.recipe)
    model = replace(config.model, vocab_size=config.model.vocab_size or 50257)  # an open one is taken to be GPT-2's
    config = replace(config, model=model)
    phase = next(phase for phase in config.phases if phase.begin == case.step)
    compiled = compile_first_fit(options, config, phase=phase, target=target, mesh=mesh)
    model, batch, failures = (
        compiled.phase.model_config,
        compiled.phase.batch,
        [compiled.problem] if compiled.problem else [],
    )
    calls, wanted = count_attention_calls(model, target, mesh=mesh, text=compiled.text)
    if calls != wanted:
        failures.append(f"{calls} calls of fused attention, forward and backward; wanted {wanted}")
    counts = [f"fused attention {calls[0]} + {calls[1]}"] if any(wanted) else []
    for kind, (count, size) in count_collectives(compiled.text).items():
        counts.append(f"{kind} {count} ({size / 2**30:.2f} GiB)")
    if isinstance(config.optimizer, Muon):
        single, whole = compare_muon_flops(config.optimizer, compiled, mesh=mesh)
        counts.append(f"Muon's products × {single:.3f}, × {whole:.3f} of whole matrices")
        if abs(whole - 1) > 0.1:
            failures.append(f"Muon's products have {whole:.3f} of the FLOPs of whole matrices; wanted 0.9 to 1.1")
    temporaries, arguments = measure_memory(compiled.program)
    local = f"{batch.grad_accum} × {batch.microbatch // mesh.num_batch_shards} × {model.context_length}"
    print(
        f"{case.target:<5} {case.recipe:<20} {f'from {case.step}' if config.stages else '':<9} {case.mesh:<20}"
        f"{count_parameters(config.model) / 1e6:7.1f} M  {local} tokens a device  remat {model.compute.remat}  "
        f"temporaries {temporaries / 2**30:5.2f} GiB  arguments {arguments / 2**30:5.2f} GiB  " + "  ".join(counts)
    )
    if failures:
        raise SystemExit("; ".join(failures))


def list_cases(options: Options) -> Iterator[Case]:
    """Every combination of the options."""
    configs = {name: load_config(name) for name in options.recipes or list_configs()}
    for (name, config), target in itertools.product(configs.items(), options.targets):
        if not options.recipes and config.model.compute.dtype != "bfloat16":
            continue
        for mesh in map(parse_mesh, options.meshes or [format_mesh(config.mesh)]):
            phases = config.phases if options.stages == "all" else (config.phases[0], config.phases[-1])
            for begin in sorted({phase.begin for phase in phases}):
                yield Case(target, name, format_mesh(mesh), begin)


def run_case(options: Options, case: Case) -> bool:
    """Compile a case in a process of its own, for XLA writes its warnings to the file descriptor. True if it passes."""
    flags = {"grad-accum": options.grad_accum, "remat": options.remat}
    given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    command = [sys.executable, __file__, *given, "--case", *map(str, case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    count = done.stderr.count(REMATERIALIZED)
    print((done.stdout.rstrip() or f"{' '.join(map(str, case))}: failed") + f"  rematerialised {count}", flush=True)
    passed = not done.returncode and not count
    if not passed:
        print(done.stderr[-2000:], file=sys.stderr)
    return passed


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    if options.case is not None:
        compile_case(options, Case(*options.case))
        return 0
    passed = [run_case(options, case) for case in list_cases(options)]
    return int(not all(passed))


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
