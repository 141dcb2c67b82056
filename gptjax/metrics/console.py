"""What a run says on a terminal, and how its numbers look there."""

import sys
from collections.abc import Callable, Mapping
from typing import Any


def print_once(*lines: str) -> None:
    """Print on the first process only."""
    import jax  # here, for the pipelines speak too and need no JAX

    # Asking for the index would start the accelerator: not before it is known that the data is whole.
    if not jax.distributed.is_initialized() or jax.process_index() == 0:
        print(*lines, sep="\n", flush=True)


class ConsoleProgress:
    """A progress bar where somebody watches; otherwise a line every so many steps, in fixed columns."""

    def __init__(self, every: int, total_steps: int, start_step: int, tokens: Callable[[int], int]) -> None:
        """`tokens` says how many the first so many steps take: what remains is estimated by them."""
        self._every, self._total, self._tokens = every, total_steps, tokens
        self._bar = _progress_bar(tokens(total_steps), tokens(start_step)) if sys.stdout.isatty() else None

    def training(self, record: Mapping[str, Any]) -> None:
        """Show a training line of metrics.jsonl: all of them in the bar, otherwise every so many and the last."""
        step = record["step"]
        shown = [name for name in _SHOWN if name in record and (name != "skipped" or record[name])]
        text = format_columns({name: record[name] for name in shown})
        if self._bar:
            place = f"{step}/{self._total}"
            self._bar.update(self._bar.task_ids[0], completed=self._tokens(step), place=place, numbers=text)
        elif step % self._every == 0 or step == self._total:
            print(f"{self._place(step)}  {text}{self._left(record)}", flush=True)

    def _left(self, record: Mapping[str, Any]) -> str:
        """How long the rest of the training takes at the rate so far."""
        step = record["step"]
        if "seconds" not in record or step >= self._total:
            return ""
        seen, remaining = self._tokens(step), self._tokens(self._total) - self._tokens(step)
        return f"  {format_duration(record['seconds'] / seen * remaining)} left"

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Show an evaluation line: its numbers in one line, its texts below."""
        values = {name: value for name, value in record.items() if name not in ("step", "tokens")}
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        lines = [f"{self._place(record['step'])}  {format_columns(numbers)}"]
        lines += [f"  {name}: {values[name]}" for name in values if name not in numbers]
        if self._bar:
            self._bar.console.print("\n".join(lines), markup=False, highlight=False)
        else:
            print("\n".join(lines), flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()

    def _place(self, step: int) -> str:
        return f"step {step:>{len(str(self._total))}}/{self._total}"


def _progress_bar(total_tokens: int, start_tokens: int) -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    parts = (TextColumn("{task.fields[place]}"), BarColumn(bar_width=20), TextColumn("{task.fields[numbers]}"))
    bar = Progress(*parts, TimeRemainingColumn(elapsed_when_finished=True))
    bar.add_task("", total=total_tokens, completed=start_tokens, place="", numbers="")
    bar.start()
    return bar


_SHOWN = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "skipped")
"""What a terminal shows of a training step, where it is there, in this order."""

_FORMATS = {
    "loss": "loss {:7.4f}",
    "learning_rate": "lr {:.2e}",
    "grad_norm": "grad {:7.3f}",
    "tokens_per_second": "{:>11,.0f} tokens/s",
    "mfu": "mfu {:6.1%}",
    "mfu_palm": "mfu_palm {:.1%}",
    "val_perplexity": "val_perplexity {:.2f}",
    "skipped": "skipped {:.0f}",
}


def format_columns(values: Mapping[str, Any], between: str = "  ") -> str:
    """The values in fixed columns, or closed up where something else than blanks stands between them."""
    shown = [_FORMATS.get(name, name + " {:.4f}").format(value) for name, value in values.items()]
    return between.join(shown if between.isspace() else (" ".join(text.split()) for text in shown))


def format_duration(seconds: float) -> str:
    """Seconds as a person says them: `12.3 s`, `5 min 07 s`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
