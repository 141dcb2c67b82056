"""The text of a record: a string, a list of strings, or one of these inside an object, by the path of its keys."""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.readers.documents import Document
from gptjax.core.errors import UserError
from gptjax.tokenization.messages import find_role

PARAGRAPHS = "\n\n"
"""What joins the strings of a list."""
MAX_DEPTH = 5
"""Objects inside each other in which messages look for text."""
LONGEST_NAME = 40
"""Characters of a field's name; longer ones are texts."""
SHOWN_FIELDS = 20
CHAT_FIELDS = ("messages", "conversations", "chat_messages", "contents", "mapping")
LABEL = "label"
"""KTO's: whether a completion is a good one. Alone it makes no record."""
QUESTION_AND_ANSWER = (
    *({"instruction", "output"}, {"prompt", "completion"}, {"question", "answer"}, {"context", "response"}),
    *({"instruction", "response"}, {"prompt", "response"}, {"query", "response"}, {"question", "response"}),
    *({"problem", "solution"}, {"inputs", "targets"}),
)
"""Fields of records that are conversations."""
MESSAGE = ({"role", "content"}, {"from", "value"})
"""Fields of a message."""
PAIRS = (
    " Pairs of a better and a worse answer are for python -m data_pipelines.prepare_preferences, with --tokenizer=RUN "
    "of a model that is trained on texts or chats."
)
"""What to say of a record of two answers."""

_ABSENT = object()
"""The value of a field that a record lacks."""


def find_text(record: Mapping[str, Any], field: str, *, absent: list[str] | None = None) -> str | None:
    """The text under `field`: a key, or keys separated by dots, such as `content.text`. None if there is no text.

    In a list of objects the rest of the path is looked up in each: `paragraphs.text`. Of several fields, such as
    `title,body`, the texts become paragraphs. One of them may be null, empty or blank. Those that the record lacks are
    put into `absent`; without that list there is then no text.
    """
    if field in record:
        return join_text(record[field])
    names = split_field(field, record)
    values = [_descend(record, [name] if name in record else name.split(".")) for name in names]
    found = [join_text(value) for value in values]
    if len(names) == 1:
        return found[0]
    lacks = [name for name, value in zip(names, values, strict=True) if value is _ABSENT]
    has_others = any(
        text is None and value not in (None, [], _ABSENT) for text, value in zip(found, values, strict=True)
    )
    if has_others or (lacks and absent is None):
        return None
    if absent is not None:
        absent += lacks
    return join_fields(found)


def split_field(field: str, known: Collection[str]) -> list[str]:
    """The names in a field such as `title,body`, unless one of the known names is that."""
    return [field] if field in known else [name.strip() for name in field.split(",")]


def join_fields(texts: Sequence[str | None]) -> str | None:
    """The texts of several fields as paragraphs, without blank ones; None where no field has a text."""
    given = [text for text in texts if text is not None]
    return PARAGRAPHS.join(text for text in given if text.strip()) if given else None


def join_bytes(texts: Sequence[Document | None]) -> bytes | None:
    """The same of texts as bytes, which need not be UTF-8."""
    text = join_fields([None if text is None else str(text, "utf-8", "surrogateescape") for text in texts])
    return None if text is None else text.encode("utf-8", "surrogateescape")


def rename_fields(record: Any, renamed: Mapping[str, str], *, known: frozenset[str], where: str) -> Any:
    """A record with its fields under other names; what is no object, as it is.

    `renamed` is from the name in the file, or from the path of a field inside another, to the name here. It takes the
    place of a field of that name; of several for one name, the first that the record has. Others get the name in
    `known` that differs from theirs in capitals and blanks only. Known fields beside one that is inside another, such
    as a `system` beside messages, become fields of the record, unless it has a text of its own there. Raises
    `UserError` for a path through a list of objects.
    """
    if not isinstance(record, dict):
        return record
    fields = record
    if renamed:
        fields = _move_fields(record, renamed, known=known, where=where)
    spelled: dict[str, str] = {}
    for key in fields:
        if key not in known and (plain := plain_name(key)) in known and plain not in fields:
            spelled.setdefault(plain, key)
    if not spelled:
        return fields
    names = {key: plain for plain, key in spelled.items()}
    return {names.get(key, key): value for key, value in fields.items()}


