"""The text of a record: a string, a list of strings, or one of these inside an object, by the path of its keys."""

from collections.abc import Mapping
from typing import Any

PARAGRAPHS = "\n\n"
"""What joins the strings of a list."""


def find_text(record: Mapping[str, Any], field: str) -> str | None:
    """The text under `field`: a key, or keys separated by dots, such as `content.text`. None if there is no text."""
    value = record[field] if field in record else _descend(record, field.split("."))
    return join_text(value)


def join_text(value: Any) -> str | None:
    """A string, or the strings of a list as paragraphs; None for anything else."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return PARAGRAPHS.join(value)
    return value if isinstance(value, str) else None


def _descend(record: Any, keys: list[str]) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def describe_fields(record: Mapping[str, Any]) -> str:
    """The fields of a record that hold text, those in objects by their path; all of its keys if there is none."""
    paths = [key for key, value in record.items() if join_text(value) is not None]
    paths += [
        f"{key}.{inner}"
        for key, value in record.items()
        if isinstance(value, Mapping)
        for inner in value
        if join_text(value[inner]) is not None
    ]
    return ", ".join(paths or record)
