"""Counts the parts of long work, so that a watchdog can tell it from work that hangs."""

_count = 0


def note_progress() -> None:
    """Another part is done: a file that was read, or a batch."""
    global _count
    _count += 1


def count_progress() -> int:
    """Parts done since this process began."""
    return _count
