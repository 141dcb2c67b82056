"""How many tokens, and seconds, a modern recipe needs for the loss of GPT-2 with AdamW, at equal size, batch and text.

    python benchmarks/loss_per_token.py --output=runs/loss_per_token                       # the embedded text
    python benchmarks/loss_per_token.py --output=runs/loss_per_token --data=data/books      # any prepared shards
    python benchmarks/loss_per_token.py --output=... --baseline=gpt2_124m --modern=speedrun_162m --any-size --data=...

The baseline takes the modern recipe's text, batch and context. Both get the best learning rate of a grid, by seed 1337
alone, and then several seeds. A schedule that falls makes the middle of a run worth little, so tokens are compared
between whole runs of several lengths. Every run is a directory of its own that is left alone if it is finished: the
same command goes on where it was stopped. Prints tables and writes loss_per_token.png beside the runs.
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

import jax
import tyro

from gptjax.config import CLASSES, TrainConfig, load_config
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.core.settings import from_json, to_json
from gptjax.data.config import Mixture, TokenShards
from gptjax.model.gpt import count_parameters
from gptjax.optim import AdamW, Muon
from gptjax.sharding.mesh import MeshConfig
from gptjax.train import compile_step, create_run_state, open_run_loader, train
from gptjax.training.evaluators import ValidationLoss

Change = Callable[[TrainConfig], TrainConfig]


def of_model(**fields: object) -> Change:
    return lambda config: replace(config, model=replace(config.model, **fields))


def of_optimizer(**fields: object) -> Change:
    def change(config: TrainConfig) -> TrainConfig:
        if not isinstance(config.optimizer, Muon):
            raise UserError(f"{config.name} is not trained by Muon.")
        return replace(config, optimizer=replace(config.optimizer, **fields))

    return change


WITHOUT: dict[str, Change] = {
    "rotary positions (and 2.4 % larger)": of_model(positions="learned"),
    "RMSNorm without gain": of_model(norm="layer", norm_scale=True),
    "QK-norm": of_model(qk_norm=False),
    "squared ReLU": of_model(activation="gelu_tanh"),
    "zero-initialised projections": of_model(zero_init=False),
}
"""The modern recipe with GPT-2's way in one place."""
WITH: dict[str, Change] = {
    "U-Net skips": of_model(unet_skips="plain"),
    "x0 in every block": of_model(x0_mix=True),
    "value residual": of_model(value_residual=True),
    "logits capped at 15": of_model(logit_softcap=15.0),
    "RMSNorm of embeddings": of_model(embedding_norm=True),
    "4 attention sinks": of_model(num_sinks=4),
    "NorMuon": of_optimizer(normuon_beta2=0.95),
    "Polar Express": of_optimizer(ns_coefficients="polar_express"),
    "cautious decay 0.1": of_optimizer(weight_decay=0.1, cautious_decay=True),
}
"""The modern recipe with one thing more."""


@dataclass(frozen=True)
class LossPerToken:
    """What is compared, and how often."""

    output: Path
    """Directory of the runs, the table and the plot."""
    data: str | None = None
    """Directory of prepared shards; by default what the recipes name."""
    baseline: str = "gpt2_cpu"
    modern: str = "modern_cpu"
    any_size: bool = False
    """Whether the two may differ by more than 2 % of their parameters."""
    lr_scales: tuple[float, ...] = (2e-3, 4e-3, 8e-3)
    """AdamW's learning rates for the baseline."""
    modern_rates: tuple[float, ...] = (0.005, 0.01, 0.02)
    """Muon's and Adam's learning rates for the modern recipe."""
    adamw_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    """AdamW's learning rates for the modern model, as an ingredient."""
    lengths: tuple[float, ...] = (0.2, 0.3, 0.5)
    """Lengths of the modern runs, as parts of the baseline's steps."""
    seeds: tuple[int, ...] = (1337, 1, 2)
    ablation: bool = True
    """Whether each ingredient is measured by itself."""
    ablation_seeds: tuple[int, ...] = (1337,)
    """Seeds of that. A row is compared with the whole recipe seed by seed: both see the same batches."""
    validation: int = 131_072
    """Validation tokens that every run is judged on."""
    run: str | None = None
    """(For the benchmark itself: a file with the config of the one run to train.)"""


@dataclass(frozen=True)
class Result:
    """What a finished run came to."""

    loss: float
    seconds: float
    curve: list[tuple[int, float]]
    """(tokens, validation loss)"""


