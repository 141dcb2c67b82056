"""What JAX does at a SIGTERM, of which Python does not know: it lets all processes of a run stop at the same step."""

import ctypes
import functools
import signal
from collections.abc import Callable


@functools.cache
def take_jax_handler() -> Callable[[int], object] | None:
    """JAX's handler; None without one. The signal is left without it, and later calls return the same.

    Call it in the main thread, once `jax.distributed` is initialized.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    address = libc.signal(signal.SIGTERM, None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Python may believe that an earlier handler of its own still holds
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(address) if address not in (None, 0, 1) else None
