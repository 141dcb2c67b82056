"""Differences between two configs, by dotted field name."""

import dataclasses
from collections.abc import Iterator
from typing import Any


def diff_configs(base: Any, config: Any) -> list[tuple[str, Any, Any]]:
    """(dotted field, old, new) for each difference. A dataclass whose class changed is one difference.

    1 and 1.0 are equal, because a config file and a command line may write the same number differently.
    """
    return list(_diff(base, config, ""))


def _diff(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        for field in dataclasses.fields(old):
            name = f"{path}.{field.name}" if path else field.name
            yield from _diff(getattr(old, field.name), getattr(new, field.name), name)
    elif isinstance(old, tuple) and isinstance(new, tuple) and _compare_by_item(old, new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from _diff(left, right, f"{path}.{index}")
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield path, old, new


def _compare_by_item(old: tuple, new: tuple) -> bool:
    """Tuples of dataclasses are compared item by item; tuples of plain values read better whole."""
    return len(old) == len(new) and any(dataclasses.is_dataclass(value) for value in (*old, *new))