class Bench:
    """The runs, each made once."""

    def __init__(self, asked: LossPerToken) -> None:
        self.asked = asked
        self.modern = self.prepared(load_config(asked.modern))
        baseline = self.prepared(load_config(asked.baseline))
        tokens = baseline.tokens(baseline.steps)
        model = replace(baseline.model, context_length=self.modern.model.context_length)
        self.baseline = replace(baseline, batch=self.modern.batch, model=model, data=self.modern.data)
        self.baseline = replace(self.baseline, steps=round(tokens / self.baseline.tokens(1)))

    def prepared(self, config: TrainConfig) -> TrainConfig:
        """A recipe on the asked data, in the asked place."""
        if config.stages:
            raise UserError(
                f"{config.name}: has stages, which would not become shorter with a run. Name another recipe."
            )
        data = config.data
        if self.asked.data is not None:
            plain = TokenShards() if isinstance(data, Mixture) else data
            data = replace(plain, path=self.asked.data)
        return replace(config, data=data.resolve(), output_dir=str(self.asked.output))

    def at(self, config: TrainConfig, *, rate: float, seed: int = 1337, part: float = 1.0) -> TrainConfig:
        """A recipe at a learning rate, a seed and a length, which is a part of the baseline's steps."""
        lr_scales = {"learning_rate": rate}
        if isinstance(config.optimizer, Muon):
            lr_scales |= {
                "adam_learning_rate": rate * config.optimizer.adam_learning_rate / config.optimizer.learning_rate
            }
        optimizer = replace(config.optimizer, **lr_scales)
        steps = round(part * self.baseline.steps)
        evaluators = (ValidationLoss(every=max(1, steps // 4), tokens=self.asked.validation),)
        return replace(config, optimizer=optimizer, seed=seed, steps=steps, evaluators=evaluators)

    def result(self, name: str, config: TrainConfig) -> Result:
        """Train, unless it is done, in a process of its own; the last validation loss and the training seconds."""
        config = replace(config, name=name.replace(" ", "-").replace("/", "-"))
        directory = self.asked.output / config.name
        wanted, text = directory / "wanted.json", json.dumps(to_json(config), indent=2)
        same = wanted.exists() and wanted.read_text() == text
        if not (same and (directory / "done").exists()):
            if not same and directory.exists():
                raise SystemExit(f"{directory} holds another run. Give another --output, or remove it.")
            directory.mkdir(parents=True, exist_ok=True)
            wanted.write_text(text)
            command = [sys.executable, __file__, f"--output={self.asked.output}", f"--run={wanted}"]
            with (directory / "log.txt").open("w") as log:
                subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
            (directory / "done").touch()
        records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        curve = [(record["tokens"], record["val_loss"]) for record in records if "val_loss" in record]
        seconds = max(record["seconds"] for record in records if "seconds" in record)
        print(
            f"{config.name:<44} {curve[-1][1]:.4f} nats  {curve[-1][0] / 1e6:6.2f} M tokens  {seconds:6.0f} s",
            flush=True,
        )
        return Result(curve[-1][1], seconds, curve)

    def best_rate(self, name: str, config: TrainConfig, lr_scales: tuple[float, ...], *, part: float) -> float:
        found = {
            rate: self.result(f"{name} {rate:g} x{part:g}", self.at(config, lr_scale=rate, part=part))
            for rate in lr_scales
        }
        return min(found, key=lambda rate: found[rate].loss)

    def seeds(
        self, name: str, config: TrainConfig, *, rate: float, part: float, seeds: tuple[int, ...] | None = None
    ) -> list[Result]:
        """One result for each seed; by default those that are asked for. Seed 1337 has chosen the rate."""
        named = lambda seed: name if seed == 1337 else f"{name} seed {seed}"
        chosen = self.asked.seeds if seeds is None else seeds
        return [self.result(named(seed), self.at(config, lr_scale=rate, seed=seed, part=part)) for seed in chosen]


def main() -> None:
    asked = tyro.cli(LossPerToken, description=__doc__)
    if asked.run is not None:
        raise SystemExit(train(from_json(json.loads(Path(asked.run).read_text()), CLASSES)))
    bench = Bench(asked)
    sizes = [count_parameters(config.model) for config in (bench.baseline, bench.modern)]
    print(f"parameters {sizes[0]:,} and {sizes[1]:,} ({sizes[1] / sizes[0] - 1:+.1%})", end="; ")
    print(f"{bench.modern.tokens(1):,} tokens a step\n")
    if abs(sizes[1] / sizes[0] - 1) > 0.02 and not asked.any_size:
        raise UserError("the two differ by more than 2 % of their parameters. Name others, or give --any-size.")
    changed = changes(bench) if asked.ablation else {}

    rate = bench.best_rate("baseline", bench.baseline, asked.rates, part=1.0)
    baseline = bench.seeds(f"baseline {rate:g} x1", bench.baseline, lr_scale=rate, part=1.0)
    longest = max(asked.lengths)
    modern_rate = bench.best_rate("modern", bench.modern, asked.modern_rates, part=longest)
    name = f"modern {modern_rate:g}"
    modern = {
        part: bench.seeds(f"{name} x{part:g}", bench.modern, lr_scale=modern_rate, part=part) for part in asked.lengths
    }

    target = statistics.mean(run.loss for run in baseline)
    print(f"\nbaseline at {rate:g}: {described(baseline)}")
    ratio = step_ratio(bench)
    print(f"a step of the modern recipe takes {ratio:.2f} of the baseline's, by turns")
    for part, runs in modern.items():
        print(f"modern at {modern_rate:g}, {part:g} × the tokens, {part * ratio:.2f} × the seconds: {described(runs)}")
    means = {part: statistics.mean(run.loss for run in runs) for part, runs in modern.items()}
    needed = crossing(means, target)
    print(f"the baseline's loss is reached with {needed} of its tokens\n")
    plot(asked.output / "loss_per_token.png", bench, baseline, modern)
    if asked.ablation:
        ablate(bench, changed, modern_rate, part=longest)


def step_ratio(bench: Bench, *, rounds: int = 8, steps: int = 10) -> float:
    """How long a step of the modern recipe takes, in steps of the baseline: by turns, in this process."""
    mesh = MeshConfig("single").resolve(1)
    with mesh.activate():
        runs, seconds = [], ([], [])
        for config in (bench.baseline, bench.modern):
            state, batches = create_run_state(config, mesh), open_run_loader(config, mesh)
            runs.append([state, batches.iterate_from(0), compile_step(config, mesh, state, batches)])
        for _ in range(rounds + 1):
            for run, taken in zip(runs, seconds, strict=True):
                begin = time.perf_counter()
                for _ in range(steps):
                    run[0], _ = run[2](run[0], next(run[1]))
                jax.block_until_ready(run[0])
                taken.append(time.perf_counter() - begin)
    return statistics.median(seconds[1][1:]) / statistics.median(seconds[0][1:])


def changes(bench: Bench) -> dict[str, TrainConfig]:
    """The modern recipe with each ingredient taken out or put in, where it can be and makes a difference."""
    decay = {"the long decay": of_optimizer(schedule=bench.baseline.optimizer.schedule)}
    found = {}
    for title, ingredients in (("without", WITHOUT | decay), ("with", WITH)):
        for name, change in ingredients.items():
            try:
                config = change(bench.modern)
            except UserError as error:
                print(f"{title} {name}: cannot be: {error}")
                continue
            if config == bench.modern:
                print(f"{title} {name}: so already")
            else:
                found[f"{title} {name}"] = config
    return found


def ablate(bench: Bench, changed: dict[str, TrainConfig], rate: float, *, part: float) -> None:
    """What each change of the recipe adds to its loss, seed by seed."""
    run = partial(bench.seeds, part=part, seeds=bench.asked.ablation_seeds)
    whole = run(f"modern {rate:g} x{part:g}", bench.modern, lr_scale=rate)
    rows = {"AdamW instead of Muon": adamw_instead(bench, part)}
    rows |= {name: run(name, config, lr_scale=rate) for name, config in changed.items()}
    print(f"\n{'modern recipe':<44} {described(whole)}")
    for name, runs in rows.items():
        added = [run.loss - base.loss for run, base in zip(runs, whole, strict=True)]
        print(f"{name:<44} {described(runs)}  {'  '.join(f'{loss:+.4f}' for loss in added)}")


def adamw_instead(bench: Bench, part: float) -> list[Result]:
    """The modern model with AdamW, at its own best rate."""
    schedule = bench.modern.optimizer.schedule
    config = replace(bench.modern, optimizer=AdamW(schedule=schedule, beta2=bench.baseline.optimizer.beta2))
    rate = bench.best_rate("adamw", config, bench.asked.adamw_rates, part=part)
    return bench.seeds(f"adamw {rate:g} x{part:g}", config, lr_scale=rate, part=part, seeds=bench.asked.ablation_seeds)


def described(runs: list[Result]) -> str:
    losses = [run.loss for run in runs]
    spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
    return f"{statistics.mean(losses):.4f}{spread} nats ({len(losses)} seeds)"


def crossing(means: dict[float, float], target: float) -> str:
    """The length at which the mean losses cross the target, by a straight line between two lengths."""
    parts = sorted(means)
    if means[parts[0]] <= target:
        return f"less than {parts[0]:g}"
    for short, long in itertools.pairwise(parts):
        if means[long] <= target:
            return f"{short + (long - short) * (means[short] - target) / (means[short] - means[long]):.2f}"
    return f"more than {parts[-1]:g}"


def plot(path: Path, bench: Bench, baseline: list[Result], modern: dict[float, list[Result]]) -> None:
    """Final losses over tokens, and how the first seed of each came there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), mesh="constrained")
    everything = {"GPT-2, AdamW": [baseline], "modern recipe": list(modern.values())}
    for colour, (label, groups) in zip(("tab:gray", "tab:orange"), everything.items(), strict=True):
        for runs in groups:
            axes.plot(*zip(*[(n / 1e6, loss) for n, loss in runs[0].curve[1:]], strict=True), color=colour, alpha=0.4)
            ends = [(run.curve[-1][0] / 1e6, run.loss) for run in runs]
            axes.scatter(*zip(*ends, strict=True), color=colour, s=12, label=label if runs is groups[0] else None)
    axes.axhline(statistics.mean(run.loss for run in baseline), color="tab:gray", linewidth=0.5)
    title = f"{bench.modern.name} against {bench.baseline.name}, {Path(bench.modern.data.path or '').name}"
    axes.set(xlabel="tokens (millions)", ylabel="validation loss (nats a token)", title=title)
    axes.legend()
    figure.savefig(path, dpi=150)
    print(f"{path}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
