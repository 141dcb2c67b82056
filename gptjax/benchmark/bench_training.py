"""Measure the training step of a config, alone and beside peers."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from gptjax.benchmark.breakdown import Breakdown, profile_step
from gptjax.benchmark.hardware import PRODUCT, matmul_contestant
from gptjax.benchmark.options import BenchOptions
from gptjax.benchmark.peers.matching import (
    ConfigPeer,
    Peer,
    check_comparable,
    make_training_work,
    open_peer,
    parse_peers,
)
from gptjax.benchmark.peers.torch_client import OutOfMemory
from gptjax.benchmark.results import Comparison, ContestantResult, Environment, OwnStep, Result, Utilization, note_load
from gptjax.benchmark.step_contestants import (
    LOOP,
    OURS,
    CompileTimes,
    LoopContestant,
    Memory,
    StepContestant,
    TrainingRun,
    open_loop,
    prepare_benchmark,
)
from gptjax.benchmark.timing import Spread, compare_rounds, run_in_turn
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError, count_of
from gptjax.core.serialization import Modules
from gptjax.model.kernels import select_kernel, why_not_flash
from gptjax.runs import startup
from gptjax.sharding.devices import get_peak_flops, get_peak_memory
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Tokenizer

Times = Mapping[str, Sequence[float]]
Report = Callable[[str], None]
TRIAL_ROUNDS = 3
"""Rounds in which a batch size is tried."""


@dataclass(frozen=True)
class Setting:
    """What the parts of a training benchmark share."""

    config: TrainConfig
    mesh: MeshConfig
    tokenizer: Tokenizer | None
    options: BenchOptions
    report: Report
    modules: Modules | None = None
    """Where configs of other runs find classes of the user's own."""


def benchmark_training(
    config: TrainConfig, options: BenchOptions, *, modules: Modules | None, command: str, report: Report
) -> Result:
    """Measure the first phase of a config.

    Args:
        report: receives a line about what is done next.

    Raises:
        UserError: the data is missing, a peer is not comparable with the config, or a package is missing.
    """
    notes = note_load()
    peers = [peer for spec in options.peer for peer in parse_peers(spec, options.torch_mode)]
    config, tokenizer = prepare_benchmark(config, modules, random_data=options.random_data)
    config = startup.prepare_device(config, modules)
    mesh = config.mesh.resolve(jax.device_count())
    config.check_mesh(mesh)
    notes += [note for peer in peers for note in check_comparable(peer, config, mesh=mesh, decode=False)]
    if config.stages:
        notes.append("only the first phase of the stages is measured")
    setting = Setting(config, mesh, tokenizer, options, report, modules)
    with mesh.activate():
        own, comparison, breakdown = measure_config(setting, peers)
        comparisons = [comparison]
        if options.batch_sizes:
            comparisons.append(compare_best_batches(setting, peers))
    return Result(
        kind="train",
        environment=Environment.describe(mesh),
        config=config,
        command=command,
        notes=tuple(dict.fromkeys(notes)),
        comparisons=tuple(comparisons),
        own=own,
        breakdown=breakdown,
    )


def measure_config(setting: Setting, peers: Sequence[Peer]) -> tuple[OwnStep, Comparison, Breakdown | None]:
    """Our step, the training loop, a matrix product and the peers, in turn; then a profile, if it is asked for."""
    config, options = setting.config, setting.options
    setting.report("compiling the step twice: with an empty cache, and with a filled one")
    with contextlib.ExitStack() as stack:
        step = open_ours(setting, config, stack, times_compilation=True)
        loop = stack.enter_context(open_loop(step.training))
        product, product_flops = matmul_contestant(setting.mesh, config.model.compute.dtype)
        others = [open_peer_and_warm_up(setting, peer, config, stack) for peer in peers]
        for contestant in (product, loop):
            contestant.run(options.warmup)
        setting.report(f"{options.rounds} rounds of about {options.round_seconds:g} s each")
        times = run_in_turn([product, step, loop, *others], rounds=options.rounds, seconds=options.round_seconds)
        own = describe_own(step.training, loop, times, product_flops=product_flops)
        comparison = compare("all at the config's batch size", times, [step, *others])
        breakdown = None
        if options.profile:
            setting.report(f"profiling {count_of(options.profile_steps, 'steps')}")
            breakdown = profile_step(step.run, step.training.program.as_text() or "", steps=options.profile_steps)
    return own, comparison, breakdown


def open_ours(
    setting: Setting,
    config: TrainConfig,
    stack: contextlib.ExitStack,
    *,
    name: str = OURS,
    times_compilation: bool = False,
) -> StepContestant:
    """Our step, after its first runs. The stack closes it."""
    training = TrainingRun(
        config,
        setting.mesh,
        tokenizer=setting.tokenizer,
        modules=setting.modules,
        times_compilation=times_compilation,
    )
    stack.callback(training.close)
    step = StepContestant(training, name=name)
    step.run(setting.options.warmup)
    return step


