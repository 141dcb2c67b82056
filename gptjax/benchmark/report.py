"""A benchmark's result as tables in Markdown, which a terminal shows as they are, and as a picture of bars."""

from collections.abc import Sequence
from pathlib import Path

from gptjax.benchmark.breakdown import Breakdown
from gptjax.benchmark.hlo_scopes import CATEGORIES, DIRECTIONS
from gptjax.benchmark.results import Comparison, ContestantResult, OwnStep, Result
from gptjax.benchmark.timing import Spread
from gptjax.core.errors import count_of
from gptjax.core.files import format_bytes

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def format_result(result: Result) -> str:
    """Everything that was measured, as Markdown."""
    environment, model = result.environment, result.config.model
    software = ", ".join(f"{name} {version}" for name, version in environment.software.items())
    lines = [
        f"# {result.config.name}: {'generation' if result.kind == 'decode' else 'training step'}",
        "",
        f"- {environment.date}; {environment.num_devices} × {environment.device}, {environment.cores} CPU cores",
        f"- {software}",
        f"- {count_of(model.num_layers, f'layers × {model.embed_dim}')}, context {model.context_length}, vocabulary "
        f"{model.padded_vocab_size:,}, {model.compute.dtype}, dropout {model.dropout:g}, "
        f"{'with' if model.bias else 'no'} biases",
        f"- {result.command}",
        *(f"- note: {note}" for note in result.notes),
    ]
    parts = [] if result.own is None else [format_own(result.own)]
    parts += [
        format_comparison(comparison)
        for comparison in result.comparisons
        if result.own is None or len(comparison.contestants) > 1
    ]
    parts += [] if result.breakdown is None else [format_breakdown(result.breakdown)]
    return "\n\n".join(["\n".join(lines), *parts]) + "\n"


def format_own(own: OwnStep) -> str:
    """Our training step."""
    memory = own.memory
    rows = [
        ("step", format_spread(own.step)),
        ("tokens/s", f"{own.tokens_per_second:,.0f} ({own.tokens_per_step:,} a step)"),
        ("step in the training loop", format_spread(own.loop)),
        ("host overhead (loop - step)", format_spread(own.host_overhead)),
        ("wait for data in the loop", format_spread(own.data_wait)),
        (
            f"matrix product, {own.product_dtype}",
            f"{own.product_flops.median / 1e12:.4g} TFLOP/s ({own.product_flops.low / 1e12:.4g} to "
            f"{own.product_flops.high / 1e12:.4g})",
        ),
        ("MFU of that product", f"{own.mfu_of_product.causal:.1%} causal, {own.mfu_of_product.palm:.1%} PaLM"),
        (
            "MFU of the bf16 peak",
            f"{own.mfu.causal:.1%} causal, {own.mfu.palm:.1%} PaLM" if own.mfu else "peak unknown",
        ),
        (
            "memory as compiled",
            f"{format_bytes(memory.total)} = arguments {format_bytes(memory.arguments)} + outputs "
            f"{format_bytes(memory.outputs)} + temporaries {format_bytes(memory.temporaries)} - aliased "
            f"{format_bytes(memory.aliased)}"
            if memory
            else "unknown",
        ),
        ("peak memory of a device", format_bytes(own.peak_bytes) if own.peak_bytes else "not counted"),
        ("compilation", f"{own.compile.cold:.1f} s cold, {own.compile.cached:.1f} s cached"),
        ("attention kernel", own.attention_kernel + (f" ({own.why_not_flash})" if own.why_not_flash else "")),
    ]
    return format_table(("gptjax", "median (quartiles)"), rows)


