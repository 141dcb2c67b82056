"""A change that would be a bug, and the tests that must fail because of it."""

from typing import NamedTuple


class Mutation(NamedTuple):
    """`old` occurs exactly once in `file`. With `new` in its place at least one of `tests` must fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutate(file: str, tests: str, *changes: tuple[str, str]) -> tuple[Mutation, ...]:
    """Changes of one file that the same tests notice. `tests` are files or node ids below tests/, split by blanks."""
    paths = tuple(f"tests/{test}" for test in tests.split())
    return tuple(Mutation(file, old, new, paths) for old, new in changes)
