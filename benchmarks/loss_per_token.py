"""Measure how many tokens and seconds a modern recipe needs for the loss of GPT-2 with AdamW.

    python benchmarks/loss_per_token.py --output=runs/loss_per_token                       # the recipes' own text
    python benchmarks/loss_per_token.py --output=runs/loss_per_token --data=data/books      # any prepared shards
    python benchmarks/loss_per_token.py --output=... --baseline=gpt2_124m --modern=speedrun_162m --any-size --data=...
    python benchmarks/loss_per_token.py --output=... --baseline=A.py --modern=B.py --baseline-rates 0.004 \
        --modern-rates 0.01 --lengths 0.5 --seeds 1337 --no-ablation                       # own configs, few runs

The baseline gets the modern recipe's text, batch and context. Both get the best learning rate of a grid, chosen with
seed 1337 alone, and then several seeds. The middle of a run with a decaying schedule has a high loss, so tokens are
compared between whole runs of several lengths. A finished run is not repeated: the same command continues an
interrupted benchmark. Prints tables and writes loss_per_token.png beside the runs. Results: LAB.md, "Loss per token".
"""

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import tyro
from ingredients import WITH, WITHOUT, change_muon

from gptjax.config import TrainConfig, load_config
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.core.serialization import from_json, to_json
from gptjax.data.config import TokenShards
from gptjax.data.loader import BatchLoader
from gptjax.evaluators.validation import ValidationLoss
from gptjax.metrics.metrics_file import read_metrics
from gptjax.model.gpt import count_parameters
from gptjax.optim import AdamW, Muon
from gptjax.runs import startup
from gptjax.runs.trainer import train
from gptjax.sharding.mesh import MeshConfig


@dataclass(frozen=True)
class Options:
    """Recipes, text and runs."""

    output: Path
    """Directory of the runs, the table and the plot."""
    data: str | None = None
    """Directory of prepared shards; by default that of the recipes."""
    baseline: str = "gpt2_cpu"
    modern: str = "modern_cpu"
    any_size: bool = False
    """Allow sizes that differ by more than 2 % of the parameters."""
    baseline_rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3)
    """AdamW's learning rates for the baseline."""
    modern_rates: tuple[float, ...] = (0.005, 0.01, 0.02)
    """Muon's and Adam's learning rates for the modern recipe."""
    adamw_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    """AdamW's learning rates for the modern model, as an ingredient."""
    lengths: tuple[float, ...] = (0.2, 0.3, 0.5)
    """Lengths of the modern runs, as fractions of the baseline's steps."""
    seeds: tuple[int, ...] = (1337, 1, 2)
    ablation: bool = True
    """Measure each ingredient by itself."""
    ingredients: tuple[str, ...] = ()
    """Ingredients to measure, such as `without QK-norm`. None: all."""
    ablation_seeds: tuple[int, ...] = (1337,)
    """Seeds of the ablation. A row is compared with the whole recipe seed by seed, on the same batches."""
    validation: int = 131_072
    """Validation tokens of every run."""
    run: str | None = None
    """(Used by the benchmark itself: file with the config of one run to train.)"""


@dataclass(frozen=True)
class Result:
    """The outcome of a finished run."""

    loss: float
    seconds: float
    curve: list[tuple[int, float]]
    """(tokens, validation loss)"""


