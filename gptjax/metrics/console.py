"""Shows the progress of a run on a terminal, and formats its numbers."""

import sys
from collections.abc import Callable, Mapping
from typing import Any


class ConsoleProgress:
    """Shows a progress bar on an interactive terminal, and elsewhere one line every few steps, in fixed columns."""

    def __init__(
        self,
        every: int,
        total_steps: int,
        *,
        start_step: int,
        tokens: Callable[[int], int],
        start_seconds: float = 0.0,
    ) -> None:
        """`every` is in steps. `tokens(n)` is the number of tokens in the first n steps; times are estimated by it.

        `start_seconds` is the training time of the first `start_step` steps.
        """
        self._every, self._total, self._tokens = every, total_steps, tokens
        self._last_line = (tokens(start_step), start_seconds)
        self._bar = _start_bar(tokens(total_steps), tokens(start_step)) if sys.stdout.isatty() else None

    def show_training(self, record: Mapping[str, Any]) -> None:
        """Show a training record. The bar shows all of them; the lines show every few steps and the last.

        Rates are those since the last line: a step's own depends on when the host learns that it is done.
        """
        step, record = record["step"], self._average_rates(record)
        shown = [name for name in _TRAINING_COLUMNS if name in record and (name != "skipped" or record[name])]
        text = format_columns({name: record[name] for name in shown})
        if self._bar:
            place = f"{step}/{self._total}"
            self._bar.update(self._bar.task_ids[0], completed=self._tokens(step), place=place, numbers=text)
        elif step % self._every == 0 or step == self._total:
            print(f"{self._format_step(step)}  {text}{self._format_remaining(record)}", flush=True)

    def _average_rates(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        tokens, seconds = self._last_line
        step, rate = record["step"], record.get("tokens_per_second")
        if not rate or record.get("seconds", 0.0) <= seconds:
            return record
        mean = (self._tokens(step) - tokens) / (record["seconds"] - seconds)
        if step % self._every == 0:
            self._last_line = (self._tokens(step), record["seconds"])
        return {**record, "tokens_per_second": mean} | ({"mfu": record["mfu"] * mean / rate} if "mfu" in record else {})

    def show_evaluation(self, record: Mapping[str, Any]) -> None:
        """Show an evaluation record: its numbers in one line, its texts below."""
        values = {name: value for name, value in record.items() if name not in ("step", "tokens")}
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        lines = [f"{self._format_step(record['step'])}  {format_columns(numbers)}".rstrip()]
        lines += [f"  {name}: {values[name]}" for name in values if name not in numbers]
        if self._bar:
            self._bar.console.print("\n".join(lines), markup=False, highlight=False)
        else:
            print("\n".join(lines), flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()

    def _format_step(self, step: int) -> str:
        return f"step {step:>{len(str(self._total))}}/{self._total}"

    def _format_remaining(self, record: Mapping[str, Any]) -> str:
        """Estimate the rest of the training time from the tokens per second so far."""
        step = record["step"]
        if "seconds" not in record or step >= self._total:
            return ""
        completed, remaining = self._tokens(step), self._tokens(self._total) - self._tokens(step)
        return f"  {format_duration(record['seconds'] / completed * remaining)} left"


def _start_bar(total_tokens: int, completed_tokens: int) -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # slow to import

    columns = (TextColumn("{task.fields[place]}"), BarColumn(bar_width=20), TextColumn("{task.fields[numbers]}"))
    bar = Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True))
    bar.add_task("", total=total_tokens, completed=completed_tokens, place="", numbers="")
    bar.start()
    return bar


_TRAINING_COLUMNS = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "skipped")
"""The numbers of a training step that are shown, in this order."""

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


def format_columns(values: Mapping[str, Any], separator: str = "  ") -> str:
    """Format the values in fixed columns, or without padding if the separator is not blank."""
    texts = [_FORMATS.get(name, name + " {:.4f}").format(value) for name, value in values.items()]
    return separator.join(texts if separator.isspace() else (" ".join(text.split()) for text in texts))


def format_duration(seconds: float) -> str:
    """Format seconds as `12.3 s`, `5 min 07 s` or `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