def open_peer_and_warm_up(setting: Setting, peer: Peer, config: TrainConfig, stack: contextlib.ExitStack) -> Any:
    """A peer, after its first steps. The stack closes it. Another config keeps all but the batch that is tried."""
    setting.report(f"starting {peer.name}")
    if isinstance(peer, ConfigPeer):
        other = peer.config
        if config is not setting.config:
            other = replace(other, batch_size=config.batch_size, grad_accum=config.grad_accum, stages=())
        other, tokenizer = prepare_benchmark(other, random_data=setting.options.random_data)
        other.check_mesh(setting.mesh)
        return open_ours(replace(setting, tokenizer=tokenizer), other, stack, name=peer.name)
    contestant = open_peer(peer, make_training_work(config))
    stack.callback(contestant.close)
    contestant.run(setting.options.warmup)
    return contestant


def describe_own(training: TrainingRun, loop: LoopContestant, times: Times, *, product_flops: float) -> OwnStep:
    """Our numbers, from the times of the rounds."""
    model, tokens = training.config.model, training.config.phases[0].tokens
    step = Spread.of(times[OURS])
    flops = [tokens * model.flops_per_token(causal=causal) for causal in (True, False)]
    products_per_step = compare_rounds(times, PRODUCT, to=OURS).median  # how often the product runs in a step's time
    peak = (get_peak_flops(jax.devices()[0].device_kind) or 0) * training.mesh.num_devices
    return OwnStep(
        tokens_per_step=tokens,
        step=step,
        loop=Spread.of(times[LOOP]),
        host_overhead=Spread.of([whole - alone for whole, alone in zip(times[LOOP], times[OURS], strict=True)]),
        data_wait=Spread.of(loop.data_waits[-len(times[LOOP]) :]),
        tokens_per_second=tokens / step.median,
        mfu=Utilization(*(count / step.median / peak for count in flops)) if peak else None,
        mfu_of_product=Utilization(*(count / (products_per_step * product_flops) for count in flops)),
        product_flops=Spread.of([product_flops / seconds for seconds in times[PRODUCT]]),
        product_dtype=model.compute.dtype,
        memory=Memory.of(training.program),
        peak_bytes=get_peak_memory(),
        compile=training.compile_times or CompileTimes(0.0, 0.0),
        attention_kernel=select_kernel(model),
        why_not_flash=why_not_flash(model) if model.compute.attention_impl == "auto" else None,
    )


def compare(title: str, times: Times, contestants: Sequence[Any]) -> Comparison:
    """The speeds of contestants that ran in turn. The first is ours."""
    ours, measured = contestants[0], []
    for contestant in contestants:
        seconds = Spread.of(times[contestant.name])
        ratio = compare_rounds(times, ours.name, to=contestant.name, work=ours.tokens / contestant.tokens)
        measured.append(
            ContestantResult(
                contestant.name,
                rows=contestant.rows,
                tokens=contestant.tokens,
                seconds=seconds,
                tokens_per_second=contestant.tokens / seconds.median,
                ours_over_theirs=None if contestant is ours else ratio,
                about=getattr(contestant, "software", None),
            )
        )
    return Comparison(title, tuple(measured))


def compare_best_batches(setting: Setting, peers: Sequence[Peer]) -> Comparison:
    """Each contestant at the batch size at which it processes the most tokens per second, without accumulation."""
    options = setting.options
    configs = {size: replace(setting.config, batch_size=size, grad_accum=1, stages=()) for size in options.batch_sizes}
    for config in configs.values():
        config.check_mesh(setting.mesh)
    tried: dict[str, dict[int, float | None]] = {}
    for size, config in configs.items():
        setting.report(f"trying {count_of(size, 'sequences')} a step")
        tried.setdefault(OURS, {})[size] = try_batch(setting, lambda stack, c=config: open_ours(setting, c, stack))
        for peer in peers:
            open_one = lambda stack, p=peer, c=config: open_peer_and_warm_up(setting, p, c, stack)
            tried.setdefault(peer.name, {})[size] = try_batch(setting, open_one)
    best = {name: configs[choose_best(name, speeds)] for name, speeds in tried.items()}
    with contextlib.ExitStack() as stack:
        step = open_ours(setting, best[OURS], stack)
        others = [open_peer_and_warm_up(setting, peer, best[peer.name], stack) for peer in peers]
        times = run_in_turn([step, *others], rounds=options.rounds, seconds=options.round_seconds)
        comparison = compare("each at its best batch size", times, [step, *others])
    as_text = {name: {str(size): speed for size, speed in speeds.items()} for name, speeds in tried.items()}
    return replace(comparison, tried=as_text)


def try_batch(setting: Setting, open_one: Callable[[contextlib.ExitStack], Any]) -> float | None:
    """Tokens per second of a contestant in a few rounds; None if it does not fit into memory."""
    with contextlib.ExitStack() as stack:
        try:
            contestant = open_one(stack)
            times = run_in_turn([contestant], rounds=TRIAL_ROUNDS, seconds=setting.options.round_seconds)
        except OutOfMemory:
            return None
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None
        return contestant.tokens / Spread.of(times[contestant.name]).median


def choose_best(name: str, speeds: Mapping[int, float | None]) -> int:
    """The batch size with the most tokens per second."""
    fitting = {size: speed for size, speed in speeds.items() if speed is not None}
    if not fitting:
        raise UserError(f"{name}: none of the batch sizes {', '.join(map(str, speeds))} fits into memory. Try less.")
    return max(fitting, key=lambda size: fitting[size])
