"""What the handler of a signal has raised, where others drop it or make another error of it."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_SOON_SECONDS = 0.01


@contextlib.contextmanager
def unwrap(kind: type[BaseException]) -> Iterator[None]:
    """Inside the block an error that was made of one of this kind is that one again.

    A native module whose import a signal ends raises an `ImportError` of what the signal's handler has raised. Any
    other error that only follows it, as of a save that fails on the way out, stays: something is lost.
    """
    try:
        yield
    except Exception as error:
        for made in (error, *_list_causes(error)):
            found = made.__cause__ or (made.__context__ if isinstance(made, ImportError) else None)
            if isinstance(found, kind):
                raise found from None
        raise


def _list_causes(error: BaseException) -> list[BaseException]:
    """What an error was made of or has followed, one after another."""
    causes = list[BaseException]()
    while (cause := error.__cause__ or error.__context__) is not None and cause not in causes:
        causes.append(error := cause)
    return causes


def hear_again(number: int) -> None:
    """Let the main thread handle a signal once more, soon: what its handler raised was dropped.

    That happens in callbacks of the garbage collector, whose errors Python prints and forgets.
    """
    timer = threading.Timer(_SOON_SECONDS, signal.pthread_kill, (threading.main_thread().ident, number))
    timer.daemon = True
    timer.start()