def _move_fields(
    record: dict[str, Any], renamed: Mapping[str, str], *, known: frozenset[str], where: str
) -> dict[str, Any]:
    """The record with the fields that `renamed` names, and with the known ones beside those, in it itself."""
    found = {name: steps for name in renamed if (steps := _find_steps(record, name, where=where))}
    used = {(id(holder), key) for steps in found.values() for holder, key in steps}
    beside: dict[str, Any] = {}
    for holder in (holder for steps in found.values() for holder, _ in reversed(steps[1:])):
        for key, value in holder.items():
            plain = plain_name(key)
            if plain in known and value is not None and (id(holder), key) not in used and _is_blank(beside.get(plain)):
                beside[plain] = value
    kept = {key: value for key, value in record.items() if (id(record), key) not in used}
    kept = {key: value for key, value in kept.items() if plain_name(key) not in beside or not _is_blank(value)}
    given = {new: holder[key] for old, new in reversed([*renamed.items()]) for holder, key in found.get(old, ())[-1:]}
    return beside | kept | given


def list_hidden(record: Any, renamed: Mapping[str, str], *, where: str) -> set[str]:
    """Fields of objects on the paths in `renamed` of which the record itself has others, so that its own are read."""
    paths = [name for name in renamed if isinstance(record, dict) and name not in record and "." in name]
    steps = [_find_steps(record, name, where=where) for name in paths]
    own = {plain_name(key): _strip(value) for key, value in record.items() if not _is_blank(value)} if steps else {}
    beside = [(plain_name(key), value) for each in steps for holder, _ in each[1:] for key, value in holder.items()]
    return {key for key, value in beside if not _is_blank(value) and own.get(key, _strip(value)) != _strip(value)}


