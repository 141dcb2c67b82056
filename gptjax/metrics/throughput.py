"""Computes tokens per second and model FLOPs utilization (MFU)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gptjax.metrics.metrics_file import Record


@dataclass(frozen=True)
class RunCost:
    """Counts the tokens and FLOPs of the first n steps of a run, because steps need not be alike."""

    tokens: Callable[[int], int]
    """Number of steps → tokens in them."""
    flops: Callable[[int], float] | None = None
    """Number of steps → FLOPs in them, with causal attention counted as half of full attention."""
    flops_palm: Callable[[int], float] | None = None
    """The same with full attention, as in the PaLM paper (arXiv:2204.02311, appendix B)."""
    peak_flops: float | None = None
    """FLOP/s of all devices together. If it is None, there is no MFU."""

    def count_step(self, step: int) -> dict[str, float]:
        """Count the work of update number `step` (the first is 1), by the name of the rate it leads to."""
        counts = {"tokens_per_second": self.tokens}
        if self.peak_flops:
            counts |= {"mfu": self.flops, "mfu_palm": self.flops_palm}
        return {name: float(count(step) - count(step - 1)) for name, count in counts.items() if count}

    def compute_rates(self, work: Mapping[str, float], seconds: float) -> Record:
        """Return tokens per second and MFU (a share of the peak) for work that took `seconds`; {} without a time."""
        if seconds <= 0 or not work:
            return {}
        peak = self.peak_flops or 1
        mfu = {name: round(flops / seconds / peak, 4) for name, flops in work.items() if name != "tokens_per_second"}
        return {"tokens_per_second": round(work["tokens_per_second"] / seconds, 1)} | mfu