class Bench:
    """The two recipes and their runs, each trained once."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.modern = self.prepare(load_config(options.modern))
        baseline = self.prepare(load_config(options.baseline))
        tokens = baseline.tokens(baseline.steps)
        self.baseline = replace(
            baseline,
            batch_size=self.modern.batch_size,
            grad_accum=self.modern.grad_accum,
            model=replace(baseline.model, context_length=self.modern.model.context_length),
            data=self.modern.data,
        )
        self.baseline = replace(self.baseline, steps=round(tokens / self.baseline.tokens(1)))

    def prepare(self, config: TrainConfig) -> TrainConfig:
        """A recipe with the data and the output directory of the options."""
        if config.stages:
            raise UserError(f"{config.name} has stages, which do not scale with its length. Name another recipe.")
        data = config.data
        if self.options.data is not None:
            data = replace(data if isinstance(data, TokenShards) else TokenShards(), path=self.options.data)
        return startup.prepare_config(replace(config, data=data, output_dir=str(self.options.output)))[0]

    def configure(self, config: TrainConfig, *, rate: float, seed: int = 1337, part: float = 1.0) -> TrainConfig:
        """A recipe with a learning rate, a seed and `part` of the baseline's steps."""
        optimizer: Any = config.optimizer
        rates = {"learning_rate": rate}
        if isinstance(optimizer, Muon):
            rates["adam_learning_rate"] = rate * optimizer.adam_learning_rate / optimizer.learning_rate
        steps = round(part * self.baseline.steps)
        evaluators = (ValidationLoss(every=max(1, steps // 4), tokens=self.options.validation),)
        return replace(config, optimizer=replace(optimizer, **rates), seed=seed, steps=steps, evaluators=evaluators)

    def train(self, name: str, config: TrainConfig) -> Result:
        """Train in a process of its own, unless done before; the last validation loss and the training seconds."""
        config = replace(config, name=name.replace(" ", "-").replace("/", "-"))
        directory = self.options.output / config.name
        wanted, text = directory / "wanted.json", json.dumps(to_json(config), indent=2)
        same = wanted.exists() and wanted.read_text() == text
        if not (same and (directory / "done").exists()):
            if not same and directory.exists():
                raise UserError(f"{directory} has another run. Give another --output, or remove it.")
            directory.mkdir(parents=True, exist_ok=True)
            wanted.write_text(text)
            command = [sys.executable, __file__, f"--output={self.options.output}", f"--run={wanted}"]
            with (directory / "log.txt").open("w") as log:
                subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
            (directory / "done").touch()
        records = read_metrics(directory / "metrics.jsonl")
        curve = [(record["tokens"], record["val_loss"]) for record in records if "val_loss" in record]
        seconds = max(record["seconds"] for record in records if "seconds" in record)
        tokens, loss = curve[-1]
        print(f"{config.name:<44} {loss:.4f} nats  {tokens / 1e6:6.2f} M tokens  {seconds:6.0f} s", flush=True)
        return Result(loss, seconds, curve)

    def find_best_rate(self, name: str, config: TrainConfig, *, rates: tuple[float, ...], part: float) -> float:
        run = lambda rate: self.train(f"{name} {rate:g} x{part:g}", self.configure(config, rate=rate, part=part))
        losses = {rate: run(rate).loss for rate in rates}
        return min(losses, key=losses.__getitem__)

    def train_seeds(
        self, name: str, config: TrainConfig, *, rate: float, part: float, seeds: tuple[int, ...] | None = None
    ) -> list[Result]:
        """A result for each seed, by default those of the options. The learning rate was chosen with seed 1337."""
        run_name = lambda seed: name if seed == 1337 else f"{name} seed {seed}"
        configure = partial(self.configure, config, rate=rate, part=part)
        return [self.train(run_name(seed), configure(seed=seed)) for seed in seeds or self.options.seeds]


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.run is not None:
        raise SystemExit(train(from_json(json.loads(Path(options.run).read_text()), TrainConfig)))
    bench = Bench(options)
    check_sizes(bench)
    changed = change_recipe(bench) if options.ablation else {}
    rate = bench.find_best_rate("baseline", bench.baseline, rates=options.baseline_rates, part=1.0)
    baseline = bench.train_seeds(f"baseline {rate:g} x1", bench.baseline, rate=rate, part=1.0)
    longest = max(options.lengths)
    modern_rate = bench.find_best_rate("modern", bench.modern, rates=options.modern_rates, part=longest)
    name = f"modern {modern_rate:g}"
    modern = {
        part: bench.train_seeds(f"{name} x{part:g}", bench.modern, rate=modern_rate, part=part)
        for part in options.lengths
    }
    print(f"\nbaseline at {rate:g}: {format_losses(baseline)}")
    print_comparison(bench, baseline=baseline, modern=modern, rate=modern_rate)
    plot(options.output / "loss_per_token.png", bench, baseline=baseline, modern=modern)
    if options.ablation:
        ablate(bench, changed, rate=modern_rate, part=longest)


def check_sizes(bench: Bench) -> None:
    """Print the number of parameters of both recipes. Raises a UserError unless they are about equal."""
    sizes = [count_parameters(config.model) for config in (bench.baseline, bench.modern)]
    print(f"parameters {sizes[0]:,} and {sizes[1]:,} ({sizes[1] / sizes[0] - 1:+.1%})", end="; ")
    print(f"{bench.modern.tokens(1):,} tokens a step\n")
    if abs(sizes[1] / sizes[0] - 1) > 0.02 and not bench.options.any_size:
        raise UserError("the sizes differ by more than 2 % of the parameters. Name other recipes, or give --any-size.")


def print_comparison(bench: Bench, *, baseline: list[Result], modern: dict[float, list[Result]], rate: float) -> None:
    """Print the loss and the cost of each length, and the length that reaches the baseline's loss."""
    ratio = measure_step_ratio(bench)
    print(f"a step of the modern recipe takes {ratio:.2f} of the baseline's, measured in alternation")
    for part, runs in modern.items():
        cost = f"{part:g} × the tokens, {part * ratio:.2f} × the seconds"
        print(f"modern at {rate:g}, {cost}: {format_losses(runs)}")
    means = {part: statistics.mean(run.loss for run in runs) for part, runs in modern.items()}
    target = statistics.mean(run.loss for run in baseline)
    print(f"the baseline's loss is reached with {find_crossing(means, target)} of its tokens\n")


def measure_step_ratio(bench: Bench, *, rounds: int = 8, steps: int = 10) -> float:
    """Duration of a step of the modern recipe over the baseline's, measured in alternation in this process."""
    mesh = MeshConfig("single").resolve(1)
    seconds: tuple[list[float], list[float]] = ([], [])
    with mesh.activate():
        runs = [start_run(config, mesh) for config in (bench.baseline, bench.modern)]
        for _ in range(rounds + 1):
            for run, taken in zip(runs, seconds, strict=True):
                begin = time.perf_counter()
                run(steps)
                taken.append(time.perf_counter() - begin)
    return statistics.median(seconds[1][1:]) / statistics.median(seconds[0][1:])


def start_run(config: TrainConfig, mesh: MeshConfig) -> Callable[[int], None]:
    """Compile a run in this process. Returns a function that trains so many further steps. Nothing is saved."""
    spec = startup.make_read_spec(config, config.data.load_tokenizer())
    batches = BatchLoader(config.data.open(spec), spec, mesh=mesh)
    state = startup.initialize_state(config, mesh)
    train_step, batch_iterator = startup.compile_step(config, mesh, state, batches), batches.iterate_from(0)

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = train_step(state, next(batch_iterator))
        jax.block_until_ready(state)

    return run


def change_recipe(bench: Bench) -> dict[str, TrainConfig]:
    """The modern recipe with each ingredient removed or added, where that is possible and makes a difference."""
    baseline: Any = bench.baseline.optimizer
    without = WITHOUT | {"the long decay": change_muon(schedule=baseline.schedule)}
    changes = {f"without {name}": change for name, change in without.items()}
    changes |= {f"with {name}": change for name, change in WITH.items()}
    changed = {}
    for name in bench.options.ingredients or changes:
        if name not in changes:
            raise UserError(f"--ingredients: {name!r} is none of {', '.join(changes)}.")
        try:
            config = changes[name](bench.modern)
        except UserError as error:
            print(f"{name}: invalid: {error}")
            continue
        if config == bench.modern:
            print(f"{name}: no change")
        else:
            changed[name] = config
    return changed


def ablate(bench: Bench, changed: dict[str, TrainConfig], *, rate: float, part: float) -> None:
    """Print how much each change of the recipe adds to its loss, seed by seed."""
    run = partial(bench.train_seeds, rate=rate, part=part, seeds=bench.options.ablation_seeds)
    whole = run(f"modern {rate:g} x{part:g}", bench.modern)
    rows = {"AdamW instead of Muon": train_with_adamw(bench, part)}
    rows |= {name: run(name, config) for name, config in changed.items()}
    print(f"\n{'modern recipe':<44} {format_losses(whole)}")
    for name, runs in rows.items():
        added = [run.loss - base.loss for run, base in zip(runs, whole, strict=True)]
        print(f"{name:<44} {format_losses(runs)}  {'  '.join(f'{loss:+.4f}' for loss in added)}")


def train_with_adamw(bench: Bench, part: float) -> list[Result]:
    """The modern model with AdamW, at its own best learning rate."""
    baseline, modern = bench.baseline.optimizer, bench.modern.optimizer
    if not (isinstance(baseline, AdamW) and isinstance(modern, Muon)):
        raise UserError("the ablation needs AdamW in the baseline and Muon in the modern recipe. Give --no-ablation.")
    config = replace(bench.modern, optimizer=AdamW(schedule=modern.schedule, beta2=baseline.beta2))
    rate = bench.find_best_rate("adamw", config, rates=bench.options.adamw_rates, part=part)
    name, seeds = f"adamw {rate:g} x{part:g}", bench.options.ablation_seeds
    return bench.train_seeds(name, config, rate=rate, part=part, seeds=seeds)


def format_losses(runs: list[Result]) -> str:
    losses = [run.loss for run in runs]
    spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
    return f"{statistics.mean(losses):.4f}{spread} nats ({len(losses)} seeds)"


def find_crossing(means: dict[float, float], target: float) -> str:
    """The length at which the mean losses cross the target, interpolated linearly between two lengths."""
    parts = sorted(means)
    if means[parts[0]] <= target:
        return f"less than {parts[0]:g}"
    for short, long in itertools.pairwise(parts):
        if means[long] <= target:
            return f"{short + (long - short) * (means[short] - target) / (means[short] - means[long]):.2f}"
    return f"more than {parts[-1]:g}"


def plot(path: Path, bench: Bench, *, baseline: list[Result], modern: dict[float, list[Result]]) -> None:
    """Final losses over tokens, and the loss curve of the first seed of each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    recipes = {"GPT-2, AdamW": [baseline], "modern recipe": list(modern.values())}
    for color, (label, lengths) in zip(("tab:gray", "tab:orange"), recipes.items(), strict=True):
        for runs in lengths:
            axes.plot(*zip(*[(n / 1e6, loss) for n, loss in runs[0].curve[1:]], strict=True), color=color, alpha=0.4)
            ends = [(run.curve[-1][0] / 1e6, run.loss) for run in runs]
            axes.scatter(*zip(*ends, strict=True), color=color, s=12, label=label if runs is lengths[0] else None)
    axes.axhline(statistics.mean(run.loss for run in baseline), color="tab:gray", linewidth=0.5)
    data = Path(getattr(bench.modern.data, "path", None) or "").name
    title = f"{bench.modern.name} against {bench.baseline.name}, {data}"
    axes.set(xlabel="tokens (millions)", ylabel="validation loss (nats a token)", title=title)
    axes.legend()
    figure.savefig(path, dpi=150)
    print(path)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
