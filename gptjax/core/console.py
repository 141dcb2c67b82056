"""Printing in a run of several processes."""

import sys


def print_once(*lines: str, to_stderr: bool = False) -> None:
    """Print the lines, if any, on the first process only. `to_stderr` is for notes beside a result.

    Imports no JAX, and starts a JAX backend only where `jax.distributed` is initialized.
    """
    if not lines:
        return
    jax = sys.modules.get("jax")  # processes that only tokenize never import it
    if jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0:
        print(*lines, sep="\n", file=sys.stderr if to_stderr else sys.stdout, flush=True)
