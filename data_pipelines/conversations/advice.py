"""Commands for files of records that are no conversations and no pairs yet."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.readers.fields import LONGEST_NAME, suggest_renaming
from data_pipelines.readers.formats.json_lines import SUFFIXES
from data_pipelines.readers.formats.tables import TABLE_SUFFIXES, write_header
from data_pipelines.readers.formats.text_files import write_filter
from gptjax.tokenization.messages import CONTENT_KEYS, ROLE_KEYS

_NUMBERED = re.compile(r"(.+?)(?:[ _.-]?\d+|[ _.-][ABab])")
_PLACE = re.compile(r":(?:\d+| (?:item|row|record) \d+)\Z")
_GROUPS = ("conversation_id", "conv_id", "dialogue_id", "dialog_id", "session_id", "thread_id", "chat_id")
"""Fields that messages of one conversation share."""


def suggest_names(record: Mapping[str, Any], names: Sequence[str], *, where: str) -> str:
    """What a message adds for fields whose names are not known: a renaming or, for a table without names, a header."""
    path = find_path(where)
    is_table = path.name.lower().endswith(TABLE_SUFFIXES) and path.is_file()
    if is_table and len(record) == len(names) and any(len(str(name)) > LONGEST_NAME for name in record):
        return f" If that line is data, write names above it: {write_header(path, names)}"
    return suggest_renaming(record, names)


def suggest_grouping(record: Mapping[str, Any], *, where: str) -> str:
    """What a message adds for a record that is a single message; empty for others."""
    path = find_path(where)
    if record.keys().isdisjoint(ROLE_KEYS[:4]) or record.keys().isdisjoint(CONTENT_KEYS) or not path.name:
        return ""
    group = next((name for name in _GROUPS if name in record), None)
    if group is None:
        advice = f" Group the messages by a field that names their conversation, such as {_GROUPS[0]}."
    elif path.name.lower().endswith(SUFFIXES) and path.is_file():
        command = write_filter(f"jq -cs 'group_by(.{group})[] | {{messages: .}}'", path)
        return f" It is a single message; a record is a whole conversation: {command}"
    else:
        advice = f" Make one record of the messages with one {group}."
    return f' It is a single message; a record is a whole conversation, {{"messages": [...]}}.{advice}'


def suggest_label(record: Mapping[str, Any]) -> str:
    """What a message adds for answers whose names have a number or a letter, which do not say which is better."""
    found: dict[str, list[str]] = {}
    for name in (str(key) for key, value in record.items() if isinstance(value, str | list)):
        if stem := _NUMBERED.fullmatch(name):
            found.setdefault(stem[1], []).append(name)
    names = next((names for names in found.values() if len(names) > 1), None)
    if names is None:
        return ""
    return (
        f' No known field says which of "{names[0]}" and "{names[1]}" is better. Write "chosen" and "rejected", or '
        '"response-1" and "response-2" with a "preference" that names one of them.'
    )


def find_path(where: str) -> Path:
    """The file of a place, such as FILE:LINE or FILE: row NUMBER."""
    return Path(_PLACE.sub("", where))