def _strip(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _is_blank(value: Any) -> bool:
    """Whether a value is nothing, or a text without a character to read."""
    return value is None or (isinstance(value, str) and not value.strip())


def _find_steps(record: dict[str, Any], name: str, *, where: str) -> list[tuple[dict[str, Any], str]]:
    """The objects on the way to the field of that name or path, each with its key; [] if there is none."""
    steps: list[tuple[dict[str, Any], str]] = []
    value: Any = record
    for key in [name] if name in record else name.split("."):
        if isinstance(value, list) and any(isinstance(item, dict) and key in item for item in value):
            path = ".".join(key for _, key in steps)
            raise UserError(
                f'{where}: --rename-fields={name}: "{path}" is a list, and a path leads through objects alone. Name '
                f"the list itself, such as {path}:messages."
            )
        if not isinstance(value, dict) or key not in value or (value[key] is None and value is not record):
            return []
        steps.append((value, key))
        value = value[key]
    return steps


def list_columns(names: Collection[str]) -> tuple[str, ...]:
    """Names, and the outer fields of those that are paths."""
    return tuple(dict.fromkeys([*names, *(name.partition(".")[0] for name in names)]))


def suggest_path(record: Any) -> str:
    """What a message adds for messages that are under a name that is not known, or inside other fields."""
    values = dict(_list_values(record, ""))
    lists = [path for path, value in values.items() if isinstance(value, list) and value and is_message(value[0])]
    if len(lists) != 1:
        return ""
    names = f"{lists[0]}:messages"
    if {find_role(message) for message in values[lists[0]]} <= {"user", "system"}:
        answers = [path for path, value in values.items() if is_message(value) and find_role(value) == "assistant"]
        # A text is not offered: it may be an id or the name of a language.
        names = f"{lists[0]}:prompt,{answers[0] if len(answers) == 1 else 'NAME'}:completion"
    return f" Say where its messages are: --rename-fields={shlex.quote(names)}"


def plain_name(name: object) -> str:
    """A field's name in lower case, with underscores in place of blanks."""
    return str(name).strip().lower().replace(" ", "_")


def parse_renaming(spec: str | None) -> dict[str, str]:
    """The names of `--rename-fields=Q:prompt,A:completion`. Raises `UserError` for another form."""
    pairs = [pair.rpartition(":") for pair in spec.split(",")] if spec else []
    if not all(old.strip() and new.strip() for old, _, new in pairs):
        meant = (spec or "").replace("=", ":") if "=" in (spec or "") else "Q:prompt,A:completion"
        raise UserError(f"--rename-fields={spec}: wanted NAME:NEW, several with commas, such as {meant}.")
    return {old.strip(): new.strip() for old, _, new in pairs}


def suggest_renaming(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """What a message adds for texts under names that are not known; `names` are those that are wanted."""
    texts = [str(key) for key, value in record.items() if isinstance(value, str) and value.strip()]
    if not all(text.strip() and text.isprintable() for text in texts):
        return ""
    if any(len(text) > LONGEST_NAME for text in texts):
        return f" If these are no names but data, write a first line of names: {','.join(names)}"
    are_all = len(texts) == len(names) == len(record)  # beside others there may be one that says which is which
    pairs = ",".join(f"{text}:{name}" for text, name in zip(texts if are_all else ["NAME"] * 9, names, strict=False))
    return f" Say what they are: --rename-fields={shlex.quote(pairs)}" if len(texts) >= len(names) else ""


def join_text(value: Any) -> str | None:
    """A string, or the strings of a list as paragraphs; None for anything else."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return PARAGRAPHS.join(value)
    return value if isinstance(value, str) else None


def _descend(value: Any, keys: list[str]) -> Any:
    for number, key in enumerate(keys):
        if isinstance(value, list):
            return [_descend(item, keys[number:]) for item in value]
        if value is None or value is _ABSENT:
            return value
        value = value.get(key, _ABSENT) if isinstance(value, Mapping) else False  # as wrong as other types
    return value


def describe_fields(record: Mapping[str, Any]) -> str:
    """The fields of a record that hold text, those in objects by their path; all of its keys if there is none."""
    paths = [path for path in _list_paths(record, "") if find_text(record, path) is not None]
    return list_fields([f'"{name}"' for name in paths or record])


def suggest_command(names: Collection[str]) -> str:
    """What a message adds for fields of conversations or of pairs: the command that reads them."""
    plain = {plain_name(name) for name in names}
    if {"chosen", "rejected"} <= plain:
        return PAIRS
    pairs = (*QUESTION_AND_ANSWER, *MESSAGE)
    is_chat = not plain.isdisjoint(CHAT_FIELDS) or any(pair <= plain for pair in pairs)
    return " Conversations are for python -m data_pipelines.prepare_chat." if is_chat else ""


def suggest_for_tokens(names: Collection[str]) -> str:
    """What a message adds for the columns of a set that was tokenised before."""
    ids = next((name for name in ("input_ids", "tokens") if name in names), None)
    advice = (
        f" {ids} are token ids. Give the texts that they were made of or, as NumPy's train.npy of all ids one after "
        "another, the ids to python -m data_pipelines.index_shards."
    )
    return advice if ids else ""


def is_message(value: Any) -> bool:
    """Whether a value is one message of a conversation."""
    return isinstance(value, Mapping) and any(fields <= set(value) for fields in MESSAGE)


def suggest_for_list(value: Any) -> str:
    """The same for a list: messages, or lists of them, are for `prepare_chat`."""
    while isinstance(value, list) and value:
        value = value[0]
    return suggest_command(value) if isinstance(value, Mapping) else ""


def suggest_prepare(names: Collection[str]) -> str:
    """What a message adds where turns are wanted and there is a text."""
    return " Text without turns is for python -m data_pipelines.prepare." if "text" in names else ""


def list_fields(names: list[str]) -> str:
    """Names of fields as a message shows them: not more than a reader would look at."""
    return ", ".join(names[:SHOWN_FIELDS]) + (f" and {len(names) - SHOWN_FIELDS} more" * (len(names) > SHOWN_FIELDS))


def _list_values(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of the fields of a record, and of those inside objects."""
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        name = f"{path}.{key}" if path else str(key)
        yield name, inner
        if name.count(".") < MAX_DEPTH and name.replace(".", "").isidentifier():
            yield from _list_values(inner, name)


def _list_paths(value: Any, path: str) -> Iterator[str]:
    """The paths of all values in a record that are no objects."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = value[0]
    if not isinstance(value, Mapping) or path.count(".") >= MAX_DEPTH:
        yield path
        return
    for key, inner in value.items():
        yield from _list_paths(inner, f"{path}.{key}" if path else str(key))
