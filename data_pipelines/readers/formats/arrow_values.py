"""Values of Arrow, as Parquet and Arrow files hold them: texts as bytes, and rows as records.

A text need not be UTF-8, whatever its type says. pyarrow would refuse a whole batch for one that is not.
"""

from collections.abc import Iterator
from typing import Any

from data_pipelines.readers.documents import Document
from data_pipelines.readers.fields import PARAGRAPHS, find_text, join_bytes, split_field
from gptjax.tokenization.messages import SKIPPED, InvalidRecord

NOT_UTF8 = f"{SKIPPED}not UTF-8"


def find_column(batch: Any, column: str) -> Any:
    """The array of a column, or of a field inside a struct, or inside the structs of a list."""
    from pyarrow import types

    if column in batch.schema.names:
        return batch.column(column)
    first, *rest = column.split(".")
    values = batch.column(first)
    for number, name in enumerate(rest):
        if not types.is_struct(values.type):  # the structs of a list: their fields as a list
            return _join_structs(values, ".".join(rest[number:]))
        values = values.flatten()[values.type.get_field_index(name)]  # unlike `field`, with the struct's own nulls
    return values


def _join_structs(values: Any, path: str) -> Any:
    """An array of bytes: the texts at `path` in the structs of each list, joined."""
    import pyarrow

    texts = [find_text({"list": _decode(value.as_py())}, f"list.{path}") for value in check_values(values)]
    content = [None if text is None else text.encode("utf-8", "surrogateescape") for text in texts]
    return pyarrow.array(content, pyarrow.large_binary())


def _decode(value: Any) -> Any:
    """Bytes as text, those that are not UTF-8 as surrogates."""
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def iter_texts(batch: Any, field: str, *, checks: bool = False) -> Iterator[Document | None]:
    """The text of each row, from one column or from several, such as `title,body`; None where there is none.

    `checks` is for values that no reader has looked at.
    """
    columns = [find_column(batch, name) for name in split_field(field, batch.schema.names)]
    texts = [join_values(check_values(column) if checks else column) for column in columns]
    yield from texts[0] if len(texts) == 1 else map(join_bytes, zip(*texts, strict=True))


def join_values(values: Any) -> Iterator[Document | None]:
    """The bytes of each string, or of the joined strings of a list; None for a null."""
    import pyarrow

    if is_list(values.type):
        for value in values.cast(pyarrow.large_list(pyarrow.large_binary())):
            parts = value.as_py()
            yield PARAGRAPHS.encode().join(parts) if parts and None not in parts else None
        return
    if values.type == "string_view":  # which cannot be cast to binary at once
        values = values.view("binary_view")
    for value in values.cast("large_binary"):
        yield memoryview(value.as_buffer()).cast("B") if value.is_valid else None


def check_values(values: Any) -> Any:
    """The values, their texts as bytes, once their offsets are known to lie inside their buffers.

    Beyond these the library would read. As bytes, a text that is not UTF-8 does not count as damage.
    """
    values = values.view(_type_of_bytes(values.type))
    values.validate(full=True)
    return values


def _type_of_bytes(kind: Any) -> Any:
    """A type with bytes in place of strings, also inside of structs and lists."""
    import pyarrow
    from pyarrow import types

    bytes_of = {"string": pyarrow.binary, "large_string": pyarrow.large_binary, "string_view": pyarrow.binary_view}
    if str(kind) in bytes_of:
        return bytes_of[str(kind)]()
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_type_of_bytes(field.type)) for field in kind])
    if not is_list(kind):
        return kind
    item = kind.value_field.with_type(_type_of_bytes(kind.value_type))
    if types.is_fixed_size_list(kind):
        return pyarrow.list_(item, kind.list_size)
    return pyarrow.large_list(item) if types.is_large_list(kind) else pyarrow.list_(item)


def iter_records(batch: Any, path: str, first: int) -> Iterator[tuple[str, Any]]:
    """Yield (PATH: row NUMBER, the row), from number `first` on; an `InvalidRecord` for a row that is not UTF-8."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_read_row(batch, number) for number in range(len(batch))]
    for number, row in enumerate(rows, start=first):
        where = f"{path}: row {number}"
        yield where, InvalidRecord(f"{where}: has a text that is not UTF-8.", NOT_UTF8) if row is None else row


def _read_row(batch: Any, number: int) -> Any:
    try:
        return batch.slice(number, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return None


def is_list(kind: Any) -> bool:
    """Whether a type is a list of any kind."""
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