def format_comparison(comparison: Comparison) -> str:
    """Contestants that ran in turn."""
    rows = []
    has_share = any(contestant.bandwidth_share is not None for contestant in comparison.contestants)
    for contestant in comparison.contestants:
        share = [] if not has_share else [f"{contestant.bandwidth_share or 0:.2f}"]
        rows.append(
            (
                contestant.name,
                str(contestant.rows),
                format_spread(contestant.seconds),
                f"{contestant.tokens_per_second:,.0f}",
                *share,
                _ratio(contestant),
            )
        )
    head = [
        "contestant",
        "sequences",
        "time",
        "tokens/s",
        *(["share of bandwidth"] if has_share else []),
        "gptjax / it",
    ]
    table = format_table(head, rows)
    tried = [
        f"- {name}: "
        + ", ".join(f"{size}: {f'{speed:,.0f} tokens/s' if speed else 'too large'}" for size, speed in speeds.items())
        for name, speeds in (comparison.tried or {}).items()
    ]
    return "\n".join([f"In turn, {comparison.title}:", "", table, *([""] if tried else []), *tried])


def _ratio(contestant: ContestantResult) -> str:
    ratio = contestant.ours_over_theirs
    return "" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def format_breakdown(breakdown: Breakdown) -> str:
    """Milliseconds of a step by category and pass."""
    sums = {(row.category, row.direction): row.milliseconds for row in breakdown.rows}
    directions = [direction for direction in DIRECTIONS if any(key[1] == direction for key in sums)]
    rows = []
    for category in (name for name in CATEGORIES if any(key[0] == name for key in sums)):
        values = [sums.get((category, direction), 0.0) for direction in directions]
        shown = [f"{value:.2f}" if value else "" for value in values]
        rows.append((category, *shown, f"{sum(values):.2f}", f"{sum(values) / (breakdown.total or 1):.1%}"))
    totals = [sum(value for key, value in sums.items() if key[1] == direction) for direction in directions]
    rows.append(("all", *(f"{value:.2f}" for value in totals), f"{breakdown.total:.2f}", "100.0%"))
    operations = [
        (operation.kernel, operation.name, operation.category, operation.direction, f"{operation.milliseconds:.3f}")
        for operation in breakdown.operations
    ]
    return "\n".join(
        [
            f"Milliseconds of operations in a step. {breakdown.passed:.2f} ms passed, with the profiler on.",
            f"Threads and devices overlap, so the sum may differ. {breakdown.unscoped_share:.1%} is outside any scope.",
            "",
            format_table(("part", *directions, "sum", "share"), rows),
            "",
            "The largest operations:",
            "",
            format_table(("kernel", "operation", "part", "pass", "ms"), operations),
        ]
    )


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned table in Markdown. Columns after the first are aligned to the right if all cells are numbers."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    line = lambda cells: "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
    return "\n".join([line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def format_spread(spread: Spread) -> str:
    """Seconds as `12.3 ms (12.1 to 12.9)`."""
    scale, unit = next((pair for pair in UNITS if abs(spread.median) >= pair[0]), UNITS[-1])
    median, low, high = (f"{value / scale:.4g}" for value in (spread.median, spread.low, spread.high))
    return f"{median} {unit} ({low} to {high})"


def write_picture(result: Result, path: Path) -> None:
    """Draw the tokens per second of all contestants as bars, a panel for each comparison."""
    from matplotlib.figure import Figure  # slow to import

    count = len(result.comparisons)
    bars = max(len(comparison.contestants) for comparison in result.comparisons)
    figure = Figure(figsize=(7, 1 + count * (0.6 + 0.4 * bars)), layout="constrained")
    for axes, comparison in zip(figure.subplots(count, squeeze=False)[:, 0], result.comparisons, strict=True):
        names = [contestant.name for contestant in comparison.contestants]
        speeds = [contestant.tokens_per_second for contestant in comparison.contestants]
        drawn = axes.barh(names, speeds, color=["tab:blue" if name == "gptjax" else "tab:gray" for name in names])
        axes.bar_label(drawn, labels=[f"{speed:,.0f}" for speed in speeds], padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(xlabel="tokens per second", title=comparison.title)
    figure.suptitle(f"{result.config.name}, {result.environment.device}, {result.environment.date}")
    figure.savefig(path, dpi=120)
